"""Names of weights without what wrappers put into them: DDP, torch.compile, FSDP, Fabric, Lightning, moving averages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

NEVER_REAL = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
PARALLEL = ("module",)  # DDP, DataParallel, AveragedModel, DeepSpeed; a class of one's own may have it too
LIGHTNING = ("model", "module", "net", "network")  # what people call the module inside a LightningModule
COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, the only name without "module."
DEEPEST = 4  # wrappers around one another at the front


def unwrapped(names: Iterable[str], fronts: Collection[str] = PARALLEL) -> dict[str, str]:
    """Name -> the name of the plain class, as far as the names alone can tell.

    Parts that no class of one's own has go anywhere; those of `fronts` only at the front and only where every name has
    one. Names stay as they are where two would become one.
    """
    bare = {name: _without(name, NEVER_REAL) for name in names}
    while front := _front(bare.values(), fronts):
        bare = {name: short.removeprefix(f"{front}.") for name, short in bare.items()}
    return bare if _distinct(bare) else {name: name for name in bare}


def fitted(names: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """Name -> the name in a module that has the names `wanted`, by the least change that makes the most names fit."""
    best, most = unwrapped(names), -1
    for way in _ways(names, wanted):
        found = sum(bare in wanted for bare in way.values())
        if found > most and _distinct(way):
            best, most = way, found
    return best


def stripped(bare: dict[str, str]) -> list[str]:
    """What was taken out of names, for people: ["module._orig_mod."]."""
    return sorted({_taken(name, short) for name, short in bare.items() if len(short) < len(name)})


def _ways(names: Collection[str], wanted: Collection[str]) -> Iterator[dict[str, str]]:
    yield {name: name for name in names}
    bare = {name: _without(name, NEVER_REAL) for name in names}
    yield bare
    for _ in range(DEEPEST):
        if not (front := _front(bare.values())):
            break
        bare = {name: short.removeprefix(f"{front}.") for name, short in bare.items()}
        yield bare
    yield {name: _without(name, {*NEVER_REAL, *PARALLEL}) for name in names}  # a part of the model was wrapped
    if front := _front(wanted):
        yield {name: f"{front}.{_without(name, NEVER_REAL)}" for name in names}


def _without(name: str, parts: Collection[str]) -> str:
    kept = [part for part in name.split(".") if part not in parts]
    return ".".join(kept) or name


def _front(names: Iterable[str], fronts: Collection[str] | None = None) -> str:
    """The first part that all names share and that something follows, "" if there is none; fronts: None takes any."""
    inner = [name for name in names if name != COUNTER]
    first = inner[0].partition(".")[0] if inner else ""
    usable = first and (fronts is None or first in fronts)
    return first if usable and all(name.startswith(f"{first}.") and name != f"{first}." for name in inner) else ""


def _distinct(names: dict[str, str]) -> bool:
    real = [name for name in names.values() if name != COUNTER]  # averages of averages count twice
    return len(set(real)) == len(real)


def _taken(name: str, short: str) -> str:
    """The parts of `name` that `short` lacks."""
    rest: Iterator[str] = iter(short.split("."))
    following: Callable[[], str] = lambda: next(rest, "")  # noqa: E731
    expected, gone = following(), []
    for part in name.split("."):
        if part == expected and part not in NEVER_REAL:
            expected = following()
        else:
            gone.append(part)
    return ".".join(gone) + "."
