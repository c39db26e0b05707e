"""Rounding matrices on a GPU: a block of rows and columns waits for the one above it and the one to its left alone, so the
blocks of a diagonal are rounded side by side, in one launch; those of matrices of one shape too.

The same blocks, lookahead and feedback as `feedback.round_matrix`, which is the reference. Two things differ: sums over
columns come in another order, and where rows do not feed each other the Viterbi search looks ahead from block to block
instead of over a whole strip. A few codes in a thousand come out otherwise, of the same loss.

A diagonal is about OPERATIONS operations of torch and one launch of the kernel, however many blocks it has: what is
gathered for them, and what they feed to later ones, is padded to whole blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.common.factoring import factoring
from pgolf.kernels.device import triton
from pgolf.kernels.round_block import LINES, ROWS, Lanes, RoundingTables, launch_round
from pgolf.packer.coder.trellis import STRIP
from pgolf.quant.rounding.feedback import RoundingRule, gaussian_rates, row_blocks, row_push

HAS_KERNEL = triton is not None
OPERATIONS = 30
Block = tuple[int, int, int]  # first row, first row of the next block, end of the lookahead


class Asked(NamedTuple):
    """What is to be rounded, and how: see `feedback.rounded_rows`. W: float32 [C, R]; U: [C, C]; V: [R, R] or None."""

    W: Tensor
    U: Tensor
    V: Tensor | None
    rule: RoundingRule

    @property
    def kind(self) -> tuple[object, ...]:
        """What matrices have in common that are rounded together."""
        return tuple(self.W.shape), self.V is None, self.rule.states, self.rule.trellis_from


def round_on_device(
    W: Tensor, U: Tensor, V: Tensor | None, rule: RoundingRule, device: torch.device
) -> NDArray[np.int32]:
    """int32 [C, R]: as `feedback.round_matrix`, with operands of any device."""
    codes: NDArray[np.int32] = round_together([Asked(W, U, V, rule)], device)[0]
    return codes


def round_together(asked: Sequence[Asked], device: torch.device) -> NDArray[np.int32]:
    """int32 [n, C, R]: the same of several matrices of one kind, on a stream of their own."""
    if device.type == "cuda":
        with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            return _rounded(asked, device)
    return _rounded(asked, device)


@dataclass(frozen=True)
class _Work:
    """n matrices [C, R] on their way, on the device; A = blocks of columns, B = of rows, both filled up with zeros.

    T: [n, A, LINES, R'], targets without the feedback of columns. pulled: [n · B, A, LINES, ROWS], that feedback. U: [n, A,
    LINES, A · LINES]. fed: [n · B, S, R'], what errors of a block's S rows at most feed to all later rows; None: nothing.
    decoded_rows: [n, R'], decoded_cols: [n, A, LINES]. codes: int32 as T.
    """

    T: Tensor
    pulled: Tensor
    U: Tensor
    fed: Tensor | None
    decoded_rows: Tensor
    decoded_cols: Tensor
    codes: Tensor


class _Places(NamedTuple):
    """Of the blocks of a diagonal, int64 [L] each: matrix, block of rows and of columns, first row, rows that count."""

    matrix: Tensor
    down: Tensor
    across: Tensor
    first: Tensor
    commit: Tensor


def _rounded(asked: Sequence[Asked], device: torch.device) -> NDArray[np.int32]:
    cols, rows = asked[0].W.shape
    if not cols or not rows:
        return np.zeros((len(asked), cols, rows), np.int32)
    blocks = list(row_blocks(rows, asked[0].rule.states, feedback=True))
    V = None if asked[0].V is None else torch.stack([one.V.to(device) for one in asked if one.V is not None])
    tables = _tables(asked, V, blocks, device)
    work = _work(asked, V, tables, blocks, device)
    state = torch.zeros(len(asked), cols, dtype=torch.int32, device=device)
    told, places, ends = _diagonals(len(asked), rows, cols, blocks)
    every, info = _Places(*torch.from_numpy(places).to(device)), torch.from_numpy(told).to(device)
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        _round(work, tables, info[begin:end], _Places(*(part[begin:end] for part in every)), state)
    found: NDArray[np.int32] = work.codes.flatten(1, 2)[:, :cols, :rows].cpu().numpy()
    return found


def _diagonals(
    matrices: int, rows: int, cols: int, blocks: Sequence[Block]
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[int]]:
    """(what the kernel is told of each block, what `_Places` holds of it, where each diagonal ends), diagonal by diagonal."""
    info, places, ends = [], [], []
    across = -(-cols // LINES)
    for diagonal in range(len(blocks) + across - 1):
        for b in range(max(0, diagonal - across + 1), min(len(blocks), diagonal + 1)):
            (start, commit, stop), a = blocks[b], diagonal - b
            left, right = a * LINES, min((a + 1) * LINES, cols)
            for m in range(matrices):
                corner = (m * cols + left) * cols + left
                push, fresh = m * len(blocks) + b, start % STRIP == 0
                info.append(
                    (m * rows + start, stop - start, commit - start, m * cols + left, right - left, push, corner, fresh)
                )
                places.append((m, b, a, start, commit - start))
        ends.append(len(info))
    return np.array(info, np.int64), np.array(places, np.int64).T.copy(), ends


def _work(
    asked: Sequence[Asked], V: Tensor | None, tables: RoundingTables, blocks: Sequence[Block], device: torch.device
) -> _Work:
    cols, rows = asked[0].W.shape
    across, longest = -(-cols // LINES), blocks[-1][0] + ROWS
    T = torch.zeros(len(asked), across * LINES, longest, dtype=torch.float32, device=device)
    U = torch.zeros(len(asked), across * LINES, across * LINES, dtype=torch.float32, device=device)
    decoded_rows = torch.zeros(len(asked), longest, dtype=torch.float32, device=device)
    decoded_cols = torch.zeros(len(asked), across * LINES, dtype=torch.float32, device=device)
    for place, one in enumerate(asked):
        T[place, :cols, :rows] = one.W.to(device)
    U[:, :cols, :cols] = tables.U
    decoded_rows[:, :rows], decoded_cols[:, :cols] = tables.decoded_rows, tables.decoded_cols
    T = T.view(len(asked), across, LINES, longest)
    return _Work(
        T,
        torch.zeros(len(asked) * len(blocks), across, LINES, ROWS, dtype=torch.float32, device=device),
        U.view(len(asked), across, LINES, -1),
        None if V is None else _fed(V, blocks, longest),
        decoded_rows,
        decoded_cols.view(len(asked), across, LINES),
        torch.zeros_like(T, dtype=torch.int32),
    )


def _fed(V: Tensor, blocks: Sequence[Block], longest: int) -> Tensor:
    """[n · B, S, R'] of the factors V [n, R, R]: V_bb⁻¹ V_bl of every block b of rows for all l after it; S: rows of the
    largest block."""
    size = max(commit - start for start, commit, _ in blocks)
    rows, inside = _windows(blocks, size, V, [commit for _, commit, _ in blocks])
    own = V[:, rows[:, :, None], rows[:, None, :]].masked_fill(~(inside[:, :, None] & inside[:, None, :]), 0.0)
    own = own + torch.diag_embed((~inside).float())  # of rows that are none
    ends = torch.tensor([commit for _, commit, _ in blocks]).to(V.device)
    later = torch.arange(V.shape[-1], device=V.device) >= ends[:, None, None]
    out = V.new_zeros(len(V), len(blocks), size, longest)
    wanted = V[:, rows] * (later & inside[:, :, None])
    with factoring(own):
        out[..., : V.shape[-1]] = torch.linalg.solve_triangular(own, wanted, upper=True)
    return out.flatten(0, 1)


def _windows(blocks: Sequence[Block], size: int, V: Tensor, ends: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(rows int64 [B, size] from the first of each block on, none beyond the last of V; whether each lies before its end)."""
    rows = torch.tensor([start for start, _, _ in blocks])[:, None] + torch.arange(size)
    inside = rows < torch.tensor(ends)[:, None]
    return rows.clamp_max(V.shape[-1] - 1).to(V.device), inside.to(V.device)


def _tables(asked: Sequence[Asked], V: Tensor | None, blocks: Sequence[Block], device: torch.device) -> RoundingTables:
    from pgolf.quant.rounding.viterbi import predecessors  # needs numba

    first = asked[0].rule
    rates = gaussian_rates(first.states)
    before = torch.from_numpy(predecessors(first.states)) if first.states else torch.zeros(1, 2, dtype=torch.int32)

    def of_all(arrays: Sequence[NDArray[np.generic]]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(device)

    rules = [one.rule for one in asked]
    rows = of_all([rule.rows for rule in rules])
    return RoundingTables(
        U=torch.stack([one.U.to(device) for one in asked]),
        push=torch.zeros(1, 1, 1, dtype=torch.float32, device=device) if V is None else _push(V, rows, blocks),
        rows=rows,
        cols=of_all([rule.cols for rule in rules]),
        decoded_rows=of_all([rule.decoded_rows for rule in rules]),
        decoded_cols=of_all([rule.decoded_cols for rule in rules]),
        row_classes=of_all([rule.spread.rows.astype(np.int32) for rule in rules]),
        col_classes=of_all([rule.spread.cols.astype(np.int32) for rule in rules]),
        lam=of_all([rule.lam for rule in rules]),
        bits=of_all([rates.bits])[0],
        parabola=of_all([rates.parabola])[0],
        before=before.to(device),
        first=rates.first,
        trellis_from=first.trellis_from,
    )


def _push(V: Tensor, rows: Tensor, blocks: Sequence[Block]) -> Tensor:
    """What rows of each block feed to the later ones, filled up with zeros; see `RoundingTables`. rows: [n, R], steps."""
    window, inside = _windows(blocks, ROWS, V, [stop for _, _, stop in blocks])
    push = row_push(V[:, window[:, :, None], window[:, None, :]], rows[:, window])
    return push.masked_fill(~(inside[:, :, None] & inside[:, None, :]), 0.0).flatten(0, 1)


def _round(work: _Work, tables: RoundingTables, info: Tensor, at: _Places, state: Tensor) -> None:
    """Round the blocks of one diagonal, and feed what they leave to later ones. No two share columns or rows of a matrix."""
    device = info.device
    rows = at.first[:, None] + torch.arange(ROWS, device=device)
    cell = (
        at.matrix[:, None, None],
        at.across[:, None, None],
        torch.arange(LINES, device=device)[:, None],
        rows[:, None],
    )
    strip = at.matrix * (len(work.pulled) // len(work.T)) + at.down
    base = work.T[cell]
    codes, errors = launch_round(tables, Lanes(info, base - work.pulled[strip, at.across], base, state))
    work.codes[cell] = codes  # rows that were looked at ahead are written again by their own block
    pulled = work.U[at.matrix, at.across].mT @ errors
    work.pulled.index_add_(0, strip, pulled.view(len(info), -1, LINES, ROWS))
    if work.fed is not None:
        size = work.fed.shape[1]
        scale = (
            work.decoded_cols[at.matrix, at.across][:, :, None] * work.decoded_rows[at.matrix[:, None], rows][:, None]
        )
        error = (base - codes * scale)[:, :, :size] * (torch.arange(size, device=device) < at.commit[:, None])[:, None]
        column = at.matrix * work.T.shape[1] + at.across
        work.T.flatten(0, 1).index_add_(0, column, error @ work.fed[strip], alpha=-1)
