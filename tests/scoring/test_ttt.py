"""Test-time training: every token is scored before anything is learned from it, and nothing outlives its document."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pgolf.data.shards import read_shard
from pgolf.errors import DataError, ModelError, UsageError
from pgolf.models import checkpoint, usermodel
from pgolf.scoring import bpb, ttt
from pgolf.scoring.windows import Window, segments
from tests.helpers import SHARED, Counting, generator

VOCAB, BOS = 13, 0
LEARN = ttt.TTTSettings(rank=2, chunk=8, lr=0.1)


class Banked(nn.Module):
    """Causal attention whose matrices lie in one bank, used by F.linear; embedding and head are tied."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        g = generator()
        self.embedding = nn.Embedding(VOCAB, width)
        self.embedding.weight.data = torch.randn(VOCAB, width, generator=g)
        self.bank = nn.Parameter(torch.randn(4, width, width, generator=g) / width**0.5)
        self.gain = nn.Parameter(torch.ones(width))

    def forward_logits(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) * self.gain
        q, k, v = (F.linear(x, self.bank[i].to(x.dtype)) for i in range(3))
        x = x + F.linear(F.scaled_dot_product_attention(q, k, v, is_causal=True), self.bank[3])
        return F.linear(x, self.embedding.weight)


def stream(*lengths: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Documents of these lengths, each a short motif over and over, so that there is something to learn; their starts."""
    random = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        motif = random.integers(1, VOCAB, 5)
        rows.append(np.concatenate([[BOS], np.resize(motif, length - 1)]))
    tokens = np.concatenate(rows).astype(np.uint16)
    return tokens, np.flatnonzero(tokens == BOS)


def learned(model: nn.Module, tokens: np.ndarray, starts: np.ndarray, **changes) -> np.ndarray:
    return ttt.score_and_learn(model, tokens, starts, seq_len=16, settings=LEARN, **changes)


@pytest.mark.parametrize("model", [Banked(), Counting()])
@given(cut=st.integers(1, 99), seed=st.integers(0, 99))
@settings(max_examples=15)
def test_no_score_depends_on_the_future(model: nn.Module, cut: int, seed: int):
    """Tokens after `cut` change; every score up to there stays the same to the bit."""
    tokens, starts = stream(30, 45, 25)
    changed = np.where(np.arange(100) > cut, np.random.default_rng(seed).integers(1, VOCAB, 100), tokens)
    changed[starts] = BOS
    before, after = learned(model, tokens, starts), learned(model, changed, starts)
    assert (before[:cut] == after[:cut]).all()
    assert cut > 90 or (before != after).any()


@pytest.mark.parametrize("place", [3, 20, 33, 50])
def test_no_score_depends_on_its_own_token(place: int):
    """If it did, the probabilities of all pieces in that place, a document start among them, would not sum to 1."""
    tokens, _ = stream(60)
    total = 0.0
    for piece in range(VOCAB):
        changed = tokens.copy()
        changed[place] = piece
        total += np.exp(-np.float64(learned(Banked(), changed, np.flatnonzero(changed == BOS))[place - 1]))
    assert total == pytest.approx(1, abs=1e-5)


def test_documents_know_nothing_of_each_other():
    tokens, starts = stream(30, 45, 25)
    together = learned(Banked(), tokens, starts)
    for start, end in segments(len(tokens) - 1, starts):
        assert (together[start:end] == learned(Banked(), tokens[start : end + 1], starts[:1])).all()


def test_what_was_scored_is_learned_from():
    tokens, starts = stream(60, 60)
    plain = ttt.score_and_learn(Banked(), tokens, starts, seq_len=16, settings=ttt.TTTSettings(2, 8, lr=1e-12))
    nats = learned(Banked(), tokens, starts)
    assert (nats[:8] == plain[:8]).all()
    assert (nats[60:68] == plain[60:68]).all()
    assert nats.mean() < plain.mean() - 0.1


def test_without_learning_it_is_a_sliding_window():
    """Until the context is full, a chunk sees all of its document; then the windows are those of --stride."""
    tokens, starts = stream(30, 45)
    model = Banked()
    nats = ttt.score_and_learn(model, tokens, starts, seq_len=16, settings=ttt.TTTSettings(2, 8, lr=1e-12))
    slid = bpb.score_windows(model.forward_logits, tokens, seq_len=16, stride=8, starts=starts)
    np.testing.assert_allclose(nats, slid, atol=1e-5)


class Stubborn(Counting):
    """Looks at its ids, which torch.vmap does not allow."""

    def forward(self, ids: Tensor) -> Tensor:
        assert int(ids.max()) < VOCAB
        return super().forward(ids)


@pytest.mark.parametrize("model", [Banked(), Counting()])
def test_documents_side_by_side(model: nn.Module):
    tokens, starts = stream(30, 45, 2, 17, 45, 3, 30)
    one = learned(model, tokens, starts, documents=1)
    for documents in (2, 3, 100):
        np.testing.assert_allclose(learned(model, tokens, starts, documents=documents), one, atol=2e-5)


def test_models_that_cannot_be_run_side_by_side_are_found():
    tokens, _ = stream(30)
    for model, wanted in ((Banked(), True), (Counting(), True), (Stubborn(), False)):
        learner = ttt._Learner(ttt._Runner(model, None), LEARN)
        assert learner.takes_several(tokens, Window(0, 0, 8)) == wanted


def test_chunks_come_in_the_order_of_their_documents():
    group = [(0, 20), (20, 23), (23, 43)]
    found = list(ttt.steps(group, 16, 8))
    assert [step.documents for step in found] == [(0, 2), (1,), (0, 2), (0, 2)]
    assert [step.learn for step in found] == [True, False, True, False]
    scored = sorted((w.scored, w.stop) for step in found for w in step.windows)
    assert [a for a, _ in scored[1:]] == [b for _, b in scored[:-1]]


def test_one_step_by_hand():
    """A chunk of 8, one step of B down its gradient, of the root mean square `lr`; then the next chunk."""
    tokens, starts = stream(17)
    model, ids = Counting(), torch.from_numpy(tokens.astype(np.int64))[None]
    table = model.table.detach()
    down = torch.randn(2, VOCAB, generator=generator(ttt.SEED)) * table.square().mean().sqrt() / 2**0.5

    def losses(up: Tensor, first: int, stop: int) -> Tensor:
        logits = torch.func.functional_call(model, {"table": table + up @ down}, (ids[:, :stop],))[0]
        return F.cross_entropy(logits[first:], ids[0, first + 1 : stop + 1], reduction="none")

    up = torch.zeros(VOCAB, 2, requires_grad=True)
    before = losses(up, 0, 8)
    (gradient,) = torch.autograd.grad(before.mean(), up)
    after = losses(-LEARN.lr * gradient / gradient.square().mean().sqrt(), 8, 16)
    wanted = torch.cat([before, after]).detach().numpy()
    np.testing.assert_allclose(learned(model, tokens, starts), wanted, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model = Banked().train()
    model.bank.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    learned(model, *stream(60, 30))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert not model.bank.requires_grad
    assert model.gain.requires_grad
    assert model.gain.grad is None
    assert torch.equal(state, torch.get_rng_state())


def test_tied_weights_and_banks_learn():
    learner = ttt._Learner(ttt._Runner(Banked(), None), LEARN)
    tokens, _ = stream(40)
    with torch.enable_grad():
        learner.score(tokens, ttt.Step((0,), (Window(0, 0, 16),), learn=True))
    moved = {name: up.detach().square().mean((-2, -1)).sqrt() for name, up in learner._up.items()}
    assert moved.keys() == {"model.embedding.weight", "model.bank"}
    for size in moved.values():  # each matrix of a bank by itself
        torch.testing.assert_close(size, torch.full_like(size, LEARN.lr))


def test_an_unused_matrix_stays():
    model = Banked()
    model.spare = nn.Parameter(torch.ones(3, 3))
    assert (learned(model, *stream(40)) < 100).all()


def test_progress_reaches_the_total():
    seen = []
    learned(Banked(), *stream(30, 45), progress=lambda *step: seen.append(step))
    assert seen == [(30, 74), (74, 74)]


class Gradientless(Counting):
    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids)


def test_bad_input():
    tokens, starts = stream(30)
    with pytest.raises(UsageError, match="rank and a chunk of at least 1"):
        ttt.TTTSettings(rank=0)
    with pytest.raises(UsageError, match="chunk of 8 tokens must fit the sequence length 4"):
        ttt.score_and_learn(Banked(), tokens, starts, seq_len=4, settings=LEARN)
    with pytest.raises(ModelError, match="without gradients"):
        learned(Gradientless(), tokens, starts)
    with pytest.raises(ModelError, match="no matrix"):
        learned(nn.Module(), tokens, starts, logits=lambda ids: torch.zeros(*ids.shape, VOCAB))
    with pytest.raises(DataError, match="beyond the model's vocabulary"):
        learned(Counting(), np.append(tokens, VOCAB), starts)
    broken = Banked()
    broken.bank.data[0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        learned(broken, tokens, starts)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_a_real_model_gains():
    """golf3m on its first documents, against windows that see the same contexts."""
    golf = SHARED / "golf3m"
    model = usermodel.load(f"{golf / 'model.py'}:GPT", checkpoint.read(golf / "ckpt.pt").state_dict())
    tokens = read_shard(SHARED / "text_val_000000.bin")[:5700]
    starts = np.flatnonzero(tokens == 1)
    plain = bpb.score_windows(model.forward_logits, tokens, seq_len=512, stride=128, starts=starts)
    nats = ttt.score_and_learn(model, tokens, starts, seq_len=512)
    assert nats.mean() < plain.mean() - 0.002
