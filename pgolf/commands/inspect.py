"""`pgolf inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pgolf.commands.shared import force_option, json_option, print_lines, print_table, refuse_overwrite, terminal_width


@click.command()
@click.argument("art", metavar="ART", type=click.Path(path_type=Path))
@click.option(
    "--curvature",
    metavar="CURV",
    type=click.Path(path_type=Path),
    help="From calibrate: shows what each tensor matters.",
)
@click.option("--html", metavar="OUT.html", type=click.Path(path_type=Path), help="Write a page with pictures too.")
@force_option
@json_option
def inspect(art: Path, curvature: Path | None, html: Path | None, force: bool, as_json: bool) -> None:
    """Show what is in an artifact and where its bytes go.

    Example: pgolf inspect model.pgolf --html model.html
    """
    from pgolf.loading import anatomy
    from pgolf.quant.curvature.store import Curvature
    from pgolf.report import anatomy_page, terminal, write_text

    if html is not None:
        refuse_overwrite(html, force, art, curvature)
    facts = anatomy.inspect(art, Curvature.load(curvature) if curvature else None)
    if html is not None:
        write_text(html, anatomy_page.page_of(facts, art.name))
    if as_json:
        click.echo(json.dumps(facts))
        return
    print_table(terminal.layers_table(facts, terminal_width()))
    click.echo()
    print_table(terminal.inspect_table(facts, terminal_width()))
    print_lines(terminal.inspect_summary(facts))
