"""`launch_round`: blocks of a matrix rounded side by side, each by one program; `pgolf.quant.rounding.viterbi` defines what
a block becomes.

What will surprise you:
* A program goes down a column row by row, and from column to column, so one block takes milliseconds. Speed comes from
  the blocks of a diagonal, which do not wait for each other (see `pgolf.quant.rounding.diagonals`).
* One tensor [states, rows] holds a survivor's codes above the row that is reached, and below it what its errors add to
  the targets: both move together when a survivor changes its state.
* Additions come in the order of the compiled loops, but their tables of bits are read in float64 in places, so a code
  between two equal costs may differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pgolf.kernels.device import jit, jit_for_any, tl
from pgolf.kernels.launch import launch

LINES = 64  # columns of a block at most
ROWS = 128  # rows of a block at most, lookahead and all
# Numbers that say what a program rounds: first row, rows, rows that count, first column, columns, its push, the place of its
# corner in U, whether its strip begins. Rows, columns and corners are counted over all matrices.
INFO = 8


@dataclass(frozen=True)
class RoundingTables:
    """How n matrices W [C, R] are rounded, on the device; names as in `viterbi.Block` and `BlockRule`, [n, ...] each, float32
    but for the classes (int32).

    push: [n · row blocks, ROWS, ROWS], or [1, 1, 1] where no row feeds another. before: int32 [states, 2], [1, 2] for
    scalar codes. bits: [N, K] and parabola: [M] of `Rates`, whose first class is `first`.
    """

    U: Tensor
    push: Tensor
    rows: Tensor
    cols: Tensor
    decoded_rows: Tensor
    decoded_cols: Tensor
    row_classes: Tensor
    col_classes: Tensor
    lam: Tensor
    bits: Tensor
    parabola: Tensor
    before: Tensor
    first: int
    trellis_from: int


@dataclass(frozen=True)
class Lanes:
    """Blocks of one diagonal. info: int64 [L, INFO]; targets, bare: float32 [L, LINES, ROWS], with and without the feedback
    of earlier columns; state: int32 [n, C] of the matrices, read and changed."""

    info: Tensor
    targets: Tensor
    bare: Tensor
    state: Tensor


def launch_round(tables: RoundingTables, lanes: Lanes) -> tuple[Tensor, Tensor]:
    """(codes int32 [L, LINES, ROWS], errors float32 the same, each divided by U_jj), zero outside of a block."""
    codes = torch.zeros_like(lanes.targets, dtype=torch.int32)
    errors = torch.zeros_like(lanes.targets)
    t, states = tables, len(tables.before)
    if len(lanes.info):
        launch(
            round_kernel, (len(lanes.info),), lanes.info, lanes.targets, lanes.bare, lanes.state, codes, errors, t.U, t.push,
            t.rows, t.cols, t.decoded_rows, t.decoded_cols, t.row_classes, t.col_classes, t.lam, t.bits, t.parabola,
            t.before, t.U.shape[-1], t.first, t.trellis_from, t.bits.shape[0], t.bits.shape[1] - 1, len(t.parabola) - 1,
            STATES=states, FED=t.push.shape[1] > 1, LINES=LINES, ROWS=ROWS, INFO=INFO, num_warps=warps(states),
        )  # fmt: skip
    return codes, errors


def warps(states: int) -> int:
    """So many that a thread holds 64 numbers of all survivors."""
    return max(1, min(16, states * ROWS // (32 * 64)))


@jit_for_any("count", "first", "trellis_from", "tables", "last", "widest")
def round_kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0915  parts of a step would hand on thirty tensors
    info, targets, bare, state, out, errors, U, push, rows, cols, decoded_rows, decoded_cols, row_classes, col_classes, lam,
    bits, parabola, before, count, first, trellis_from, tables, last, widest,
    STATES: tl.constexpr, FED: tl.constexpr, LINES: tl.constexpr, ROWS: tl.constexpr, INFO: tl.constexpr,
):  # fmt: skip
    """A block a program, column after column; see `launch_round`."""
    lane = tl.program_id(0).to(tl.int64)
    top = tl.load(info + lane * INFO)
    n = tl.load(info + lane * INFO + 1).to(tl.int32)
    commit = tl.load(info + lane * INFO + 2).to(tl.int32)
    left = tl.load(info + lane * INFO + 3)
    width = tl.load(info + lane * INFO + 4).to(tl.int32)
    pushed = push + tl.load(info + lane * INFO + 5) * ROWS * ROWS
    corner = U + tl.load(info + lane * INFO + 6)
    fresh = tl.load(info + lane * INFO + 7)
    r = tl.arange(0, ROWS)
    s = tl.arange(0, STATES)
    here = r < n
    step = tl.load(rows + top + r, here, other=1.0)
    level_of_row = tl.load(decoded_rows + top + r, here, other=1.0) / step
    inverse = 1.0 / step
    p0 = tl.load(before + 2 * s)
    p1 = tl.load(before + 2 * s + 1)
    j = 0
    while j < width:
        line = (lane * LINES + j) * ROWS + r
        goal = tl.load(targets + line, here, other=0.0)
        k = 0
        while k < j:
            pull = tl.load(corner + k * count + j)
            goal -= pull * tl.load(errors + (lane * LINES + k) * ROWS + r, here, other=0.0)
            k += 1
        col = tl.load(cols + left + j)
        per_step = 1.0 / col
        u = tl.minimum(tl.maximum(goal * inverse * per_step, -1048576.0), 1048576.0)
        own = tl.load(bare + line, here, other=0.0) * inverse * per_step
        own = tl.minimum(tl.maximum(own, -1048576.0), 1048576.0)
        level = level_of_row * (tl.load(decoded_cols + left + j) / col)
        of_col = tl.load(col_classes + left + j)
        metric = tl.where(s == tl.where(fresh != 0, 0, tl.load(state + left + j)), 0.0, 1e30)
        held = tl.zeros((STATES, ROWS), tl.float32)
        committed = tl.zeros((STATES,), tl.int32)
        i = 0
        while i < n:
            at = r == i
            mine = tl.sum(tl.where(at[None, :], held, 0.0), 1)
            target = tl.sum(tl.where(at, u, 0.0), 0) + mine
            price = tl.load(lam + top + i)
            of_entry = tl.load(row_classes + top + i) + of_col
            kind = tl.minimum(tl.maximum(of_entry - first, 0), widest)
            curve = tl.load(parabola + kind)
            still = (STATES == 1) | (of_entry < trellis_from)
            spacing = 1.0 if STATES == 1 else 2.0
            near = spacing * nearest(target / spacing)
            inner = near - tl.where(near < 0, -spacing, spacing)
            saved = price * (
                bits_of(near, kind, bits, curve, tables, last) - bits_of(inner, kind, bits, curve, tables, last)
            )
            closer = (target - inner) * (target - inner) - (target - near) * (target - near)
            alone = tl.where((near != 0) & (closer < saved), inner, near)
            even, odd = branches(target, s, price * curve)
            code0 = tl.where(still, alone, even)
            cost0 = cost_of(target, code0, price, kind, bits, curve, tables, last, still)
            cost1 = cost_of(target, odd, price, kind, bits, curve, tables, last, still)
            way0 = metric + cost0
            way1 = metric + cost1
            came0 = tl.gather(way0, p0, 0)
            came1 = tl.gather(way1, p1, 0)
            second = came1 < came0
            source = tl.where(still, s, tl.where(second, p1, p0))
            chosen = tl.where(still, code0, tl.where(second, tl.gather(odd, p1, 0), tl.gather(code0, p0, 0)))
            metric = tl.where(still, way0, tl.where(second, came1, came0))
            metric = metric - tl.min(metric, 0)
            error = tl.sum(tl.where(at, own, 0.0), 0) + tl.gather(mine, source, 0)
            error = error - chosen * tl.sum(tl.where(at, level, 0.0), 0)
            held = tl.gather(held, tl.broadcast_to(source[:, None], (STATES, ROWS)), 0)
            if FED:
                fed = held + error[:, None] * tl.load(pushed + i * ROWS + r)[None, :]
                held = tl.where((r > i)[None, :], fed, held)
            held = tl.where(at[None, :], chosen[:, None], held)
            committed = tl.where(i + 1 == commit, s, tl.gather(committed, source, 0))
            i += 1
        best = tl.argmin(metric, 0)
        code = tl.sum(tl.where((s == best)[:, None], held, 0.0), 0)
        tl.store(state + left + j, tl.sum(tl.where(s == best, committed, 0), 0))
        tl.store(out + line, code.to(tl.int32), here)
        fed_down = tl.zeros((ROWS,), tl.float32)
        if FED:
            i = 0
            while i < n:
                at = r == i
                error_i = tl.sum(tl.where(at, own + fed_down - code * level, 0.0), 0)
                fed_down += error_i * tl.load(pushed + i * ROWS + r)
                i += 1
        decoded = code * tl.load(decoded_rows + top + r, here, other=0.0) * tl.load(decoded_cols + left + j)
        per_u = 1.0 / tl.load(corner + j * count + j)
        tl.store(errors + line, (goal + fed_down * (step * col) - decoded) * per_u, here)
        tl.debug_barrier()  # errors are read again by other threads than wrote them
        j += 1


@jit
def nearest(x):  # type: ignore[no-untyped-def]  # Triton gives the types
    """x, below 2^22, to the nearest integer, halves to even: the sum has no bits for a fraction."""
    return (x + 12582912.0) - 12582912.0


@jit
def branches(target, s, slope):  # type: ignore[no-untyped-def]  # Triton gives the types
    """The best code of each state's parity on branch 0 and 1: the nearest and its neighbour beyond the target."""
    odd = (s & 1).to(tl.float32)
    drawn = target * (1.0 / (1.0 + slope))
    near = 2.0 * nearest((drawn - odd) * 0.5) + odd
    other = tl.where(drawn > near, near + 2.0, near - 2.0)
    swap = (near.to(tl.int32) & 2) != 0
    return tl.where(swap, other, near), tl.where(swap, near, other)


@jit
def bits_of(code, kind, bits, curve, tables, last):  # type: ignore[no-untyped-def]  # Triton gives the types
    """Bits of codes of one class; see `Rates`."""
    size = tl.abs(code)
    row = bits + tl.minimum(kind, tables - 1) * (last + 1)
    known = tl.load(row + tl.minimum(size, last.to(tl.float32)).to(tl.int32))
    final = tl.load(row + last)
    beyond = (size - last.to(tl.float32)) * (final - tl.load(row + last - 1))
    narrow = tl.where(size <= last.to(tl.float32), known, final + beyond)
    return tl.where(kind >= tables, curve * code * code, narrow)


@jit
def cost_of(target, code, price, kind, bits, curve, tables, last, still):  # type: ignore[no-untyped-def]  # Triton gives the types
    """Squared error and price of codes of one class."""
    error = target - code
    slope = price * curve
    wide = error * error + slope * code * code
    narrow = error * error + price * bits_of(code, kind, bits, curve, tables, last)
    return tl.where((kind >= tables) & (still == 0), wide, narrow)
