"""A module that runs with weights of our choosing beside its own: the student, and its teacher.

What will surprise you: there is one module. Its parameters' data are exchanged before each pass, so that anybody's class
works without being copied, and the model is as it was once the `with` block of `Student.at_work` ends. The teacher has the
checkpoint's values, whatever the module holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from pgolf.errors import ModelError
from pgolf.fitting.closed.pull import pull
from pgolf.models import ties
from pgolf.models.checkpoint import Checkpoint
from pgolf.models.logits import device_of, explained, logits_of, original, undisturbed
from pgolf.models.usermodel import names_in
from pgolf.scoring.divergence import Divergence, divergence, in_parts


class Student:
    """places: tensor of the checkpoint → the module's parameters and buffers that hold it, several where what is one tensor
    there is not one here. weights: its values as the student has them, float32 where they are to move; own: as the teacher has
    them."""

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
        self._found = [(each, each.data) for held in self.places.values() for each in held]
        self.own = {name: _as_held(source.tensors[name], held[0].data) for name, held in self.places.items()}
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
            dtype, device = torch.float32 if self._learns else self.own[name].dtype, self.own[name].device
            copied = self._learns or not self.moves(name)  # a pass may write to buffers
            self.weights[name] = tensor.detach().to(device, dtype, copy=copied).contiguous()

    def moves(self, name: str) -> bool:
        """Whether steps may move a tensor: what a module has in buffers alone no gradient reaches, and a pass may write to."""
        return bool(self._parameters(name))

    def _parameters(self, name: str) -> list[nn.Parameter]:
        return [each for each in self.places[name] if isinstance(each, nn.Parameter)]

    @contextmanager
    def at_work(self, *, gradients: bool) -> Iterator[None]:
        """Eval mode and eager code inside; the model's own weights, modes and flags are back afterwards."""
        with undisturbed(self.model, gradients=gradients):
            try:
                yield
            finally:
                for place, data in self._found:
                    place.data = data

    def _take(self, weights: Mapping[str, Tensor]) -> None:
        torch.clear_autocast_cache()  # under a caller's autocast it has casts of the weights before
        for name, held in self.places.items():
            for place in held:
                place.data = weights[name].to(place.device, place.dtype)

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

        A sequence of which the unquantized model itself makes NaN or an infinity teaches nothing, and is left out. Raises
        CurvatureError where the model's backward pass fails.
        """
        moving = [(name, each) for name in names for each in self._parameters(name)]
        wanted = {name for name, _ in moving}
        for name in self.places:
            for each in self._parameters(name):
                each.requires_grad_(name in wanted)
        total, sums = 0.0, dict[str, Tensor]()
        self._vocabulary = self._vocabulary or self.teacher(ids[:1]).shape[-1]
        for part in in_parts(ids, self._vocabulary):
            teacher = self.teacher(part).clone()  # a model may write all its logits to one place
            whole = (teacher.flatten(1) < torch.inf).all(1)
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
            try:
                found = torch.autograd.grad(logits, [each for _, each in moving], pulled, allow_unused=True)
            except Exception as error:  # of anybody's autograd.Function
                raise explained(error, part, backward=True) from error
            for (name, _), slope in zip(moving, found, strict=True):
                if slope is not None:
                    sums[name] = sums[name] + slope if name in sums else slope.float()
            del logits, pulled, found, slope  # before the next part is run
        sums = {name: each / ids.numel() for name, each in sums.items()}
        return total, sums


def places_in(source: Checkpoint, model: nn.Module) -> dict[str, list[Tensor]]:
    """A checkpoint's floating-point tensors -> the module's parameters and buffers that hold them, under any of their names.

    Raises ModelError where a tensor has none, and where it is split over ranks.
    """
    every: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    every |= dict(model.named_parameters(remove_duplicate=False))
    full, kind = names_in(model, [*source.tensors, *source.aliases]), type(model).__name__
    together = ties.in_storage(every)
    places: dict[str, dict[int, Tensor]] = {}
    holds: dict[str, str] = {}  # the module's name -> the checkpoint's
    for name in [*source.tensors, *source.aliases]:
        first, there = source.aliases.get(name, name), full.get(name, name)
        tensor, place = source.tensors[first], every.get(there)
        if not tensor.is_floating_point() or (place is None and name != first):
            continue
        if place is None or place.shape != tensor.shape:
            raise ModelError(f"{name!r} of the checkpoint is no weight of {kind}: the artifact cannot be tried in it")
        if is_traceable_wrapper_subclass(place):
            raise ModelError(f"{name!r} is split over ranks in {kind}: the artifact can be tried in a whole model only")
        if any(id(place) in others for other, others in places.items() if other != first):
            raise ModelError(
                f"{name!r} is one with another weight in {kind} and none in the checkpoint: tie them there too"
            )
        places.setdefault(first, {})[id(place)] = place
        holds[there] = first
    known = {together.get(there, there): first for there, first in holds.items()}
    for there, place in every.items():  # what lies where one of them lies moves with it, under any name
        if there not in holds and (first := known.get(together.get(there, there), "")):
            places[first][id(place)] = place
    return {name: list(held.values()) for name, held in places.items()}


def _as_held(tensor: Tensor, held: Tensor) -> Tensor:
    """A checkpoint's tensor as a module holds it: what that holds, where it is the same."""
    here = tensor.detach().to(held.device, held.dtype)
    return held if ties.equal(here, held) else here.clone()
