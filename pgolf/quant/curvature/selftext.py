"""Calibration text without data: the model writes it itself.

Nothing is assumed of the model but ids -> logits. What it computed for earlier positions is reused all the same (see
incremental.py), after a comparison with whole passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pgolf.common.progress import Advance
from pgolf.errors import CurvatureError, ModelError, PgolfError
from pgolf.models import lengths
from pgolf.models.logits import Logits, device_of, logits_of, original, undisturbed
from pgolf.quant.curvature.incremental import Incremental, Plan, observed
from pgolf.quant.curvature.positions import CannotIncrement, odd_length
from pgolf.quant.curvature.softmax import drawn

PIECE = 255  # tokens: keys of so few positions are read fast, and on golf3m longer ones calibrate no better
KEPT_BYTES = 1 << 30  # of keys, values and the like; sequences are sampled in groups of this size
WHOLE_TOKENS = 4096  # of a group where nothing can be kept
LOGIT_BYTES = 16  # of a token and a piece of the vocabulary: logits in float, and what makes them
TRIED = 8  # positions that are compared with a whole pass before anything is written
FEW = 2  # sequences that are compared with one afterwards
ASTRAY = 0.1  # nats: mean difference of the log probability of their tokens

NextLogits = Callable[[Tensor, int], Tensor]  # ids [N, T], position -> logits [N, V] there


class Draw(NamedTuple):
    """How a token is drawn: of the first `width` of the vocabulary."""

    width: int
    temperature: float
    generator: torch.Generator


def self_generate(
    model: nn.Module,
    *,
    sequences: int = 128,
    length: int = PIECE,
    temperature: float = 1.0,
    bos: int | None = None,
    vocab: int | None = None,
    seed: int = 0,
    logits: Callable[..., Any] | str | None = None,
    progress: Advance | None = None,
) -> Tensor:
    """int64 [sequences, length] on the CPU: text sampled from `model` at `temperature`. Choose an odd length.

    bos: the first token of every sequence; None draws it evenly from the vocabulary. vocab: draw only the first so many
    tokens (of a padded vocabulary). progress(tokens done, total). Costs `length` passes over one new position of each
    sequence, and as many for every further group of sequences that KEPT_BYTES divides them into. The model is left as
    it was. A model that does not stand the comparison with whole passes is run on the whole prefix for every token, which
    costs `length` / 2 times as much. Raises ModelError, CurvatureError.
    """
    if sequences < 1 or length < 2 or not temperature > 0:
        raise CurvatureError(f"cannot generate {sequences} sequences of {length} tokens at temperature {temperature}")
    model = original(model)
    run = logits_of(model, logits)
    device = device_of(model)
    draw_from = torch.Generator(device).manual_seed(seed)
    with undisturbed(model, gradients=False):
        draw = Draw(_vocabulary(run, device, vocab, bos), temperature, draw_from)
        ids = torch.randint(draw.width, (sequences, _run_length(run, length)), generator=draw_from, device=device)
        if bos is not None:
            ids[:, 0] = bos
        plan = _plan(run, draw.width, ids.shape[1], device)
        done = 0
        while done < sequences:
            rows = ids[done : done + _together(run, plan, draw.width, ids.shape[1])]
            so_far = partial(_told, progress, done, len(rows), sequences, length)
            if plan is not None and not _written(run, plan, rows, draw, so_far):
                plan = None  # it looked right for a few positions only: all by whole passes, from here on
                continue
            if plan is None:
                _drawn(partial(_whole, run), rows, draw, so_far)
            done += len(rows)
    return ids[:, :length].cpu()


def text_length(model: nn.Module, wanted: int, *, logits: Callable[..., Any] | str | None = None) -> int:
    """The longest length up to `wanted` tokens that `model` takes and `self_generate` is quick with: odd if possible.

    Odd, because `self_generate` runs even lengths one token longer (see incremental.py). Raises as `logits_of`.
    """
    model = original(model)
    with undisturbed(model, gradients=False):
        return lengths.usable_length(logits_of(model, logits), wanted, odd=True)


def vocabulary(model: nn.Module, *, logits: Callable[..., Any] | str | None = None) -> int:
    """How many tokens `model` gives logits of. Raises as `logits_of`."""
    model = original(model)
    with undisturbed(model, gradients=False):
        return _vocabulary(logits_of(model, logits), device_of(model), None, None)


def random_tokens(vocab: int, *, sequences: int = 80, length: int = 256, seed: int = 0) -> Tensor:
    """int64 [sequences, length]: tokens drawn evenly from `vocab`, to compare other calibration text with."""
    return torch.randint(vocab, (sequences, length), generator=torch.Generator().manual_seed(seed))


def _told(progress: Advance | None, done: int, rows: int, sequences: int, length: int, position: int) -> None:
    """Tell how many tokens there are, when `rows` sequences behind `done` whole ones have reached `position`."""
    if progress:
        progress(done * length + rows * min(position + 1, length), sequences * length)


def _written(run: Logits, plan: Plan, ids: Tensor, draw: Draw, so_far: Callable[[int], None]) -> bool:
    """Replace ids[:, 1:] by text of the model, one position at a time; False where whole passes say otherwise of it."""
    try:
        said = _drawn(Incremental(run, plan, len(ids)).logits, ids, draw, so_far)
    except CannotIncrement:
        return False
    few = ids[:FEW]
    wanted = _log_p(run(few)[:, :-1, : draw.width], few[:, 1:])
    return bool((said - wanted).abs().mean() <= ASTRAY)


def _drawn(logits: NextLogits, ids: Tensor, draw: Draw, so_far: Callable[[int], None]) -> Tensor:
    """Replace ids[:, 1:] by tokens that the model draws one after the other; log p [FEW, T - 1] of the first rows'."""
    said = []
    for position in range(1, ids.shape[1]):
        last = logits(ids, position - 1)[:, : draw.width].float()
        if not last.logsumexp(-1).isfinite().all():
            raise CurvatureError("the model gives NaN or infinity on text of its own: its weights are damaged")
        ids[:, position] = drawn((last / draw.temperature).softmax(-1), draw.generator)
        said.append(_log_p(last[:FEW], ids[:FEW, position]))
        so_far(position)
    return torch.stack(said, 1)


def _log_p(logits: Tensor, ids: Tensor) -> Tensor:
    """Log probability [...] of ids [...] by logits [..., V]."""
    return logits.float().log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)


def _whole(run: Logits, ids: Tensor, position: int) -> Tensor:
    return run(ids[:, : -(-(position + 1) // run.multiple) * run.multiple])[:, position]


def _run_length(run: Logits, length: int) -> int:
    """The length at which the model is run all the time: one that it takes, and better none of its own sizes."""
    multiple = run.multiple
    if multiple == 1:
        return odd_length(length, {size for p in run.model.parameters() for size in p.shape})
    return -(-length // multiple) * multiple


def _vocabulary(run: Logits, device: torch.device, vocab: int | None, bos: int | None) -> int:
    """How many tokens may be drawn."""
    width = run(torch.zeros(1, 2, dtype=torch.int64, device=device)).shape[-1]
    wanted = width if vocab is None else vocab
    if not 0 < wanted <= width or not 0 <= (bos or 0) < wanted:
        raise ModelError(f"the model knows {width} tokens: neither vocab={vocab} nor bos={bos} may lie outside")
    return wanted


def _plan(run: Logits, width: int, length: int, device: torch.device) -> Plan | None:
    """How the model is run one position at a time; None where its logits are then not those of a whole pass.

    Other tokens stand behind those that are compared, so a model that looks ahead is found out too.
    """
    ids = torch.randint(width, (2, length), generator=torch.Generator().manual_seed(0)).to(device)
    tried = min(TRIED, length - 1)
    other = ids.clone()
    other[:, tried:] = (other[:, tried:] + 1) % width
    try:
        plan = observed(run, ids)
        wanted = run(ids)[:, :tried].float()
        for kept in (plan, plan.all_kept()):
            incremental = Incremental(run, kept, len(ids))
            found = torch.stack([incremental.logits(other, p) for p in range(tried)], 1).float()
            # the error is of rounding in the model's dtype; that of a wrong position is of the logits' own spread
            if (found - wanted).abs().mean(-1).max() <= 0.03 * wanted.std():
                return kept
    except PgolfError:
        pass
    return None


def _together(run: Logits, plan: Plan | None, width: int, length: int) -> int:
    """Sequences that are written at a time, by what each of them keeps; of a whole pass, by its tokens and logits."""
    if plan is None:
        return max(1, min(WHOLE_TOKENS, KEPT_BYTES // (LOGIT_BYTES * width)) // length)
    rows = max(1, min(KEPT_BYTES // max(plan.num_bytes, 1), length - 1))
    sizes = {size for p in run.model.parameters() for size in p.shape}
    return next((n for n in range(rows, 0, -1) if n * length not in sizes), rows)
