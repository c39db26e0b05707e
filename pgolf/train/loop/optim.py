"""Muon for matrices, AdamW for the rest, their learning-rate schedule and the average of the weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Muon, Jordan 2024: steepest at zero, not convergent to 1


@dataclass(frozen=True)
class OptimSettings:
    """Peak learning rates of matrices (Muon), the embedding and vectors (AdamW), and what goes with them.

    Weight decay is decoupled and does not touch vectors.
    """

    matrix_lr: float = 0.02
    embedding_lr: float = 0.005
    vector_lr: float = 0.005
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.95
    matrix_decay: float = 0.02
    embedding_decay: float = 0.0


def orthogonalize(G: Tensor, *, steps: int = 5) -> Tensor:
    """U S' Vᵀ of every matrix U S Vᵀ of G [n, R, C], with all singular values S' near 1 (about 0.7 to 1.2)."""
    a, b, c = NEWTON_SCHULZ
    X = G.bfloat16() if G.is_cuda else G.float()
    tall = X.size(-2) > X.size(-1)
    X = X.mT if tall else X
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    found: Tensor = X.mT if tall else X
    return found.to(G.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan 2024), with Nesterov momentum and decoupled weight decay.

    params: matrices [R, C] or banks [n, R, C], which are orthogonalised matrix by matrix. The update of a matrix has a
    spectral norm of about lr · sqrt(max(1, R / C)). torch.optim.Muon orthogonalises one matrix at a time, always in
    bfloat16, which is fifty times slower than float32 on a CPU without bfloat16 units; here matrices of one shape go
    together, in float32 off CUDA.
    """

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # nothing here evaluates twice
        """One update; matrices of equal shape are orthogonalised in one batch."""
        for group in self.param_groups:
            by_shape: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[(param.shape[-2:], param.device, param.dtype)].append(param)
            for params in by_shape.values():
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        rows, cols = params[0].shape[-2:]
        lr = group["lr"] * max(1.0, rows / cols) ** 0.5
        directions = [self._nesterov(param, group["momentum"]).reshape(-1, rows, cols) for param in params]
        updates = torch.split(orthogonalize(torch.cat(directions)), list(map(len, directions)))
        for param, update in zip(params, updates, strict=True):
            param.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update.view_as(param), alpha=-lr)

    def _nesterov(self, param: Tensor, momentum: float) -> Tensor:
        state, gradient = self.state[param], param.grad
        assert gradient is not None  # `step` takes no others
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param)
        average = state["momentum"].lerp_(gradient, 1.0 - momentum)
        return gradient.lerp(average, momentum)


def build_optimizers(model: nn.Module, settings: OptimSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and banks of `model`, AdamW for its embeddings and everything of one dimension."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    params = [param for param in model.parameters() if param.requires_grad]
    matrices = [p for p in params if p.ndim >= 2 and id(p) not in embeddings]
    groups = [
        _group([p for p in params if id(p) in embeddings], settings.embedding_lr, settings.embedding_decay),
        _group([p for p in params if p.ndim < 2], settings.vector_lr, 0.0),
    ]
    used = [group for group in groups if group["params"]]
    adamw = torch.optim.AdamW(used, betas=(settings.beta1, settings.beta2), eps=1e-10)
    muon = Muon(matrices, lr=settings.matrix_lr, momentum=settings.momentum, weight_decay=settings.matrix_decay)
    optimizers: list[torch.optim.Optimizer] = [muon, adamw]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["peak_lr"] = group["lr"]
    return optimizers


def _group(params: list[nn.Parameter], lr: float, weight_decay: float) -> dict[str, Any]:
    return {"params": params, "lr": lr, "weight_decay": weight_decay}


def lr_scale(progress: float, *, warmup: float, warmdown: float) -> float:
    """Share of the peak learning rate at `progress` in [0, 1]: linear up over `warmup`, linear to 0 over `warmdown`."""
    up = progress / warmup if warmup else 1.0
    down = (1.0 - progress) / warmdown if warmdown else 1.0
    return min(1.0, up, down)


class WeightAverage:
    """Exponential moving average of a module's parameters; a young one forgets faster, so the start leaves no trace."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._params = dict(model.named_parameters())
        self._average = {name: param.detach().clone() for name, param in self._params.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the parameters as they are now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self._average.values()), list(self._params.values()), 1.0 - decay)
        self.updates += 1

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Overwrite the module's parameters with their averages."""
        for name, param in self._params.items():
            param.copy_(self._average[name])

    def state_dict(self) -> dict[str, Any]:
        """The averages by parameter name, and how many updates made them."""
        return {"average": dict(self._average), "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        for name, average in self._average.items():
            average.copy_(state["average"][name])
        self.updates = state["updates"]
