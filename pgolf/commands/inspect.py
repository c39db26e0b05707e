"""`pgolf inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pgolf.commands.shared import json_option, print_table


@click.command()
@click.argument("art", metavar="ART", type=click.Path(path_type=Path))
@json_option
def inspect(art: Path, as_json: bool) -> None:
    """Show what is in an artifact.

    Example: pgolf inspect model.pgolf
    """
    from pgolf import pipeline
    from pgolf.report import tables

    facts = pipeline.inspect(art)
    if as_json:
        click.echo(json.dumps(facts))
        return
    print_table(tables.inspect_table(facts))
    click.echo(f"{facts['bytes']:,} B, {len(facts['tensors'])} tensors")
