"""`pgolf eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pgolf.commands.models import model_with
from pgolf.commands.shared import json_option, model_options, progress_bars
from pgolf.errors import UsageError


@click.command("eval")
@click.argument("source", metavar="CKPT_OR_ART", type=click.Path(path_type=Path))
@model_options
@click.option("--data", required=True, metavar="VAL.bin", type=click.Path(path_type=Path), help="Token shard to score.")
@click.option(
    "--tokenizer", metavar="T.model", type=click.Path(path_type=Path), help="SentencePiece model of the shard."
)
@click.option("--bytes", "sidecar", metavar="SIDECAR.bin", type=click.Path(path_type=Path), help="Bytes of each token.")
@click.option("--count", type=click.Choice(["exact", "contest"]), default="exact", show_default=True, help="Byte rule.")
@click.option("--seq-len", metavar="N", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--stride", metavar="N", type=click.IntRange(1), help="Sliding window [default: windows do not overlap].")
@click.option("--max-tokens", metavar="N", type=click.IntRange(1))
@json_option
def evaluate(source: Path, **options: Any) -> None:
    """Score a checkpoint or an artifact in bits per byte.

    Example: pgolf eval model.pgolf --model train.py:GPT --data val.bin --tokenizer t.model
    """
    from pgolf.quant.logits import logits_of
    from pgolf.train import bpb, data

    if not (options["tokenizer"] or options["sidecar"]):
        raise UsageError("eval needs --tokenizer T.model or --bytes SIDECAR.bin to count bytes")
    model = model_with(source, options["model"])
    tokens = data.read_shard(options["data"])
    if options["sidecar"]:
        counts = bpb.read_sidecar(options["sidecar"], tokens)
    else:
        counts = bpb.stream_bytes(tokens, bpb.token_bytes(options["tokenizer"]), convention=options["count"])
    with progress_bars() as progress:
        result = bpb.evaluate(
            logits_of(model, options["logits"]),
            tokens,
            counts,
            seq_len=options["seq_len"],
            stride=options["stride"],
            max_tokens=options["max_tokens"],
            progress=lambda done, total: progress("score", done, total),
        )
    facts = {
        "bpb": result.bpb,
        "loss": result.loss,
        "tokens": result.tokens,
        "bytes": result.bytes,
        "seconds": result.seconds,
        "tokens_per_second": result.tokens_per_second,
    }
    if options["as_json"]:
        click.echo(json.dumps(facts))
    else:
        click.echo(
            f"bpb {result.bpb:.5f}  loss {result.loss:.5f}  tokens {result.tokens:,}  bytes {result.bytes:,}  "
            f"{result.tokens_per_second:,.0f} tokens/s"
        )
