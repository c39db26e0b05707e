"""Probability tables of the entropy coder: integers that sum to 2^15, one table per context.

What will surprise you:
* A table speaks of symbols, bytes 0..255: byte b stands for the value b - 128, but bytes 0 and 1 mean "an even (odd)
  value that this table does not hold: look in the escape list". Every table gives both at least one slot, so any
  integer can be coded with any table, and the lowest bit of the byte is that of the value: the trellis needs it.
* A table is either explicit (its frequencies are in the file) or parametric: three small integers from which every
  machine computes the same frequencies with integer arithmetic. Floating point never decides a decoded bit.
* The parametric density is exp2(-(A·a + B·a²)) over the magnitude a = |2·value + parity|: Laplace, Gauss or between.
  The same formula serves the even and the odd half of a trellis lattice (docs/METHOD.md §4).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError
from pgolf.packer.coder.general import shuffled, unshuffled
from pgolf.packer.plane import mantissa_integers

PRECISION = 15
TOTAL = 1 << PRECISION
ESCAPES = 2  # the bytes below this one
OFFSET = 128  # symbol byte = value + OFFSET; values reach from -126 to 127
ESCAPED = -(1 << 15)  # the int16 that stands for an escaped code: take the next one of the escape list

Frequencies = NDArray[np.int64]  # [256], sums to TOTAL
Parameters = tuple[int, int, int, int]  # linear, quadratic, zero, parity: see `parametric`

NEWTON_STEPS = 12
NEWTON_REACH = 1.0  # longest step, in bits at the mean: far from the top Newton overshoots

MAX_BYTES = 4 + 2 * (256 - ESCAPES)  # of a table in the file
_ENERGY_SHIFT = 19  # from rates with 29 fraction bits, 4 octaves higher, to energies in 64ths of a bit
PARAMETRIC_UP_TO = 1 << 18  # symbols of a table; beyond, an explicit one always pays and the fit only costs time


@lru_cache(1 << 14)
def parametric(linear: int, quadratic: int, zero: int, parity: int) -> Frequencies:
    """Frequencies of the density with A = 2^(4 - linear/16), B = 2^(4 - quadratic/16), and 2^((zero-128)/16) at value 0.

    linear, quadratic, zero: bytes. parity: 0 or 1.
    Values whose share of TOTAL would fall under a quarter of a slot are left to the escapes.
    """
    a = np.abs(2 * np.arange(-OFFSET, OFFSET) + parity)
    energy = (a * _exp2(-4 * linear) + a * a * _exp2(-4 * quadratic)) >> _ENERGY_SHIFT
    energy[OFFSET] -= 4 * (zero - 128)
    weights = _exp2(energy.min() - energy)  # the odd half of a narrow trellis table has no value near zero
    weights[:ESCAPES] = 0
    total = weights.sum()
    freqs = np.where(4 * TOTAL * weights >= total, np.maximum(1, weights * (TOTAL - ESCAPES) // total), 0)
    freqs[:ESCAPES] = 1
    freqs[np.argmax(freqs)] += TOTAL - freqs.sum()
    return freqs


def _exp2(exponent: Any) -> Any:
    """2^(exponent/64) with 29 fraction bits, rounded down; exponent: integers up to 0."""
    return np.array(mantissa_integers(64))[exponent % 64] << 6 >> -np.maximum(exponent // 64, -62)


def normalise_counts(counts: NDArray[np.int64]) -> Frequencies:
    """Counts [256] -> near-optimal frequencies: at least one slot for each value seen and each escape.

    Slots left after rounding go, one by one, where they shorten the code most.
    """
    counts = counts.astype(np.int64)
    seen = counts > 0
    seen[:ESCAPES] = True
    total = int(counts.sum())
    if not total:  # the escapes share everything
        freqs = np.zeros(256, np.int64)
        _share_escapes(freqs)
        return freqs
    freqs = np.where(seen, np.maximum(1, counts * TOTAL // total), 0)
    left = TOTAL - int(freqs.sum())
    while left != 0:
        if left > 0:  # what one more slot saves
            gain = np.where(seen, counts * np.log2((freqs + 1) / np.maximum(freqs, 1)), -1.0)
        else:  # what one slot fewer costs
            gain = np.where(freqs > 1, -counts * np.log2(np.maximum(freqs, 2) / np.maximum(freqs - 1, 1)), -np.inf)
        batch = max(1, abs(left) // 8)
        best = np.argsort(-gain, kind="stable")[: min(batch, int(np.isfinite(gain).sum()))]
        freqs[best] += 1 if left > 0 else -1
        left = TOTAL - int(freqs.sum())
    _share_escapes(freqs)
    return freqs


def _share_escapes(freqs: NDArray[np.int64]) -> None:
    rest = TOTAL - freqs[ESCAPES:].sum()
    freqs[:ESCAPES] = (rest + 1) // 2, rest // 2


def code_bits(counts: NDArray[np.int64], freqs: Frequencies) -> float:
    """Bits that `counts` [256] cost under `freqs`; a value without a slot costs an escape of 20 bits more."""
    present = np.flatnonzero(counts)
    f = freqs[present].astype(np.float64)
    missing = f == 0
    f[missing] = freqs[0]
    bits = PRECISION - np.log2(f) + 20.0 * (missing | (present < ESCAPES))
    return float((counts[present] * bits).sum())


def fit_parametric(counts: NDArray[np.int64], parity: int) -> tuple[int, int, int]:
    """The parameter bytes whose density is likeliest for `counts` [256].

    The densities are an exponential family in (|a|, a², [value = 0]), so the likelihood is concave and Newton's method
    finds its top; subsets are tried too, because a rate must not be negative and few values identify few rates.
    """
    n = counts[ESCAPES:].astype(np.float64)
    values = np.arange(ESCAPES - OFFSET, OFFSET)
    a = np.abs(2.0 * values + parity)
    statistics = np.stack([-a, -a * a, (values == 0).astype(np.float64)])
    best = (np.inf, (255, 255, 128))
    for used in ([0, 1], [0], [1]) if parity else ([0, 1, 2], [1, 2], [0, 2], [0], [1]):
        rates = np.zeros(3)
        rates[used] = _likeliest(n / max(n.sum(), 1.0), statistics[used])
        if min(rates[:2]) >= 0:
            zero = int(np.clip(round(128 + 16 * rates[2]), 0, 255))
            candidate = (_parameter(rates[0]), _parameter(rates[1]), zero)
            best = min(best, (code_bits(counts, parametric(*candidate, parity)), candidate))
    return best[1]


def _likeliest(p: NDArray[np.float64], statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural parameters (base 2) of the exponential family with these statistics [K, V] whose means are those under p."""
    wanted = statistics @ p
    spread = np.maximum(np.abs(wanted), 1e-3)
    theta = np.log2(1 + 1 / spread) / len(spread)
    for _ in range(NEWTON_STEPS):
        logits = theta @ statistics
        q = np.exp2(logits - logits.max())
        q /= q.sum()
        means = statistics @ q
        covariance = (statistics * q) @ statistics.T - np.outer(means, means)
        ridge = 1e-9 * np.diag(spread**2)
        move = np.linalg.solve(np.log(2) * covariance + ridge, wanted - means)
        limit = np.abs(move * spread).max()
        theta = theta + move * min(1.0, NEWTON_REACH / max(limit, 1e-300))
    return theta


def _parameter(rate: float) -> int:
    return int(np.clip(round(64 - 16 * np.log2(max(rate, 1e-9))), 0, 255))


def cheapest(counts: NDArray[np.int64], parity: int) -> Parameters | Frequencies:
    """The table for `counts` [256] that takes the fewest bits together with its description."""
    explicit = normalise_counts(counts)
    if counts.sum() > PARAMETRIC_UP_TO:
        return explicit
    bits = code_bits(counts, explicit) + 8 * (3 + 1.4 * float((explicit > 0).sum()))
    parameters = fit_parametric(counts, parity)
    if code_bits(counts, parametric(*parameters, parity)) + 32 < bits:
        return (*parameters, parity)
    return explicit


def frequencies(table: Parameters | Frequencies) -> Frequencies:
    """The frequencies that a table stands for."""
    return parametric(*table) if isinstance(table, tuple) else table


def dump_tables(tables: list[Parameters | Frequencies]) -> bytes:
    """Tables -> bytes: a tag byte each (parity of a parametric one, 2 for explicit), then parameters or frequencies.

    An explicit table is first symbol, number of symbols, 0, the low bytes of their frequencies, then the high bytes; the
    two escapes share what is left of 2^15.
    """
    out = bytearray()
    for table in tables:
        if isinstance(table, tuple):
            linear, quadratic, zero, parity = table
            out += bytes([parity, linear, quadratic, zero])
        else:
            used = np.flatnonzero(table[ESCAPES:]) + ESCAPES
            first, last = (int(used[0]), int(used[-1])) if used.size else (ESCAPES, ESCAPES - 1)
            body = table[first : last + 1].astype("<u2").tobytes()
            out += bytes([2, first, last + 1 - first, 0]) + shuffled(body, 2)
    return bytes(out)


def parse_tables(data: bytes, count: int) -> Frequencies:
    """int64 [count, 256]: the inverse of `dump_tables`.

    Raises ArtifactError unless the tables are well formed, ValueError if one ends too soon or reaches past symbol 255.
    """
    freqs = np.zeros((count, 256), np.int64)
    for table in freqs:
        (tag, a, b, c), data = data[:4], data[4:]
        if tag < 2:
            table[:] = parametric(a, b, c, tag)
        else:
            table[a : a + b] = np.frombuffer(unshuffled(data[: 2 * b], 2), "<u2")
            check_explicit(tag, a, b, c, data, table)
            data = data[2 * b :]
            _share_escapes(table)
    if data:
        raise ArtifactError("bytes left over after the probability tables: the artifact is damaged")
    return freqs


def check_explicit(tag: int, first: int, size: int, zero: int, data: bytes, table: NDArray[np.int64]) -> None:
    """Raises ArtifactError for an unknown tag, frequencies of escapes, missing ones, and no room for the escapes.

    Numpy refuses frequencies in the wrong number, but spreads a single one over any number of symbols.
    """
    if tag != 2 or zero or first < ESCAPES or len(data) < 2 * size or table.sum() > TOTAL - ESCAPES:
        raise ArtifactError("a probability table is out of range: the artifact is damaged")
