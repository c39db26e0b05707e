"""`pgolf sweep`."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgolf.commands.live import live_table
from pgolf.commands.models import at_hand, build, calibrate_model, read_checkpoint, usable_context
from pgolf.commands.shared import (
    CalibrationOptions,
    ModelOptions,
    TextOptions,
    data_option,
    gathered,
    json_option,
    model_options,
    own_tokenizer,
    print_lines,
    print_table,
    progress_bars,
    state_option,
    tokenizer_option,
)
from pgolf.errors import UsageError

if TYPE_CHECKING:
    from pgolf.models.checkpoint import Checkpoint
    from pgolf.quant.curvature.store import Curvature
    from pgolf.sweep.points import Point
    from pgolf.sweep.setup import Setup
    from pgolf.sweep.tuning import Tuning

MOST_JOBS = 4  # by default: each process holds the model, its curvature and several trials of a pack


@dataclass(frozen=True)
class PlanOptions:
    """Which packs are made: every method at every size (--budgets in bytes, --bits a weight) with every coder, and the
    baseline; --set for all of them; --tune for those with "+tune"."""

    methods: str
    coders: str
    baseline: str
    budgets: str | None
    bits: str | None
    rules: tuple[str, ...]
    tune: str | None


@dataclass(frozen=True)
class _Wanted:
    """How each of the checkpoints is swept."""

    data: tuple[Path, ...]
    curvature_file: Path | None
    plan: PlanOptions
    user: ModelOptions
    calibration: CalibrationOptions
    text: TextOptions
    force: bool


@click.command()
@click.argument("ckpts", metavar="CKPT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_options
@state_option
@data_option
@tokenizer_option
@click.option("--bytes", "sidecar", metavar="SIDECAR.bin", type=click.Path(path_type=Path), help="Bytes of each token.")
@click.option("--budgets", metavar="SIZES", help="Artifact sizes: 8MB,12MB,16MB.")
@click.option("--bits", metavar="BITS", help="Artifact sizes in bits a weight of the checkpoint: 2,2.5,3,3.5,4.")
@click.option(
    "--methods",
    metavar="M,...",
    default="auto",
    show_default=True,
    help="auto,auto+tune,gptq:int6,k=12.85,sdclip:int5,rtn:int8,contest",
)
@click.option("--tune", metavar="TOKENS", help="Text for methods with +tune: 500k, 4M tokens of --calib.")
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
    "--calib",
    metavar="FILE|self|random|none",
    multiple=True,
    help="Calibration text: .txt, .jsonl, .parquet (repeatable) or a shard [default: self].",
)
@click.option("--curvature", "curvature_file", metavar="CURV", type=click.Path(path_type=Path), help="From calibrate.")
@click.option(
    "--tokens", metavar="N", type=click.IntRange(1), default=32768, show_default=True, help="To calibrate on."
)
@click.option("--seed", metavar="S", type=click.IntRange(0, (1 << 63) - 1), default=0, show_default=True)
@click.option("--count", type=click.Choice(["exact", "contest"]), default="exact", show_default=True, help="Byte rule.")
@click.option(
    "--seq-len",
    metavar="N",
    type=click.IntRange(2),
    help="Longest context, and sequence of calibration text [default: what the model takes, up to 1024].",
)
@click.option("--stride", metavar="N", type=click.IntRange(1), help="Sliding window [default: windows do not overlap].")
@click.option("--max-tokens", metavar="N", type=click.IntRange(1), help="Score at most so many.")
@click.option("--device", metavar="D", default="cpu", show_default=True, help="Where models run: cpu, cuda.")
@click.option("--jobs", metavar="N", type=click.IntRange(1), help="Processes [default: cores, at most 4].")
@click.option("--dask", metavar="ADDRESS", help="A running Dask scheduler, instead of --jobs.")
@click.option("--executor", "own", metavar="FILE.py:NAME", help="NAME() gives an Executor, of any cluster.")
@click.option("--seeds", is_flag=True, help="Several CKPTs of one model: mean, spread, and whether the gain is proven.")
@click.option("-o", "--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder of the sweep.")
@click.option("--force", is_flag=True, help="Measure anew what was measured with other settings.")
@json_option
@gathered(plan=PlanOptions, user=ModelOptions, calibration=CalibrationOptions, text=TextOptions)
def sweep(
    ckpts: tuple[Path, ...],
    data: tuple[Path, ...],
    curvature_file: Path | None,
    jobs: int | None,
    dask: str | None,
    own: str | None,
    seeds: bool,
    out: Path,
    force: bool,
    as_json: bool,
    plan: PlanOptions,
    user: ModelOptions,
    calibration: CalibrationOptions,
    text: TextOptions,
) -> None:
    """Draw quality against bytes: pack at many sizes by many methods, score each.

    A sweep that was interrupted goes on where it stopped; more methods or sizes in the same folder add to it.

    Example: pgolf sweep ckpt.pt --model train.py:GPT --data val.bin --tokenizer t.model --bits 2,3,4 -o sweep
    """
    from pgolf.common import extras
    from pgolf.common.threads import workers
    from pgolf.kernels.device import need
    from pgolf.sweep.executors import executor
    from pgolf.sweep.seeds import over_seeds

    extras.need("numba", "scipy", "matplotlib")  # now, not after hours
    need(text.device)
    if seeds != (len(ckpts) > 1):
        raise UsageError("--seeds needs two or more checkpoints" if seeds else "several checkpoints need --seeds")
    wanted = _Wanted(data, curvature_file, plan, user, calibration, text, force)
    folders = [out / f"seed-{i}" for i in range(len(ckpts))] if seeds else [out]
    if own and dask:
        raise UsageError("--executor and --dask exclude each other: the points run in one place")
    with executor(jobs or min(workers(), MOST_JOBS), dask, own) as running:
        found = [_one(ckpt, folder, running, wanted) for ckpt, folder in zip(ckpts, folders, strict=True)]
    results = over_seeds(found, [c.name for c in ckpts], out) if seeds else found[0]
    _show(results, out, as_json)


def _one(ckpt: Path, folder: Path, executor: Executor, wanted: _Wanted) -> dict[str, Any]:
    """The sweep of one checkpoint."""
    from pgolf.sweep import run
    from pgolf.sweep.setup import calibration_facts

    source = read_checkpoint(ckpt, wanted.user)
    points, series = _points(source, wanted.plan)
    setup, options = (
        _setup(ckpt, wanted, wanted.text.seq_len or _context(source, ckpt, wanted.user)),
        wanted.calibration,
    )
    calib = options.files or (options.word or "self",)
    how = calibration_facts(wanted.curvature_file, calib, tokens=options.tokens, seed=options.seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with live_table() as watch:
        return run.sweep(
            setup,
            points,
            folder,
            executor=executor,
            calibrate=_calibration(source, ckpt, wanted) if how.get("text") else None,
            calibration=how,
            tuning=_tuning(source, ckpt, wanted),
            baseline=series,
            force=wanted.force,
            watch=watch,
        )


def _points(source: Checkpoint, options: PlanOptions) -> tuple[list[Point], str | None]:
    """Every point to measure, and the series that the others are compared with."""
    from pgolf.common.sizes import parse_size
    from pgolf.fitting.closed.tune import tokens_of
    from pgolf.sweep.wanted import wanted_points

    return wanted_points(
        options.methods,
        weights=sum(t.numel() for t in source.tensors.values()),
        budgets=[parse_size(text) for text in _words(options.budgets)],
        bits=[_number(text) for text in _words(options.bits)],
        coders=_words(options.coders),
        baseline=None if options.baseline == "none" else options.baseline,
        tune=tokens_of(options.tune),
    )


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


def _context(source: Checkpoint, place: Path, user: ModelOptions) -> int:
    return usable_context(build(source, user, place), user.logits)


def _setup(ckpt: Path, wanted: _Wanted, seq_len: int) -> Setup:
    """What the points share."""
    from pgolf.data.sidecar import beside
    from pgolf.data.text import refuse_mixed
    from pgolf.sweep.setup import Setup, resolved

    if not wanted.data:
        raise UsageError("sweep needs --data, text or a token shard to score")
    text, shard = wanted.text, refuse_mixed(wanted.data, "--data")
    counts = text.sidecar or (beside(wanted.data[0]) if shard else None)
    tokenizer = own_tokenizer(text.tokenizer, ckpt, wanted.user.model)
    if not (tokenizer or counts):
        raise UsageError("sweep needs --tokenizer T.model or --bytes SIDECAR.bin to count bytes")
    return resolved(
        Setup(
            checkpoint=str(ckpt),
            data=str(wanted.data[0]),
            more=tuple(map(str, wanted.data[1:])),
            model=wanted.user.model,
            logits=wanted.user.logits,
            state=wanted.user.state,
            tokenizer=str(tokenizer) if tokenizer and not counts else None,
            sidecar=str(counts) if counts else None,
            count=text.count,
            seq_len=seq_len,
            stride=text.stride,
            max_tokens=text.max_tokens,
            rules=wanted.plan.rules,
            curvature=str(wanted.curvature_file) if wanted.curvature_file else None,
            device=text.device,
            trusted=wanted.user.trust_remote_code,
            seed=wanted.calibration.seed,
        )
    )


def _calibration(source: Checkpoint, place: Path, wanted: _Wanted) -> Callable[[], Curvature]:
    def calibrate() -> Curvature:
        with progress_bars() as progress:
            return calibrate_model(source, place, wanted.user, wanted.calibration, progress)

    return calibrate


def _tuning(source: Checkpoint, place: Path, wanted: _Wanted) -> Callable[[int], Tuning]:
    def tuning(tokens: int) -> Tuning:
        from pgolf.sweep.tuning import Tuning

        if wanted.calibration.word == "none":
            raise UsageError("--tune needs text to tune on: --calib FILE or self")
        with progress_bars() as progress:
            known = at_hand(source, place, wanted.user, wanted.calibration, progress, tokens)
        assert known.held is not None
        assert known.more is not None
        return Tuning(known.held, known.more, known.what)

    return tuning


def _show(results: dict[str, Any], out: Path, as_json: bool) -> None:
    from pgolf.report import frontier, terminal

    files = frontier.write(results, out)
    if as_json:
        click.echo(json.dumps(results))
        return
    print_table(terminal.cells_table(terminal.point_cells(results)))
    if results["comparison"]:
        print_table(terminal.cells_table(terminal.comparison_cells(results)))
    if "gains" in results:
        print_table(terminal.seeds_table(results))
    print_lines([*terminal.sweep_summary(results), f"written            {', '.join(map(str, files))}"])
