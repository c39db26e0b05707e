"""Rounding a whole matrix: row block by row block, in each column block by column block, errors fed back both ways.

Feedback between rows needs whole rows to be final, the Viterbi path along the rows needs to look ahead. So a block of rows
is rounded together with `LOOKAHEAD` rows below it, whose codes are then thrown away. Within a block every survivor of the
Viterbi search carries its own feedback from row to row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.common import extras
from pgolf.common.factoring import factoring
from pgolf.packer.coder.trellis import STRIP
from pgolf.packer.plane import SPREAD_STEPS, Spread

if TYPE_CHECKING:
    from pgolf.quant.rounding.viterbi import BlockRule, Rates

ROW_BLOCK = 64  # rows between two feedbacks to the rows below
LOOKAHEAD = 5  # rows of lookahead for each bit of the trellis state: by then, survivors have merged
COL_BLOCK = 64  # columns whose feedback is computed one by one; what they push further is one matrix product


@dataclass(frozen=True)
class RoundingRule:
    """What the codes stand for, and what they cost.

    rows, cols: float32 [R], [C], the encoder's lattice step is their product. decoded_rows, decoded_cols: the same for
    the decoder's step. lam: float32 [R], λ of the branch cost in squared lattice steps a bit. states, trellis_from,
    spread: as in `Plane`.
    """

    rows: NDArray[np.float32]
    cols: NDArray[np.float32]
    decoded_rows: NDArray[np.float32]
    decoded_cols: NDArray[np.float32]
    lam: NDArray[np.float32]
    spread: Spread
    states: int
    trellis_from: int

    def of_rows(self, rows: slice) -> RoundingRule:
        """The rule of a range of rows."""
        return replace(
            self,
            rows=self.rows[rows],
            decoded_rows=self.decoded_rows[rows],
            lam=self.lam[rows],
            spread=Spread(self.spread.rows[rows], self.spread.cols),
        )

    def of_block(self, cols: slice) -> BlockRule:
        """The rule of a range of columns, as the compiled loops take it."""
        from pgolf.quant.rounding.viterbi import BlockRule, predecessors  # needs numba

        return BlockRule(
            rows=self.rows,
            cols=self.cols[cols],
            decoded_rows=self.decoded_rows,
            decoded_cols=self.decoded_cols[cols],
            row_classes=self.spread.rows,
            col_classes=self.spread.cols[cols],
            lam=self.lam,
            trellis_from=self.trellis_from,
            rates=gaussian_rates(self.states),
            before=predecessors(self.states) if self.states else np.empty((0, 2), np.int32),
        )


def round_matrix(W: Tensor, U: Tensor, V: Tensor | None, rule: RoundingRule) -> NDArray[np.int32]:
    """int32 [C, R]: all codes of `rounded_rows`."""
    codes = np.empty(W.shape, np.int32)
    for rows, rounded in rounded_rows(W, U, V, rule):
        codes[:, rows] = rounded
    return codes


def rounded_rows(
    W: Tensor, U: Tensor, V: Tensor | None, rule: RoundingRule
) -> Iterator[tuple[slice, NDArray[np.int32]]]:
    """(rows of the weight, their codes int32 [C, n]) of W [C, R], one block of rows after another.

    U [C, C] and V [R, R] are the upper factors of H⁻¹ and G⁻¹ (None: G diagonal).

    Transposed, because the inner loops run along what is a column of the weight. The feedback of a block's error E to the
    later rows does not depend on H: the best later rows are −G_ll⁻¹ G_lb E.
    """
    T = W if V is None else W.clone()  # nothing is fed to later rows where G is diagonal
    state = np.zeros(len(W), np.int32)
    for start, commit, stop in row_blocks(W.shape[1], rule.states, V is not None):
        if start % STRIP == 0:
            state[:] = 0
        part = rule.of_rows(slice(start, stop))
        push = (
            np.empty((0, 0), np.float32)
            if V is None
            else row_push(V[start:stop, start:stop], torch.from_numpy(part.rows)).numpy()
        )
        block = T[:, start:stop].contiguous()
        rounded = round_row_block(block, U, push, part, state, commit - start)[:, : commit - start]
        yield slice(start, commit), rounded
        if V is not None and commit < W.shape[1]:
            scale = np.outer(rule.decoded_cols, rule.decoded_rows[start:commit])
            error = block[:, : commit - start] - torch.from_numpy(rounded * scale)
            with factoring(error):
                pushed = torch.linalg.solve_triangular(V[start:commit, start:commit], error, upper=True, left=False)
            T[:, commit:] -= pushed @ V[start:commit, commit:]


def row_push(V: Tensor, rows: Tensor) -> Tensor:
    """float32 [..., n, n]: lattice steps that an error of one step in row i moves the target of row l by: −V_il/V_ii.

    rows: [..., n], lattice steps.
    """
    push = -V / V.diagonal(dim1=-2, dim2=-1)[..., None] * rows[..., None] / rows[..., None, :]
    return push.triu(1).contiguous()


def row_blocks(rows: int, states: int, feedback: bool) -> Iterator[tuple[int, int, int]]:
    """(first row, first row of the next block, end of the lookahead); no block crosses a strip."""
    size = ROW_BLOCK if feedback else STRIP
    ahead = LOOKAHEAD * (states.bit_length() - 1) if states and feedback else 0
    for start in range(0, rows, size):
        strip_end = min(start - start % STRIP + STRIP, rows)
        commit = min(start + size, strip_end)
        yield start, commit, min(commit + ahead, strip_end)


def round_row_block(
    base: Tensor, U: Tensor, push: NDArray[np.float32], rule: RoundingRule, state: NDArray[np.int32], commit: int
) -> NDArray[np.int32]:
    """int32 [C, n]: codes of the targets [C, n] of some rows; `state` [C] becomes the state after `commit` rows."""
    from pgolf.quant.rounding.viterbi import Block, Rounded, round_columns  # needs numba

    T, codes = base.clone(), np.empty(base.shape, np.int32)
    for start in range(0, len(T), COL_BLOCK):
        cols = slice(start, min(start + COL_BLOCK, len(T)))
        errors = np.empty((cols.stop - start, T.shape[1]), np.float32)
        block = Block(T[cols].numpy(), base[cols].numpy(), U[cols, cols].contiguous().numpy(), push)
        round_columns(block, rule.of_block(cols), Rounded(codes[cols], errors, state[cols]), commit)
        T[cols.stop :] -= U[cols, cols.stop :].T @ torch.from_numpy(errors)
    return codes


@cache
def gaussian_rates(states: int) -> Rates:
    """Bits of each code under a Gaussian of each class's spread, rounded on the points that the code leaves it."""
    extras.need("scipy")
    from scipy.special import ndtr

    from pgolf.quant.rounding.viterbi import Rates  # needs numba

    first, tables, classes, size = -24, 29, 100, 64
    sigma = np.exp2(np.arange(first, first + classes) / SPREAD_STEPS)
    k = np.arange(-size, size + 1)
    half = 1.0 if states else 0.5
    mass = ndtr((k + half) / sigma[:tables, None]) - ndtr((k - half) / sigma[:tables, None]) + 1e-7
    parity = (k & 1) if states else 0 * k
    total = np.where(
        parity, mass[:, parity == 1].sum(axis=1, keepdims=True), mass[:, parity == 0].sum(axis=1, keepdims=True)
    )
    bits = -np.log2(mass / total)[:, size:]
    return Rates(first, bits.astype(np.float32), (1 / (2 * math.log(2) * sigma**2)).astype(np.float32))
