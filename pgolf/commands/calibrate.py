"""`pgolf calibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pgolf.commands.models import calibrate_model, read_checkpoint
from pgolf.commands.shared import (
    force_option,
    json_option,
    model_options,
    print_lines,
    progress_bars,
    refuse_overwrite,
    state_option,
)


@click.command()
@click.argument("ckpt", metavar="CKPT", type=click.Path(path_type=Path))
@model_options
@state_option
@click.option("--calib", metavar="TOKENS.bin|self|random", default="self", show_default=True, help="Text to run on.")
@click.option("-o", "--out", required=True, metavar="CURV.safetensors", type=click.Path(path_type=Path))
@click.option(
    "--tokens", metavar="N", type=click.IntRange(1), default=32768, show_default=True, help="Tokens to run on."
)
@click.option("--seq-len", metavar="N", type=click.IntRange(2), default=1024, show_default=True)
@click.option("--seed", metavar="S", type=int, default=0, show_default=True)
@json_option
@force_option
def calibrate(ckpt: Path, out: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Measure what each weight's error costs, for `pack --curvature`.

    Example: pgolf calibrate ckpt.pt --model train.py:GPT --calib tokens.bin -o curv.safetensors
    """
    refuse_overwrite(out, force)
    with progress_bars() as progress:
        curvature = calibrate_model(read_checkpoint(ckpt, options), options["calib"], progress, options)
    curvature.save(out)
    coverage = curvature.coverage
    if as_json:
        click.echo(json.dumps({"path": str(out), "tokens": curvature.tokens, "coverage": coverage}))
        return
    for name, word in coverage.items():
        if word not in {"traced", "not a matrix"}:
            print_lines([f"{word}: {name}"])
    traced = sum(word == "traced" for word in coverage.values())
    click.echo(f"{traced} matrices traced over {curvature.tokens:,} tokens, written to {out}")
