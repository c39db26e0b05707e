"""The command line: parse, call one function, turn errors into one line and an exit code.

Exit codes: 0 done; 2 usage; 3 bad input (checkpoint, model, data, artifact); 4 does not fit; 130 interrupted.
Data go to stdout, messages and bars to stderr. torch is imported inside the commands, so that --help is quick.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgolf import __version__
from pgolf.errors import ArtifactError, ModelError, PgolfError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pgolf.checkpoint import Checkpoint
    from pgolf.quant.curvature import Curvature

Progress = Callable[[str, int, int], None]
TRELLISES = ("0", "4", "8", "16", "32", "64", "128", "256")
SELF_LENGTH = 256  # tokens of a self-generated sequence: longer ones cost more and calibrate no better


class _Group(click.Group):
    """Turns our own errors into one line on stderr; anything else is a bug and may show its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PgolfError as error:
            click.echo(f"pgolf: {error}", err=True)
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo("pgolf: interrupted; nothing is half-written", err=True)
            ctx.exit(130)
        except (OSError, MemoryError) as error:
            click.echo(f"pgolf: {_os_message(error)}", err=True)
            ctx.exit(3)


def _os_message(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "out of memory"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pgolf")
def main() -> None:
    """Make a trained language model small without making it worse.

    Exit codes: 0 done, 2 usage, 3 bad input, 4 does not fit the budget, 130 interrupted.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads that spin slow a shared machine threefold


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


_model_options = _options(
    click.option("--model", metavar="FILE.py:NAME", help="Your model: a class or function. Its code is run."),
    click.option(
        "--logits", metavar="ATTR", help="Method that returns logits [default: forward_logits, logits, call]."
    ),
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON only.")
_force_option = click.option("--force", is_flag=True, help="Overwrite an existing file.")


@main.command()
@click.argument("ckpt", metavar="CKPT", type=click.Path(path_type=Path))
@click.option("--budget", metavar="SIZE", help="16MB and 500kB are decimal, 15MiB binary, plain digits bytes.")
@click.option(
    "--target-bpb-rise",
    metavar="X",
    type=click.FloatRange(0, min_open=True),
    help="Instead of a budget: predicted cost.",
)
@click.option(
    "--bytes-per-token",
    metavar="B",
    type=click.FloatRange(0, min_open=True),
    help="Of your text; a target rise needs it.",
)
@click.option("-o", "--out", metavar="OUT.pgolf", type=click.Path(path_type=Path), help="[default: CKPT's name]")
@_model_options
@click.option(
    "--calib", metavar="TOKENS.bin|self|random|none", help="Calibration text [default: self if a model is known]."
)
@click.option("--curvature", "curvature_file", metavar="CURV", type=click.Path(path_type=Path), help="From calibrate.")
@click.option("--method", metavar="M", help="auto, gptq, sdclip, hessian-sdclip, gptq-lite, rtn [default: the best].")
@click.option(
    "--set", "rules", metavar="PATTERN=...", multiple=True, help="Per tensor: 'tok_emb.*=int8,k=20', '*=keep'."
)
@click.option("--trellis", type=click.Choice(TRELLISES), help="States of auto's trellis code, 0 = scalar rounding.")
@click.option(
    "--coder", type=click.Choice(["rans", "brotli", "zstd", "lzma", "zlib"]), default="rans", show_default=True
)
@click.option("--code", metavar="FILE", multiple=True, help="Script that counts against the budget (repeatable).")
@click.option(
    "--tokens", metavar="N", type=click.IntRange(1), default=32768, show_default=True, help="Calibration tokens."
)
@click.option("--seed", metavar="S", type=int, default=0, show_default=True)
@click.option(
    "--report", "report_file", metavar="R.json", type=click.Path(path_type=Path), help="Write the report here too."
)
@_json_option
@_force_option
def pack(
    ckpt: Path,
    budget: str | None,
    target_bpb_rise: float | None,
    bytes_per_token: float | None,
    out: Path | None,
    **options: Any,
) -> None:
    """Pack a checkpoint into the best artifact that fits.

    Example: pgolf pack ckpt.pt --budget 16MB --model train.py:GPT --calib tokens.bin
    """
    from pgolf import checkpoint, pipeline, report
    from pgolf.quant import Settings

    out = out or ckpt.with_suffix(".pgolf")
    _refuse_overwrite(out, options["force"])
    source = checkpoint.read(ckpt)
    with _progress() as progress:
        curvature = _curvature_for(source, progress, options)
        made = pipeline.pack(
            source,
            out,
            budget=budget,
            target_rise=_target_rise(target_bpb_rise, bytes_per_token),
            curvature=curvature,
            method=options["method"],
            rules=options["rules"],
            settings=None if options["trellis"] is None else Settings(trellis=int(options["trellis"])),
            code=options["code"],
            coder=options["coder"],
            progress=progress,
        )
    facts = made.to_json() | {"path": str(out)}
    if options["report_file"]:
        report.write_json(options["report_file"], facts)
    if options["as_json"]:
        click.echo(json.dumps(facts))
        return
    _print_table(report.pack_table(facts))
    click.echo("\n".join([*report.pack_summary(facts), f"written            {out}"]))


def _target_rise(bpb_rise: float | None, bytes_per_token: float | None) -> float | None:
    """Nats per token of a rise in bits per byte. Raises UsageError where the bytes of a token are not known."""
    if bpb_rise is None:
        return None
    if bytes_per_token is None:
        raise UsageError(
            "--target-bpb-rise needs --bytes-per-token B: `pgolf eval` prints bytes and tokens of your text"
        )
    return bpb_rise * math.log(2) * bytes_per_token


def _curvature_for(source: Checkpoint, progress: Progress, options: dict[str, Any]) -> Curvature | None:
    """The curvature that --curvature, --model and --calib ask for; None where the method has no use for any."""
    from pgolf.quant import METHODS
    from pgolf.quant.curvature import Curvature

    if options["curvature_file"]:
        return Curvature.load(options["curvature_file"])
    calib, method = options["calib"], options["method"]
    wanted = method is None or (method in METHODS and METHODS[method].needs_curvature)
    known = options["model"] is not None or source.config is not None
    if calib == "none" or (not known and calib is None) or not (wanted or calib):
        return None
    if not known:
        raise UsageError(f"--calib {calib} needs the model's code: add --model FILE.py:NAME")
    return _calibrate(source, calib or "self", progress, options)


def _calibrate(source: Checkpoint, calib: str, progress: Progress, options: dict[str, Any]) -> Curvature:
    from pgolf.quant.calibrate import calibrate

    model = _build(options["model"], source.state_dict(), source.config, "the checkpoint")
    batches = _calibration_tokens(model, calib, progress, options)
    return calibrate(
        model,
        batches,
        tokens=options["tokens"],
        seed=options["seed"],
        logits=options["logits"],
        progress=lambda done, total: progress("calibrate", done, total),
    )


def _calibration_tokens(model: nn.Module, calib: str, progress: Progress, options: dict[str, Any]) -> Any:
    """int64 [N, T] token ids: from a shard, or sampled from the model itself."""
    import torch

    from pgolf.quant import selfgen
    from pgolf.quant.logits import logits_of
    from pgolf.train.data import WindowSampler, read_shard

    seed, num_tokens = options["seed"], options["tokens"]
    if calib == "self":
        return selfgen.self_generate(
            model,
            sequences=max(1, num_tokens // SELF_LENGTH),
            length=SELF_LENGTH,
            seed=seed,
            logits=options["logits"],
            progress=lambda done, total: progress("generate", done, total),
        )
    if calib == "random":
        vocab = logits_of(model, options["logits"])(torch.zeros(1, 2, dtype=torch.int64)).shape[-1]
        return selfgen.random_tokens(vocab, sequences=max(1, num_tokens // SELF_LENGTH), length=SELF_LENGTH, seed=seed)
    tokens = read_shard(calib)
    length = min(options.get("seq_len") or 1024, len(tokens) - 1)
    return WindowSampler([tokens], length, max(1, num_tokens // length), seed).batch(0)[:, :-1]


@main.command()
@click.argument("art", metavar="ART", type=click.Path(path_type=Path))
@_json_option
def inspect(art: Path, as_json: bool) -> None:
    """Show what is in an artifact.

    Example: pgolf inspect model.pgolf
    """
    from pgolf import pipeline, report

    facts = pipeline.inspect(art)
    if as_json:
        click.echo(json.dumps(facts))
        return
    _print_table(report.inspect_table(facts))
    click.echo(f"{facts['bytes']:,} B, {len(facts['tensors'])} tensors")


@main.command()
@click.argument("art", metavar="ART", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, metavar="OUT.safetensors|OUT.pt", type=click.Path(path_type=Path))
@_force_option
def unpack(art: Path, out: Path, force: bool) -> None:
    """Turn an artifact back into a checkpoint.

    Example: pgolf unpack model.pgolf -o model.safetensors
    """
    import torch

    from pgolf import pipeline
    from pgolf.packer.container import replacing

    if out.suffix not in {".safetensors", ".pt"}:
        raise UsageError(f"-o {out}: the name must end in .safetensors or .pt")
    _refuse_overwrite(out, force)
    state = pipeline.load(art)
    with replacing(out) as file:
        if out.suffix == ".pt":
            torch.save(state, file)
        else:
            from safetensors.torch import save

            file.write(save({name: tensor.clone().contiguous() for name, tensor in state.items()}))
    click.echo(f"{len(state)} tensors written to {out}")


@main.command("eval")
@click.argument("source", metavar="CKPT_OR_ART", type=click.Path(path_type=Path))
@_model_options
@click.option("--data", required=True, metavar="VAL.bin", type=click.Path(path_type=Path), help="Token shard to score.")
@click.option(
    "--tokenizer", metavar="T.model", type=click.Path(path_type=Path), help="SentencePiece model of the shard."
)
@click.option("--bytes", "sidecar", metavar="SIDECAR.bin", type=click.Path(path_type=Path), help="Bytes of each token.")
@click.option("--count", type=click.Choice(["exact", "contest"]), default="exact", show_default=True, help="Byte rule.")
@click.option("--seq-len", metavar="N", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--stride", metavar="N", type=click.IntRange(1), help="Sliding window [default: windows do not overlap].")
@click.option("--max-tokens", metavar="N", type=click.IntRange(1))
@_json_option
def evaluate(source: Path, **options: Any) -> None:
    """Score a checkpoint or an artifact in bits per byte.

    Example: pgolf eval model.pgolf --model train.py:GPT --data val.bin --tokenizer t.model
    """
    from pgolf.quant.logits import logits_of
    from pgolf.train import bpb, data

    if not (options["tokenizer"] or options["sidecar"]):
        raise UsageError("eval needs --tokenizer T.model or --bytes SIDECAR.bin to count bytes")
    model = _model_with(source, options["model"])
    tokens = data.read_shard(options["data"])
    if options["sidecar"]:
        counts = bpb.read_sidecar(options["sidecar"], tokens)
    else:
        counts = bpb.stream_bytes(tokens, bpb.token_bytes(options["tokenizer"]), convention=options["count"])
    with _progress() as progress:
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


def _model_with(source: Path, spec: str | None) -> nn.Module:
    """The user's model (or ours, from the configuration in the file) holding a checkpoint's or artifact's weights."""
    from pgolf import checkpoint, pipeline
    from pgolf.packer.container import MAGIC

    try:
        with source.open("rb") as file:
            is_artifact = file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ArtifactError(f"{source}: {error.strerror}") from None
    if is_artifact:
        entries, meta = pipeline.read(source)
        state, config = pipeline.dense(entries), meta.get("config")
    else:
        found = checkpoint.read(source)
        state, config = found.state_dict(), found.config
    return _build(spec, state, config, str(source))


def _build(spec: str | None, state: dict[str, Tensor], config: dict[str, Any] | None, what: str) -> nn.Module:
    from pgolf import usermodel

    if spec is not None:
        return usermodel.load(spec, state)
    if config is None:
        raise ModelError(f"{what} does not say which model it is: add --model FILE.py:NAME")
    return usermodel.from_config(config, state)


@main.command()
@click.argument("ckpt", metavar="CKPT", type=click.Path(path_type=Path))
@_model_options
@click.option("--calib", metavar="TOKENS.bin|self|random", default="self", show_default=True, help="Text to run on.")
@click.option("-o", "--out", required=True, metavar="CURV.safetensors", type=click.Path(path_type=Path))
@click.option(
    "--tokens", metavar="N", type=click.IntRange(1), default=32768, show_default=True, help="Tokens to run on."
)
@click.option("--seq-len", metavar="N", type=click.IntRange(2), default=1024, show_default=True)
@click.option("--seed", metavar="S", type=int, default=0, show_default=True)
@_force_option
def calibrate(ckpt: Path, out: Path, force: bool, **options: Any) -> None:
    """Measure what each weight's error costs, for `pack --curvature`.

    Example: pgolf calibrate ckpt.pt --model train.py:GPT --calib tokens.bin -o curv.safetensors
    """
    from pgolf import checkpoint

    _refuse_overwrite(out, force)
    with _progress() as progress:
        curvature = _calibrate(checkpoint.read(ckpt), options["calib"], progress, options)
    curvature.save(out)
    coverage = curvature.coverage
    for name, word in coverage.items():
        if word not in {"traced", "not a matrix"}:
            click.echo(f"{word}: {name}")
    traced = sum(word == "traced" for word in coverage.values())
    click.echo(f"{traced} matrices traced over {curvature.tokens:,} tokens, written to {out}")


@main.command()
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


@main.command()
@click.option("--preset", type=click.Choice(["tiny", "small", "golf"]), default="tiny", show_default=True)
@click.option("-o", "--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option(
    "--data", metavar="DIR", type=click.Path(path_type=Path), help="Token shards [tiny: Python's own library]."
)
@click.option(
    "--tokenizer", metavar="T.model", type=click.Path(path_type=Path), help="[default: the one beside the data]"
)
@click.option("--minutes", metavar="M", type=float, help="Train this long instead of the preset's steps.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Change a setting of the preset.")
@click.option("--resume", is_flag=True, help="Go on where the run in DIR stopped, to the same state.")
@click.option("--seed", metavar="S", type=int, default=0, show_default=True)
@_json_option
def train(preset: str, as_json: bool, **options: Any) -> None:
    """Train a model whose checkpoint `pgolf pack` knows without being told.

    Example: pgolf train --preset tiny -o run && pgolf pack run/checkpoint.pt --budget 300kB
    """
    from pgolf.train import run

    with _progress() as progress:
        made = run.train(preset, progress=lambda s: progress("train", round(1000 * s.progress), 1000), **options)
    facts = made.to_json()
    if as_json:
        click.echo(json.dumps(facts))
        return
    score = f", {made.score.bpb:.4f} bits per byte held out" if made.score else ""
    for note in made.notes:
        click.echo(f"note: {note}")
    click.echo(f"{made.steps} steps, {made.tokens:,} tokens in {made.seconds:.0f} s{score}; {made.checkpoint}")


@main.command()
@click.option(
    "-o", "--out", metavar="DIR", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True
)
@click.option("--seed", metavar="S", type=int, default=0, show_default=True)
@click.option("--quick", is_flag=True, help="A toy of seconds instead of a minute: shows the path, not the quality.")
def demo(out: Path, seed: int, quick: bool) -> None:
    """Train a small model on Python's own library, pack it, load it, score it: two minutes, no network.

    Example: pgolf demo -o demo-out
    """
    from pgolf import demo as story
    from pgolf import report

    with _progress() as progress:
        result = story.run(out, seed=seed, quick=quick, progress=progress)
    _print_table(report.demo_table(result))
    click.echo(f"results, artifacts and plot in {out}")


def _refuse_overwrite(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise UsageError(f"{path} exists: give another name with -o, or --force to overwrite it")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")


def _print_table(table: Any) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    Console(width=width, soft_wrap=False).print(table)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Bars on stderr; nothing where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(what: str, done: int, total: int) -> None:
            task = tasks.setdefault(what, bars.add_task(what, total=total) if what not in tasks else None)
            bars.update(task, completed=done, total=total)

        yield update


if __name__ == "__main__":
    main()
