"""`pgolf eval`: score one model or compare two, in windows, within documents, with test-time training; audit the scorer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgolf.commands.models import is_artifact, model_with
from pgolf.commands.shared import (
    Progress,
    json_option,
    model_options,
    print_lines,
    progress_bars,
    refuse_unwritable,
    state_option,
)
from pgolf.data import tokenizers
from pgolf.errors import AuditError, ModelError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from pgolf.scoring.audit import Check
    from pgolf.scoring.paired import Estimate
    from pgolf.scoring.reading import Reading
    from pgolf.scoring.results import Result
    from pgolf.scoring.static import StaticLosses

    Scorer = Callable[..., NDArray[np.floating]]  # (tokens [N], progress=) -> nats [N - 1]

CUDA_BATCH = 32  # windows: enough of them to keep an H100 busy with a model of 36M parameters
DEFAULT_BOS = 1  # of the contest's shards


@click.command("eval")
@click.argument("sources", metavar="A [B]", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_options
@state_option
@click.option("--data", metavar="VAL.bin", type=click.Path(path_type=Path), help="Token shard to score.")
@click.option(
    "--tokenizer", metavar="T.model", type=click.Path(path_type=Path), help="SentencePiece model of the shard."
)
@click.option("--bytes", "sidecar", metavar="SIDECAR.bin", type=click.Path(path_type=Path), help="Bytes of each token.")
@click.option("--count", type=click.Choice(["exact", "contest"]), default="exact", show_default=True, help="Byte rule.")
@click.option(
    "--bos", metavar="ID", type=click.IntRange(0), help="Token that starts a document [the tokenizer's, or 1]."
)
@click.option(
    "--seq-len", metavar="N", type=click.IntRange(1), default=1024, show_default=True, help="Longest context."
)
@click.option("--stride", metavar="N", type=click.IntRange(1), help="Sliding window [default: windows do not overlap].")
@click.option("--documents", is_flag=True, help="Contexts begin anew with every document.")
@click.option("--max-tokens", metavar="N", type=click.IntRange(1))
@click.option("--device", metavar="D", default="cpu", show_default=True, help="cpu or cuda; on cuda, compiled.")
@click.option("--ttt", is_flag=True, help="Learn from each document what was scored of it; forget it at its end.")
@click.option("--ttt-rank", metavar="R", type=click.IntRange(1), help="Rank of what is learned [default: 8].")
@click.option(
    "--ttt-chunk",
    metavar="N",
    type=click.IntRange(1),
    help="Tokens scored between two steps; fewer learn more and take longer [default: 128].",
)
@click.option(
    "--ttt-lr",
    metavar="X",
    type=click.FloatRange(0, min_open=True),
    help="Share of its size by which a step moves a matrix [default: 0.001].",
)
@click.option("--scorer", metavar="FILE.py:NAME", help="Your own evaluator: NAME(model) gives tokens -> nats.")
@click.option("--audit", is_flag=True, help="Check that the score is honest; exit code 4 if it is not.")
@click.option("--budget", metavar="SIZE", default="16MB", show_default=True, help="Cap of the audit.")
@click.option("--code", metavar="FILE", multiple=True, help="Script that counts against the cap (repeatable).")
@click.option("-o", "--out", metavar="R.json", type=click.Path(path_type=Path), help="Save the result, by document.")
@json_option
def evaluate(sources: tuple[Path, ...], **options: Any) -> None:
    """Score a checkpoint or an artifact in bits per byte, or compare two.

    A and B are checkpoints, artifacts or results saved with -o. The plus-minus after a score is its standard error over
    documents; a difference is paired over documents.

    Example: pgolf eval model.pgolf --model train.py:GPT --data val.bin --tokenizer t.model
    """
    from pgolf import report
    from pgolf.kernels.device import need
    from pgolf.scoring import paired as compare
    from pgolf.scoring.results import is_result

    if len(sources) > 2:
        raise UsageError(f"eval takes one model or two, not {len(sources)}")
    need(options["device"])
    refuse_unwritable(options["out"])
    text = None if all(map(is_result, sources)) else _text(options)
    with progress_bars() as progress:
        scored = [
            _saved(source, options) if is_result(source) else _scored(source, text, options, progress)
            for source in sources
        ]
    results, checks = [result for result, _ in scored], [check for _, some in scored for check in some]
    change = compare.difference(results[0].documents, results[1].documents) if len(results) == 2 else None
    if options["out"]:
        report.write_json(options["out"], _facts([result.to_json() for result in results], change, checks))
    if options["as_json"]:
        click.echo(json.dumps(_facts([result.summary() for result in results], change, checks)))
    else:
        for note in filter(None, (result.note for result in results)):
            click.echo(f"note: {note}", err=True)
        print_lines(_lines(results, change, checks))
    if failures := sorted({check.name for check in checks if check.passed is False}):
        raise AuditError(f"the audit fails: {', '.join(failures)}")


@dataclass(frozen=True)
class _Text:
    """The shard: tokens and byte_counts [N], the start token of documents, how many targets are scored, and where the
    counts come from, if that was not asked for."""

    tokens: NDArray[np.integer]
    byte_counts: NDArray[np.integer]
    bos: int
    total: int
    counted_by: str

    @property
    def scored(self) -> NDArray[np.integer]:
        return self.tokens[: self.total + 1]


def _saved(path: Path, options: dict[str, Any]) -> tuple[Result, list[Check]]:
    from pgolf.scoring import results

    if options["audit"]:
        raise UsageError(f"--audit needs the model, not its saved result {path}")
    return results.read(path), []


def _scored(source: Path, text: _Text, options: dict[str, Any], progress: Progress) -> tuple[Result, list[Check]]:
    """The score of a model and, if asked for, its audit."""
    from pgolf.kernels.device import need
    from pgolf.scoring import bpb, documents, results
    from pgolf.scoring.static import to_device

    device, reading = need(options["device"]), _reading(options)
    starts = documents.starts_of(text.scored, text.bos, required=reading.within_documents)
    model = to_device(model_with(source, options["model"], options["state"]), device)
    losses = _fast_losses(model, reading, options) if device.type == "cuda" else None
    scorer = _scorer(model, reading, text.bos, options, losses)
    began = time.perf_counter()
    nats = scorer(text.scored, progress=lambda done, total: progress(f"score {source.name}", done, total))
    compiling = losses.compile_seconds if losses else 0.0
    seconds = time.perf_counter() - began - compiling
    how = ", ".join(filter(None, (options["scorer"], str(reading), text.counted_by)))
    score = bpb.result_of(nats, text.byte_counts, seconds)
    by_document = documents.per_document(nats, text.byte_counts, starts)
    result = results.Result(str(source), how, score, by_document, reading.note(nats, starts), compiling)
    return result, _audit(source, model, scorer, nats, text, reading, options, progress) if options["audit"] else []


def _text(options: dict[str, Any]) -> _Text:
    from pgolf.data import shards
    from pgolf.data import sidecar as sidecars
    from pgolf.scoring import bpb

    if not options["data"]:
        raise UsageError("eval needs --data VAL.bin, a token shard to score")
    tokens = shards.read_shard(options["data"])
    tokenizer, sidecar = options["tokenizer"], options["sidecar"]
    counts = sidecars.byte_counts(
        options["data"], tokens, tokenizer=tokenizer, sidecar=sidecar, convention=options["count"]
    )
    found = None if sidecar else sidecars.beside(options["data"])
    bos = options["bos"]
    if bos is None and tokenizer:
        bos = tokenizers.load_tokenizer(tokenizer).bos_id()
    known = bos is not None and bos >= 0  # SentencePiece says -1 for none
    total = bpb.num_targets(tokens, counts, options["max_tokens"])
    return _Text(tokens, counts, bos if known else DEFAULT_BOS, total, f"bytes of {found.name}" if found else "")


def _reading(options: dict[str, Any]) -> Reading:
    from pgolf.scoring import ttt
    from pgolf.scoring.reading import Reading

    given = {name: options[f"ttt_{name}"] for name in ("rank", "chunk", "lr") if options[f"ttt_{name}"] is not None}
    if given and not options["ttt"]:
        raise UsageError(f"--ttt-{next(iter(given))} needs --ttt")
    learning = ttt.Settings(**given) if options["ttt"] else None
    return Reading(options["seq_len"], options["stride"], options["documents"], learning)


def _fast_losses(model: nn.Module, reading: Reading, options: dict[str, Any]) -> StaticLosses | None:
    """For windows; test-time training and a scorer of the user's go their own ways."""
    from pgolf.models.logits import logits_of
    from pgolf.scoring.static import StaticLosses

    if reading.ttt or options["scorer"]:
        return None
    logits_fn = logits_of(model, options["logits"])
    return StaticLosses(model, logits_fn, seq_len=reading.seq_len, batch_size=CUDA_BATCH)


def _scorer(
    model: nn.Module, reading: Reading, bos: int, options: dict[str, Any], losses: StaticLosses | None = None
) -> Scorer:
    """The one function that makes the figure and that the audit examines."""
    from pgolf.models import usermodel

    if not options["scorer"]:
        fast = {"losses": losses, "batch_size": losses.batch_size} if losses else {}
        return partial(reading.score, model, bos=bos, logits=options["logits"], **fast)
    own = usermodel.function(options["scorer"], "--scorer")(model)

    def score(tokens: NDArray[np.integer], progress: object = None) -> NDArray[np.floating]:
        import numpy as np

        nats = np.asarray(own(np.array(tokens, np.int64)), np.float64)
        if nats.shape != (len(tokens) - 1,) or not np.isfinite(nats).all():
            raise ModelError(f"--scorer {options['scorer']}: wanted {len(tokens) - 1} finite nats, got {nats.shape}")
        return nats

    return score


def _audit(
    source: Path,
    model: nn.Module,
    scorer: Scorer,
    nats: NDArray[np.floating],
    text: _Text,
    reading: Reading,
    options: dict[str, Any],
    progress: Progress,
) -> list[Check]:
    """Experiments on the scorer that gave `nats`, then the text's bytes and the size."""
    import torch

    from pgolf.code.weigh import counted_bytes
    from pgolf.common.sizes import parse_size
    from pgolf.models.logits import device_of, logits_of
    from pgolf.scoring import audit

    sample = audit.sample(text.scored, text.bos, prefix=reading.audit_prefix, crosses=reading.crosses)
    one = torch.zeros(1, 1, dtype=torch.int64, device=device_of(model))
    with torch.no_grad():
        vocab_size = logits_of(model, options["logits"])(one).shape[-1]
    checks = audit.scorer_checks(scorer, sample, vocab_size, lambda done, total: progress("audit", done, total))
    artifact = source.stat().st_size if is_artifact(source) else None
    code = sum(counted_bytes(path) for path in options["code"])
    return [
        *checks,
        audit.run(scorer, text.scored, nats, len(sample.tokens)),
        audit.counted_bytes(text.tokens, text.byte_counts, text.bos, options["tokenizer"], text.total),
        audit.size(artifact, code, parse_size(options["budget"])),
    ]


def _facts(results: Sequence[dict[str, Any]], change: Estimate | None, checks: Sequence[Check]) -> dict[str, Any]:
    """JSON: one result flat; two as `a`, `b` and `difference`; `audit` where one was made."""
    facts = results[0] if change is None else {"a": results[0], "b": results[1], "difference": change.to_json()}
    return facts | ({"audit": [check.to_json() for check in checks]} if checks else {})


def _lines(results: Sequence[Result], change: Estimate | None, checks: Sequence[Check]) -> list[str]:
    names = [] if change is None else [f"{name}  {result.source}" for name, result in zip("AB", results, strict=True)]
    lines = [line for pair in zip_longest(names, map(_line, results)) for line in pair if line]
    if change is not None:
        lines.append(f"difference B - A  {change.value:+.5f}{_spread(change, paired=True)}")
    lines += [f"{check.verdict}  {check.name:<14}{_number(check):>12}  {check.detail}" for check in checks]
    return lines


def _line(result: Result) -> str:
    score = result.score
    return (
        f"bpb {score.bpb:.5f}{_spread(result.estimate)}  loss {score.loss:.5f}  tokens {score.tokens:,}  "
        f"bytes {score.bytes:,}  {score.tokens_per_second:,.0f} tokens/s  ({result.how})"
    )


def _spread(estimate: Estimate, *, paired: bool = False) -> str:
    if estimate.standard_error is None:
        return "  (one document: no standard error)"
    if not paired:
        return f" ± {estimate.standard_error:.5f}"
    interval = f"95% {estimate.low:+.5f} to {estimate.high:+.5f}"
    return f" ± {estimate.standard_error:.5f}  ({interval}, p {estimate.p:.2g}, {estimate.documents} documents)"


def _number(check: Check) -> str:
    if check.number is None:
        return "-"
    return f"{check.number:,}" if isinstance(check.number, int) else f"{check.number:.6f}"
