"""A setting that somebody asked for is carried out, or refused with the reason: nothing of `--set` is lost without a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from pgolf.errors import SettingError
from pgolf.fitting.plan import Rule, TensorPlan, reads
from pgolf.models.checkpoint import dtype_name
from pgolf.quant import METHODS

MOST_NAMED = 4  # tensors of one reason


def left(rules: Sequence[Rule], plans: Mapping[str, TensorPlan], tensors: Mapping[str, Tensor]) -> list[str]:
    """A note for each rule that some of the tensors it matches cannot take, with their names and the reason.

    Later rules win, so a rule answers only for tensors of which no later one settles what becomes of them. Raises
    SettingError for a rule that is carried out on none of those it answers for.
    """
    notes = []
    for number, rule in enumerate(rules):
        mine = [name for name in tensors if fnmatchcase(name, rule.pattern)]
        unsettled = [name for name in mine if not _settled(name, rule, rules[number + 1 :])]
        refused = {name: why for name in unsettled if (why := _refusal(rule, plans[name], tensors[name]))}
        if refused and len(refused) == len(unsettled):
            raise SettingError(f"--set {rule.pattern!r} cannot be carried out: {_listed(refused)}")
        if refused:
            notes.append(f"--set {rule.pattern!r} was not carried out on all that it matches: {_listed(refused)}")
        notes += _half_read(rule, [name for name in unsettled if name not in refused], plans)
    return notes


def _settled(name: str, rule: Rule, later: Sequence[Rule]) -> bool:
    """Whether later rules keep a tensor, or quantize one that this rule wants kept, or say all that it says."""
    after = [each for each in later if fnmatchcase(name, each.pattern)]
    said = {field for each in after for field in each.fields}
    return any(each.keeps or rule.keeps for each in after) or rule.fields.keys() <= said


def _refusal(rule: Rule, plan: TensorPlan, tensor: Tensor) -> str:
    """Why a rule is not carried out on a tensor, "" where some of it is."""
    if "cast" in rule.fields and not tensor.is_floating_point():
        return f"{dtype_name(tensor.dtype)} is not floating point"
    if rule.keeps:
        return "" if plan.cast == rule.fields.get("cast") else plan.kept
    if plan.settings is None:
        return plan.kept
    method = plan.settings.method
    if any(reads(method, name) for name in rule.fields):
        return ""
    other = next((known for known in METHODS if all(reads(known, name) for name in rule.fields)), None)
    return f"{method} does not read {_named(rule.fields)}{f', {other} does' if other else ''}"


def _half_read(rule: Rule, names: Sequence[str], plans: Mapping[str, TensorPlan]) -> list[str]:
    """Notes of what in a rule the method of its tensors does not read, while that of others does (else plan.unread tells)."""
    used = {p.settings.method for p in plans.values() if p.settings is not None}
    mine = {p.settings.method for name in names if (p := plans[name]).settings is not None}
    idle = {
        method: [n for n in rule.fields if not reads(method, n) and any(reads(m, n) for m in used)] for method in mine
    }
    return [
        f"--set {rule.pattern!r}: {method} does not read {_named(idle[method])}"
        for method in sorted(idle)
        if idle[method]
    ]


def _named(fields: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join("the integer range" if name == "bits" else name for name in fields)


def _listed(refused: Mapping[str, str]) -> str:
    """ "gain, bias and 7 more (a vector); count (not floating point)"."""
    by_reason: dict[str, list[str]] = {}
    for name, why in refused.items():
        by_reason.setdefault(why, []).append(name)
    told = []
    for why, names in by_reason.items():
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        told.append(f"{', '.join(names[:MOST_NAMED])}{more} ({why})")
    return "; ".join(told)
