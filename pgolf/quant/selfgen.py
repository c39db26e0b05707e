"""Calibration text without data: the model writes it itself.

What will surprise you:
* Nothing is assumed of the model but ids -> logits, so there is no KV cache and a pass recomputes its whole prefix. The cost
  is kept down in two ways. Sequences are many and short rather than few and long, for it grows with the square of
  the length. And a pass yields several tokens: the Gumbel noise of a block of positions is drawn beforehand, which makes
  every token a function of the ones before, and the block is solved by fixed-point iteration (Jacobi decoding;
  Wiggers & Hoogeboom 2020, "Predictive sampling with forecasting autoregressive models"). Where a pass gives back what went
  in, up to and including the first difference, the tokens are exactly those that one-by-one sampling would have drawn.
* That needs logits that do not look ahead, which is tested. A model that does look ahead gets one token a pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pgolf.errors import CurvatureError, ModelError
from pgolf.quant.logits import Logits, device_of, logits_of, original, undisturbed

BLOCK = 8  # positions solved together
PASS_LOGITS = 1 << 26  # logits a pass may hold: 256 MiB of float32

Progress = Callable[[int, int], None]


def self_generate(
    model: nn.Module,
    *,
    sequences: int = 160,
    length: int = 128,
    temperature: float = 0.8,
    bos: int | None = None,
    vocab: int | None = None,
    seed: int = 0,
    logits: Callable[..., Any] | str | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """int64 [sequences, length] on the CPU: text sampled from `model` at `temperature`.

    bos: the first token of every sequence; None draws it evenly from the vocabulary. vocab: draw only the first so many
    tokens (of a padded vocabulary). progress(tokens done, total). Costs about sequences · length² / 2 tokens of forward
    pass, divided by the one to three tokens that a pass settles. The model is left as it was. Raises ModelError, CurvatureError.
    """
    if sequences < 1 or length < 2 or temperature <= 0:
        raise CurvatureError(f"cannot generate {sequences} sequences of {length} tokens at temperature {temperature}")
    model = original(model)
    run = logits_of(model, logits)
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(seed)
    with undisturbed(model, gradients=False):
        width = _vocabulary(run, device, vocab, bos)
        ids = torch.empty(sequences, length, dtype=torch.int64, device=device)
        ids[:, 0] = torch.randint(width, (sequences,), generator=generator, device=device) if bos is None else bos
        block = BLOCK if _causal(run, ids, width, generator) else 1
        for start in range(1, length, block):
            end = min(start + block, length)
            rows = max(1, PASS_LOGITS // (end * width))
            for part in ids.split(rows):
                _solve(run, part, start, end, width, temperature, generator)
            if progress:
                progress(end * sequences, sequences * length)
    return ids.cpu()


def random_tokens(vocab: int, *, sequences: int = 160, length: int = 128, seed: int = 0) -> Tensor:
    """int64 [sequences, length]: tokens drawn evenly from `vocab`, to compare other calibration text with."""
    return torch.randint(vocab, (sequences, length), generator=torch.Generator().manual_seed(seed))


def _vocabulary(run: Logits, device: torch.device, vocab: int | None, bos: int | None) -> int:
    """How many tokens may be drawn."""
    width = run(torch.zeros(1, 2, dtype=torch.int64, device=device)).shape[-1]
    wanted = width if vocab is None else vocab
    if not 0 < wanted <= width or not 0 <= (bos or 0) < wanted:
        raise ModelError(f"the model knows {width} tokens: neither vocab={vocab} nor bos={bos} may lie outside")
    return wanted


def _causal(run: Logits, ids: Tensor, width: int, generator: torch.Generator) -> bool:
    """Whether logits stay the same when only later tokens change."""
    length = min(ids.shape[1], 2 * BLOCK)
    a = torch.randint(width, (1, length), generator=generator, device=ids.device)
    b = a.clone()
    b[:, length // 2 :] = (b[:, length // 2 :] + 1) % width
    first, second = (run(t)[:, : length // 2].float() for t in (a, b))
    return torch.allclose(first, second, rtol=1e-2, atol=1e-2 * float(first.std()))


def _solve(
    run: Logits, ids: Tensor, start: int, end: int, width: int, temperature: float, generator: torch.Generator
) -> None:
    """Sample ids[:, start:end] in place, given ids[:, :start]."""
    noise = torch.empty(ids.shape[0], end - start, width, device=ids.device).exponential_(generator=generator).log_()
    ids[:, start:end] = ids[:, start - 1 : start]  # any guess will do: a draft from pairs of tokens saved no passes
    known = torch.zeros(ids.shape[0], dtype=torch.int64, device=ids.device)  # settled positions of the block
    while (open_rows := (known < end - start).nonzero().squeeze(1)).numel():
        guess = ids[open_rows, start:end]
        logits = run(ids[open_rows, : end - 1])[:, start - 1 :, :width].float()
        if logits.isnan().any():
            raise CurvatureError("the model gives NaN on text of its own: its weights are damaged")
        drawn = (logits / temperature - noise[open_rows]).argmax(-1)  # the Gumbel-max trick
        settled = known[open_rows]
        agree = (drawn == guess) | (torch.arange(end - start, device=ids.device) < settled[:, None])
        known[open_rows] = (agree.long().cumprod(1).sum(1) + 1).clamp(max=end - start)
        ids[open_rows, start:end] = drawn
