"""Score-first test-time training: every document teaches the model about itself, and is forgotten at its end.

A document is cut into chunks. A chunk is scored, and only then one step is taken on its loss, in low-rank additions B A
to the model's matrices (LoRA, arXiv 2106.09685; one set a document as in openai/parameter-golf #77; A stays as it was
drawn, arXiv 2308.03303). The forward pass that scores a chunk is the one that is learned from: no second pass, and no
way to learn first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from pgolf.common.progress import Advance
from pgolf.data.shards import check_vocabulary
from pgolf.errors import ModelError, UsageError
from pgolf.models.logits import device_of, logits_of, original, undisturbed
from pgolf.scoring.bpb import num_targets
from pgolf.scoring.overlap import fetched, ids_of, one_behind
from pgolf.scoring.windows import Window, chunk_windows, segments

SEED = 0  # of A
COPIES = 4  # of the adapted weights, in float32, that a document in work needs: themselves, gradients, what torch keeps
MOST_TOGETHER = 64  # documents side by side
TINY = 1e-30  # a matrix without gradient stays as it is


@dataclass(frozen=True)
class TTTSettings:
    """rank: of the additions; chunk: targets between two steps, fewer learn more and take longer; lr: the share of its
    own size by which a step moves a matrix."""

    rank: int = 8
    chunk: int = 128
    lr: float = 0.001

    def __post_init__(self) -> None:
        if self.rank < 1 or self.chunk < 1 or not self.lr > 0:
            raise UsageError("test-time training needs a rank and a chunk of at least 1 and a positive learning rate")


def score_and_learn(
    model: nn.Module,
    tokens: NDArray[np.integer],
    starts: NDArray[np.integer],
    *,
    seq_len: int,
    settings: TTTSettings = TTTSettings(),
    logits: Callable[..., Any] | str | None = None,
    progress: Advance | None = None,
    documents: int | None = None,
) -> NDArray[np.float32]:
    """float32 [N - 1]: nats of every target of `tokens` [N], each scored before anything is learned from it.

    Every document begins from the model itself. Its last chunk teaches nobody, so it takes no step.
    starts: positions of the documents' first tokens; neither context nor additions cross them. seq_len: longest
    context, the chunk included. logits: as in `pgolf.models.logits.logits_of`. progress: called with (scored, total)
    after every document, or group of them. documents: that are scored side by side, each with additions of its own; None:
    on the CPU one, on a GPU as many as fit if the model can be run so (`torch.vmap`). Raises UsageError, DataError for
    tokens that the model does not know, ModelError.
    """
    if settings.chunk > seq_len:
        raise UsageError(f"a chunk of {settings.chunk} tokens must fit the sequence length {seq_len}")
    total = num_targets(tokens)
    nats = np.empty(total, np.float32)
    runner = _Runner(original(model), logits)
    with undisturbed(runner.model, gradients=False):
        runner.check(tokens, min(seq_len, total))
        learner = _Learner(runner, settings)
        texts = segments(total, starts)
        together = learner.together(tokens, texts, seq_len) if documents is None else documents
        for at in range(0, len(texts), together):
            group = texts[at : at + together]
            learner.forget(len(group))
            for step, read in one_behind((s, learner.score(tokens, s)) for s in steps(group, seq_len, settings.chunk)):
                for window, row in zip(step.windows, _finite(read(), step), strict=True):
                    nats[window.scored : window.stop] = row
            if progress is not None:
                progress(group[-1][1], total)
    return nats


@dataclass(frozen=True)
class Step:
    """Windows of one shape, of different documents (their numbers in a group); learn: whether a step is taken on each."""

    documents: tuple[int, ...]
    windows: tuple[Window, ...]
    learn: bool


def steps(group: Sequence[tuple[int, int]], seq_len: int, chunk: int) -> Iterator[Step]:
    """The chunks of documents (first, end), side by side: each after the ones before it in its own document."""
    waiting = [list(chunk_windows(first, end, seq_len, chunk)) for first, end in group]
    for place in range(max(map(len, waiting), default=0)):
        alike: dict[tuple[tuple[int, int], bool], list[int]] = {}
        for document, windows in enumerate(waiting):
            if place < len(windows):
                learn = windows[place].stop < group[document][1]
                alike.setdefault((windows[place].shape, learn), []).append(document)
        for (_, learn), documents in alike.items():
            yield Step(tuple(documents), tuple(waiting[d][place] for d in documents), learn)


class _Runner(nn.Module):
    """The model and how to get its logits, as one module, so that `functional_call` can exchange its weights."""

    def __init__(self, model: nn.Module, logits: Callable[..., Any] | str | None) -> None:
        super().__init__()
        self.model = model
        self._logits = logits_of(model, logits)
        self._run: Callable[[Tensor], Tensor] = self._logits

    def forward(self, ids: Tensor) -> Tensor:
        return self._run(ids)

    def unchecked(self, ids: Tensor) -> None:
        """From here on ids are not looked at, which torch.vmap does not allow; these are ids like those that come."""
        self._run = self._logits.unchecked(ids)

    def checked(self) -> None:
        """From here on they are."""
        self._run = self._logits

    def check(self, tokens: NDArray[np.integer], length: int) -> None:
        """DataError for tokens beyond the vocabulary."""
        place = device_of(self.model)
        check_vocabulary(tokens, self(torch.zeros(1, length, dtype=torch.int64, device=place)).size(-1))


class _Learner:
    """The additions B A of one document: A, fixed, is shared by all documents.

    Any matrix or bank of any model is adapted: the model runs with W + B A in the place of W. Its own weights are never
    written, so they are bit-identical afterwards. Weights stored in bfloat16 round small additions away.
    """

    def __init__(self, runner: _Runner, settings: TTTSettings) -> None:
        self._runner, self._settings = runner, settings
        self._weights = {n: p.detach() for n, p in runner.named_parameters() if p.dim() in (2, 3) and p.numel()}
        if not self._weights:
            raise ModelError("the model has no matrix that test-time training could adapt")
        generator = torch.Generator().manual_seed(SEED)
        self._down = {name: _down(weight, settings.rank, generator) for name, weight in self._weights.items()}
        self.forget()

    def together(self, tokens: NDArray[np.integer], texts: Sequence[tuple[int, int]], seq_len: int) -> int:
        """How many documents to score side by side: on a GPU as many as a quarter of its free memory holds."""
        place = device_of(self._runner)
        if place.type != "cuda" or len(texts) < 2:
            return 1
        if not self.takes_several(tokens, next(chunk_windows(*texts[0], seq_len, self._settings.chunk))):
            return 1
        held = COPIES * sum(4 * weight.numel() for weight in self._weights.values())
        return max(1, min(MOST_TOGETHER, torch.cuda.mem_get_info(place)[0] // 4 // held))

    def takes_several(self, tokens: NDArray[np.integer], window: Window) -> bool:
        """Whether a window comes out beside another as it does alone."""
        self.forget(2)
        try:
            with torch.no_grad():
                pair = self._losses(tokens, Step((0, 1), (window, window), learn=False))
                alone = self._losses(tokens, Step((0,), (window,), learn=False))
        except RuntimeError:  # of torch.vmap, which does not take every model
            return False
        return torch.allclose(pair[1], alone[0], rtol=0.02, atol=0.05)  # bfloat16 models differ by so much

    def forget(self, documents: int = 1) -> None:
        """Start so many documents from the model itself."""
        self._up = {
            name: torch.zeros(documents, *weight.shape[:-1], self._down[name].shape[-2], device=weight.device)
            for name, weight in self._weights.items()
        }

    def score(self, tokens: NDArray[np.integer], step: Step) -> Callable[[], NDArray[Any]]:
        """float32 [windows, stop - scored], to be called for: nats of the scored targets; then, if asked, a step of each on
        their mean."""
        with torch.set_grad_enabled(step.learn):
            ups = self._ups(step)
            losses = self._losses(tokens, step, ups)
            nats = fetched(losses)
            if step.learn:
                self._learn(losses.mean(1).sum(), ups, step)
        return nats

    def _ups(self, step: Step) -> dict[str, Tensor]:
        """The additions' B of a step's documents, [documents, ..., O, r]."""
        chosen = self._chosen(step)
        return {name: up.index_select(0, chosen).requires_grad_(step.learn) for name, up in self._up.items()}

    def _chosen(self, step: Step) -> Tensor:
        return torch.tensor(step.documents).to(device_of(self._runner))

    def _losses(self, tokens: NDArray[np.integer], step: Step, ups: dict[str, Tensor] | None = None) -> Tensor:
        """[windows, stop - scored]."""
        ids = ids_of(tokens, step.windows, device_of(self._runner))
        skip = step.windows[0].scored - step.windows[0].start
        ups = self._ups(step) if ups is None else ups
        if len(ids) == 1:
            return self._of_one({name: up[0] for name, up in ups.items()}, ids[0], skip)[None]
        self._runner.unchecked(ids[:1, :-1])
        try:
            return torch.vmap(lambda up, row: self._of_one(up, row, skip))(ups, ids)
        finally:
            self._runner.checked()

    def _of_one(self, ups: dict[str, Tensor], ids: Tensor, skip: int) -> Tensor:
        """[targets]: the nats of one window, with one document's additions."""
        adapted = {
            name: weight + (ups[name] @ self._down[name]).to(weight.dtype) for name, weight in self._weights.items()
        }
        logits = functional_call(self._runner, adapted, (ids[None, :-1],))[0]
        return F.cross_entropy(logits[skip:].float(), ids[skip + 1 :], reduction="none")

    def _learn(self, loss: Tensor, ups: dict[str, Tensor], step: Step) -> None:
        """Every matrix moves by the same share of its size, down its own gradient.

        B's gradient is scaled to a root mean square of `lr`, so that one learning rate suits matrices and models of any
        scale. Adam, the choice of #77, gained less on golf3m (.0009 to .0017 against .0020 to .0025 BPB, ±.001): its
        first steps move rare pieces as far as any.
        """
        if not loss.requires_grad:
            raise ModelError("the model computes its logits without gradients (torch.no_grad?): --ttt cannot learn")
        found = torch.autograd.grad(loss, list(ups.values()), materialize_grads=True)
        chosen = self._chosen(step)
        with torch.no_grad():
            for (name, up), gradient in zip(ups.items(), found, strict=True):
                size = gradient.square().mean((-2, -1), keepdim=True).sqrt()
                moved = up - self._settings.lr * gradient / size.clamp_min(TINY)
                self._up[name].index_copy_(0, chosen, moved)


def _finite(nats: NDArray[Any], step: Step) -> NDArray[Any]:
    """The nats of a step, if they are numbers. Raises ModelError."""
    if not np.isfinite(nats).all():
        where = f"between tokens {step.windows[0].start} and {step.windows[-1].stop}"
        raise ModelError(f"the model's logits are not finite {where}: lower --ttt-lr if only --ttt finds this")
    return nats


def _down(weight: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """float32 [..., r, I] for a weight [..., O, I]: random, so large that B A is as large as B times the weight."""
    *bank, rows, cols = weight.shape
    rank = min(rank, rows, cols)
    size = weight.float().square().mean((-2, -1), keepdim=True).sqrt()
    down: Tensor = torch.randn(*bank, rank, cols, generator=generator).to(weight.device) * size / rank**0.5
    return down
