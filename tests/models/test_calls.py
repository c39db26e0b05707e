"""How strangers' models want to be called: the logits are found in each, or the reason is the model's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.errors import CurvatureError, ModelError
from pgolf.models.lengths import usable_length
from pgolf.models.logits import logits_of, undisturbed

V, D = 11, 8
IDS = torch.tensor([[0, 1, 2, 7], [2, 10, 0, 3]])


class Base(nn.Module):
    """Logits that depend on the ids before, so that a shift would show."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(V, D, generator=generator))
        self.head = nn.Parameter(torch.randn(V, D, generator=generator))

    def all(self, ids: Tensor) -> Tensor:
        return F.linear(self.table[ids].cumsum(1), self.head)


class NanoGPT(Base):
    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        assert idx.shape[1] <= 6, f"Cannot forward sequence of length {idx.shape[1]}, block size is only 6"
        logits = self.all(idx)
        if targets is None:
            return logits[:, [-1], :], None
        return logits, F.cross_entropy(logits.view(-1, V), targets.view(-1), ignore_index=-1)


class LossOnly(Base):
    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return nn.CrossEntropyLoss()(self.all(ids).flatten(0, 1), targets.flatten())


class Transposed(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.all(x).mT, y)


class Nll(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(F.log_softmax(self.all(x), -1).view(-1, V), y.view(-1))


class Gathered(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.all(x).log_softmax(-1).gather(-1, y[..., None]).mean()


class Chunked(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        rows = zip(self.all(x).flatten(0, 1).split(3), y.flatten().split(3), strict=True)
        return sum(F.cross_entropy(some, wanted, reduction="sum") for some, wanted in rows)


class OwnShift(Base):
    """Takes inputs and targets from one text, as x-transformers' wrapper does."""

    def forward(self, x: Tensor) -> Tensor:
        return F.cross_entropy(self.all(x[:, :-1]).mT, x[:, 1:])


class LaterShift(Base):
    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.all(ids)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class Keywords(Base):
    def forward(self, *, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
        return {"loss": None, "logits": self.all(input_ids)}


class Batch(Base):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.all(batch["input_ids"]).mT, batch["labels"])


class TwoHeads(Base):
    """A second loss looks two tokens ahead: its logits are not the next token's."""

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        ahead = F.cross_entropy(-self.all(ids)[:, :-2].mT, targets[:, 2:])
        return ahead + F.cross_entropy(self.all(ids).mT, targets)


class Mixed(Base):
    """Runs under autocast only: the table was cast, the head was not."""

    def all(self, ids: Tensor) -> Tensor:
        return F.linear(self.table.bfloat16()[ids], self.head)

    def forward(self, ids: Tensor) -> Tensor:
        return self.all(ids)


class HiddenLogits(Base):
    """`logits` takes hidden states, not ids."""

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head)

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(self.table[ids].cumsum(1))


KINDS = [NanoGPT, LossOnly, Transposed, Nll, Gathered, Chunked, OwnShift, LaterShift, Keywords, Batch, TwoHeads]


@pytest.mark.parametrize("kind", [*KINDS, HiddenLogits])
def test_logits_are_found(kind: type[Base]) -> None:
    model = kind()
    run = logits_of(model)
    for ids in (IDS, IDS[:1, :3], IDS[:, :1]):
        assert torch.equal(run(ids), model.all(ids))
    assert run(IDS).requires_grad


def test_mixed_dtypes_are_run_under_autocast() -> None:
    model = Mixed()
    wanted = F.linear(model.table[IDS], model.head)
    assert torch.allclose(logits_of(model)(IDS).float(), wanted, atol=0.1)


class Multiple(Base):
    """Takes whole multiples only, as flex_attention does, and looks at all that it gets."""

    multiple = 4

    def forward(self, ids: Tensor) -> Tensor:
        assert ids.shape[1] % self.multiple == 0, "T % 4"
        return self.all(ids)


def test_lengths_between_multiples_are_filled_up() -> None:
    model, run = Multiple(), logits_of(Multiple())
    for length in (1, 2, 3, 4):
        assert torch.allclose(run(IDS[:, :length]), model.all(IDS[:, :length]))
    assert run.multiple == 4
    assert run.prepare(IDS.repeat(1, 2)[:, :7]).shape == (2, 4)


def test_the_longest_length() -> None:
    assert usable_length(logits_of(Multiple()), 31) == 28
    model = NanoGPT()
    model.forward = lambda idx: Base.all(model, idx) + torch.zeros(300)[: idx.shape[1], None].expand(idx.shape[1], V)
    assert usable_length(logits_of(model), 1024) == 300
    assert usable_length(logits_of(model), 200) == 200
    assert usable_length(logits_of(model), 1024, odd=True) == 299


def test_the_only_embedding_may_be_positional() -> None:
    class Positional(Base):
        def __init__(self) -> None:
            super().__init__()
            self.positions = nn.Embedding(4, D)

        def forward(self, ids: Tensor) -> Tensor:
            return self.all(ids) + F.linear(self.positions(torch.arange(ids.shape[1])), self.head)

    assert logits_of(Positional())(IDS).shape == (2, 4, V)
    with pytest.raises(CurvatureError, match=f"token {V} lies outside the model's vocabulary of {V}"):
        logits_of(Positional())(IDS + 1)


def test_a_later_token_is_refused_before_it_reaches_the_table() -> None:
    run = logits_of(LossOnly())
    run(IDS)
    with pytest.raises(CurvatureError, match="vocabulary of 11"):
        run(IDS + 1)


def test_the_models_own_words_come_last() -> None:
    with pytest.raises(CurvatureError, match=r"block size is only 6"):
        logits_of(NanoGPT())(IDS.repeat(1, 2))
    with pytest.raises(ModelError, match=r"wants more than token ids.*'mask'\)$"):
        logits_of(Wanting())(IDS)


class Wanting(Base):
    def forward(self, ids: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        return self.all(ids)


class Cached(Base):
    """Keeps a table of positions once it is made."""

    cache: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:
        if self.cache is None or len(self.cache) < ids.shape[1]:
            self.cache = torch.arange(1.0, ids.shape[1] + 1)[:, None]
        return F.linear(self.table[ids] * self.cache[: ids.shape[1]], self.head)


def test_a_cache_made_under_inference_mode() -> None:
    model = Cached()
    with torch.inference_mode():
        model(IDS)
    with undisturbed(model, gradients=True):
        found = logits_of(model)(IDS)
        found.sum().backward()
    assert torch.allclose(found, Cached()(IDS))


def test_parameters_made_under_inference_mode() -> None:
    with torch.inference_mode():
        model = LossOnly()
    with (
        pytest.raises(CurvatureError, match=r"'table' was made under torch\.inference_mode"),
        undisturbed(model, gradients=True),
    ):
        pass
