"""A module that runs with weights of our choosing beside its own: the student, and its teacher.

What will surprise you: there is one module. Its parameters' data are exchanged before each pass, so that anybody's class
works without being copied, and the model is as it was once the `with` block of `Student.at_work` ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pgolf.errors import ModelError
from pgolf.fitting.closed.pull import pull
from pgolf.models.checkpoint import Checkpoint
from pgolf.models.logits import device_of, logits_of, original, undisturbed
from pgolf.models.usermodel import names_in
from pgolf.scoring.divergence import Divergence, divergence, in_parts


class Student:
    """places: tensor of the checkpoint → the module's parameter or buffer. weights: its values as the student has them,
    float32 where they are to move; own: as the teacher has them."""

    def __init__(
        self,
        source: Checkpoint,
        model: nn.Module,
        logits: Callable[..., Any] | str | None = None,
        *,
        learns: bool = True,
    ) -> None:
        """learns: False where weights are only tried, never moved: what is as it was is not copied then. Raises ModelError where
        a floating-point tensor of the checkpoint is none of the module's."""
        self.model = original(model)
        self.run = logits_of(self.model, logits)
        self.device = device_of(self.model)
        self.places = places_in(source, self.model)
        self.own = {name: place.data for name, place in self.places.items()}
        self.weights: dict[str, Tensor] = {}
        self._learns = learns
        self._vocabulary = 0  # once it is known
        if learns:
            self.reset({name: source.tensors[name] for name in self.places})
        else:
            self.weights |= self.own

    def reset(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the student these values, on the model's device; copies of them where it learns."""
        for name, tensor in tensors.items():
            dtype = torch.float32 if self._learns else self.own[name].dtype
            copied = self._learns or not isinstance(self.places[name], nn.Parameter)  # a pass may write to buffers
            self.weights[name] = tensor.detach().to(self.device, dtype, copy=copied).contiguous()

    @contextmanager
    def at_work(self, *, gradients: bool) -> Iterator[None]:
        """Eval mode and eager code inside; the model's own weights, modes and flags are back afterwards."""
        with undisturbed(self.model, gradients=gradients):
            try:
                yield
            finally:
                self._take(self.own)

    def _take(self, weights: Mapping[str, Tensor]) -> None:
        for name, place in self.places.items():
            place.data = weights[name].to(self.own[name].dtype)

    def teacher(self, ids: Tensor) -> Tensor:
        """Logits [B, T, V] of the model as it was."""
        self._take(self.own)
        with torch.no_grad():
            return self.run(ids.to(self.device))

    def predict(self, ids: Tensor) -> Tensor:
        """Logits [B, T, V] of the student."""
        self._take(self.weights)
        return self.run(ids.to(self.device))

    def divergence(self, ids: Tensor) -> Divergence:
        """Of the student from its teacher over ids [N, T]."""
        with self.at_work(gradients=False):
            return divergence(self.teacher, self.predict, ids)

    def slopes(self, ids: Tensor, names: Iterable[str]) -> tuple[float, dict[str, Tensor]]:
        """(mean KL over ids [B, T], its float32 gradient by each of the named weights that has one); inside `at_work`.

        A sequence of which the unquantized model itself makes NaN teaches nothing, and is left out.
        """
        moving = [name for name in names if isinstance(self.places[name], nn.Parameter)]
        for name, place in self.places.items():
            if isinstance(place, nn.Parameter):
                place.requires_grad_(name in moving)
        total, sums = 0.0, dict[str, Tensor]()
        self._vocabulary = self._vocabulary or self.teacher(ids[:1]).shape[-1]
        for part in in_parts(ids, self._vocabulary):
            teacher = self.teacher(part).clone()  # a model may write all its logits to one place
            whole = ~teacher.flatten(1).isnan().any(1)
            if not bool(whole.all()):
                part, teacher = part[whole.to(part.device)], teacher[whole]
                if not len(part):
                    continue
            logits = self.predict(part)
            kl, pulled = pull(teacher, logits)
            total += kl / ids.numel()
            del teacher
            if not moving or not logits.requires_grad:  # none of them reaches the logits by a way that can be derived
                continue
            places = [self.places[name] for name in moving]
            found = torch.autograd.grad(logits, places, pulled, allow_unused=True)
            for name, slope in zip(moving, found, strict=True):
                if slope is not None:
                    sums[name] = sums[name] + slope if name in sums else slope.float()
            del logits, pulled, found, slope  # before the next part is run
        sums = {name: each / ids.numel() for name, each in sums.items()}
        return total, sums


def places_in(source: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's floating-point tensors -> the module's parameters and buffers. Raises ModelError where one has none."""
    every: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    every |= dict(model.named_parameters(remove_duplicate=False))
    full = names_in(model, source.tensors)
    places: dict[str, Tensor] = {}
    for name, tensor in source.tensors.items():
        if not tensor.is_floating_point():
            continue
        place, kind = every.get(full.get(name, name)), type(model).__name__
        if place is None or place.shape != tensor.shape:
            raise ModelError(f"{name!r} of the checkpoint is no weight of {kind}: the artifact cannot be tried in it")
        if any(place is other for other in places.values()):
            raise ModelError(
                f"{name!r} is one with another weight in {kind} and none in the checkpoint: tie them there too"
            )
        places[name] = place
    return places
