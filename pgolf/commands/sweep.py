"""`pgolf sweep`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgolf.commands.live import live_table
from pgolf.commands.models import calibrate_model, read_checkpoint
from pgolf.commands.shared import (
    json_option,
    model_options,
    print_lines,
    print_table,
    progress_bars,
    state_option,
)
from pgolf.errors import UsageError

if TYPE_CHECKING:
    from pgolf.models.checkpoint import Checkpoint
    from pgolf.sweep.points import Point
    from pgolf.sweep.setup import Setup

MOST_JOBS = 4  # by default: each process holds the model, its curvature and several trials of a pack


@click.command()
@click.argument("ckpts", metavar="CKPT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_options
@state_option
@click.option("--data", required=True, metavar="VAL.bin", type=click.Path(path_type=Path), help="Token shard to score.")
@click.option("--tokenizer", metavar="T.model", type=click.Path(path_type=Path), help="SentencePiece model of it.")
@click.option("--bytes", "sidecar", metavar="SIDECAR.bin", type=click.Path(path_type=Path), help="Bytes of each token.")
@click.option("--budgets", metavar="SIZES", help="Artifact sizes: 8MB,12MB,16MB.")
@click.option("--bits", metavar="BITS", help="Artifact sizes in bits a weight of the checkpoint: 2,2.5,3,3.5,4.")
@click.option(
    "--methods",
    metavar="M,...",
    default="auto",
    show_default=True,
    help="auto,gptq:int6,k=12.85,sdclip:int5,rtn:int8,contest",
)
@click.option(
    "--coder", "coders", metavar="C,...", default="ours", show_default=True, help="ours,brotli,zstd,lzma,zlib"
)
@click.option(
    "--baseline",
    metavar="M",
    default="contest",
    show_default=True,
    help="Method to compare with (it is measured too), or none.",
)
@click.option("--set", "rules", metavar="PATTERN=...", multiple=True, help="As in pack, for every method.")
@click.option(
    "--calib", metavar="TOKENS.bin|self|random|none", default="self", show_default=True, help="Calibration text."
)
@click.option("--curvature", "curvature_file", metavar="CURV", type=click.Path(path_type=Path), help="From calibrate.")
@click.option(
    "--tokens", metavar="N", type=click.IntRange(1), default=32768, show_default=True, help="To calibrate on."
)
@click.option("--seed", metavar="S", type=int, default=0, show_default=True)
@click.option("--count", type=click.Choice(["exact", "contest"]), default="exact", show_default=True, help="Byte rule.")
@click.option("--seq-len", metavar="N", type=click.IntRange(2), default=1024, show_default=True)
@click.option("--stride", metavar="N", type=click.IntRange(1), help="Sliding window [default: windows do not overlap].")
@click.option("--max-tokens", metavar="N", type=click.IntRange(1), help="Score at most so many.")
@click.option("--device", metavar="D", default="cpu", show_default=True, help="Where models are scored: cpu, cuda.")
@click.option("--jobs", metavar="N", type=click.IntRange(1), help="Processes [default: cores, at most 4].")
@click.option("--dask", metavar="ADDRESS", help="A running Dask scheduler, instead of --jobs.")
@click.option("--seeds", is_flag=True, help="Several CKPTs of one model: mean, spread, and whether the gain is proven.")
@click.option("-o", "--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder of the sweep.")
@click.option("--force", is_flag=True, help="Measure anew what was measured with other settings.")
@json_option
def sweep(ckpts: tuple[Path, ...], out: Path, as_json: bool, seeds: bool, **options: Any) -> None:
    """Draw quality against bytes: pack at many sizes by many methods, score each.

    A sweep that was interrupted goes on where it stopped; more methods or sizes in the same folder add to it.

    Example: pgolf sweep ckpt.pt --model train.py:GPT --data val.bin --tokenizer t.model --bits 2,3,4 -o sweep
    """
    from pgolf.sweep.seeds import over_seeds

    if seeds != (len(ckpts) > 1):
        raise UsageError("--seeds needs two or more checkpoints" if seeds else "several checkpoints need --seeds")
    folders = [out / f"seed-{i}" for i in range(len(ckpts))] if seeds else [out]
    with _executor(options) as executor:
        found = [_one(ckpt, folder, executor, options) for ckpt, folder in zip(ckpts, folders, strict=True)]
    results = over_seeds(found, [c.name for c in ckpts], out) if seeds else found[0]
    _show(results, out, as_json)


def _executor(options: dict[str, Any]) -> Any:
    from pgolf.common.threads import workers
    from pgolf.sweep import executors

    return executors.executor(options["jobs"] or min(workers(), MOST_JOBS), options["dask"])


def _one(ckpt: Path, folder: Path, executor: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The sweep of one checkpoint."""
    from pgolf.sweep import run

    source = read_checkpoint(ckpt, options)
    baseline = None if options["baseline"] == "none" else options["baseline"]
    points, series = _points(source, options, baseline)
    setup, calibration = _setup(ckpt, options)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with live_table() as watch:
        return run.sweep(
            setup,
            points,
            folder,
            executor=executor,
            calibrate=partial(_calibrate, source, options) if calibration.get("text") else None,
            calibration=calibration,
            baseline=series,
            force=options["force"],
            watch=watch,
        )


def _points(source: Checkpoint, options: dict[str, Any], baseline: str | None) -> tuple[list[Point], str | None]:
    """Every point to measure, and the series that the others are compared with."""
    from pgolf.common.sizes import parse_size
    from pgolf.sweep.points import points_of

    weights = sum(t.numel() for t in source.tensors.values())
    budgets = [parse_size(text) for text in _words(options["budgets"])]
    budgets += [int(_number(text) * weights / 8) for text in _words(options["bits"])]
    coders = _words(options["coders"])
    points = points_of(options["methods"], budgets, coders=coders)
    if baseline is None:
        return points, None
    wanted = points_of(baseline, budgets, coders=coders[:1])
    more = [p for p in wanted if p.series not in {q.series for q in points}]
    return points + more, wanted[0].series


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _number(text: str) -> float:
    try:
        bits = float(text)
    except ValueError:
        bits = 0.0
    if not 0 < bits <= 32:
        raise UsageError(f"--bits {text!r} is not a number of bits a weight between 0 and 32")
    return bits


def _setup(ckpt: Path, options: dict[str, Any]) -> tuple[Setup, dict[str, Any]]:
    """What the points share, and how the curvature is made, as JSON ({} for none)."""
    from pgolf.data.sidecar import beside
    from pgolf.sweep.setup import Setup, file_hash

    counts = options["sidecar"] or beside(options["data"])
    if not (options["tokenizer"] or counts):
        raise UsageError("sweep needs --tokenizer T.model or --bytes SIDECAR.bin to count bytes")

    def absolute(path: Any) -> str | None:
        return str(Path(path).resolve()) if path else None

    curvature, calib = options["curvature_file"], options["calib"]
    calibration: dict[str, Any] = {}
    if curvature:
        calibration = {"file": file_hash(curvature)}
    elif calib != "none":
        text = calib if calib in {"self", "random"} else file_hash(calib)
        calibration = {"text": text, "tokens": options["tokens"], "seed": options["seed"]}
    file, colon, name = (options["model"] or "").rpartition(":")
    setup = Setup(
        checkpoint=str(ckpt.resolve()),
        data=str(options["data"].resolve()),
        model=f"{Path(file).resolve()}:{name}" if colon and file else options["model"],
        curvature=absolute(curvature),
        tokenizer=None if counts else absolute(options["tokenizer"]),
        sidecar=absolute(counts),
        rules=tuple(options["rules"]),
        **{name: options[name] for name in ("logits", "state", "count", "seq_len", "stride", "max_tokens", "device")},
    )
    return setup, calibration


def _calibrate(source: Checkpoint, options: dict[str, Any]) -> Any:
    with progress_bars() as progress:
        return calibrate_model(source, options["calib"], progress, options)


def _show(results: dict[str, Any], out: Path, as_json: bool) -> None:
    from pgolf.report import frontier, tables

    files = frontier.write(results, out)
    if as_json:
        click.echo(json.dumps(results))
        return
    print_table(tables.cells_table(tables.point_cells(results)))
    if results["comparison"]:
        print_table(tables.cells_table(tables.comparison_cells(results)))
    if "gains" in results:
        print_table(tables.seeds_table(results))
    print_lines([*tables.sweep_summary(results), f"written            {', '.join(map(str, files))}"])
