"""What several commands do with a model: build it, fill it from a file, calibrate it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.commands.shared import Progress
from pgolf.errors import ArtifactError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pgolf.models.checkpoint import Checkpoint
    from pgolf.quant.curvature.store import Curvature

CONTEXT = 1024  # tokens of a calibration sequence unless --seq-len says otherwise


def read_checkpoint(path: Path, options: Mapping[str, Any], *, everything: bool = False) -> Checkpoint:
    """The checkpoint at `path`, for the module that --model names and the weights that --state names, where given."""
    from pgolf.models import checkpoint, usermodel

    spec = options.get("model")
    like = None if spec is None else usermodel.load(spec)
    return checkpoint.read(path, everything=everything, state=options.get("state"), like=like)


def model_with(source: Path, spec: str | None, state: str | None = None) -> nn.Module:
    """The user's model (or ours, from the configuration in the file) holding a checkpoint's or artifact's weights.

    state: which of a checkpoint's weights.
    """
    from pgolf.loading import dense

    if not source.is_dir() and is_artifact(source):
        entries, meta = dense.read(source)
        weights, config = dense.tensors_of(entries), meta.get("config")
    else:
        found = read_checkpoint(source, {"model": spec, "state": state})
        weights, config = found.state_dict(), found.config
    return build(spec, weights, config, str(source))


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


def calibrate_model(source: Checkpoint, calib: str, progress: Progress, options: dict[str, Any]) -> Curvature:
    """The curvature of a checkpoint's model over the text that --calib names."""
    from pgolf.quant.curvature.collect import calibrate

    model = build(options["model"], source.state_dict(), source.config, "the checkpoint")
    batches = _calibration_tokens(model, calib, progress, options)
    return calibrate(
        model,
        batches,
        tokens=options["tokens"],
        seed=options["seed"],
        logits=options["logits"],
        progress=lambda done, total: progress("calibrate", done, total),
    )


def _calibration_tokens(model: nn.Module, calib: str, progress: Progress, options: dict[str, Any]) -> Tensor:
    """int64 [N, T] token ids: from a shard, sampled from the model itself, or random."""
    from pgolf.data.shards import WindowSampler, read_shard

    num_tokens, context = options["tokens"], options.get("seq_len") or CONTEXT
    if calib in {"self", "random"}:
        return _invented_tokens(model, calib, min(context, max(num_tokens, 2)), progress, options)
    tokens = read_shard(calib)
    length = min(context, len(tokens) - 1)
    return WindowSampler([tokens], length, max(1, num_tokens // length), options["seed"]).batch(0)[:, :-1]


def _invented_tokens(model: nn.Module, calib: str, context: int, progress: Progress, options: dict[str, Any]) -> Tensor:
    """int64 [N, T] token ids without any text: T is `context`, or less where the model's own ends earlier."""
    from pgolf.quant.curvature import selftext

    seed, logits = options["seed"], options["logits"]
    length = selftext.usable_length(model, context, logits=logits)
    sequences = max(1, options["tokens"] // length)
    if calib == "random":
        return selftext.random_tokens(
            selftext.vocabulary(model, logits=logits), sequences=sequences, length=length, seed=seed
        )
    return selftext.self_generate(
        model,
        sequences=sequences,
        length=length,
        seed=seed,
        logits=logits,
        progress=lambda done, total: progress("generate", done, total),
    )
