"""`pgolf export`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pgolf.commands.shared import force_option, json_option, print_lines, print_table
from pgolf.errors import UsageError


@click.command()
@click.argument("art", metavar="[ART]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--script", "scripts", metavar="FILE", multiple=True, type=click.Path(path_type=Path), help="The first one is run."
)
@click.option("-o", "--out", metavar="DIR", type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--check", metavar="DIR", type=click.Path(path_type=Path), help="Only count an existing folder.")
@click.option("--limit", metavar="SIZE", default="16MB", show_default=True, help="Code and model together.")
@json_option
@force_option
def export(
    art: Path | None,
    scripts: tuple[Path, ...],
    out: Path | None,
    check: Path | None,
    limit: str,
    as_json: bool,
    force: bool,
) -> None:
    """Write a submission folder: scripts minified and compressed, the decoder inside, the model beside. Exit code 4: FAIL.

    A script loads the model with `import pgolf` and `pgolf.load(PATH)`; there the decoder takes pgolf's place.

    Example: pgolf export model.pgolf --script train.py -o submission
    """
    from pgolf import report
    from pgolf.common.sizes import parse_size
    from pgolf.submission import export as submission

    if check is not None:
        if art is not None or scripts or out is not None:
            raise UsageError("--check DIR counts a folder and takes no ART, --script or -o")
        found = submission.count(check, limit=parse_size(limit))
    elif art is None or out is None:
        raise UsageError("export needs ART, --script FILE and -o DIR, or --check DIR")
    else:
        found = submission.export(art, scripts, out, force=force, limit=parse_size(limit))
    facts = found.to_json()
    if as_json:
        click.echo(json.dumps(facts))
    else:
        print_table(report.submission_table(facts))
        verdict = f"{facts['verdict']}: {facts['total']:,} B of {facts['limit']:,} B"
        print_lines([*facts["notes"], verdict])
    found.check()
