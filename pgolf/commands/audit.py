"""`pgolf audit`: a whole submission folder, and its score where model and data are at hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pgolf.commands.evaluate import AuditOptions, Judge, read_text, score_source
from pgolf.commands.shared import (
    ModelOptions,
    TextOptions,
    gathered,
    json_option,
    model_options,
    print_lines,
    progress_bars,
)
from pgolf.errors import AuditError, UsageError

if TYPE_CHECKING:
    from pgolf.submission.findings import Finding


@click.command()
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option("--script", metavar="NAME", help="The folder's main script [default: train_gpt.py, or the only one].")
@click.option("--limit", metavar="SIZE", default="16MB", show_default=True, help="Code and model together.")
@click.option("--no-run", is_flag=True, help="Read the scripts only, import nothing.")
@click.option("--needs-pgolf", is_flag=True, help="pgolf is installed where the submission runs.")
@click.option("--artifact", metavar="FILE", help="What is scored [default: the folder's only .pgolf].")
@model_options
@click.option("--data", metavar="VAL.bin", type=click.Path(path_type=Path), help="Token shard to score it on.")
@click.option(
    "--tokenizer", metavar="T.model", type=click.Path(path_type=Path), help="SentencePiece model of the shard."
)
@click.option("--bytes", "sidecar", metavar="SIDECAR.bin", type=click.Path(path_type=Path), help="Bytes of each token.")
@click.option(
    "--count", type=click.Choice(["exact", "contest"]), default="contest", show_default=True, help="Byte rule."
)
@click.option("--seq-len", metavar="N", type=click.IntRange(1), help="Longest context [default: as `pgolf eval`].")
@click.option("--stride", metavar="N", type=click.IntRange(1), help="Sliding window [default: windows do not overlap].")
@click.option("--max-tokens", metavar="N", type=click.IntRange(1))
@click.option("--device", metavar="D", default="cpu", show_default=True, help="cpu or cuda; on cuda, compiled.")
@json_option
@gathered(user=ModelOptions, options=TextOptions)
def audit(
    folder: Path,
    script: str | None,
    limit: str,
    no_run: bool,
    needs_pgolf: bool,
    artifact: str | None,
    data: Path | None,
    as_json: bool,
    user: ModelOptions,
    options: TextOptions,
) -> None:
    """Go through a submission folder as a reviewer does. Exit code 4 if something is to be looked at.

    Sizes against the cap, submission.json against files and logs, an import without network, and signs of the known
    violations, each with file and line. With --data and --model the artifact is scored again, and the score audited.

    Example: pgolf audit submission
    """
    from pgolf.common import extras
    from pgolf.common.sizes import parse_size
    from pgolf.submission.audit import audit as audited
    from pgolf.submission.findings import distinct

    if (data is None) != (user.model is None):
        raise UsageError("--data and --model go together: both are needed to score the artifact again")
    if data is not None:
        extras.need("scipy", *(["sentencepiece"] if options.tokenizer else []))
    found = audited(folder, limit=parse_size(limit), script=script, run=not no_run, hides=not needs_pgolf)
    if data is not None:
        findings, notes = _score(folder, artifact, data, limit, user, options)
        found = replace(found, findings=distinct([*found.findings, *findings]), notes=[*found.notes, *notes])
    if as_json:
        click.echo(json.dumps(found.to_json()))
    else:
        lines = [*map(str, found.findings), *(f"note: {note}" for note in found.notes)]
        print_lines([*lines, f"{len(found.findings)} findings" if found.findings else "nothing to look at was found"])
    if found.findings:
        kinds = sorted({finding.kind for finding in found.findings})
        raise AuditError(f"{folder}: {len(found.findings)} findings to look at: {', '.join(kinds)}")


def _score(
    folder: Path, artifact: str | None, data: Path, limit: str, user: ModelOptions, options: TextOptions
) -> tuple[list[Finding], list[str]]:
    """The artifact of the folder scored on `data` as `pgolf eval --audit` does it, beside what is claimed."""
    from pgolf.scoring.reading import Reading
    from pgolf.submission.rescored import findings_of

    candidates = [folder / artifact] if artifact else sorted(folder.rglob("*.pgolf"))
    if len(candidates) != 1:
        raise UsageError(f"{folder}: holds {len(candidates)} artifacts: name the one to score with --artifact")
    judge = Judge(
        read_text([data], None, options), Reading(options.seq_len or 1024, options.stride), None, user, options
    )
    with progress_bars() as progress:
        result, checks = score_source(candidates[0], judge, AuditOptions(True, limit, ()), progress)
    return findings_of(folder, candidates[0].name, result, checks, whole=options.max_tokens is None)
