"""The inner loops: rate-aware rounding of columns, scalar or trellis-coded, with errors fed to the later columns.

The cost of a code is (u − k)² + λ·bits(k), in lattice units, with bits from the entry's spread class. Without the second
term low-rate entries lose more than the trellis gains (docs/METHOD.md §3).
A state fixes the parity of the code and branch b its next bit, so a branch leads to subset D_{parity + 2b} of the lattice,
code mod 4. The state is 0 at the top of a column and again every STRIP rows; the caller sees to it that no block crosses that.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgolf.common import extras
from pgolf.packer.coder.trellis import next_states

extras.need("numba")
from numba import njit  # noqa: E402

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

LARGEST = np.float32(2.0**20)  # targets saturate where float32 still tells even from odd; see auto.LARGEST_CODE
FAR = np.float32(1e30)


# Compiled loops take these types, whose names must stay: numba unpickles what an older file left in its cache, names and all,
# before it sees that it is older.
class Rates(NamedTuple):
    """Bits of a code by spread class: from a table for narrow classes, a parabola for wide ones.

    bits: float32 [N, K]; bits[c, |k|] of class first + c. parabola: float32 [M], bits per k² of class first + c; wider
    classes than the last use the last. Only differences between codes that compete matter.
    """

    first: int
    bits: Floats
    parabola: Floats


class Block(NamedTuple):
    """B columns, in order, of R rows, transposed: the Viterbi path runs along what is a contiguous line here.

    targets: float32 [B, R], destroyed; bare: float32 [B, R], the same without feedback from earlier columns.
    U: float32 [B, B], upper factor of H⁻¹. push: float32 [R, R], what an error of one row moves the targets of later
    rows by, in lattice steps (empty: nothing).
    """

    targets: Floats
    bare: Floats
    U: Floats
    push: Floats


class BlockRule(NamedTuple):
    """How the entries of a block are rounded.

    rows, cols: float32 [R], [B], whose product is the step that the encoder rounds with; decoded_rows, decoded_cols: the
    one that the decoder multiplies by. row_classes, col_classes: int32 [R], [B], spread classes. lam: float32 [R], λ in
    squared lattice steps a bit. trellis_from: as in `Plane`. before: from `predecessors`, empty for scalar codes.
    """

    rows: Floats
    cols: Floats
    decoded_rows: Floats
    decoded_cols: Floats
    row_classes: Ints
    col_classes: Ints
    lam: Floats
    trellis_from: int
    rates: Rates
    before: Ints


class Rounded(NamedTuple):
    """What the rounding of a block fills.

    codes: int32 [B, R]; errors: float32 [B, R], each divided by U_jj. state: int32 [B], the trellis state of each column
    above the first row; becomes the one after the rows that count.
    """

    codes: Ints
    errors: Floats
    state: Ints


class Column(NamedTuple):
    """One column of n entries, in lattice units.

    target, bare: float32 [n], with and without the feedback of earlier columns; level: float32 [n], decoded step over
    lattice step. lam: float32 [n]; kind: int32 [n], class number in `Rates`; frozen: bool [n], of a class
    below `trellis_from`: leaves the state alone and takes an even code.
    """

    target: Floats
    bare: Floats
    level: Floats
    lam: Floats
    kind: Ints
    frozen: NDArray[np.bool_]


@cache
def predecessors(states: int) -> Ints:
    """int32 [states, 2]: the state before, by the branch that led here; both have the parity of the state's top bit."""
    after = next_states(states)
    before = np.empty((states, 2), np.int32)
    for branch in range(2):
        before[after[:, branch], branch] = np.arange(states)
    return before


@njit(cache=True, nogil=True)
def _bits(code: float, kind: int, rates: Rates) -> float:
    """Bits of a code in class number `kind`."""
    last = rates.bits.shape[1] - 1
    size = abs(code)
    if kind >= rates.bits.shape[0]:
        bits: float = rates.parabola[kind] * code * code
    elif size <= last:
        bits = rates.bits[kind, int(size)]
    else:
        bits = rates.bits[kind, last] + (size - last) * (rates.bits[kind, last] - rates.bits[kind, last - 1])
    return bits


@njit(cache=True, nogil=True)
def _round_one(u: float, lam: float, kind: int, rates: Rates, spacing: float) -> float:
    """The cheaper of the nearest multiple of `spacing` and the next one toward zero."""
    near: float = spacing * np.rint(u / spacing)
    if near != 0:
        inner: float = near - np.copysign(spacing, near)
        saved = lam * (_bits(near, kind, rates) - _bits(inner, kind, rates))
        if (u - inner) ** 2 - (u - near) ** 2 < saved:
            near = inner
    return near


@njit(cache=True, nogil=True)
def _advance(metric: Floats, fresh: Floats, cost: Floats, before: Ints, choice: NDArray[np.uint8]) -> None:
    """One step of the Viterbi recursion: `fresh` from `metric`, the surviving branch of each state into `choice`."""
    states = len(metric)
    half = states >> 1
    for s in range(states):
        odd = 1 if s >= half else 0
        m0 = metric[before[s, 0]] + cost[odd]
        m1 = metric[before[s, 1]] + cost[odd + 2]
        choice[s] = m1 < m0
        fresh[s] = min(m0, m1)
    low = fresh.min()
    for s in range(states):
        metric[s] = fresh[s] - low


@njit(cache=True, nogil=True)
def _candidates(u: float, lam: float, kind: int, rates: Rates, codes: Floats, cost: Floats) -> None:
    """The best code of each subset k ≡ r (mod 4) and its cost: nearest to u drawn to zero as its rate asks."""
    drawn = u / (np.float32(1) + lam * rates.parabola[kind])
    for r in range(4):
        k = np.float32(4) * np.rint((drawn - np.float32(r)) * np.float32(0.25)) + np.float32(r)
        codes[r] = k
        cost[r] = (u - k) * (u - k) + lam * np.float32(_bits(k, kind, rates))


@njit(cache=True, nogil=True)
def _viterbi(column, rates, before, state, commit, codes):  # type: ignore[no-untyped-def]  # numba infers
    """Codes [n] of the path of least cost from `state` through all entries that are not frozen.

    Returns the state of that path after `commit` entries.
    """
    n, states = len(column.target), len(before)
    metric = np.full(states, FAR, np.float32)
    metric[state] = 0
    fresh, cost = np.empty(states, np.float32), np.empty(4, np.float32)
    choice, options = np.empty((n, states), np.uint8), np.empty((n, 4), np.float32)
    for i in range(n):
        if column.frozen[i]:
            codes[i] = int(_round_one(column.target[i], column.lam[i], column.kind[i], rates, 2.0))
        else:
            _candidates(column.target[i], column.lam[i], column.kind[i], rates, options[i], cost)
            _advance(metric, fresh, cost, before, choice[i])
    state = metric.argmin()
    committed = state
    for i in range(n - 1, -1, -1):
        if i + 1 == commit:
            committed = state
        if not column.frozen[i]:
            branch = choice[i, state]
            odd = 1 if 2 * state >= states else 0
            codes[i] = int(options[i, odd + 2 * branch])
            state = before[state, branch]
    return committed


@njit(cache=True, nogil=True)
def _branches(u, fed, lam, kind, rates, option, cost):  # type: ignore[no-untyped-def]  # numba infers
    """For every state, the best code on branches 0 and 1 into option [2, S] and its cost into cost [2, S].

    fed: float32 [S], what each survivor's errors add to the target u. Of the codes of a state's parity, the nearest
    one is on one branch and its neighbour on the other side of the target on the other.
    """
    slope = lam * rates.parabola[kind]
    draw = np.float32(1) / (np.float32(1) + slope)
    two, half = np.float32(2), np.float32(0.5)
    for s in range(len(fed)):
        target, odd = u + fed[s], np.float32(s & 1)
        drawn = target * draw
        near = two * np.rint((drawn - odd) * half) + odd
        other = near + two if drawn > near else near - two
        swap = np.int32(near) & 2 != 0
        first, second = other if swap else near, near if swap else other
        option[0, s], option[1, s] = first, second
        cost[0, s] = (target - first) * (target - first) + slope * first * first
        cost[1, s] = (target - second) * (target - second) + slope * second * second
    if kind < rates.bits.shape[0]:
        for branch in range(2):
            for s in range(len(fed)):
                k, e = option[branch, s], u + fed[s] - option[branch, s]
                cost[branch, s] = e * e + lam * np.float32(_bits(k, kind, rates))


@njit(cache=True, nogil=True)
def _frozen(u, fed, lam, kind, rates, option, cost):  # type: ignore[no-untyped-def]  # numba infers
    """The same for an entry that leaves the state alone: one even code, on branch 0."""
    for s in range(len(fed)):
        k = np.float32(_round_one(u + fed[s], lam, kind, rates, 2.0))
        e = u + fed[s] - k
        option[0, s], cost[0, s] = k, e * e + lam * np.float32(_bits(float(k), kind, rates))


@njit(cache=True, nogil=True)
def _feed(source, error, push, out):  # type: ignore[no-untyped-def]  # numba infers
    """out = source + error·push; whole slices, so that the compiler sees no index that could be negative."""
    for x in range(len(out)):
        out[x] = source[x] + error * push[x]


@njit(cache=True, nogil=True)
def _viterbi_fed(column, push, rates, before, state, commit, codes):  # type: ignore[no-untyped-def]  # numba infers
    """`_viterbi` with every survivor feeding its own errors to the rows below.

    push: float32 [n, n], what a unit error of row i moves row l > i by, in lattice units.
    """
    n, states = len(column.target), len(before)
    metric, fresh = np.full(states, FAR, np.float32), np.empty(states, np.float32)
    metric[state] = 0
    fed, fed_next = np.zeros((states, n), np.float32), np.zeros((states, n), np.float32)
    mine = np.empty(states, np.float32)
    cost, option = np.empty((2, states), np.float32), np.empty((2, states), np.float32)
    came, chosen = np.empty((n, states), np.uint8), np.empty((n, states), np.float32)
    for i in range(n):
        for s in range(states):
            mine[s] = fed[s, i]
        if column.frozen[i]:
            _frozen(column.target[i], mine, column.lam[i], column.kind[i], rates, option, cost)
        else:
            _branches(column.target[i], mine, column.lam[i], column.kind[i], rates, option, cost)
        for s in range(states):
            source, branch = s, 0
            if not column.frozen[i]:
                p0, p1 = before[s, 0], before[s, 1]
                branch = 1 if metric[p1] + cost[1, p1] < metric[p0] + cost[0, p0] else 0
                source = p1 if branch else p0
            came[i, s], chosen[i, s] = source, option[branch, source]
            fresh[s] = metric[source] + cost[branch, source]
            error = column.bare[i] + mine[source] - chosen[i, s] * column.level[i]
            _feed(fed[source, i + 1 :], error, push[i, i + 1 :], fed_next[s, i + 1 :])
        fed, fed_next = fed_next, fed
        low = fresh.min()
        for s in range(states):
            metric[s] = fresh[s] - low
    state = metric.argmin()
    committed = state
    for i in range(n - 1, -1, -1):
        if i + 1 == commit:
            committed = state
        codes[i] = int(chosen[i, state])
        state = came[i, state]
    return committed


@njit(cache=True, nogil=True)
def _round_fed(column, push, rates, codes):  # type: ignore[no-untyped-def]  # numba infers
    """Scalar codes [n] down the rows of one column, each error fed to the rows below."""
    n = len(column.target)
    fed = np.zeros(n, np.float32)
    for i in range(n):
        codes[i] = int(_round_one(column.target[i] + fed[i], column.lam[i], column.kind[i], rates, 1.0))
        error = column.bare[i] + fed[i] - np.float32(codes[i]) * column.level[i]
        _feed(fed[i + 1 :], error, push[i, i + 1 :], fed[i + 1 :])


@njit(cache=True, nogil=True)
def _feed_down(column, push, codes, fed):  # type: ignore[no-untyped-def]  # numba infers
    """What the codes [n] of a column, once final, feed to its rows: into `fed` [n]."""
    fed[:] = 0
    for i in range(len(codes)):
        error = column.bare[i] + fed[i] - np.float32(codes[i]) * column.level[i]
        _feed(fed[i + 1 :], error, push[i, i + 1 :], fed[i + 1 :])


@njit(cache=True, nogil=True)
def round_columns(block, rule, rounded, commit):  # type: ignore[no-untyped-def]  # numba infers
    """Round the columns of a `Block` by its `BlockRule`, feeding each error to the block's later columns.

    rounded: what is filled, see `Rounded`; its state becomes the one after `commit` rows.
    """
    targets, push, rates, before = block.targets, block.push, rule.rates, rule.before
    codes, errors, state = rounded
    rows = targets.shape[1]
    u, bare, fed = np.empty(rows, np.float32), np.empty(rows, np.float32), np.zeros(rows, np.float32)
    kind, frozen = np.empty(rows, np.int32), np.empty(rows, np.bool_)
    inverse, levels = np.float32(1) / rule.rows, rule.decoded_rows / rule.rows
    widest = len(rates.parabola) - 1
    for j in range(len(targets)):
        per_step, level = np.float32(1) / rule.cols[j], levels * (rule.decoded_cols[j] / rule.cols[j])
        for i in range(rows):
            u[i] = min(max(targets[j, i] * inverse[i] * per_step, -LARGEST), LARGEST)
            bare[i] = min(max(block.bare[j, i] * inverse[i] * per_step, -LARGEST), LARGEST)
            width = rule.row_classes[i] + rule.col_classes[j]
            frozen[i] = width < rule.trellis_from
            kind[i] = min(max(width - rates.first, 0), widest)
        column = Column(u, bare, level, rule.lam, kind, frozen)
        if len(push) and len(before):
            state[j] = _viterbi_fed(column, push, rates, before, state[j], commit, codes[j])
        elif len(push):
            _round_fed(column, push, rates, codes[j])
        elif len(before):
            state[j] = _viterbi(column, rates, before, state[j], commit, codes[j])
        else:
            for i in range(rows):
                codes[j, i] = int(_round_one(u[i], rule.lam[i], kind[i], rates, 1.0))
        if len(push):
            _feed_down(column, push, codes[j], fed)
        per_u = np.float32(1) / block.U[j, j]
        for i in range(rows):
            code = np.float32(codes[j, i])
            step = rule.rows[i] * rule.cols[j]
            decoded = code * rule.decoded_rows[i] * rule.decoded_cols[j]
            errors[j, i] = (targets[j, i] + fed[i] * step - decoded) * per_u
        for later in range(j + 1, len(targets)):
            pull = block.U[j, later]
            if pull != 0:
                for i in range(rows):
                    targets[later, i] -= pull * errors[j, i]
