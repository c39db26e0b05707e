"""What several commands do with a model: build it, fill it from a file, calibrate it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgolf.commands.shared import CalibrationOptions, ModelOptions, own_tokenizer
from pgolf.common.progress import Progress
from pgolf.errors import ArtifactError, DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from pgolf.fitting.kept_curvature import KeptCurvature
    from pgolf.fitting.live import Live
    from pgolf.models.checkpoint import Checkpoint
    from pgolf.quant.curvature.store import Curvature

CONTEXT = 1024  # tokens of a sequence unless --seq-len says otherwise, or the longest that the model takes
FEWEST_TOKENS = 16  # of a shard to calibrate on
HELD = 8192  # tokens of a shard's end that are kept from calibration, to measure on
HELD_SELF, TUNED_SELF = 4096, 163_840  # tokens of a model's own text to measure and to tune on
TUNED = 1 << 27  # tokens of a text that are held to tune on, again and again: a GiB
READ, READ_PER_TOKEN = 2_000_000, 32  # characters of text files to draw windows of, and for each token that is wanted
PROBED_WINDOWS = 12  # of the calibration text, to see whether a context is longer than the model can use


def read_checkpoint(path: Path, user: ModelOptions, *, everything: bool = False) -> Checkpoint:
    """The checkpoint at `path`, for the module that --model names and the weights that --state names, where given."""
    return user.maker.read(path, everything=everything)


def model_with(source: Path, user: ModelOptions) -> nn.Module:
    """The model (see `Maker`) holding a checkpoint's or artifact's weights."""
    from pgolf.loading import dense
    from pgolf.models import huggingface

    if artifact := artifact_at(source):
        entries, meta = dense.read(artifact)
        config = (huggingface.config(source) if source.is_dir() else None) or meta.get("config")
        return user.maker.build(dense.tensors_of(entries), config, source, dense.dropped_of(meta))
    return build(read_checkpoint(source, user), user, source)


def artifact_at(source: Path) -> Path | None:
    """A file that begins as our artifacts do, or the one in a folder that has no other weights; None of anything else.

    Raises ArtifactError if it cannot be read.
    """
    from pgolf.models import huggingface
    from pgolf.packer.format.container import MAGIC

    if source.is_dir():
        return huggingface.artifact_in(source)
    try:
        with source.open("rb") as file:
            return source if file.read(len(MAGIC)) == MAGIC else None
    except OSError as error:
        raise ArtifactError(f"{source}: {error.strerror}") from None


def build(found: Checkpoint, user: ModelOptions, source: Path | None = None) -> nn.Module:
    """The model (see `Maker`) holding a checkpoint's weights. source: where they are from."""
    return user.maker.build(found.state_dict(), found.config, source)


@dataclass(frozen=True)
class AtHand:
    """A checkpoint's model and text for it. ids: int64 [N, T] to calibrate on; held: [M, T] to measure on, in no other, None
    where there is not enough; more: [K, T] to tune on; what: names the text; notes: how it was cut."""

    model: nn.Module
    ids: Tensor
    held: Tensor | None
    more: Tensor | None
    what: str
    notes: list[str]

    def live(self, logits: str | None) -> Live | None:
        """What `pack` measures and tunes with."""
        from pgolf.fitting.live import Live

        return None if self.held is None else Live(self.model, self.held, self.more, self.what, logits)


def at_hand(
    source: Checkpoint,
    place: Path,
    user: ModelOptions,
    calibration: CalibrationOptions,
    progress: Progress,
    tune: int | None = None,
    *,
    asked: bool = True,
) -> AtHand:
    """The model of a checkpoint with the text that --calib names, its own where it names none. place: where the checkpoint
    lies; tune: tokens to tune on; asked: there have to be some."""
    from pgolf.models.lengths import told_length

    text = _read(calibration, user, place, tune) if calibration.files else None
    model = build(source, user, place).to(calibration.device)
    told = told_length(model) or CONTEXT  # rotary positions go on beyond what was trained
    context = calibration.seq_len or min(CONTEXT, told)
    if text is None:
        return _invented(model, user, calibration, calibration.word or "self", context, tune, progress, asked=asked)
    return _from_text(model, user, calibration, text, context, tune, asked=asked)


def calibrated_on(
    known: AtHand,
    user: ModelOptions,
    calibration: CalibrationOptions,
    progress: Progress,
    kept: KeptCurvature | None = None,
) -> Curvature:
    """The curvature of a model over its text, shared out among the ranks of a job; its notes say how that was cut.

    kept: where it may lie from before a break.
    """
    from pgolf.common import ranks  # torch.distributed
    from pgolf.quant.curvature.collect import calibrate

    mine = known.ids[ranks.rank() :: ranks.size()]

    def measured() -> Curvature:
        return calibrate(
            known.model,
            mine if len(mine) else [],
            tokens=calibration.tokens,
            seed=calibration.seed,
            logits=user.logits,
            progress=lambda done, total: progress("calibrate", done, total or 0),
        )

    curvature = measured() if kept is None else kept.or_measured(measured)
    curvature.notes += known.notes
    return curvature


def kept_for(
    out: Path, source: Checkpoint, known: AtHand, user: ModelOptions, calibration: CalibrationOptions
) -> KeptCurvature:
    """Where the curvature of a pack to `out` is kept. The model's own file counts; what that imports is told by the module."""
    from pgolf.fitting.kept_curvature import KeptCurvature

    tensors = [part for name in sorted(source.tensors) for part in (name, source.tensors[name])]
    code = Path(user.file).read_bytes() if user.file and Path(user.file).is_file() else b""
    asked = (user.model, user.logits, calibration.tokens, calibration.seed, calibration.device)
    return KeptCurvature.beside(out, [*tensors, known.ids, code, asked, source.config, repr(known.model)])


def calibrate_model(
    source: Checkpoint, place: Path, user: ModelOptions, calibration: CalibrationOptions, progress: Progress
) -> Curvature:
    """The curvature of a checkpoint's model over the text that --calib names, its own where it names none."""
    return calibrated_on(at_hand(source, place, user, calibration, progress), user, calibration, progress)


def usable_context(model: nn.Module, logits: str | None, wanted: int | None = None) -> int:
    """The longest context up to `wanted` tokens that a model takes; None: CONTEXT, or what its configuration says."""
    from pgolf.models.lengths import told_length, usable_length
    from pgolf.models.logits import logits_of, original, undisturbed

    model = original(model)
    wanted = min(CONTEXT, told_length(model) or CONTEXT) if wanted is None else wanted
    with undisturbed(model, gradients=False):
        return usable_length(logits_of(model, logits), wanted)


def _read(
    calibration: CalibrationOptions, user: ModelOptions, place: Path, tune: int | None
) -> tuple[NDArray[np.integer], str]:
    """The tokens of the files that --calib names, and what they are called. Of long texts a part is read, here and there."""
    from pgolf.data import encoding, text
    from pgolf.data.shards import read_shard

    files = calibration.files
    what = Path(files[0]).name + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    if text.refuse_mixed(files, "--calib"):
        tokens: NDArray[np.integer] = read_shard(files[0])
    else:
        tokenizer = own_tokenizer(calibration.tokenizer, place, user.model)
        if tokenizer is None:
            raise UsageError(
                f"--calib {files[0]} is text: name what makes tokens of it, --tokenizer T.model, tokenizer.json or the "
                "model's folder"
            )
        enough = max(READ, READ_PER_TOKEN * (calibration.tokens + (tune or 0)))
        tokens = encoding.encoded(text.spread(files, enough), encoding.encoder(tokenizer)).tokens
    if len(tokens) < FEWEST_TOKENS:
        raise DataError(f"{what} holds {len(tokens)} tokens: at least {FEWEST_TOKENS} are needed to calibrate on")
    return tokens, f"{what}, held back"


def _from_text(
    model: nn.Module,
    user: ModelOptions,
    calibration: CalibrationOptions,
    text: tuple[NDArray[np.integer], str],
    context: int,
    tune: int | None,
    *,
    asked: bool,
) -> AtHand:
    from pgolf.data.shards import WindowSampler

    tokens, what = text
    room = min(context, len(tokens) - 1)
    length = usable_context(model, user.logits, room)
    notes = _shortened(length, room, calibration.tokens)
    length, notes = _without_harm(model, tokens, length, notes, user.logits, calibration)
    wanted, there = max(1, calibration.tokens // length), len(tokens) // length
    if there <= wanted + 1:  # all of it, once: nothing is read twice and counted as more
        if tune is not None and asked:
            raise UsageError(
                f"--tune: {calibration.calib[0]} has too few tokens to tune on and to measure: less --tokens, or a longer text"
            )
        count = min(wanted, there)
        return AtHand(model, _int64(tokens[: count * length]).view(count, length), None, None, what, notes)
    kept = length * max(1, min(HELD // length, there - wanted - 1))
    rest, held = tokens[:-kept], _int64(tokens[-kept:]).view(-1, length)

    def sample(count: int, seed: int) -> Tensor:
        return WindowSampler([rest], length, count, seed).batch(0)[:, :-1]

    more = None if tune is None else sample(max(1, min(tune, TUNED) // length), calibration.seed + 1)
    return AtHand(model, sample(wanted, calibration.seed), held, more, what, notes)


def _without_harm(
    model: nn.Module,
    tokens: NDArray[np.integer],
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


def _harmless_context(model: nn.Module, tokens: NDArray[np.integer], length: int, logits: str | None) -> int | None:
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


def _written(
    model: nn.Module, sequences: int, length: int, seed: int, logits: str | None, progress: Progress
) -> Tensor:
    """int64 [sequences, length] that the model writes; in a job each rank writes its part, with a seed of its own."""
    import torch

    from pgolf.common import ranks
    from pgolf.quant.curvature import selftext

    def write() -> Tensor:
        return selftext.self_generate(
            model,
            sequences=-(-sequences // ranks.size()),
            length=length,
            seed=seed ^ ranks.rank() << 32,
            logits=logits,
            progress=lambda done, total: progress("generate", done, total),
        )

    return torch.cat(ranks.from_all(write))[:sequences]


def power_of_two_near(length: int) -> int:
    """The length that a model was probably trained on, where its best was measured on a few windows.

    golf3m was trained on 512 and measured at 384: calibrated on 512 it lost 6% less at 512 tokens and 26% less at 1,024.
    """
    return 1 << round(math.log2(length))


def _shortened(length: int, wanted: int, tokens: int) -> list[str]:
    if length >= wanted - 1 or length >= tokens - 1:
        return []
    return [f"calibrated in sequences of {length} tokens, the most up to {wanted} that the model takes"]


def _int64(tokens: NDArray[np.integer]) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(tokens).astype(np.int64))


def _invented(
    model: nn.Module,
    user: ModelOptions,
    calibration: CalibrationOptions,
    calib: str,
    context: int,
    tune: int | None,
    progress: Progress,
    *,
    asked: bool,
) -> AtHand:
    """Text of which there is none: T is `context`, or less where the model's own ends earlier.

    The model writes pieces, which are shorter: keys of few positions are read fast. Joined they fill all of its context. No
    more than HELD_SELF tokens are written to measure on, and TUNED_SELF to tune on, again and again.
    """
    from pgolf.quant.curvature import selftext

    seed, logits = calibration.seed, user.logits
    length = usable_context(model, logits, min(context, max(calibration.tokens, 2)))
    notes = _shortened(length, calibration.seq_len or CONTEXT, calibration.tokens)
    rows = max(1, calibration.tokens // length)
    if calib == "random":
        if tune is not None and asked:
            raise UsageError("--tune on random tokens would ruin the model: give a text, or --calib self")
        width = selftext.vocabulary(model, logits=logits)
        ids = selftext.random_tokens(width, sequences=rows, length=length, seed=seed)
        return AtHand(model, ids, None, None, "random tokens", notes)
    measured, tuned = max(1, min(HELD_SELF, calibration.tokens // 4)), min(tune or 0, TUNED_SELF)
    piece = selftext.text_length(model, min(max(length, 3), selftext.PIECE), logits=logits)
    count = -(-(max(rows * length, tuned) + max(measured, length)) // piece)
    written = _written(model, count, piece, seed, logits, progress).flatten()
    length, notes = _without_harm(model, written.numpy(), length, notes, logits, calibration)
    ids = written[: len(written) // length * length].view(-1, length)
    rows, held, more = (max(1, count // length) for count in (calibration.tokens, measured, tuned))
    text = None if tune is None else ids[held : held + more]
    return AtHand(
        model, ids[held : held + rows], ids[:held], text, "text that the model wrote itself, held back", notes
    )
