"""`pgolf pack`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgolf.commands.models import calibrate_model, read_checkpoint
from pgolf.commands.shared import (
    CalibrationOptions,
    ModelOptions,
    device_option,
    force_option,
    gathered,
    json_option,
    model_options,
    print_lines,
    print_table,
    progress_bars,
    refuse_overwrite,
    refuse_unwritable,
    seq_len_option,
    state_option,
)
from pgolf.common.progress import Progress
from pgolf.errors import UsageError

if TYPE_CHECKING:
    from pgolf.models.checkpoint import Checkpoint
    from pgolf.quant.curvature.store import Curvature

TRELLISES = ("0", "4", "8", "16", "32", "64", "128", "256")


@click.command()
@click.argument("ckpt", metavar="CKPT", type=click.Path(path_type=Path))
@click.option("--budget", metavar="SIZE", help="16MB and 500kB are decimal, 15MiB binary, plain digits bytes.")
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
    "--calib", metavar="TOKENS.bin|self|random|none", help="Calibration text [default: self if a model is known]."
)
@click.option("--curvature", "curvature_file", metavar="CURV", type=click.Path(path_type=Path), help="From calibrate.")
@click.option("--method", metavar="M[:...]", help="auto, quick, gptq, sdclip, hessian-sdclip, gptq-lite, rtn, keep.")
@click.option(
    "--set", "rules", metavar="PATTERN=...", multiple=True, help="Per tensor: 'tok_emb.*=int8,k=20', '*=keep'."
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
    "--report", "report_file", metavar="R.json", type=click.Path(path_type=Path), help="Write the report here too."
)
@device_option
@json_option
@force_option
@gathered(user=ModelOptions, calibration=CalibrationOptions)
def pack(
    ckpt: Path,
    budget: str | None,
    target_bpb_rise: float | None,
    bytes_per_token: float | None,
    out: Path | None,
    curvature_file: Path | None,
    method: str | None,
    rules: tuple[str, ...],
    trellis: str | None,
    coder: str,
    code: tuple[str, ...],
    deadline: float | None,
    report_file: Path | None,
    as_json: bool,
    force: bool,
    user: ModelOptions,
    calibration: CalibrationOptions,
) -> None:
    """Pack a checkpoint, or a Hugging Face folder, into the best artifact that fits.

    Example: pgolf pack ckpt.pt --budget 16MB --model train.py:GPT --calib tokens.bin
    """
    from pgolf.common import extras
    from pgolf.fitting import packing
    from pgolf.fitting.plan import KEEP
    from pgolf.kernels.device import need
    from pgolf.quant import METHODS, Settings
    from pgolf.quant.curvature.store import Curvature
    from pgolf.report import write_json

    out = out or _default_name(ckpt)
    refuse_overwrite(out, force)
    refuse_unwritable(report_file)
    need(calibration.device)
    known = METHODS.get((method or "auto").partition(":")[0])
    extras.need(*(known.packages if known else ()), *(["python_minifier"] if code else []))
    source = read_checkpoint(ckpt, user, everything=method == KEEP)
    with progress_bars() as progress:
        curvature = (
            Curvature.load(curvature_file, calibration.device)
            if curvature_file
            else _calibrated(source, method, user, calibration, progress)
        )
        made = packing.pack(
            source,
            out,
            budget=budget,
            target_rise=_target_rise(target_bpb_rise, bytes_per_token),
            curvature=curvature,
            method=method,
            rules=rules,
            settings=None if trellis is None else Settings(trellis=int(trellis)),
            code=code,
            coder=coder,
            deadline=deadline,
            progress=progress,
        )
    facts = made.to_json() | {"path": str(out)}
    if report_file:
        write_json(report_file, facts)
    _tell(facts, as_json)


def _tell(facts: dict[str, Any], as_json: bool) -> None:
    from pgolf import report

    if as_json:
        click.echo(json.dumps(facts))
        return
    print_table(report.pack_table(facts))
    print_lines([*report.pack_summary(facts), f"written            {facts['path']}"])


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


def _calibrated(
    source: Checkpoint, method: str | None, user: ModelOptions, calibration: CalibrationOptions, progress: Progress
) -> Curvature | None:
    """The curvature that --model and --calib ask for; None where the method has no use for any."""
    from pgolf.quant import METHODS
    from pgolf.train.model.rebuild import is_ours

    calib, name = calibration.calib, (method or "auto").partition(":")[0]
    wanted = name in METHODS and METHODS[name].needs_curvature
    known = user.model is not None or is_ours(source.config)
    if calib == "none" or (not known and calib is None) or not (wanted or calib):
        return None
    if not known:
        raise UsageError(f"--calib {calib} needs the model's code: add --model FILE.py:NAME")
    return calibrate_model(source, user, calibration, progress)
