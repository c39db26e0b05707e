"""Small matrices that read the same inputs, rounded and stored as the rows of one.

Eight rows are too short a path for a trellis, too few to pay for scales of their columns, and a matrix of 512 weights pays
its description twice over. The heads of an attention that has a parameter for each are such: 192 of 8x64 lost 1.5 times
what their 24 layers lost as matrices of 64x64 (benchmarks/twins.py). Wider ones are better off alone: the three of golf3m's
attentions, 64 to 256 rows, took .03 to .09 bits a weight more as one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from pgolf.fitting.plan import TensorPlan
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.report.names import skeleton

ROWS = 32  # from which a matrix is left alone: two of them with 64 columns gained .04 bits a weight, on random weights
MOST = 1024  # rows of a stack, as many as a trellis path is long

METHOD = "auto"  # classic ones are compared by name: what they do to a matrix is not ours to change

Stacks = Mapping[str, tuple[str, ...]]


def found(
    tensors: Mapping[str, Tensor],
    plans: Mapping[str, TensorPlan],
    curvatures: Mapping[str, list[MatrixCurvature | None]],
    tied: Collection[str],
) -> dict[str, tuple[str, ...]]:
    """The first name of each stack -> all names in it, in order.

    One are matrices of one shape, dtype and plan whose names differ in numbers alone and whose inputs' second moments are the
    same to the bit. tied: names that others share the storage of, which are left alone.
    """
    alike: dict[tuple[object, ...], list[str]] = {}
    for name in sorted(plans.keys() - set(tied) - {""}):
        tensor, plan, inputs = tensors[name], plans[name], _inputs(curvatures.get(name, []))
        small = tensor.dim() == 2 and 0 < len(tensor) < ROWS
        if small and inputs is not None and plan.settings is not None and plan.settings.method == METHOD:
            key = skeleton(name, anywhere=True), tensor.shape, tensor.dtype, plan, inputs
            alike.setdefault(key, []).append(name)
    stacks = {}
    for names in alike.values():
        count = MOST // len(tensors[names[0]])
        for start in range(0, len(names), count):
            part = tuple(names[start : start + count])
            if len(part) > 1:
                stacks[part[0]] = part
    return stacks


def _inputs(known: Sequence[MatrixCurvature | None]) -> bytes | None:
    """A fingerprint of the second moments of a matrix's inputs, None where its product was not followed."""
    if len(known) != 1 or known[0] is None or known[0].plain is None or known[0].G is None:
        return None
    return hashlib.sha256(known[0].plain.detach().cpu().contiguous().numpy().tobytes()).digest()
