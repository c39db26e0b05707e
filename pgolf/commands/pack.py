"""`pgolf pack`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgolf.commands.models import at_hand, build, calibrated_on, kept_for, read_checkpoint
from pgolf.commands.shared import (
    CalibrationOptions,
    ModelOptions,
    device_option,
    first_rank,
    force_option,
    gathered,
    json_option,
    model_options,
    print_lines,
    progress_bars,
    refuse_overwrite,
    refuse_unwritable,
    seq_len_option,
    state_option,
    terminal_width,
    tokenizer_option,
)
from pgolf.common.progress import Progress
from pgolf.errors import UsageError

if TYPE_CHECKING:
    from pgolf.commands.models import AtHand
    from pgolf.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class GoalOptions:
    """What the artifact is to meet, at most one: --budget; --bits a weight of what is quantized; --max-kl or --max-rise, as
    measured; --target-bpb-rise, as predicted, for text of --bytes-per-token."""

    budget: str | None
    bits: float | None
    max_kl: float | None
    max_rise: float | None
    target_bpb_rise: float | None
    bytes_per_token: float | None

    @property
    def measured(self) -> str | None:
        """The option that needs the model to run, None for none."""
        return "--max-kl" if self.max_kl is not None else "--max-rise" if self.max_rise is not None else None


TRELLISES = ("0", "4", "8", "16", "32", "64", "128", "256")


@click.command()
@click.argument("ckpt", metavar="CKPT", type=click.Path(path_type=Path))
@click.option("--budget", metavar="SIZE", help="16MB and 500kB are decimal, 15MiB binary, plain digits bytes.")
@click.option(
    "--bits",
    metavar="B",
    type=click.FloatRange(0, 32, min_open=True),
    help="Instead of a budget: bits a weight of the quantized tensors, codes and scales.",
)
@click.option(
    "--max-kl",
    metavar="X",
    type=click.FloatRange(0, min_open=True),
    help="Instead of a budget: the smallest artifact within a KL of the model, measured, nats per token: 0.01.",
)
@click.option(
    "--max-rise",
    metavar="X",
    type=click.FloatRange(0, min_open=True),
    help="The same for the rise of the loss, nats per token: 0.002.",
)
@click.option(
    "--target-bpb-rise",
    metavar="X",
    type=click.FloatRange(0, min_open=True),
    help="Instead of a budget: predicted cost.",
)
@click.option(
    "--bytes-per-token",
    metavar="B",
    type=click.FloatRange(0, min_open=True),
    help="Of your text; a target rise needs it.",
)
@click.option("-o", "--out", metavar="OUT.pgolf", type=click.Path(path_type=Path), help="[default: CKPT's name]")
@model_options
@state_option
@click.option(
    "--calib",
    metavar="FILE|self|random|none",
    multiple=True,
    help="Calibration text: .txt, .jsonl, .parquet (repeatable) or a shard [default: self if a model is known].",
)
@tokenizer_option
@click.option("--curvature", "curvature_file", metavar="CURV", type=click.Path(path_type=Path), help="From calibrate.")
@click.option("--method", metavar="M[:...]", help="auto, quick, gptq, sdclip, hessian-sdclip, gptq-lite, rtn, keep.")
@click.option(
    "--set", "rules", metavar="PATTERN=...", multiple=True, help="Per tensor: 'tok_emb.*=gptq,int8', '*=keep'."
)
@click.option(
    "--drop", metavar="NAME", multiple=True, help="Buffers to leave out, which the class makes: '*.mask' (repeatable)."
)
@click.option("--trellis", type=click.Choice(TRELLISES), help="States of auto's trellis code, 0 = scalar rounding.")
@click.option(
    "--coder", type=click.Choice(["rans", "brotli", "zstd", "lzma", "zlib"]), default="rans", show_default=True
)
@click.option("--code", metavar="FILE", multiple=True, help="Script that counts against the budget (repeatable).")
@click.option("--deadline", metavar="SECONDS", type=float, help="Best artifact by then, calibration not counted.")
@click.option(
    "--tokens", metavar="N", type=click.IntRange(1), default=32768, show_default=True, help="Calibration tokens."
)
@seq_len_option
@click.option("--seed", metavar="S", type=click.IntRange(0, (1 << 63) - 1), default=0, show_default=True)
@click.option(
    "--tune",
    metavar="TOKENS|off",
    help="Let what still floats repair what is rounded, on so many tokens of --calib: 500k, 4M [default: 1.5M on a GPU].",
)
@click.option("--measure/--no-measure", default=True, help="Run the packed model on text held back. [default: measure]")
@click.option(
    "--report", "report_file", metavar="R.json", type=click.Path(path_type=Path), help="Write the report here too."
)
@device_option
@json_option
@force_option
@gathered(goal=GoalOptions, user=ModelOptions, calibration=CalibrationOptions)
def pack(
    ckpt: Path,
    out: Path | None,
    curvature_file: Path | None,
    method: str | None,
    rules: tuple[str, ...],
    drop: tuple[str, ...],
    trellis: str | None,
    coder: str,
    code: tuple[str, ...],
    deadline: float | None,
    tune: str | None,
    measure: bool,
    report_file: Path | None,
    as_json: bool,
    force: bool,
    goal: GoalOptions,
    user: ModelOptions,
    calibration: CalibrationOptions,
) -> None:
    """Pack a checkpoint, or a Hugging Face folder, into the best artifact that fits.

    Example: pgolf pack ckpt.pt --budget 16MB --model train.py:GPT --calib tokens.bin
    """
    from pgolf.common import extras
    from pgolf.fitting import packing
    from pgolf.fitting.closed.tune import USUAL, tokens_of
    from pgolf.fitting.plan import KEEP
    from pgolf.kernels.device import need
    from pgolf.quant import METHODS, Settings
    from pgolf.quant.curvature.store import Curvature
    from pgolf.report import write_json

    out = out or _default_name(ckpt)
    read = (ckpt, curvature_file, calibration.tokenizer, *calibration.files, *code, user.file)
    refuse_overwrite(out, force, *read)
    refuse_unwritable(report_file, out, *read)
    need(calibration.device, kernels=False)
    chosen = METHODS.get((method or "auto").partition(":")[0])
    extras.need(*(chosen.packages if chosen else ()), *(["python_minifier"] if code else []))
    tokens = tokens_of(tune)
    if goal.measured and not measure:
        raise UsageError(f"{goal.measured} is measured: leave --no-measure out")
    if goal.measured and tokens:
        packing.refuse_tuning_within(goal.measured)
    source = _noted(read_checkpoint(ckpt, user, everything=method == KEEP and not drop), ckpt, user, calibration)
    spare = USUAL if tune is None and measure and not goal.measured and calibration.device.startswith("cuda") else None
    with progress_bars() as progress:
        file = Curvature.load(curvature_file, calibration.device) if curvature_file else None
        known = _at_hand(
            source, ckpt, method, user, calibration, progress, file is not None, tokens, spare, goal.measured
        )
        with _told_where_to_go_on(out):
            kept = kept_for(out, source, known, user, calibration) if known and file is None else None
            curvature = calibrated_on(known, user, calibration, progress, kept) if known and kept else file
            made = packing.pack(
                source,
                out,
                budget=goal.budget,
                bits=goal.bits,
                max_kl=goal.max_kl,
                max_rise=goal.max_rise,
                target_rise=_target_rise(goal.target_bpb_rise, goal.bytes_per_token),
                curvature=curvature,
                method=method,
                rules=rules,
                drop=drop,
                settings=None if trellis is None else Settings(trellis=int(trellis)),
                code=code,
                coder=coder,
                deadline=deadline,
                progress=progress,
                text=known.live(user.logits) if known and (measure or tokens) else None,
                tune=tune,
                seed=calibration.seed,
            )
        if kept:
            kept.remove()
    if not first_rank():
        return
    facts = made.to_json() | {"path": str(out)}
    if report_file:
        write_json(report_file, facts)
    _tell(facts, as_json)


@contextmanager
def _told_where_to_go_on(out: Path) -> Iterator[None]:
    """Say on Ctrl-C what is kept of a long pack, or of a closed loop."""
    from pgolf.fitting.closed.work import path_for
    from pgolf.fitting.work import folder_for

    try:
        yield
    except KeyboardInterrupt:
        for kept, what in ((path_for(out), "tuned"), (folder_for(out), "measured or rounded")):
            if kept.exists():
                print_lines([f"pgolf: {kept} has what is {what} so far: the same line goes on from it"], err=True)
        raise


def _tell(facts: dict[str, Any], as_json: bool) -> None:
    from pgolf import report

    if as_json:
        click.echo(json.dumps(facts))
        return
    table = report.pack_table(facts, terminal_width())
    print_lines([*table, *report.pack_summary(facts), f"written            {facts['path']}"])


def _default_name(ckpt: Path) -> Path:
    if not ckpt.is_dir():
        return ckpt.with_suffix(".pgolf")
    folder = ckpt.resolve()
    return folder.with_name(folder.name + ".pgolf")


def _target_rise(bpb_rise: float | None, bytes_per_token: float | None) -> float | None:
    """Nats per token of a rise in bits per byte. Raises UsageError where the bytes of a token are not known."""
    if bpb_rise is None:
        return None
    if bytes_per_token is None:
        raise UsageError(
            "--target-bpb-rise needs --bytes-per-token B: `pgolf eval` prints bytes and tokens of your text"
        )
    return bpb_rise * math.log(2) * bytes_per_token


def _noted(source: Checkpoint, place: Path, user: ModelOptions, calibration: CalibrationOptions) -> Checkpoint:
    """With a note of what keeps a folder's model from being run, where nobody said that it need not be."""
    from pgolf.models.transformers_model import is_theirs, obstacle

    if user.model is not None or calibration.word == "none" or source.config is None or not is_theirs(source.config):
        return source
    why = obstacle(source.config, code=user.maker.code(place))
    return replace(source, notes=(*source.notes, f"the model is not run: {why}")) if why else source


def _at_hand(
    source: Checkpoint,
    place: Path,
    method: str | None,
    user: ModelOptions,
    calibration: CalibrationOptions,
    progress: Progress,
    collected: bool,
    tune: int | None,
    spare: int | None,
    measured: str | None,
) -> AtHand | None:
    """The model and text that --model and --calib ask for; None where nobody has a use for any.

    collected: there is a file of curvature, so that text is wanted only where it is named, to tune on, or for a goal that is
    `measured`. spare: tokens to tune on, where there are as many.
    """
    from pgolf.models.transformers_model import is_theirs
    from pgolf.quant import METHODS

    calib, name = calibration.calib, (method or "auto").partition(":")[0]
    wanted = name in METHODS and METHODS[name].needs_curvature and not collected
    known = user.maker.can_build(source.config, place)
    if tune is not None and not (known and calibration.word != "none"):
        raise UsageError(
            "--tune needs a model and text to tune on: add --model FILE.py:NAME and --calib TOKENS.bin|self"
        )
    if measured and not (known and calibration.word not in {"none", "random"}):
        raise UsageError(
            f"{measured} needs a model and text to measure on: add --model FILE.py:NAME and --calib TOKENS.bin|self"
        )
    if calibration.word == "none" or (not known and not calib) or not (wanted or calib or tune or measured):
        return None
    if not known:
        if collected:
            return None
        if is_theirs(source.config):
            build(source, user, place)  # says what it lacks
        silent = f", and no config.json in {place} says which model it is: copy it there, or" if place.is_dir() else ":"
        raise UsageError(f"--calib {calib[0]} needs the model's code{silent} add --model FILE.py:NAME")
    return at_hand(source, place, user, calibration, progress, tune or spare, asked=tune is not None)
