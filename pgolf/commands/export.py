"""`pgolf export`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgolf.commands.shared import force_option, gathered, json_option, print_lines, print_table
from pgolf.errors import UsageError

if TYPE_CHECKING:
    from pgolf.submission.count import Count


@dataclass(frozen=True)
class StartOptions:
    """--needs-pgolf, --with-data, --smoke, --no-run: what the folder holds beside scripts and model, and how it is tried."""

    needs_pgolf: bool
    with_data: bool
    smoke: str | None
    no_run: bool


@click.command()
@click.argument("art", metavar="[ART]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--script", "scripts", metavar="FILE", multiple=True, type=click.Path(path_type=Path), help="The first one is run."
)
@click.option("-o", "--out", metavar="DIR", type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--check", metavar="DIR", type=click.Path(path_type=Path), help="Count and try an existing folder.")
@click.option("--limit", metavar="SIZE", default="16MB", show_default=True, help="Code and model together.")
@click.option("--needs-pgolf", is_flag=True, help="pgolf will be installed: name it in requirements.txt, no decoder.")
@click.option("--with-data", is_flag=True, help="Copy and count data files that the scripts name.")
@click.option("--smoke", metavar="ARGS", help="Run the first script with ARGS to its end, not only import it.")
@click.option("--no-run", is_flag=True, help="Start nothing.")
@json_option
@force_option
@gathered(start=StartOptions)
def export(
    art: Path | None,
    scripts: tuple[Path, ...],
    out: Path | None,
    check: Path | None,
    limit: str,
    as_json: bool,
    force: bool,
    start: StartOptions,
) -> None:
    """Write a submission folder: scripts minified and compressed, the decoder inside, the model beside. Exit code 4: FAIL.

    A script loads the model with `import pgolf` and `pgolf.load(PATH)`; there the decoder takes pgolf's place. The folder
    is started in a fresh process without pgolf before it is written.

    Example: pgolf export model.pgolf --script train.py -o submission
    """
    from pgolf.common.sizes import parse_size
    from pgolf.submission import export as submission
    from pgolf.submission.check import checked

    if start.no_run and start.smoke is not None:
        raise UsageError("--smoke runs a script and --no-run forbids it")
    if check is not None:
        if art is not None or out is not None or len(scripts) > 1:
            raise UsageError(
                "--check DIR tries a folder: it takes no ART and no -o, and one --script, the name of the main one"
            )
        main = scripts[0].as_posix() if scripts else None
        found = checked(
            check,
            limit=parse_size(limit),
            script=main,
            smoke=start.smoke,
            run=not start.no_run,
            hides=not start.needs_pgolf,
        )
    elif art is None or out is None:
        raise UsageError("export needs ART, --script FILE and -o DIR, or --check DIR")
    else:
        how = submission.How(start.needs_pgolf, start.with_data, start.smoke, not start.no_run)
        found = submission.export(art, scripts, out, force=force, limit=parse_size(limit), how=how)
    _show(found, as_json)
    found.check()


def _show(found: Count, as_json: bool) -> None:
    from pgolf import report
    from pgolf.report.terminal import submission_lines

    facts = found.to_json()
    if as_json:
        click.echo(json.dumps(facts))
        return
    print_table(report.submission_table(facts))
    print_lines(submission_lines(facts))
