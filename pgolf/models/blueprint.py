"""What a module says of its weights before it has any: plain names, shapes, which are buffers, which are one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pgolf.errors import ModelError
from pgolf.models import names, ties

_INSIDE = {  # class of a wrapper: the attribute that holds what it wraps
    "DistributedDataParallel": "module", "DataParallel": "module", "AveragedModel": "module",
    "OptimizedModule": "_orig_mod", "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module", "_FabricModule": "_forward_module", "DeepSpeedEngine": "module",
}  # fmt: skip


@dataclass(frozen=True)
class Blueprint:
    """full: name in the plain class -> name in the module's state dict. shapes, by plain name; buffers: plain names.

    ties: plain name -> the first name of the same parameter. kind: the class, for messages.
    """

    kind: str
    full: dict[str, str]
    shapes: dict[str, torch.Size]
    buffers: frozenset[str]
    ties: dict[str, str]

    def missing(self, given: Mapping[str, Tensor]) -> list[str]:
        """Names that `given` (by plain name) lacks, tied ones aside."""
        there = {self.ties.get(name, name) for name in given}
        return sorted(name for name in self.full if self.ties.get(name, name) not in there)

    def problems(self, given: Mapping[str, Tensor]) -> str:
        """Why weights by plain name do not fit, "" where they do."""
        missing, unexpected = self.missing(given), sorted(given.keys() - self.full.keys())
        shapes = [
            f"{n} is {list(given[n].shape)} and should be {list(self.shapes[n])}"
            for n in sorted(given.keys() & self.full.keys())
            if given[n].shape != self.shapes[n]
        ]
        said = [
            *([f"missing {_some(missing)}"] if missing else []),
            *([f"unexpected {_some(unexpected)}"] if unexpected else []),
            *([_some(shapes)] if shapes else []),
        ]
        return "; ".join(said)

    def check(self, given: Mapping[str, Tensor]) -> None:
        """Raises ModelError for names and shapes that do not fit, and for two values of one parameter."""
        if problems := self.problems(given):
            raise ModelError(f"the weights do not fit {self.kind}: {problems}")
        if pair := ties.differing(given, self.ties):
            raise ModelError(
                f"{pair[0]} and {pair[1]} are one parameter in {self.kind} but differ in the checkpoint: {pair[1]} would "
                "win; delete the wrong one, or untie them in the class"
            )

    def completed(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`given` with the names that share a parameter with one of it."""
        there = {self.ties.get(name, name): tensor for name, tensor in given.items()}
        more = {name: there[self.ties.get(name, name)] for name in self.full if self.ties.get(name, name) in there}
        return more | dict(given)


def of(module: nn.Module) -> Blueprint:
    """The blueprint of a module, wrapped or compiled or neither. Raises ModelError for one that has no weights yet, or codes."""
    refuse_unready(module)
    state = module.state_dict()
    plain = plain_names(module, state)
    short = {name: plain[name] for name in state if name in plain}
    kinds = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    found = {short[a]: short[b] for a, b in ties.in_storage({n: state[n] for n in short}).items()}
    return Blueprint(
        type(_innermost(module)).__name__,
        {bare: name for name, bare in short.items()},
        {bare: state[name].shape for name, bare in short.items() if isinstance(state[name], Tensor)},
        frozenset(short[name] for name in kinds if name in short),
        found,
    )


def refuse_unready(module: nn.Module) -> None:
    """Raises ModelError for what is no module, and for weights that have no shape yet or are a quantizer's codes."""
    refuse_pipeline(module)
    if not isinstance(module, nn.Module):
        raise ModelError(f"a {type(module).__name__} is no nn.Module: give the module itself")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(f"{name} has no shape yet (a lazy module): run the module once on a batch of tokens first")
    for name, part in module.named_modules():
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise ModelError(
                f"{name or 'the module'} is quantized ({type(part).__name__}): give the module from before"
            )


def refuse_pipeline(model: object) -> None:
    """Raises ModelError for what torch.distributed.pipelining makes of a module: its names are others, or a part is elsewhere."""
    kinds = [kind for kind in type(model).__mro__ if kind.__module__.startswith("torch.distributed.pipelining")]
    if kinds:
        what = (
            "the module from before it was split" if kinds[0].__name__ == "Pipe" else "the module of which it is a part"
        )
        raise ModelError(
            f"a {kinds[0].__name__} of torch.distributed.pipelining is no model: give {what}, with the weights of all stages "
            "(stage.submod.state_dict() of each rank) loaded into it"
        )


def plain_names(module: nn.Module, state: Mapping[str, object]) -> dict[str, str]:
    """Name in the state dict -> name in the class that was wrapped; counters of moving averages are left out.

    Wrappers are known by their classes, so a submodule that is really called "module" stays.
    """
    inside = {path: attribute for path, part in module.named_modules() if (attribute := _attribute(part))}
    counters = {_joined(p, names.COUNTER) for p, m in module.named_modules() if _is(m, "AveragedModel")}
    bare = {name: _walked(name, inside) for name in state if name not in counters}
    return bare if len(set(bare.values())) == len(bare) else {name: name for name in bare}


def _walked(name: str, inside: Mapping[str, str]) -> str:
    """A name without the attributes of wrappers on its way; some wrappers leave theirs out of it already."""
    path, kept = "", []
    for part in name.split("."):
        while (attribute := inside.get(path)) is not None and attribute != part:
            path = _joined(path, attribute)
        if inside.get(path) != part:
            kept.append(part)
        path = _joined(path, part)
    return ".".join(kept)


def _attribute(module: nn.Module) -> str | None:
    found = next((_INSIDE[c.__name__] for c in type(module).__mro__ if c.__name__ in _INSIDE), None)
    return found if found in module._modules else None


def _is(module: nn.Module, name: str) -> bool:
    return any(c.__name__ == name for c in type(module).__mro__)


def _innermost(module: nn.Module) -> nn.Module:
    while (attribute := _attribute(module)) is not None:
        module = module.get_submodule(attribute)
    return module


def _joined(path: str, part: str) -> str:
    return f"{path}.{part}" if path else part


def _some(names_: list[str]) -> str:
    return ", ".join(names_[:4]) + (f" and {len(names_) - 4} more" if len(names_) > 4 else "")
