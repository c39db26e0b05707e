"""Rounding a matrix on a GPU: a block of rows and columns waits for the one above it and the one to its left alone, so the
blocks of a diagonal are rounded side by side, in one launch.

The same blocks, lookahead and feedback as `feedback.round_matrix`, which is the reference. Two things differ: sums over
columns are one matrix product instead of one a block, and where rows do not feed each other the Viterbi search looks
ahead from block to block instead of over a whole strip. A few codes in a thousand come out otherwise, of the same loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.kernels.device import triton
from pgolf.kernels.round_block import INFO, LINES, ROWS, Lanes, RoundingTables, launch_round
from pgolf.packer.coder.trellis import STRIP
from pgolf.quant.rounding.feedback import RoundingRule, gaussian_rates, row_blocks, row_push

HAS_KERNEL = triton is not None
Block = tuple[int, int, int]  # first row, first row of the next block, end of the lookahead


@dataclass(frozen=True)
class _Work:
    """A matrix on its way, on the device. T: [C, R], targets without the feedback of columns; codes: int32 [C, R]; errors:
    [row blocks, C, ROWS]; state: int32 [C]; V: the factor of G⁻¹, or None; scale: [C, R], decoded steps."""

    T: Tensor
    V: Tensor | None
    tables: RoundingTables
    blocks: Sequence[Block]
    codes: Tensor
    errors: Tensor
    state: Tensor


def round_on_device(
    W: Tensor, U: Tensor, V: Tensor | None, rule: RoundingRule, device: torch.device
) -> NDArray[np.int32]:
    """int32 [C, R]: as `feedback.round_matrix`, with operands of any device, on a stream of its own."""
    if device.type == "cuda":
        with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            return _rounded(W.to(device), U.to(device), None if V is None else V.to(device), rule)
    return _rounded(W, U, V, rule)


def _rounded(W: Tensor, U: Tensor, V: Tensor | None, rule: RoundingRule) -> NDArray[np.int32]:
    blocks = list(row_blocks(W.shape[1], rule.states, feedback=True))
    cols = len(W)
    work = _Work(
        W.clone(),
        V,
        _tables(U, V, rule, blocks),
        blocks,
        torch.zeros(W.shape, dtype=torch.int32, device=W.device),
        torch.zeros(len(blocks), cols, ROWS, device=W.device),
        torch.zeros(cols, dtype=torch.int32, device=W.device),
    )
    across = -(-cols // LINES)
    for diagonal in range(len(blocks) + across - 1 if cols else 0):
        lanes = [
            (b, (diagonal - b) * LINES) for b in range(max(0, diagonal - across + 1), min(len(blocks), diagonal + 1))
        ]
        _round(work, lanes)
    found: NDArray[np.int32] = work.codes.cpu().numpy()
    return found


def _tables(U: Tensor, V: Tensor | None, rule: RoundingRule, blocks: Sequence[Block]) -> RoundingTables:
    """On the device of U."""
    from pgolf.quant.rounding.viterbi import predecessors  # needs numba

    rates = gaussian_rates(rule.states)
    before = torch.from_numpy(predecessors(rule.states)) if rule.states else torch.zeros(1, 2, dtype=torch.int32)
    given = (
        rule.rows, rule.cols, rule.decoded_rows, rule.decoded_cols, rule.spread.rows.astype(np.int32),
        rule.spread.cols.astype(np.int32), rule.lam, rates.bits, rates.parabola,
    )  # fmt: skip
    rows, cols, decoded_rows, decoded_cols, row_classes, col_classes, lam, bits, parabola = (
        torch.from_numpy(np.ascontiguousarray(array)).to(U.device) for array in given
    )
    return RoundingTables(
        U.contiguous(), _push(V, rule, blocks, U.device), rows, cols, decoded_rows, decoded_cols, row_classes, col_classes,
        lam, bits, parabola, before.to(U.device), rates.first, rule.trellis_from,
    )  # fmt: skip


def _push(V: Tensor | None, rule: RoundingRule, blocks: Sequence[Block], device: torch.device) -> Tensor:
    """What rows of each block feed to the later ones, filled up with zeros; see `RoundingTables`."""
    if V is None:
        return torch.zeros(1, 1, 1, device=device)
    push = torch.zeros(len(blocks), ROWS, ROWS, device=device)
    for out, (start, _, stop) in zip(push, blocks, strict=True):
        out[: stop - start, : stop - start] = row_push(V[start:stop, start:stop], rule.of_rows(slice(start, stop)))
    return push


def _round(work: _Work, lanes: Sequence[tuple[int, int]]) -> None:
    """Round blocks of one diagonal, each (number of its rows, first column), and feed what they leave to later ones."""
    device = work.T.device
    bare = torch.zeros(len(lanes), LINES, ROWS, device=device)
    targets = torch.zeros_like(bare)
    info = np.zeros((len(lanes), INFO), np.int64)
    for lane, (b, left) in enumerate(lanes):
        start, commit, stop = work.blocks[b]
        right = min(left + LINES, len(work.T))
        if start % STRIP == 0:
            work.state[left:right] = 0
        info[lane] = start, stop - start, commit - start, left, right - left, b if work.V is not None else 0
        base = work.T[left:right, start:stop]
        bare[lane, : right - left, : stop - start] = base
        pulled = work.tables.U[:left, left:right].T @ work.errors[b, :left, : stop - start]
        targets[lane, : right - left, : stop - start] = base - pulled
    codes, errors = launch_round(work.tables, Lanes(torch.from_numpy(info).to(device), targets, bare, work.state))
    for lane, (b, left) in enumerate(lanes):
        start, commit, _ = work.blocks[b]
        right = min(left + LINES, len(work.T))
        work.errors[b, left:right] = errors[lane, : right - left]
        work.codes[left:right, start:commit] = codes[lane, : right - left, : commit - start]
        if work.V is not None and commit < work.T.shape[1]:
            _feed(work, work.V, slice(left, right), slice(start, commit))


def _feed(work: _Work, V: Tensor, cols: slice, rows: slice) -> None:
    """Feed what the columns `cols` of a block leave to all later rows."""
    t = work.tables
    decoded = work.codes[cols, rows] * (t.decoded_cols[cols, None] * t.decoded_rows[None, rows])
    error = work.T[cols, rows] - decoded
    pushed = torch.linalg.solve_triangular(V[rows, rows], error, upper=True, left=False)
    work.T[cols, rows.stop :] -= pushed @ V[rows, rows.stop :]
