"""What the commands share: options that mean the same everywhere, bars, tables."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from pgolf.common.files import not_a_file
from pgolf.errors import UsageError, printable

Progress = Callable[[str, int, int], None]
LINE_SECONDS = 20  # between two lines of progress in a log


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


model_options = _options(
    click.option("--model", metavar="FILE.py:NAME", help="Your model: a class or function. Its code is run."),
    click.option(
        "--logits", metavar="ATTR", help="Method that returns logits [default: forward_logits, logits, call]."
    ),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON only.")
state_option = click.option("--state", metavar="NAME", help="Weights to take where a checkpoint has several: ema.")
force_option = click.option("--force", is_flag=True, help="Overwrite an existing file.")


def refuse_overwrite(path: Path, force: bool) -> None:
    """UsageError before any work is done, where the result could not be written or would replace something."""
    refuse_unwritable(path)
    if path.exists() and not force:
        raise UsageError(f"{path} exists: give another name with -o, or --force to overwrite it")


def refuse_unwritable(path: Path | None) -> None:
    """UsageError before any work is done, where a file that may be replaced could not be written."""
    if path is None:
        return
    if what := not_a_file(path):
        raise UsageError(f"{path} is {what}: name the file to write")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UsageError(f"{path}: nothing can be written in the folder {path.parent}")


def print_table(table: Any) -> None:
    """A rich table on stdout, as wide as the terminal, or as it needs where there is none."""
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        """Shows strings as they are: names from a stranger's file may look like markup or move the cursor."""

        def render_str(self, text: str, **_: Any) -> Text:
            return Text(printable(text))

    width = None if sys.stdout.isatty() else 160
    Plain(width=width, soft_wrap=False).print(table)


def print_lines(lines: Iterable[str]) -> None:
    """Lines on stdout, whatever names are in them."""
    click.echo("\n".join(map(printable, lines)))


def _lines() -> Progress:
    said = time.monotonic()

    def update(what: str, done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= LINE_SECONDS:
            said = time.monotonic()
            click.echo(f"{what}: {done:,} of {total:,}", err=True)

    return update


def first_rank() -> bool:
    """Whether this process speaks for the job: under torchrun one of them is enough."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars on stderr; where stderr is not a terminal, a line now and then, so that a log shows that work goes on."""
    if not first_rank():
        yield lambda what, done, total: None
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            task = tasks.setdefault(what, bars.add_task(what, total=total) if what not in tasks else None)
            bars.update(task, completed=done, total=total)

        yield update
