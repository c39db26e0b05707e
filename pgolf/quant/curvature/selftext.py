"""Calibration text without data: the model writes it itself.

Nothing is assumed of the model but ids -> logits. What it computed for earlier positions is reused all the same (see
incremental.py), after a comparison with whole passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pgolf.common.progress import Advance
from pgolf.errors import CurvatureError, ModelError, PgolfError
from pgolf.models import lengths
from pgolf.models.logits import Logits, device_of, logits_of, original, undisturbed
from pgolf.quant.curvature.incremental import CannotIncrement, Incremental, odd_length

KEPT_BYTES = 3 << 30  # of intermediate results at a time; sequences are sampled in groups of this size
WHOLE_TOKENS = 8192  # of a group where nothing can be kept

NextLogits = Callable[[Tensor, int, int], Tensor]  # ids, start, stop -> logits, those of [start, stop) asked for


def self_generate(
    model: nn.Module,
    *,
    sequences: int = 32,
    length: int = 1023,
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

    Long sequences calibrate better than short ones: a layer's inputs after ten tokens are not those after five hundred.
    On golf3m at 3.5 bits, 6,000 tokens each, KL over that with real text of 1,024: 1,023 tokens at temperature 1 1.13x,
    255 tokens 1.21x, and at temperature 0.8 1.24x (one seed).
    """
    if sequences < 1 or length < 2 or not temperature > 0:
        raise CurvatureError(f"cannot generate {sequences} sequences of {length} tokens at temperature {temperature}")
    model = original(model)
    run = logits_of(model, logits)
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(seed)
    with undisturbed(model, gradients=False):
        width = _vocabulary(run, device, vocab, bos)
        padded = _run_length(run, length)
        kept = _kept_bytes(run, width, padded, device)
        together = KEPT_BYTES // kept if kept else WHOLE_TOKENS // padded
        done: list[Tensor] = []
        for rows in torch.split(torch.arange(sequences), max(1, min(together, padded - 1))):
            ids = torch.randint(width, (len(rows), padded), generator=generator, device=device)
            if bos is not None:
                ids[:, 0] = bos
            try:
                _sample(
                    Incremental(run, padded).logits if kept else partial(_whole, run),
                    ids,
                    width,
                    temperature,
                    generator,
                )
            except CannotIncrement:
                _sample(partial(_whole, run), ids, width, temperature, generator)
            done.append(ids[:, :length].cpu())
            if progress:
                progress(sum(group.numel() for group in done), sequences * length)
    return torch.cat(done)


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


def _sample(logits: NextLogits, ids: Tensor, width: int, temperature: float, generator: torch.Generator) -> None:
    """Replace ids[:, 1:] by tokens that the model draws one after the other."""
    for position in range(1, ids.shape[1]):
        last = logits(ids, position - 1, position)[:, position - 1, :width].float()
        if not last.logsumexp(-1).isfinite().all():
            raise CurvatureError("the model gives NaN or infinity on text of its own: its weights are damaged")
        ids[:, position] = torch.multinomial((last / temperature).softmax(-1), 1, generator=generator).squeeze(1)


def _whole(run: Logits, ids: Tensor, start: int, stop: int) -> Tensor:
    return run(ids[:, : -(-stop // run.multiple) * run.multiple])


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


def _kept_bytes(run: Logits, width: int, length: int, device: torch.device) -> int:
    """Bytes a sequence that `Incremental` keeps; 0 where spans of positions do not get the logits of a whole pass.

    Other tokens stand in the span's place at first, so a model that looks ahead is found out too.
    """
    ids = torch.randint(width, (2, length), generator=torch.Generator().manual_seed(0)).to(device)
    before, half = ids.clone(), length // 2
    before[:, half:] = (before[:, half:] + 1) % width
    incremental = Incremental(run, length)
    try:
        wanted = run(ids)[:, half:].float()
        incremental.logits(before)
        incremental.logits(ids, half, half + 1)
        found = incremental.logits(ids, half + 1, length)[:, half:].float()
    except (CannotIncrement, PgolfError):
        return 0
    error = (
        (found - wanted).abs().mean(-1).max()
    )  # rounding of the model's dtype; a wrong position is off by its spread
    return incremental.num_bytes // 2 if error <= 0.03 * wanted.std() else 0
