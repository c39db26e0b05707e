"""Quantization-aware training of any module, in two lines of its trainer.

    qat = QAT(model, "int6", k=12.85, start=0.85)
    qat.step(progress)        # once an update, before its forward pass; progress goes from 0 to 1

What will surprise you:
* Nothing is wrapped. From `step` to the optimizer's step the parameters themselves hold quantized values: forward and
  backward run on them, whatever the model does with a weight (banks, tied heads, einsum) and however it is compiled,
  wrapped, accumulated or cast. There is no flag that a compiler could fold away, and no name changes.
* The trained weights come back before any torch.optim.Optimizer that owns them steps; gradients taken at the quantized
  values are applied to them, which is the straight-through estimator. An optimizer that is not a torch.optim.Optimizer
  needs a call of `restore` before it; forgetting it is an error at the next step, not a silent one (on a GPU, after the
  first updates, within a few more).
* `model.state_dict()` always gives the trained weights, so a checkpoint or average of them is never the rounded one.

Whether it pays is a matter of measurement: with error feedback in the packer it did not on a short training run
(benchmarks/results/qat.json); for two-bit grids without feedback it wins most of the loss back
(tests/train/test_run_folder_qat.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pgolf.errors import UsageError
from pgolf.fitting import obeyed, plan
from pgolf.models.logits import original
from pgolf.quant import describe
from pgolf.quant.curvature.store import Curvature
from pgolf.quant.settings import Settings
from pgolf.train.qat.groups import Group, groups_of, shape_of
from pgolf.train.qat.lattice import Lattice, auto_lattices, joined, parted, row_lattice, with_spread
from pgolf.train.qat.rate import coded_bits
from pgolf.train.qat.rounding import ROUNDINGS, Moment
from pgolf.train.qat.settings import QATOptions, QATReport, QATSettings

SPREAD_UPDATES = 16  # updates for which the spread of codes is believed
PROBE = 64  # values by which a parameter is recognised as unchanged
WATCHED = 16  # updates after which a GPU is asked only once in so many: it must not be waited for at each


@dataclass
class _Held:
    """A parameter that holds quantized values: its trained ones and the gradient's factor."""

    param: Tensor
    trained: Tensor
    slope: Tensor | None


class QAT:
    """Hooks of one model; see the module's docstring.

    Everything is a function of (weights, seed, number of updates): the same run twice, or resumed, gives the same bits.
    grid, rules, options: as in QATSettings. k: SDClip's clip, as in the grid's "k=12.85". curvature: what method `auto` and its
    lattices need: a Curvature, or a function that measures one on the model as it then is.
    Raises UsageError if no tensor would be touched, for patterns that match none, and for settings that make no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        grid: str = "",
        *,
        k: float | None = None,
        curvature: Curvature | Callable[[], Curvature] | None = None,
        rules: Sequence[str] = (),
        **options: Unpack[QATOptions],
    ) -> None:
        words = [word for word in (grid, "" if k is None else f"k={k:g}") if word]
        self.settings = QATSettings(grid=",".join(words), rules=tuple(rules), **options)
        self.model, self.updates = original(model), 0
        self._curvature = curvature
        self._params = dict(self.model.named_parameters())
        self._plans = _plans(self._params, self.settings)
        self._targets = {name: p.settings for name, p in self._plans.items() if p.settings is not None}
        self._refuse_nonsense()
        self._lattices: dict[str, Lattice] = {}
        self._calibrated: float | None = None
        self._spread_wanted = self.settings.rounding == "noise" or self.settings.rate > 0
        self._held: list[_Held] = []
        self._probes: Tensor | None = None  # what the parameters should look like while they hold quantized values
        self._changed: Tensor | None = None  # whether anything was, since the host last asked
        self._handles = [
            register_optimizer_step_pre_hook(_before_optimizer(weakref.ref(self))),
            self.model.register_state_dict_post_hook(  # type: ignore[no-untyped-call] # torch gives it no types
                _show_trained(weakref.ref(self))
            ),
        ]

    @property
    def active(self) -> bool:
        """Whether the parameters hold quantized values now."""
        return bool(self._held)

    def report(self) -> QATReport:
        """What is touched and how, what is not and why."""
        touched = {n: (tuple(self._params[n].shape), self._describe(s)) for n, s in self._targets.items()}
        weights = sum(self._params[name].numel() for name in touched)
        kept = {name: p.kept for name, p in self._plans.items() if p.settings is None}
        return QATReport(touched, kept, weights, sum(param.numel() for param in self._params.values()))

    def __str__(self) -> str:
        return str(self.report())

    @torch.no_grad()
    def step(self, progress: float) -> bool:
        """Put quantized values in place if QAT has started by `progress` (0..1); whether it has.

        Further calls before the optimizer's step change nothing, so accumulation may call it for every pass.
        """
        if self._held:
            self._check_untouched()
            return True
        if progress < self.settings.start:
            return False
        groups = [(group, group.together(self._params)) for group in groups_of(self._params, self._targets)]
        self._renew(progress, groups)
        moment = self._moment(progress)
        for group, trained in groups:
            self._held += self._quantized(group, trained, moment)
        self._probes = self._looks()
        self.updates += 1
        return True

    @torch.no_grad()
    def restore(self) -> None:
        """Trained weights back in place. Call it before clipping gradients of soft rounding: it scales them."""
        if not self._held:
            return
        self._check_untouched()
        torch._foreach_copy_([held.param for held in self._held], [held.trained for held in self._held])
        for held in self._held:
            if held.slope is not None and held.param.grad is not None:
                held.param.grad.mul_(held.slope.view_as(held.param))
        self._held = []

    def rate(self) -> Tensor:
        """Coded bits a touched weight, estimated from the trained weights; its gradient reaches the parameters."""
        if not self._lattices or not self._spread_wanted:
            self._spread_wanted = True
            with torch.no_grad():
                groups = groups_of(self._params, self._targets)
                self._renew(self._calibrated or 0.0, [(group, group.together(self._params)) for group in groups])
        trained = {id(held.param): held.trained for held in self._held}
        bits = []
        for name, lattice in self._lattices.items():
            param = self._params[name]
            weight = param if id(param) not in trained else param + (trained[id(param)] - param).detach()
            bits.append(coded_bits(weight.float().view(shape_of(param)), lattice))
        return torch.stack(bits).sum() / sum(self._params[name].numel() for name in self._lattices)

    def remove(self) -> None:
        """Restore, and let go of the model."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, apart from settings and weights."""
        return {
            "updates": self.updates,
            "calibrated": self._calibrated,
            "lattices": {name: vars(lattice) for name, lattice in self._lattices.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.updates, self._calibrated = state["updates"], state["calibrated"]
        self._lattices = {
            name: Lattice(**_moved(fields, self._params[name].device)) for name, fields in state["lattices"].items()
        }

    def _refuse_nonsense(self) -> None:
        if not self._targets:
            why = next((f" ({name}: {p.kept})" for name, p in self._plans.items()), "")
            raise UsageError(f"QAT touches nothing: no tensor of this model would be quantized{why}")
        if self._curvature is None and any(s.method == "auto" for s in self._targets.values()):
            raise UsageError(
                "QAT for method auto needs curvature: pass curvature=lambda: pgolf.calibrate(model, batches)"
            )

    def _describe(self, settings: Settings) -> str:
        if settings.method == "auto":
            return f"auto at {self.settings.bits:g} bits a weight, {self.settings.rounding}"
        return f"{describe(settings)}, {self.settings.rounding}"

    def _quantized(self, group: Group, trained: Tensor, moment: Moment) -> list[_Held]:
        """Quantized values in the place of a group's parameters, whose trained ones [k, ...] are given."""
        params: list[Tensor] = [self._params[name] for name in group.names]
        lattice = joined([self._lattices[name] for name in group.names])
        values, slopes = ROUNDINGS[self.settings.rounding](group.matrices(trained), lattice, moment)
        torch._foreach_copy_(params, list(values.view_as(trained)))
        each = [None] * len(params) if slopes is None else slopes.view_as(trained)
        return [_Held(*parts) for parts in zip(params, trained, each, strict=True)]

    def _moment(self, progress: float) -> Moment:
        """This update's own noise: seeded by how many went before, so that a resumed run draws the same."""
        device = next(iter(self._params.values())).device
        seed = np.random.SeedSequence([self.settings.seed, self.updates]).generate_state(1, np.uint64)[0]
        generator = torch.Generator(device).manual_seed(int(seed >> np.uint64(1)))
        return Moment((progress - self.settings.start) / (1 - self.settings.start), generator)

    def _renew(self, progress: float, groups: Sequence[tuple[Group, Tensor]]) -> None:
        """Row grids follow the weights at every update; the lattices of `auto` and all spreads now and then."""
        due = self._calibrated is None or progress - self._calibrated >= self.settings.recalibrate
        fresh: dict[str, Lattice] = {}
        for group, trained in groups:
            if group.settings.method != "auto":
                lattice = row_lattice(group.matrices(trained), group.settings)
                fresh |= zip(group.names, parted(lattice, group.shape[0]), strict=True)
        if due and len(fresh) < len(self._targets):
            fresh |= self._water_filled()
        if due:
            self._calibrated = progress
        for name, lattice in fresh.items():
            old = self._lattices.get(name)
            self._lattices[name] = lattice if old is None else replace(lattice, spread=old.spread)
        missing = any(lattice.spread is None for lattice in self._lattices.values())
        if self._spread_wanted and (due or missing or self.updates % SPREAD_UPDATES == 0):
            self._lattices = {n: with_spread(lat, _matrices(self._params[n])) for n, lat in self._lattices.items()}

    def _water_filled(self) -> dict[str, Lattice]:
        settings = {name: s for name, s in self._targets.items() if s.method == "auto"}
        with torch.enable_grad():
            curvature = self._curvature() if callable(self._curvature) else self._curvature
        assert curvature is not None
        known = {name: found for name in settings if (found := curvature.matrices(name)) is not None}
        weights = {name: _matrices(self._params[name]) for name in settings}
        return auto_lattices(weights, known, settings, self.settings.bits)

    def _looks(self) -> Tensor:
        """The first values of each parameter that holds quantized ones."""
        return torch.cat([held.param.detach().flatten()[:PROBE].float() for held in self._held])

    def _check_untouched(self) -> None:
        """UsageError if somebody wrote to the parameters while they held quantized values."""
        assert self._probes is not None
        changed = (self._looks() != self._probes).any()
        self._changed = changed if self._changed is None else self._changed | changed
        if changed.device.type != "cpu" and self.updates > WATCHED and self.updates % WATCHED:
            return
        changed, self._changed = self._changed, None
        if changed:
            raise UsageError(
                "the weights changed while QAT held quantized values in them: call qat.restore() before your optimizer's "
                "step (only a torch.optim.Optimizer is noticed by itself)"
            )


def _plans(params: dict[str, nn.Parameter], settings: QATSettings) -> dict[str, plan.TensorPlan]:
    """How the packer would treat every parameter under these settings."""
    try:
        grid = [replace(plan.parse_rule(f"*={settings.grid}"), general=True)] if settings.grid else []
        method = str(grid[0].fields.get("method", "sdclip")) if grid else "sdclip"
        rules = [plan.parse_rule(rule, method) for rule in settings.rules]
        tensors = {name: param.detach() for name, param in params.items()}
        plans = plan.make(tensors, method="sdclip", rules=[*grid, *rules], base=Settings())
        obeyed.left(rules, plans, tensors)
        return plans
    except UsageError as error:  # it speaks of the option of `pgolf pack` that has the same grammar
        raise UsageError(str(error).replace("--set", "QAT", 1)) from None


def _matrices(param: Tensor) -> Tensor:
    """float32 [n, R, C] of a matrix, bank or convolution."""
    return param.detach().float().view(shape_of(param))


def _moved(value: Any, device: torch.device) -> Any:
    """`value` with all tensors in it, however nested, on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(member, device) for member in value)
    return {name: _moved(member, device) for name, member in value.items()} if isinstance(value, dict) else value


def _before_optimizer(ref: weakref.ref[QAT]) -> Callable[..., None]:
    """A hook for every optimizer: restores if this one owns a parameter that holds quantized values."""

    def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
        qat = ref()
        if qat is None or not qat.active:
            return
        owned = {id(param) for group in optimizer.param_groups for param in group["params"]}
        if any(id(held.param) in owned for held in qat._held):
            qat.restore()

    return hook


def _show_trained(ref: weakref.ref[QAT]) -> Callable[..., None]:
    """A hook for the model's state dict: trained weights where the parameters hold quantized ones."""

    def hook(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        qat = ref()
        if qat is None or not qat.active:
            return
        trained = {id(held.param): held.trained for held in qat._held}
        for name, param in module.named_parameters(remove_duplicate=False):
            if id(param) in trained and prefix + name in state:
                state[prefix + name] = trained[id(param)]

    return hook
