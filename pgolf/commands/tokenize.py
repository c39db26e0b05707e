"""`pgolf tokenize`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("files", metavar="FILES...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--vocab-size", metavar="N", type=click.IntRange(300), default=1024, show_default=True)
def tokenize(files: tuple[Path, ...], out: Path, vocab_size: int) -> None:
    """Train a SentencePiece tokenizer on text files and write token shards.

    Example: pgolf tokenize book.txt manual.txt -o data
    """
    from pgolf.train import corpus

    corpus.tokenize(files, out, vocab_size=vocab_size)
    click.echo(f"tokenizer.model, train and val shards written to {out}")
