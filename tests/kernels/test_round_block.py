"""Rounding on a device: the codes of the compiled loops, block by block of a diagonal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pgolf.kernels import round_block
from pgolf.packer.coder.strips import strip_lengths
from pgolf.packer.coder.trellis import on_path
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.quant.methods import auto
from pgolf.quant.rounding import diagonals, feedback
from pgolf.quant.settings import Settings
from tests.elsewhere import gpu
from tests.helpers import generator
from tests.kernels.places import HAS_GPU, everywhere, needs_triton


def matrix(rows, cols, states, *, whole=True, seed=0):
    """What `round_matrix` is given for a random matrix under random curvature; whole: G is more than its diagonal."""
    g = generator(seed)
    W = torch.randn(rows, cols, generator=g)
    H, G = (torch.randn(3 * n, n, generator=g) @ torch.randn(n, n, generator=g) for n in (cols, rows))
    H, G = H.T @ H / len(H), G.T @ G / len(G)
    settings = Settings(trellis=states)
    prepared = auto.prepare(W, MatrixCurvature(H, G if whole else G.diagonal().clone()), settings)
    seen = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(auto, "rounded_rows", lambda *given: seen.append(given) or feedback.rounded_rows(*given))
        auto.quantize_in_frame(W, prepared.frame, prepared.unit * 300, settings)
    return seen[0], H[prepared.frame.order][:, prepared.frame.order], G


def rounded(given, device):
    W, U, V, rule = given
    return diagonals.round_on_device(W, U, V, rule, torch.device(device))


def lost(given, codes, H, G):
    W, _, V, rule = given
    error = W.numpy() - codes * np.outer(rule.decoded_cols, rule.decoded_rows)
    return np.einsum(
        "cr,cd,ds,rs", error, H.numpy(), error, G.numpy() if V is not None else np.diag(G.diagonal().numpy())
    )


SET_UP = 50  # operations before the first diagonal, some four more for each matrix


class Counting(TorchDispatchMode):
    """How many operations compute something."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def few_blocks(monkeypatch):
    """Blocks of four rows and four columns, so that a small matrix has many."""
    monkeypatch.setattr(feedback, "ROW_BLOCK", 4)
    monkeypatch.setattr(feedback, "LOOKAHEAD", 1)
    for module in (round_block, diagonals):
        monkeypatch.setattr(module, "LINES", 4)
        monkeypatch.setattr(module, "ROWS", 16)


@everywhere
@pytest.mark.parametrize(("rows", "cols", "states"), [(1, 3, 8), (3, 1, 0), (7, 5, 8), (5, 3, 0)])
@pytest.mark.parametrize("whole", [True, False])
def test_the_codes_of_the_compiled_loops(device, rows, cols, states, whole):
    given, *_ = matrix(rows, cols, states, whole=whole)
    assert (rounded(given, device) == feedback.round_matrix(*given)).mean() > (0.99 if device == "cpu" else 0.8)


@everywhere
@pytest.mark.parametrize(("states", "whole"), [(0, True), (4, True), (4, False)])
def test_blocks_feed_each_other(device, states, whole, monkeypatch):
    few_blocks(monkeypatch)
    given, H, G = matrix(10, 6, states, whole=whole)
    mine, wanted = rounded(given, device), feedback.round_matrix(*given)
    if whole:
        assert (mine == wanted).all() or device == "cuda"
    rule = given[3]
    assert lost(given, mine, H, G) < 1.2 * lost(given, wanted, H, G)
    if states:
        on = np.add.outer(rule.spread.cols, rule.spread.rows) >= rule.trellis_from
        assert on_path(mine.ravel(), on.ravel(), strip_lengths(mine.shape[::-1]), states)


@pytest.mark.slow
@everywhere
def test_whole_blocks(device):
    """Of the real size: 64 rows and a lookahead of ten, 64 columns and two."""
    for rows, cols in ((70, 3), (2, 66)):
        given, *_ = matrix(rows, cols, 4)
        assert (rounded(given, device) == feedback.round_matrix(*given)).mean() > 0.99


@everywhere
@pytest.mark.parametrize(("states", "whole"), [(0, True), (4, False)])
def test_several_become_together_what_each_becomes_alone(device, states, whole, monkeypatch):
    few_blocks(monkeypatch)
    given = [matrix(6, 5, states, whole=whole, seed=seed)[0] for seed in (0, 3)]
    asked = [diagonals.Asked(*one) for one in given]
    assert len({one.kind for one in asked}) == 1
    together = diagonals.round_together(asked, torch.device(device))
    for mine, one in zip(together, given, strict=True):
        assert (mine == rounded(one, device)).all() or device == "cuda"


def test_a_diagonal_takes_as_many_operations_whatever_is_on_it(monkeypatch):
    """And one launch: so can the time on a GPU be foreseen."""
    few_blocks(monkeypatch)
    monkeypatch.setattr(
        diagonals,
        "launch_round",
        lambda _, lanes: (torch.zeros_like(lanes.bare, dtype=torch.int32), torch.zeros_like(lanes.bare)),
    )
    per_diagonal = []
    for rows, cols, matrices in ((8, 8, 1), (40, 40, 1), (40, 40, 5)):
        asked = [diagonals.Asked(*matrix(rows, cols, 4, seed=seed)[0]) for seed in range(matrices)]
        with Counting() as seen:
            diagonals.round_together(asked, torch.device("cpu"))
        diagonals_of_all = -(-rows // 4) + -(-cols // 4) - 1
        per_diagonal.append((seen.count - SET_UP - 4 * matrices) / diagonals_of_all)
    assert max(per_diagonal) <= diagonals.OPERATIONS, per_diagonal


@needs_triton
@pytest.mark.skipif(HAS_GPU, reason="a GPU is there: it shows the same by itself")
def test_everything_lies_where_the_curvature_is():
    (W, U, V, rule), *_ = matrix(3, 4, 4)
    with gpu() as there:
        mine = diagonals.round_on_device(W, U, V, rule, torch.device("cuda:0"))
        assert there.waits == {"cpu": 1}
    assert (mine == feedback.round_matrix(W, U, V, rule)).all()


@pytest.mark.parametrize("kernel", [True, False])
def test_codes_of_curvature_on_a_device_are_rounded_there(kernel, monkeypatch):
    """Where there is a kernel for it."""
    asked = []
    monkeypatch.setattr(diagonals, "HAS_KERNEL", kernel)
    monkeypatch.setattr(
        diagonals,
        "round_on_device",
        lambda W, U, V, rule, device: asked.append(device) or feedback.round_matrix(W, U, V, rule),
    )
    W, there = torch.randn(4, 6, generator=generator()), torch.device("cuda", 0)
    settings = Settings()
    with gpu():
        curvature = MatrixCurvature(torch.eye(6).to(there), torch.eye(4).to(there))
        plane = auto.quantize(W, curvature, settings)
    assert asked == [there] * kernel
    wanted = auto.quantize(W, MatrixCurvature(torch.eye(6), torch.eye(4)), settings)
    assert (plane.codes == wanted.codes).all()
