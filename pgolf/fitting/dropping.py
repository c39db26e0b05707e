"""Buffers that the model's class makes by itself: left out of the artifact where that is asked for, named where it would pay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import Tensor

from pgolf.common.sizes import show_size
from pgolf.errors import UsageError
from pgolf.fitting.plan import TensorPlan, coded_better
from pgolf.fitting.trial import Job, Trial, kept_entry
from pgolf.models.checkpoint import BUFFER, Checkpoint, Item
from pgolf.packer.format import artifact, shares
from pgolf.packer.format.artifact import Entry
from pgolf.report import Dropped, TensorRow
from pgolf.report.names import pattern, skeleton

WHY = "left out with --drop, the model's class makes it"
MOST_NAMED, MOST_GLOBS = 4, 8


def without(source: Checkpoint, patterns: Sequence[str]) -> Checkpoint:
    """The checkpoint without the buffers whose names match, which it then has in `dropped`.

    Raises UsageError for a pattern that matches nothing, or a parameter, and where no module says what is a buffer.
    """
    state = source.state_dict()
    for each in patterns:
        mine = [name for name in state if fnmatchcase(name, each)]
        if not mine:
            raise UsageError(f"--drop {each!r} matches no tensor; names look like {', '.join(list(state)[:3])}")
        if source.buffers is None:
            raise UsageError(
                f"--drop {each!r} needs --model FILE.py:NAME: only the class says which tensors are buffers"
            )
        if wrong := [name for name in mine if name not in source.buffers]:
            raise UsageError(
                f"--drop {each!r} would leave out parameters, which no class makes again: {_some(wrong)}; name buffers only"
            )
    gone = {name for name in state if any(fnmatchcase(name, each) for each in patterns)}
    return _left(source, {name: state[name] for name in sorted(gone)}) if gone else source


def _left(source: Checkpoint, dropped: Mapping[str, Tensor]) -> Checkpoint:
    """What is one tensor with something that is left out stays, under its own name."""
    roots = {name: source.aliases.get(name, name) for name in source.state_dict() if name not in dropped}
    first: dict[str, str] = {}
    for name in sorted(roots, key=lambda n: (n != roots[n], n)):  # a root that stays keeps its name
        first.setdefault(roots[name], name)
    homes = {name: first[root] for name, root in roots.items()}
    tensors = {name: source.tensors[root] for root, name in first.items()}
    return replace(
        source,
        tensors=dict(sorted(tensors.items())),
        aliases={name: home for name, home in sorted(homes.items()) if name != home},
        kept={name: why for name, why in source.kept.items() if name not in dropped},
        account=tuple(_told(item, dropped, homes) for item in source.account),
        dropped=dict(dropped),
    )


def _told(item: Item, dropped: Mapping[str, Tensor], homes: Mapping[str, str]) -> Item:
    if item.name in dropped:
        return replace(item, name="", why=WHY)
    home = homes.get(item.name)
    return item if home is None or not item.why else replace(item, why="" if home == item.name else home)


def rows_of(job: Job, trial: Trial) -> list[Dropped]:
    """What was left out, each with the bytes that it would add to the artifact after its kept tensors."""
    source = job.source
    if not source.dropped:
        return []
    kept = {name: entry for name, entry in trial.entries.items() if entry.raw is not None}
    more = {name: _entry(tensor) for name, tensor in source.dropped.items()}
    encoded = artifact.encode(kept | more, {}, job.coder)
    held = shares.of(encoded.data, kept | more, encoded.tensor_bits)
    return [
        Dropped(
            name=name,
            shape=list(tensor.shape),
            dtype=more[name].dtype,
            num_bytes=held.tensors[name],
            rebuilt=None if source.rebuilt is None else name in source.rebuilt,
        )
        for name, tensor in source.dropped.items()
    ]


def _entry(tensor: Tensor) -> Entry:
    return kept_entry(tensor, TensorPlan(None, BUFFER, integers=coded_better(tensor)))


def notes_of(source: Checkpoint, rows: Sequence[TensorRow]) -> list[str]:
    """What buffers cost, with the options that leave out those that the class makes; and what it makes otherwise."""
    notes = []
    held = {row.name: row.num_bytes for row in rows if row.error is None and row.name in (source.buffers or ())}
    mine = {name: size for name, size in held.items() if name in (source.rebuilt or ())}
    if held:
        globs = _patterns(mine, source.state_dict())
        more = f" and {len(globs) - MOST_GLOBS} more" if len(globs) > MOST_GLOBS else ""
        options = " ".join(f"--drop {each!r}" for each in globs[:MOST_GLOBS]) + more
        alike = f"; {_size(mine)} of that the model's class makes by itself, bit for bit: {options}" if mine else ""
        notes.append(f"buffers, kept to the bit, take {_size(held)}{alike}")
    if source.rebuilt is not None and (other := [name for name in source.dropped if name not in source.rebuilt]):
        notes.append(f"left out, though the model's class makes other values than the checkpoint's: {_some(other)}")
    return notes


def _patterns(names: Iterable[str], every: Iterable[str]) -> list[str]:
    """Globs that match these names and no others, one for those that differ in numbers."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(skeleton(name), []).append(name)
    found = []
    for group in groups.values():
        glob = pattern(group)
        matched = {name for name in every if fnmatchcase(name, glob)}
        found += [glob] if matched == set(group) else group
    return found


def _size(num_bytes: Mapping[str, float]) -> str:
    return show_size(sum(num_bytes.values()))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"
