"""`pgolf tokenize`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pgolf.commands.shared import json_option


@click.command()
@click.argument("files", metavar="FILES...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--vocab-size", metavar="N", type=click.IntRange(300), default=1024, show_default=True)
@click.option("--caseops", is_flag=True, help="Capitals as operators before lower-case text, and byte sidecars.")
@json_option
def tokenize(files: tuple[Path, ...], out: Path, vocab_size: int, caseops: bool, as_json: bool) -> None:
    """Train a SentencePiece tokenizer on text files and write token shards.

    Example: pgolf tokenize book.txt manual.txt -o data
    """
    from pgolf.data import corpus

    made = corpus.tokenize(files, out, vocab_size=vocab_size, with_caseops=caseops)
    if as_json:
        facts = {"tokenizer": str(made.tokenizer), "train": [str(p) for p in made.train], "val": str(made.val)}
        click.echo(json.dumps(facts))
        return
    click.echo(f"tokenizer.model, train and val shards{' with byte sidecars' if caseops else ''} written to {out}")
