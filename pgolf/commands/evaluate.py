"""`pgolf eval`: score one model or compare two, in windows, within documents, with test-time training; audit the scorer."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgolf.commands.against import compare
from pgolf.commands.models import CONTEXT, artifact_at, model_with, usable_context
from pgolf.commands.shared import (
    ModelOptions,
    TextOptions,
    data_option,
    gathered,
    json_option,
    model_options,
    own_tokenizer,
    print_lines,
    progress_bars,
    refuse_unwritable,
    state_option,
    tokenizer_option,
)
from pgolf.common.progress import Progress
from pgolf.errors import AuditError, UsageError

if TYPE_CHECKING:
    from pgolf.scoring.audit import Check
    from pgolf.scoring.evaluation import Text
    from pgolf.scoring.paired import Interval
    from pgolf.scoring.reading import Reading
    from pgolf.scoring.results import Result


@dataclass(frozen=True)
class LearningOptions:
    """--ttt, and its settings where the user gave any."""

    ttt: bool
    ttt_rank: int | None
    ttt_chunk: int | None
    ttt_lr: float | None


@dataclass(frozen=True)
class AuditOptions:
    """--audit, and what it holds an artifact against: the scripts --code count against the cap --budget."""

    audit: bool
    budget: str
    code: tuple[str, ...]


@dataclass(frozen=True)
class Judge:
    """What every model is scored by."""

    text: Text
    reading: Reading
    scorer: str | None
    user: ModelOptions
    options: TextOptions
    time_limit: float | None = None


@click.command("eval")
@click.argument("sources", metavar="A [B]", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_options
@state_option
@data_option
@tokenizer_option
@click.option("--bytes", "sidecar", metavar="SIDECAR.bin", type=click.Path(path_type=Path), help="Bytes of each token.")
@click.option("--count", type=click.Choice(["exact", "contest"]), default="exact", show_default=True, help="Byte rule.")
@click.option(
    "--bos", metavar="ID", type=click.IntRange(0), help="Token that starts a document [the tokenizer's, or 1]."
)
@click.option(
    "--seq-len",
    metavar="N",
    type=click.IntRange(1),
    help="Longest context [default: what the model takes, up to 1024].",
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
@click.option(
    "--time-limit",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    help="End with exit code 4 once scoring takes longer; the contest's is 600.",
)
@click.option("--scorer", metavar="FILE.py:NAME", help="Your own evaluator: NAME(model) gives tokens -> nats.")
@click.option(
    "--against",
    metavar="C",
    type=click.Path(path_type=Path),
    help="The unquantized model: KL from it, in place of bits per byte. Needs no bytes.",
)
@click.option("--audit", is_flag=True, help="Check that the score is honest; exit code 4 if it is not.")
@click.option("--budget", metavar="SIZE", default="16MB", show_default=True, help="Cap of the audit.")
@click.option("--code", metavar="FILE", multiple=True, help="Script that counts against the cap (repeatable).")
@click.option("-o", "--out", metavar="R.json", type=click.Path(path_type=Path), help="Save the result, by document.")
@json_option
@gathered(user=ModelOptions, options=TextOptions, learning=LearningOptions, audit=AuditOptions)
def evaluate(
    sources: tuple[Path, ...],
    data: tuple[Path, ...],
    bos: int | None,
    documents: bool,
    scorer: str | None,
    time_limit: float | None,
    against: Path | None,
    out: Path | None,
    as_json: bool,
    user: ModelOptions,
    options: TextOptions,
    learning: LearningOptions,
    audit: AuditOptions,
) -> None:
    """Score a checkpoint or an artifact in bits per byte, or compare two; or say how far they are from --against.

    A and B are checkpoints, artifacts or results saved with -o. The plus-minus after a score is its standard error over
    documents; a difference is paired over documents.

    Example: pgolf eval model.pgolf --model train.py:GPT --data val.bin --tokenizer t.model
    """
    from pgolf import report
    from pgolf.common import extras
    from pgolf.data import encoding
    from pgolf.kernels.device import need
    from pgolf.report.nearness import divergence_lines
    from pgolf.scoring import paired
    from pgolf.scoring.results import is_result

    if len(sources) > 2:
        raise UsageError(f"eval takes one model or two, not {len(sources)}")
    options = replace(options, tokenizer=own_tokenizer(options.tokenizer, *sources, against, user.model))
    extras.need("scipy", *encoding.packages(options.tokenizer))
    need(options.device)
    refuse_unwritable(out, *sources, *data, against, options.tokenizer, options.sidecar, user.file)
    if against is not None:
        _refuse_beside_kl(
            sources, {"--ttt": learning.ttt, "--audit": audit.audit, "--scorer": scorer, "--time-limit": time_limit}
        )
        with progress_bars() as progress:
            facts = compare(sources, against, data, bos, documents, user, options, progress)
        if out:
            report.write_json(out, facts)
        print_lines([json.dumps(facts)] if as_json else divergence_lines(facts))
        return
    judge = None
    if not all(map(is_result, sources)):
        reading = _reading(documents, learning, options)
        judge = Judge(read_text(data, bos, options), reading, scorer, user, options, time_limit)
    with progress_bars() as progress:
        found = [
            score_source(source, judge, audit, progress) if judge and not is_result(source) else _saved(source, audit)
            for source in sources
        ]
    results, checks = [result for result, _ in found], [check for _, some in found for check in some]
    change = paired.difference(results[0].documents, results[1].documents) if len(results) == 2 else None
    if out:
        report.write_json(out, _facts([result.to_json() for result in results], change, checks))
    _show(_facts([result.summary() for result in results], change, checks), as_json)
    if failures := sorted({check.name for check in checks if check.passed is False}):
        raise AuditError(f"the audit fails: {', '.join(failures)}")


def _refuse_beside_kl(sources: Sequence[Path], given: Mapping[str, object]) -> None:
    """Raises UsageError for what speaks of bits per byte only."""
    from pgolf.scoring.results import is_result

    if saved := [source for source in sources if is_result(source)]:
        raise UsageError(f"--against needs the model, not its saved result {saved[0]}")
    if wrong := [name for name, value in given.items() if value]:
        raise UsageError(f"--against and {wrong[0]} exclude each other: the KL is that of the models as they are")


def read_text(data: Sequence[Path], bos: int | None, options: TextOptions) -> Text:
    """The text or shard --data with the byte counts of its tokens. Raises UsageError without one."""
    from pgolf.scoring import evaluation

    if not data:
        raise UsageError("eval needs --data, text or a token shard to score")
    return evaluation.read_text(
        data,
        tokenizer=options.tokenizer,
        sidecar_file=options.sidecar,
        convention=options.count,
        bos=bos,
        max_tokens=options.max_tokens,
    )


def _reading(documents: bool, learning: LearningOptions, options: TextOptions) -> Reading:
    from pgolf.scoring import ttt
    from pgolf.scoring.reading import Reading

    fields = {name.removeprefix("ttt_"): value for name, value in asdict(learning).items() if name != "ttt"}
    given = {name: value for name, value in fields.items() if value is not None}
    if given and not learning.ttt:
        raise UsageError(f"--ttt-{next(iter(given))} needs --ttt")
    return Reading(
        options.seq_len or CONTEXT, options.stride, documents, ttt.TTTSettings(**given) if learning.ttt else None
    )


def _saved(path: Path, audit: AuditOptions) -> tuple[Result, list[Check]]:
    from pgolf.scoring import results

    if audit.audit:
        raise UsageError(f"--audit needs the model, not its saved result {path}")
    return results.read(path), []


def score_source(source: Path, judge: Judge, audit: AuditOptions, progress: Progress) -> tuple[Result, list[Check]]:
    """The score of a model and, if asked for, its audit."""
    from pgolf.common.sizes import parse_size
    from pgolf.kernels.device import need
    from pgolf.scoring import evaluation
    from pgolf.scoring.static import to_device

    judge.text.starts(judge.reading)  # an error now, not after the model was built
    model = to_device(model_with(source, judge.user), need(judge.options.device))
    reading = judge.reading
    if judge.options.seq_len is None and judge.scorer is None:
        reading = replace(reading, seq_len=usable_context(model, judge.user.logits))
    with redirect_stdout(sys.stderr):  # what the model prints: stdout is for our data
        scored = evaluation.score(
            model,
            judge.text,
            reading,
            source=str(source),
            logits=judge.user.logits,
            own_scorer=judge.scorer,
            time_limit=judge.time_limit,
            progress=lambda done, total: progress(f"score {source.name}", done, total),
        )
        if not audit.audit:
            return scored.result, []
        return scored.result, evaluation.audited(
            scored,
            model,
            judge.text,
            reading,
            logits=judge.user.logits,
            tokenizer=judge.options.tokenizer,
            artifact_bytes=artifact.stat().st_size if (artifact := artifact_at(source)) else None,
            code=audit.code,
            cap=parse_size(audit.budget),
            progress=lambda done, total: progress("audit", done, total),
        )


def _facts(results: Sequence[dict[str, Any]], change: Interval | None, checks: Sequence[Check]) -> dict[str, Any]:
    """JSON: one result flat; two as `a`, `b` and `difference`; `audit` where one was made."""
    facts = results[0] if change is None else {"a": results[0], "b": results[1], "difference": change.to_json()}
    return facts | ({"audit": [check.to_json() for check in checks]} if checks else {})


def _show(facts: dict[str, Any], as_json: bool) -> None:
    from pgolf.report import terminal

    if as_json:
        click.echo(json.dumps(facts))
        return
    for note in terminal.evaluation_notes(facts):
        click.echo(f"note: {note}", err=True)
    print_lines(terminal.evaluation_lines(facts))
