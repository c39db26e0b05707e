"""What several commands do with a model: build it, fill it from a file, calibrate it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.commands.shared import Progress
from pgolf.errors import ArtifactError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pgolf.checkpoint import Checkpoint
    from pgolf.quant.curvature import Curvature

SELF_LENGTH = 256  # tokens of a self-generated sequence: longer ones cost more and calibrate no better


def model_with(source: Path, spec: str | None) -> nn.Module:
    """The user's model (or ours, from the configuration in the file) holding a checkpoint's or artifact's weights."""
    from pgolf import checkpoint, pipeline

    if is_artifact(source):
        entries, meta = pipeline.read(source)
        state, config = pipeline.dense(entries), meta.get("config")
    else:
        found = checkpoint.read(source)
        state, config = found.state_dict(), found.config
    return build(spec, state, config, str(source))


def is_artifact(source: Path) -> bool:
    """Whether a file begins as our artifacts do. Raises ArtifactError if it cannot be read."""
    from pgolf.packer.container import MAGIC

    try:
        with source.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ArtifactError(f"{source}: {error.strerror}") from None


def build(spec: str | None, state: dict[str, Tensor], config: dict[str, Any] | None, what: str) -> nn.Module:
    from pgolf import usermodel

    if spec is not None:
        return usermodel.load(spec, state)
    if config is None:
        raise ModelError(f"{what} does not say which model it is: add --model FILE.py:NAME")
    return usermodel.from_config(config, state)


def calibrate_model(source: Checkpoint, calib: str, progress: Progress, options: dict[str, Any]) -> Curvature:
    from pgolf.quant.calibrate import calibrate

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


def _calibration_tokens(model: nn.Module, calib: str, progress: Progress, options: dict[str, Any]) -> Any:
    """int64 [N, T] token ids: from a shard, or sampled from the model itself."""
    import torch

    from pgolf.quant import selfgen
    from pgolf.quant.logits import logits_of
    from pgolf.train.data import WindowSampler, read_shard

    seed, num_tokens = options["seed"], options["tokens"]
    if calib == "self":
        return selfgen.self_generate(
            model,
            sequences=max(1, num_tokens // SELF_LENGTH),
            length=SELF_LENGTH,
            seed=seed,
            logits=options["logits"],
            progress=lambda done, total: progress("generate", done, total),
        )
    if calib == "random":
        vocab = logits_of(model, options["logits"])(torch.zeros(1, 2, dtype=torch.int64)).shape[-1]
        return selfgen.random_tokens(vocab, sequences=max(1, num_tokens // SELF_LENGTH), length=SELF_LENGTH, seed=seed)
    tokens = read_shard(calib)
    length = min(options.get("seq_len") or 1024, len(tokens) - 1)
    return WindowSampler([tokens], length, max(1, num_tokens // length), seed).batch(0)[:, :-1]
