"""`pgolf diff`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pgolf.commands.shared import json_option, print_table, terminal_width


@click.command()
@click.argument("a", metavar="A.pgolf", type=click.Path(path_type=Path))
@click.argument("b", metavar="B.pgolf", type=click.Path(path_type=Path))
@json_option
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Compare two artifacts tensor by tensor: bytes, bits a weight, and how far apart the weights are.

    Example: pgolf diff small.pgolf large.pgolf
    """
    from pgolf.loading import anatomy
    from pgolf.report import terminal

    facts = anatomy.diff(a, b)
    if as_json:
        click.echo(json.dumps(facts))
        return
    print_table(terminal.diff_table(facts, terminal_width()))
    click.echo(terminal.diff_summary(facts))
