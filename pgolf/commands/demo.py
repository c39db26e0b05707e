"""`pgolf demo`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pgolf.commands.shared import device_option, json_option, print_table, progress_bars


@click.command()
@click.option(
    "-o", "--out", metavar="DIR", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True
)
@click.option("--seed", metavar="S", type=click.IntRange(0, (1 << 63) - 1), default=0, show_default=True)
@click.option("--quick", is_flag=True, help="A toy of seconds instead of a minute: shows the path, not the quality.")
@device_option
@json_option
def demo(out: Path, seed: int, quick: bool, device: str, as_json: bool) -> None:
    """Train a small model on Python's own library, pack it, load it, score it: two minutes, no network.

    Example: pgolf demo -o demo-out
    """
    from pgolf.kernels.device import need
    from pgolf.report import terminal
    from pgolf.sweep import demo_story

    need(device)
    with progress_bars() as progress:
        result = demo_story.run(out, seed=seed, quick=quick, device=device, progress=progress)
    if as_json:
        click.echo(json.dumps(result))
        return
    print_table(terminal.demo_table(result))
    click.echo(f"results, artifacts and plot in {out}")
