"""What several commands do with a model: build it, fill it from a file, calibrate it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.commands.shared import CalibrationOptions, ModelOptions
from pgolf.common.progress import Progress
from pgolf.errors import ArtifactError, DataError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pgolf.data.shards import Tokens
    from pgolf.models.checkpoint import Checkpoint
    from pgolf.quant.curvature.store import Curvature

CONTEXT = 1024  # tokens of a sequence unless --seq-len says otherwise, or the longest that the model takes
FEWEST_TOKENS = 16  # of a shard to calibrate on
PROBED_WINDOWS = 12  # of the calibration text, to see whether a context is longer than the model can use


def read_checkpoint(path: Path, user: ModelOptions, *, everything: bool = False) -> Checkpoint:
    """The checkpoint at `path`, for the module that --model names and the weights that --state names, where given."""
    from pgolf.models import checkpoint, usermodel

    like = None if user.model is None else usermodel.load(user.model)
    return checkpoint.read(path, everything=everything, state=user.state, like=like)


def model_with(source: Path, user: ModelOptions) -> nn.Module:
    """The user's model (or ours, from the configuration in the file) holding a checkpoint's or artifact's weights."""
    from pgolf.loading import dense

    if not source.is_dir() and is_artifact(source):
        entries, meta = dense.read(source)
        weights, config = dense.tensors_of(entries), meta.get("config")
    else:
        found = read_checkpoint(source, user)
        weights, config = found.state_dict(), found.config
    return build(user.model, weights, config, str(source))


def is_artifact(source: Path) -> bool:
    """Whether a file begins as our artifacts do. Raises ArtifactError if it cannot be read."""
    from pgolf.packer.format.container import MAGIC

    try:
        with source.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ArtifactError(f"{source}: {error.strerror}") from None


def build(spec: str | None, state: dict[str, Tensor], config: dict[str, Any] | None, what: str) -> nn.Module:
    """The user's model at FILE.py:NAME, or ours from the configuration, holding `state`. what: for the message."""
    from pgolf.models import usermodel
    from pgolf.train.model import rebuild

    if spec is not None:
        return usermodel.load(spec, state)
    if config is None:
        raise ModelError(f"{what} does not say which model it is: add --model FILE.py:NAME")
    return rebuild.from_config(config, state)


def calibrate_model(
    source: Checkpoint, user: ModelOptions, calibration: CalibrationOptions, progress: Progress
) -> Curvature:
    """The curvature of a checkpoint's model over the text that --calib names, its own where it names none.

    Its notes say how the text was cut.
    """
    from pgolf.quant.curvature.collect import calibrate

    model = build(user.model, source.state_dict(), source.config, "the checkpoint").to(calibration.device)
    batches, notes = _calibration_tokens(model, user, calibration, progress)
    curvature = calibrate(
        model,
        batches,
        tokens=calibration.tokens,
        seed=calibration.seed,
        logits=user.logits,
        progress=lambda done, total: progress("calibrate", done, total or 0),
    )
    curvature.notes += notes
    return curvature


def usable_context(model: nn.Module, logits: str | None, wanted: int = CONTEXT) -> int:
    """The longest context up to `wanted` tokens that a model takes."""
    from pgolf.models.lengths import usable_length
    from pgolf.models.logits import logits_of, original, undisturbed

    model = original(model)
    with undisturbed(model, gradients=False):
        return usable_length(logits_of(model, logits), wanted)


def _calibration_tokens(
    model: nn.Module, user: ModelOptions, calibration: CalibrationOptions, progress: Progress
) -> tuple[Tensor, list[str]]:
    """int64 [N, T] token ids: from a shard, sampled from the model itself, or random; and what is to be told of them."""
    calib, context = "self" if calibration.calib is None else calibration.calib, calibration.seq_len or CONTEXT
    if calib in {"self", "random"}:
        return _invented_tokens(model, user, calibration, min(context, max(calibration.tokens, 2)), progress)
    return _shard_tokens(model, calib, context, user.logits, calibration)


def _shard_tokens(
    model: nn.Module, calib: str, context: int, logits: str | None, calibration: CalibrationOptions
) -> tuple[Tensor, list[str]]:
    from pgolf.data.shards import WindowSampler, read_shard

    tokens = read_shard(calib)
    if len(tokens) < FEWEST_TOKENS:
        raise DataError(f"{calib} holds {len(tokens)} tokens: at least {FEWEST_TOKENS} are needed to calibrate on")
    room = min(context, len(tokens) - 1)
    length = usable_context(model, logits, room)
    notes = _shortened(length, room, calibration.tokens)
    length, notes = _without_harm(model, tokens, length, notes, logits, calibration)
    wanted, there = max(1, calibration.tokens // length), len(tokens) // length
    if there <= wanted + 1:  # all of it, once: nothing is read twice and counted as more
        count = min(wanted, there)
        return _int64(tokens[: count * length]).view(count, length), notes
    return WindowSampler([tokens], length, wanted, calibration.seed).batch(0)[:, :-1], notes


def _without_harm(
    model: nn.Module,
    tokens: Tokens,
    length: int,
    notes: list[str],
    logits: str | None,
    calibration: CalibrationOptions,
) -> tuple[int, list[str]]:
    """A length to calibrate at, and what is to be told: a shorter one where the user left it to us and a long one harms."""
    harmless = None if calibration.seq_len else _harmless_context(model, tokens, length, logits)
    if harmless is None:
        return length, notes
    return harmless, [f"calibrated in sequences of {harmless} tokens: beyond, the model's loss rises (see --seq-len)"]


def _harmless_context(model: nn.Module, tokens: Tokens, length: int, logits: str | None) -> int | None:
    """A shorter context beyond which the loss rises, as a model's does beyond the lengths that it was trained on."""
    from pgolf.models.logits import logits_of, original, undisturbed
    from pgolf.scoring.bpb import score_windows
    from pgolf.scoring.contexts import harmless_length

    some = tokens[: PROBED_WINDOWS * length + 1]
    model = original(model)
    with undisturbed(model, gradients=False):
        nats = score_windows(logits_of(model, logits), some, seq_len=length)
    found = harmless_length(nats, [(0, len(nats))], length)
    near = length if found is None else power_of_two_near(found)
    return near if near < length else None


def power_of_two_near(length: int) -> int:
    """The length that a model was probably trained on, where its best was measured on a few windows.

    golf3m was trained on 512 and measured at 384: calibrated on 512 it lost 6% less at 512 tokens and 26% less at 1,024.
    """
    return 1 << round(math.log2(length))


def _shortened(length: int, wanted: int, tokens: int) -> list[str]:
    if length >= wanted - 1 or length >= tokens - 1:
        return []
    return [f"calibrated in sequences of {length} tokens, the most up to {wanted} that the model takes"]


def _int64(tokens: Tokens) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(tokens).astype(np.int64))


def _invented_tokens(
    model: nn.Module, user: ModelOptions, calibration: CalibrationOptions, context: int, progress: Progress
) -> tuple[Tensor, list[str]]:
    """int64 [N, T] token ids without any text: T is `context`, or less where the model's own ends earlier.

    The model writes pieces, which are shorter: keys of few positions are read fast. Joined they fill all of its context.
    """
    from pgolf.quant.curvature import selftext

    seed, logits = calibration.seed, user.logits
    length = usable_context(model, logits, context)
    notes = _shortened(length, calibration.seq_len or CONTEXT, calibration.tokens)
    rows = max(1, calibration.tokens // length)
    if calibration.calib == "random":
        width = selftext.vocabulary(model, logits=logits)
        return selftext.random_tokens(width, sequences=rows, length=length, seed=seed), notes
    piece = selftext.text_length(model, min(max(length, 3), selftext.PIECE), logits=logits)
    ids = selftext.self_generate(
        model,
        sequences=-(-rows * length // piece),
        length=piece,
        seed=seed,
        logits=logits,
        progress=lambda done, total: progress("generate", done, total),
    ).flatten()
    length, notes = _without_harm(model, ids.numpy(), length, notes, user.logits, calibration)
    rows = max(1, min(calibration.tokens, len(ids)) // length)
    return ids[: rows * length].view(rows, length), notes
