"""`pgolf bench`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pgolf.commands.shared import json_option, refuse_unwritable
from pgolf.errors import UsageError


@click.command()
@click.option("--device", metavar="D", help="cpu or cuda [default: cuda where there is one].")
@click.option("--artifact", metavar="ART", type=click.Path(path_type=Path), help="Load this one, not a synthetic one.")
@click.option(
    "--layers", metavar="N", type=click.IntRange(1), default=11, show_default=True, help="Of the synthetic one."
)
@click.option("--peak-tflops", metavar="X", type=float, default=989.0, show_default=True, help="bf16 peak, for MFU.")
@click.option(
    "--only",
    metavar="M,...",
    help="load, limits, rans_decode, dequant, softcap_nll, quant_linear, others, eval, fitting, qat.",
)
@click.option(
    "--toy", is_flag=True, help="Every size small, on any device: shows that all of it runs, measures nothing."
)
@click.option("-o", "--out", metavar="R.json", type=click.Path(path_type=Path), help="Save the result.")
@json_option
def bench(
    device: str | None,
    artifact: Path | None,
    layers: int,
    peak_tflops: float,
    only: str | None,
    toy: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure the kernels, loading, evaluation and QAT; indented JSON on stdout, with --json on one line.

    Example: pgolf bench --device cuda -o kernels.json
    """
    import torch

    from pgolf import report
    from pgolf.bench.sizes import TOY, Sizes
    from pgolf.bench.suite import MEASURES, measure_all
    from pgolf.kernels.device import need, triton

    refuse_unwritable(out, artifact)
    names = [word.strip() for word in only.split(",")] if only else []
    if unknown := [name for name in names if name not in MEASURES]:
        raise UsageError(f"--only {unknown[0]}: known are {', '.join(MEASURES)}")
    place = need(device)
    sizes = TOY if toy else Sizes(layers=layers, peak_tflops=peak_tflops)
    facts = measure_all(place, artifact, sizes, lambda what: click.echo(f"bench: {what}", err=True), names)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    facts |= {"toy": toy, "device": name, "torch": torch.__version__, "triton": getattr(triton, "__version__", None)}
    if "missing" in facts:
        click.echo(f"bench: only loading was measured, there is no {facts['missing'].removeprefix('a ')}", err=True)
    if out:
        report.write_json(out, facts)
    click.echo(json.dumps(facts, indent=None if as_json else 1))
