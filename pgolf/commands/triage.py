"""`pgolf triage`: many submission folders sorted without reading each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from pgolf.commands.shared import json_option, print_lines, progress_bars, refuse_unwritable

ORDERS: dict[str, Callable[[Mapping[str, Any]], float]] = {  # --by: what rows are ordered by, after that by the name
    "name": lambda folder: 0,
    "score": lambda folder: 99.0 if folder["scores"]["said"] is None else folder["scores"]["said"],
    "look": lambda folder: -len(folder["look"]),
}


@click.command()
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--limit", metavar="SIZE", default="16MB", show_default=True, help="Code and model together.")
@click.option("--by", type=click.Choice(list(ORDERS)), default="name", show_default=True, help="Order of the rows.")
@click.option("--page", metavar="OUT.html", type=click.Path(path_type=Path), help="Write it as a page, too.")
@json_option
def triage(folders: tuple[Path, ...], limit: str, by: str, page: Path | None, as_json: bool) -> None:
    """Sort submission folders, or all that lie in a tree: a row each, read and never run.

    Score claimed and from the logs, bytes, techniques that the code shows, findings of the audit, near-duplicates, and what
    to look at by hand. How it sees them, and what it cannot see: docs/TRIAGE.md.

    Example: pgolf triage records --by score --page triage.html
    """
    from pgolf.common.files import write_text
    from pgolf.common.sizes import parse_size
    from pgolf.report.triage_page import triage_page
    from pgolf.report.triage_table import lines
    from pgolf.triage.triage import triage as triaged

    refuse_unwritable(page)
    most = parse_size(limit)
    with progress_bars() as progress:
        facts = triaged(folders, limit=most, progress=progress).to_json()
    facts["folders"].sort(key=lambda folder: (ORDERS[by](folder), folder["folder"]))
    if page is not None:
        write_text(page, triage_page(facts, f"Triage of {len(facts['folders'])} folders"))
    if as_json:
        click.echo(json.dumps(facts, allow_nan=False))
        return
    print_lines(lines(facts))
