"""What a running sweep shows on stderr: a table that fills, and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

Rows = list[dict[str, Any]]


class SoFar:
    """The points so far and how long the rest will take, judged by those that this run has measured."""

    def __init__(self) -> None:
        self.rows: Rows = []
        self.done_before = 0
        self.began = time.monotonic()

    def update(self, rows: Rows) -> None:
        """Take in the rows of a sweep; the first call counts what an earlier run had measured."""
        if not self.rows:
            self.began, self.done_before = time.monotonic(), finished(rows)
        self.rows = rows

    def __str__(self) -> str:
        done, total, spent = finished(self.rows), len(self.rows), time.monotonic() - self.began
        new = done - self.done_before
        left = f", about {duration(spent / new * (total - done))} left" if new and done < total else ""
        return f"{done} of {total} points, {duration(spent)}{left}"

    def __rich__(self) -> Any:
        from rich.console import Group

        from pgolf.report.terminal import progress_table

        return Group(progress_table(self.rows), str(self))


def finished(rows: Rows) -> int:
    """How many points are measured or refused."""
    return sum("bpb" in r or "refused" in r for r in rows)


def duration(seconds: float) -> str:
    """3725 -> "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def live_table() -> Iterator[Callable[[Rows], None]]:
    """A function to be called with the rows so far; where stderr is no terminal it prints a line each time."""
    progress = SoFar()
    if not sys.stderr.isatty():

        def tell(rows: Rows) -> None:
            progress.update(rows)
            click.echo(f"sweep: {progress}", err=True)

        yield tell
        return
    from rich.console import Console
    from rich.live import Live

    with Live(progress, console=Console(stderr=True), transient=True, refresh_per_second=2):
        yield progress.update
