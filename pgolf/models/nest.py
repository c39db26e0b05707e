"""What lies in a checkpoint: every tensor of a nest of dicts, lists and tuples, in groups, and which group is the model.

A group is what one container holds directly. Groups of optimizers, random states and logs are known by their looks and
never are the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from pgolf.errors import CheckpointError, UsageError
from pgolf.models import names, ties
from pgolf.models.blueprint import Blueprint
from pgolf.models.inert import Inert, Record

MAIN = ("model", "state_dict", "model_state_dict", "model_state", "module", "net", "network", "weights", "params")
DEEPEST = 40  # containers in one another
SMALL_MATRIX = 2048  # weights; a lone float matrix below it, beside a state dict, is taken for a figure of the run
_SLOTS = {  # what optimizers call the tensors that they keep of a parameter
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta",
    "exp_avg_diff", "exp_avg_slow",
}  # fmt: skip
_OPTIMIZER = re.compile(
    r"optimi[sz]er|(^|_)(optims?|opts?|opt_states?|lr_schedulers?|schedulers?|(grad_)?scaler)(_|$)", re.I
)
_RANDOM = re.compile(r"(^|_)rngs?(_|$)|random_?states?|(^|_)seeds?($|_)", re.I)
_LOG = re.compile(r"loss(es)?($|_)|metrics?($|_)|histor(y|ies)$|(^|_)logs?$|data_?loader|data_?sampler", re.I)
OPTIMIZER, RANDOM, LOG = "optimizer state", "random generator's state", "figures of the run"


@dataclass(frozen=True)
class Group:
    """The tensors that one container holds itself. path: its keys from the top.

    role: "" where it may be a model, else why it is none. named: by strings, as a state dict; mixed: other groups lie
    in it. others: keys of what is no tensor and no container. arrays: keys of NumPy's arrays among them.
    also: other paths to the same container.
    """

    path: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    role: str = ""
    named: bool = True
    mixed: bool = False
    others: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    also: list[tuple[str, ...]] = field(default_factory=list, compare=False)

    @property
    def where(self) -> str:
        """Its path as people write it, "" at the top."""
        return ".".join(self.path)

    @property
    def size(self) -> tuple[int, int]:
        """How much of it looks like weights: numbers in floats and matrices, then all numbers."""
        likely = sum(t.numel() for t in self.tensors.values() if t.is_floating_point() or t.dim() > 1)
        return likely, sum(t.numel() for t in self.tensors.values())

    def may_be_weights(self, beside: int) -> bool:
        """Whether to leave it out beside a model of `beside` numbers would lose something.

        One number is a figure of the run. Of tensors that lie loose beside a state dict, only what is large counts.
        """
        likely = [t for t in self.tensors.values() if _is_likely(t)]
        if self.role or not any(t.numel() > 1 for t in likely):
            return False
        loose = self.mixed or not self.named
        return not loose or any((t.dim() > 1 and t.numel() >= SMALL_MATRIX) or 2 * t.numel() >= beside for t in likely)


def _is_likely(tensor: Tensor) -> bool:
    """Whether a tensor has a weight's numbers: floats, or the codes of a quantizer; other integers are text and counters."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized:
        return True
    return tensor.dtype in {torch.int8, torch.uint8} and tensor.dim() > 1 and tensor.numel() >= SMALL_MATRIX


@dataclass(frozen=True)
class Choice:
    """where: path of the chosen weights; tensors by name; left: the groups that were not taken, and why.

    decided: by "--state", "the module" or "its name".
    """

    where: str
    tensors: Mapping[str, Tensor]
    left: tuple[tuple[Group, str], ...] = ()
    others: tuple[str, ...] = ()
    decided: str = ""


def groups_of(loaded: Any, path: str) -> list[Group]:
    """Every group of tensors in what a file holds, in the order of the file. Raises CheckpointError."""
    walk = _Walk(path)
    walk.visit(loaded, (), "")
    return walk.groups


class _Walk:
    """Each container is visited once, however often it is named: a hostile file names one exponentially often."""

    def __init__(self, path: str) -> None:
        self.path, self.groups = path, list[Group]()
        self._seen: dict[int, tuple[tuple[str, ...], Group | None]] = {}

    def visit(self, value: Any, where: tuple[str, ...], role: str) -> int:
        """Tensors in `value`."""
        if id(value) in self._seen:
            known = self._seen[id(value)][1]
            if known is not None and not role:
                known.also.append(where)
            return 0
        if len(where) > DEEPEST:
            raise CheckpointError(f"{self.path}: nested more than {DEEPEST} deep: save model.state_dict() alone")
        members = [(str(key), inner) for key, inner in _members(value)]
        role = role or _role(as_mapping(value), where)
        direct = {key: inner for key, inner in members if isinstance(inner, Tensor)}
        self._seen[id(value)] = (where, None)
        at = len(self.groups)
        below = sum(
            self.visit(inner, (*where, key), role or _role_of_name(key))
            for key, inner in members
            if isinstance(inner, (Mapping, list, tuple, Record)) and inner
        )
        arrays = tuple(
            key
            for key, inner in members
            if not isinstance(inner, Tensor) and _size(inner) >= (SMALL_MATRIX if below else 1)
        )
        if direct or arrays:
            keys = as_mapping(value)
            named = isinstance(keys, Mapping) and all(isinstance(key, str) for key in keys)
            others = tuple(key for key, inner in members if key not in direct)
            role = _believed(role or _role_of_names(direct), direct)
            group = Group(where, direct, role, named, below > 0, others, arrays)
            self._seen[id(value)] = (where, group)
            self.groups.insert(at, group)
        return below + len(direct)


def as_mapping(value: Any) -> Any:
    """What stands for an object as the dict of its attributes, a module as its state dict; anything else as it is."""
    if not isinstance(value, Record):
        return value
    return value.state_dict() if value.is_module else value.members


def _members(value: Any) -> Iterable[tuple[Any, Any]]:
    value = as_mapping(value)
    return value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()


def _size(value: Any) -> int:
    """Numbers in an array of two dimensions or more: NumPy's own, where somebody allowed torch to make it, or what stands
    for one; else 0."""
    shape = getattr(value, "shape", ()) if isinstance(value, Inert) or hasattr(value, "__array_interface__") else ()
    return prod(shape) if len(shape) > 1 else 0


def _role(value: Any, where: tuple[str, ...]) -> str:
    """What a container is, by what lies in it."""
    if isinstance(value, Mapping):
        if value.keys() >= {"state", "param_groups"} or any(str(key) in _SLOTS for key in value):
            return OPTIMIZER
        if value and all(isinstance(inner, Mapping) and _SLOTS & inner.keys() for inner in value.values()):
            return OPTIMIZER
    return ""


def _role_of_name(name: str) -> str:
    for pattern, role in ((_OPTIMIZER, OPTIMIZER), (_RANDOM, RANDOM), (_LOG, LOG)):
        if pattern.search(name):
            return role
    return ""


def _believed(role: str, direct: Mapping[str, Tensor]) -> str:
    """A name alone does not make large matrices figures of the run: "log_head" may be a part of a model."""
    large = any(t.is_floating_point() and t.dim() > 1 and t.numel() >= SMALL_MATRIX for t in direct.values())
    return "" if large and role in {RANDOM, LOG} else role


def _role_of_names(direct: Mapping[str, Tensor]) -> str:
    """Where all tensors of a container are called like logs or random states, that is what they are."""
    roles = {_role_of_name(name) for name in direct if "." not in name}
    whole = bool(roles) and "" not in roles and all("." not in name for name in direct)
    return roles.pop() if whole else ""


def choose(groups: Sequence[Group], path: str, state: str | None = None, like: Blueprint | None = None) -> Choice:
    """The weights among `groups`: those that `state` names, else that fit `like`, else by name, else the largest.

    Raises UsageError for a `state` that is not there, CheckpointError where there are no weights, where nothing tells
    which of several are meant, and where others would be left out that nobody has decided about.
    """
    if state is not None:
        return _named(groups, state)
    models = [group for group in groups if group.named and not group.role and group.tensors]
    if not models:
        raise _no_state_dict(groups, path)
    if like is not None and (choice := _fitting(groups, models, like, path)):
        return choice
    if arrays := [".".join((*g.path, key)) for g in groups if not g.role for key in g.arrays]:
        raise CheckpointError(
            f"{path}: NumPy arrays lie among the tensors ({', '.join(arrays[:3])}{', ...' * (len(arrays) > 3)}): save them as "
            "tensors, torch.from_numpy(array), or say which state dict to take with --state"
        )
    chosen = _likeliest(models, path)
    if chosen.mixed and not any(t.numel() > 1 for t in chosen.tensors.values()):
        raise _no_state_dict(groups, path)  # a counter, beside an optimizer's state
    taken = _split(chosen)
    rest = [group for group in groups if group is not chosen]
    left = tuple((group, _why_left(group, taken[0])) for group in [*rest, *taken[1]])
    size = sum(t.numel() for t in taken[0].values())
    _refuse_loss([group for group, why in left if why == "" and group.may_be_weights(size)], chosen, path)
    return Choice(chosen.where, taken[0], _explained(left), chosen.others, "its name")


def _likeliest(models: Sequence[Group], path: str) -> Group:
    def rank(group: Group) -> tuple[int, int, int, int]:
        ends = [where[-1].lower() for where in (group.path, *group.also) if where]
        known = min((MAIN.index(end) for end in ends if end in MAIN), default=len(MAIN))
        likely, size = group.size
        return known, len(group.path) if known < len(MAIN) else 0, -likely, -size

    first, *others = sorted(models, key=rank)
    if others and rank(first)[0] == len(MAIN) and rank(others[0]) == rank(first):
        raise _several([g for g in (first, *others) if rank(g) == rank(first) or g.may_be_weights(1)], path)
    for where in first.also:  # one dict under two names: call it by the one that people know
        if where and where[-1] in MAIN and not (first.path and first.path[-1] in MAIN):
            return Group(where, first.tensors, first.role, True, first.mixed, first.others, first.arrays, [first.path])
    return first


def _refuse_loss(lost: Sequence[Group], chosen: Group, path: str) -> None:
    if lost:
        raise _several([chosen, *lost], path)


def _several(groups: Sequence[Group], path: str) -> CheckpointError:
    found = ", ".join(group.where or "the top level" for group in groups[:8])
    more = f" and {len(groups) - 8} more" if len(groups) > 8 else ""
    sizes = "; ".join(_described(group) for group in groups[:4])
    ways = " or ".join(f"--state {group.where or '.'}" for group in groups[:4])
    ways += "" if any(not group.where for group in groups[:4]) else ", --state . for all of them"
    return CheckpointError(f"{path}: several state dicts ({found}{more}): {sizes}; say which to take: {ways}")


def _described(group: Group) -> str:
    count = len(group.tensors)
    return f"{group.where or 'the top level'} has {group.size[1]:,} numbers in {count} tensor{'s' * (count != 1)}"


def _no_state_dict(groups: Sequence[Group], path: str) -> CheckpointError:
    there = sorted(
        {group.role or ("figures of the run" if group.named else "tensors without names") for group in groups}
    )
    arrays = [key for group in groups for key in group.arrays]
    if quantized := [".".join((*g.path, n)) for g in groups for n, t in g.tensors.items() if t.is_quantized]:
        return CheckpointError(
            f"{path}: holds quantized tensors ({', '.join(quantized[:3])}), and no plain state dict: save the model from before"
        )
    if arrays:
        return CheckpointError(
            f"{path}: no state dict (names -> tensors) in it, but NumPy arrays ({', '.join(arrays[:3])}, ...): "
            "save {name: torch.from_numpy(array)}"
        )
    only = f", only {' and '.join(there)}" if there else ""
    called = next((g.where for g in groups if g.role and g.named and g.path and not _SLOTS & g.tensors.keys()), "")
    way = f"; if {called} is the model after all, --state {called}" if called else ""
    return CheckpointError(f"{path}: no state dict (names -> tensors) in it{only}; save model.state_dict(){way}")


def _split(group: Group) -> tuple[dict[str, Tensor], list[Group]]:
    """The tensors of a flat group without an optimizer's that lie among them under dotted names, and those."""
    slots = {n for n in group.tensors if n.rpartition(".")[2] in _SLOTS and _OPTIMIZER.search(n.partition(".")[0])}
    fronts = {name.partition(".")[0] for name in slots}
    theirs = {name: t for name, t in group.tensors.items() if name.partition(".")[0] in fronts}
    if not theirs or len(theirs) == len(group.tensors):
        return dict(group.tensors), []
    rest = {name: t for name, t in group.tensors.items() if name not in theirs}
    return rest, [Group(group.path, theirs, OPTIMIZER)]


def _why_left(group: Group, taken: Mapping[str, Tensor]) -> str:
    """Why nothing is lost without `group`, "" where it may be."""
    if group.role:
        return group.role
    bare, mine = names.unwrapped(group.tensors), names.unwrapped(taken)
    short = {mine[name]: tensor for name, tensor in taken.items()}
    if group.tensors and all(
        bare[n] in short and ties.equal(short[bare[n]], t) for n, t in group.tensors.items() if bare[n] != names.COUNTER
    ):
        return "the same as what was taken"
    return ""


def _explained(left: Iterable[tuple[Group, str]]) -> tuple[tuple[Group, str], ...]:
    return tuple((group, why or "beside the weights, not part of them") for group, why in left)


# ---- chosen by hand, or by a module


def _named(groups: Sequence[Group], state: str) -> Choice:
    usable = [g for g in groups if not g.role or state in {".".join(where) for where in (g.path, *g.also)}]
    for found in (
        [g for g in usable if state in {".".join(where) for where in (g.path, *g.also)} and state],
        [g for g in usable if any(_ends(where, state) for where in (g.path, *g.also))],
        [g for g in usable if any(_begins(where, state) for where in (g.path, *g.also))],
    ):
        if len(found) == 1 and found[0].named:
            group = found[0]
            taken, theirs = _split(group)
            left = [(g, g.role or "not chosen") for g in [*groups, *theirs] if g is not group]
            return Choice(state, taken, tuple(left), group.others, "--state")
    tree = _tree(usable, "" if state == "." else state)
    flat = tree or _flat(usable, state)
    if not flat:
        there = list(dict.fromkeys(_choices(usable)))
        raise UsageError(f"--state {state}: no such weights; there are: {', '.join(there[:12]) or 'none'}")
    tensors, used = flat
    left = [(g, g.role or "not chosen") for g in groups if g not in used]
    held = {id(t) for t in tensors.values()}
    rest = [(Group(g.path, {n: t for n, t in g.tensors.items() if id(t) not in held}), "not chosen") for g in used]
    return Choice(state, tensors, (*left, *((g, why) for g, why in rest if g.tensors)), (), "--state")


def _ends(where: tuple[str, ...], state: str) -> bool:
    return bool(state) and (".".join(where)).endswith(f".{state}")


def _begins(where: tuple[str, ...], state: str) -> bool:
    return state in {"", "."} or ".".join(where).startswith(f"{state}.")


def _tree(groups: Sequence[Group], state: str) -> tuple[dict[str, Tensor], list[Group]] | None:
    """All below one path, names joined by dots."""
    top = tuple(state.split(".")) if state else ()
    below = [g for g in groups if ".".join(g.path).startswith(f"{state}.") or g.path == top or not state]
    prefix = len(state) + 1 if state else 0
    tensors = {f"{g.where}.{n}"[prefix:] if g.where else n: t for g in below for n, t in g.tensors.items()}
    return (tensors, below) if tensors else None


def _flat(groups: Sequence[Group], state: str) -> tuple[dict[str, Tensor], list[Group]] | None:
    """Of one group, the names that begin with `state`."""
    for group in groups:
        for prefix in (f"{state}.", f"{state}.".removeprefix(f"{group.where}.")):
            found = {n.removeprefix(prefix): t for n, t in group.tensors.items() if n.startswith(prefix)}
            if found and group.named:
                return found, [group]
    return None


def _choices(groups: Sequence[Group]) -> Iterator[str]:
    for group in groups:
        yield group.where or "."


def _fitting(groups: Sequence[Group], models: Sequence[Group], like: Blueprint, path: str) -> Choice | None:
    """The one set of weights that fits a module, None where none does. Raises CheckpointError where several do."""
    fits: list[tuple[str, Mapping[str, Tensor], list[Group]]] = []
    for where, tensors, used in _sets(models, len(like.full) - len(like.ties)):
        known = [kept for _, kept, _ in fits]
        if _fits(tensors, like) and not any(_same(tensors, kept) for kept in known):
            fits.append((where, tensors, used))
    if not fits:
        return None
    if len(fits) > 1:
        found = ", ".join(where or "the top level" for where, _, _ in fits)
        ways = " or ".join(f"--state {where or '.'}" for where, _, _ in fits)
        raise CheckpointError(f"{path}: several state dicts ({found}) fit {like.kind}; say which to take: {ways}")
    where, tensors, used = fits[0]
    taken = {id(t) for t in tensors.values()}
    left = []
    for group in groups:
        rest = {n: t for n, t in group.tensors.items() if group not in used or id(t) not in taken}
        if rest:
            why = group.role or _why_left(Group(group.path, rest), tensors) or f"not of {like.kind}"
            left.append((Group(group.path, rest, group.role), why))
    return Choice(where, tensors, tuple(left), (), "the module")


def _by_front(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """First part, or first two parts, of names -> what lies under them."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        words = name.split(".")
        for k in (1, 2):
            if len(words) > k:
                parts.setdefault(".".join(words[:k]), {})[".".join(words[k:])] = tensor
    return parts


def _sets(models: Sequence[Group], fewest: int) -> Iterator[tuple[str, Mapping[str, Tensor], list[Group]]]:
    """Every set of weights that could be meant: groups, parts of flat ones, trees of groups."""
    for group in models:
        taken, _ = _split(group)
        yield group.where, taken, [group]
    for group in models:
        for front, part in _by_front(group.tensors).items():
            if fewest <= len(part) < len(group.tensors):
                yield ".".join((*group.path, front)), part, [group]
    for path in dict.fromkeys(g.path[:k] for g in models for k in range(len(g.path))):
        if (tree := _tree(models, ".".join(path))) and len(tree[1]) > 1:
            yield ".".join(path), *tree


def _fits(tensors: Mapping[str, Tensor], like: Blueprint) -> bool:
    bare = names.fitted(tensors.keys() - {names.COUNTER}, like.full.keys())
    return not like.problems({bare[name]: tensors[name] for name in bare})


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    bare_a, bare_b = names.unwrapped(a), names.unwrapped(b)
    theirs = {bare_b[name]: tensor for name, tensor in b.items()}
    return all(bare_a[name] in theirs and ties.equal(t, theirs[bare_a[name]]) for name, t in a.items())
