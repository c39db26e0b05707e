"""`pgolf oracle`: what the log of a run says of its end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgolf.commands.shared import json_option, print_lines, refuse_unwritable
from pgolf.errors import DataError, UsageError

if TYPE_CHECKING:
    from pgolf.oracle.run import Run

SETTING_OPTIONS = {"params": "n_params", "vocab": "vocab", "iterations": "iterations", "cap": "max_wallclock_s"}


@click.command()
@click.argument("logs", metavar="LOG...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--at", metavar="STEP", type=click.IntRange(1), help="As if each log ended at this step.")
@click.option("--follow", is_flag=True, help="Read again while the run goes on, until it is over.")
@click.option(
    "--every", metavar="SECONDS", type=click.FloatRange(0.1), default=20.0, show_default=True, help="With --follow."
)
@click.option(
    "--plot", metavar="FILE.png", type=click.Path(path_type=Path), help="Draw curves, continuations and bands."
)
@click.option("--params", metavar="N", type=click.FloatRange(1), help="Parameters, where the log does not say.")
@click.option("--vocab", metavar="N", type=click.IntRange(2), help="Vocabulary, where the log does not say.")
@click.option("--iterations", metavar="N", type=click.IntRange(1), help="Planned steps, where the log does not say.")
@click.option("--cap", metavar="SECONDS", type=click.FloatRange(0), help="Time for training, where the log is silent.")
@json_option
def oracle(
    logs: tuple[Path, ...],
    at: int | None,
    follow: bool,
    every: float,
    plot: Path | None,
    as_json: bool,
    **given: float | None,
) -> None:
    """Foresee the final bits per byte of runs from their training logs, with 80% intervals.

    Reads logs of contest trainers, pgolf's train.jsonl, and CSV files with step and train_loss or val_bpb. How good it is, and
    where it is not: docs/ORACLE.md.

    Example: pgolf oracle train.log other.log --plot ahead.png
    """
    from pgolf.common import extras
    from pgolf.oracle.model import ahead, foresee
    from pgolf.oracle.reading import read
    from pgolf.oracle.words import lines, ranking

    if plot is not None:
        extras.need("matplotlib")
        refuse_unwritable(plot, *logs)
    if follow and as_json:
        raise UsageError("--follow prints as the run goes on, --json once: take one of them")
    stated = {SETTING_OPTIONS[name]: float(value) for name, value in given.items() if value is not None}

    def runs() -> list[Run]:
        found = [run for path in logs for run in read(path)]
        for run in found:
            run.settings = stated | run.settings
        return found if at is None else [run.until(at) for run in found]

    found = [foresee(run) for run in (_patient(runs, every) if follow else runs())]
    while follow and any(one.run.total is None and one.run.broken is None for one in found):
        print_lines(line for one in found for line in lines(one))
        time.sleep(every)
        found = [foresee(run) for run in runs()]
    if plot is not None:
        from pgolf.oracle.plot import foresight_png

        foresight_png(found, plot)
    if as_json:
        pairs = [[_plain(ahead(a, b, "final")) for b in found] for a in found]
        click.echo(json.dumps({"runs": [one.to_json() for one in found], "ahead": pairs}, allow_nan=False))
        return
    print_lines(line for one in found for line in lines(one))
    print_lines(ranking(found))


def _plain(odds: float | None) -> float | None:
    return None if odds is None else round(odds, 4)


def _patient(runs: Callable[[], list[Run]], every: float) -> list[Run]:
    """The runs, once there is a first step to read."""
    while True:
        try:
            return runs()
        except DataError as error:
            if "no line" not in str(error):
                raise
            time.sleep(every)
