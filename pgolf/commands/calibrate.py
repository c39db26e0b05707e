"""`pgolf calibrate`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pgolf.commands.models import calibrate_model, read_checkpoint
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
    seq_len_option,
    state_option,
    tokenizer_option,
)
from pgolf.errors import UsageError


@click.command()
@click.argument("ckpt", metavar="CKPT", type=click.Path(path_type=Path))
@model_options
@state_option
@click.option(
    "--calib",
    metavar="FILE|self|random",
    multiple=True,
    help="Text to run on: .txt, .jsonl, .parquet (repeatable) or a shard [default: self].",
)
@tokenizer_option
@click.option("-o", "--out", required=True, metavar="CURV.safetensors", type=click.Path(path_type=Path))
@click.option(
    "--tokens", metavar="N", type=click.IntRange(1), default=32768, show_default=True, help="Tokens to run on."
)
@seq_len_option
@click.option("--seed", metavar="S", type=click.IntRange(0, (1 << 63) - 1), default=0, show_default=True)
@device_option
@json_option
@force_option
@gathered(user=ModelOptions, calibration=CalibrationOptions)
def calibrate(
    ckpt: Path, out: Path, force: bool, as_json: bool, user: ModelOptions, calibration: CalibrationOptions
) -> None:
    """Measure what each weight's error costs, for `pack --curvature`.

    Example: pgolf calibrate ckpt.pt --model train.py:GPT --calib tokens.bin -o curv.safetensors
    """
    from pgolf.kernels.device import need

    if calibration.word == "none":
        raise UsageError("--calib none leaves nothing to calibrate on: name a text, or take self or random")
    refuse_overwrite(out, force, ckpt, calibration.tokenizer, *calibration.files, user.file)
    need(calibration.device, kernels=False)
    with progress_bars() as progress:
        curvature = calibrate_model(read_checkpoint(ckpt, user), ckpt, user, calibration, progress)
    if not first_rank():
        return
    curvature.save(out)
    coverage = curvature.coverage
    if as_json:
        click.echo(
            json.dumps({"path": str(out), "tokens": curvature.tokens, "coverage": coverage, "notes": curvature.notes})
        )
        return
    for note in curvature.notes:
        print_lines([f"note: {note}"])
    for name, word in coverage.items():
        if word not in {"traced", "not a matrix"}:
            print_lines([f"{word}: {name}"])
    traced = sum(word == "traced" for word in coverage.values())
    click.echo(f"{traced} matrices traced over {curvature.tokens:,} tokens, written to {out}")
