"""What the commands share: options that mean the same everywhere, bars, tables."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pgolf.common.files import not_a_file, same_file
from pgolf.common.progress import Progress, silent
from pgolf.errors import UsageError, printable

if TYPE_CHECKING:
    from rich.progress import TaskID
    from rich.table import Table

    from pgolf.data.tokenizers import Convention
    from pgolf.train.model.rebuild import Maker

Command = Callable[..., None]
WORDS = {"self", "random", "none"}  # of --calib, where it names no files
LINE_SECONDS = 20  # between two lines of progress in a log


@dataclass(frozen=True)
class ModelOptions:
    """--model: FILE.py:NAME of the user's model, or a folder of transformers; --logits: its method, in place of those that are
    looked for; --state: which weights of the checkpoint; --trust-remote-code: code in a folder may be run."""

    model: str | None
    logits: str | None
    state: str | None = None
    trust_remote_code: bool = False

    @property
    def file(self) -> str | None:
        """The file, or folder, that --model names."""
        return None if self.model is None else self.model.rpartition(":")[0] or self.model

    @property
    def maker(self) -> Maker:
        """What builds the model."""
        from pgolf.train.model.rebuild import Maker

        return Maker(self.model, self.state, self.trust_remote_code)


@dataclass(frozen=True)
class CalibrationOptions:
    """--calib: text files or one shard, or else self, random, none; () where the user did not say; --tokenizer: of text;
    --seq-len: where None, as the model takes; --device: where the model runs and its curvature stays."""

    calib: tuple[str, ...]
    tokens: int
    seed: int
    seq_len: int | None = None
    device: str = "cpu"
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        if len(self.calib) > 1 and (words := WORDS & set(self.calib)):
            raise UsageError(f"--calib {sorted(words)[0]} stands alone, or files do")

    @property
    def word(self) -> str | None:
        """self, random or none where the user said so."""
        return self.calib[0] if self.calib and self.calib[0] in WORDS else None

    @property
    def files(self) -> tuple[str, ...]:
        return () if self.word else self.calib


@dataclass(frozen=True)
class TextOptions:
    """How the text or shard --data is scored: a shard's bytes counted by the sidecar --bytes, or by --tokenizer and the rule
    --count, in windows of --seq-len that move on by --stride, at most --max-tokens of it, on --device."""

    tokenizer: Path | None
    sidecar: Path | None
    count: Convention
    seq_len: int | None
    stride: int | None
    max_tokens: int | None
    device: str


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def apply(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


def gathered(**groups: type) -> Callable[[Command], Command]:
    """What was parsed for the fields of a dataclass reaches the command as one object: gathered(text=TextOptions).

    Stands below the options. A field whose option a command does not have keeps its default.
    """
    names = {argument: [field.name for field in fields(group)] for argument, group in groups.items()}

    def apply(function: Command) -> Command:
        @wraps(function)
        def command(**given: Any) -> None:
            made = {
                argument: group(**{name: given[name] for name in names[argument] if name in given})
                for argument, group in groups.items()
            }
            taken = {name for each in names.values() for name in each}
            function(**{name: value for name, value in given.items() if name not in taken}, **made)

        return command

    return apply


model_options = _options(
    click.option(
        "--model",
        metavar="FILE.py:NAME|DIR",
        help="Your model: a class or function. Its code is run. Or a Hugging Face folder [default: CKPT's own].",
    ),
    click.option(
        "--logits", metavar="ATTR", help="Method that returns logits [default: forward_logits, logits, call]."
    ),
    click.option("--trust-remote-code", is_flag=True, help="Run the model code that lies in a Hugging Face folder."),
)
data_option = click.option(
    "--data",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Text to score: .txt, .jsonl, .parquet (repeatable) or a token shard.",
)
tokenizer_option = click.option(
    "--tokenizer",
    metavar="T.model|DIR",
    type=click.Path(path_type=Path),
    help="Of text: SentencePiece model, tokenizer.json or folder [default: CKPT's own].",
)
seq_len_option = click.option(
    "--seq-len",
    metavar="N",
    type=click.IntRange(2),
    help="Longest sequence of calibration text [default: what the model takes, up to 1024].",
)
device_option = click.option(
    "--device",
    metavar="D",
    default="cpu",
    show_default=True,
    help="Where the model runs and its curvature is factored: cpu, cuda.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON only.")
state_option = click.option("--state", metavar="NAME", help="Weights to take where a checkpoint has several: ema.")
force_option = click.option("--force", is_flag=True, help="Overwrite an existing file.")


def own_tokenizer(given: Path | None, *folders: Path | str | None) -> Path | None:
    """The tokenizer that --tokenizer names, or the first of the folders that brings one."""
    from pgolf.data.encoding import has_tokenizer

    return given or next((Path(f) for f in folders if f is not None and has_tokenizer(f)), None)


def refuse_overwrite(path: Path, force: bool, *read: Path | str | None) -> None:
    """UsageError before any work is done, where the result could not be written or would replace something.

    read: what the command reads, or writes besides; --force speaks of none of them.
    """
    refuse_unwritable(path, *read)
    if path.exists() and not force:
        raise UsageError(f"{path} exists: give another name with -o, or --force to overwrite it")


def refuse_unwritable(path: Path | None, *read: Path | str | None) -> None:
    """UsageError before any work is done, where a file that may be replaced could not be written, or is one of `read`."""
    if path is None:
        return
    if str(path) == "-":
        raise UsageError(
            "- would be standard output, where no file can be put whole or not at all: name the file to write"
        )
    if any(same_file(path, Path(other)) for other in read if other is not None):
        raise UsageError(f"{path} is a file that this command reads, or writes already: give another name")
    if what := not_a_file(path):
        raise UsageError(f"{path} is {what}: name the file to write")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UsageError(f"{path}: nothing can be written in the folder {path.parent}")


def print_table(table: Table) -> None:
    """A rich table on stdout, as wide as the terminal, or as it needs where there is none."""
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        """Shows strings as they are: names from a stranger's file may look like markup or move the cursor."""

        def render_str(self, text: str, **_: Any) -> Text:
            return Text(printable(text))

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process itself, as if something had failed

    width = None if sys.stdout.isatty() else 160
    Plain(width=width, soft_wrap=False).print(table)


def terminal_width() -> int | None:
    """Columns of the terminal on stdout; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_lines(lines: Iterable[str], *, err: bool = False) -> None:
    """Lines on stdout, or stderr, whatever names are in them."""
    for line in lines:
        click.echo(printable(line), err=err)


def _lines() -> Progress:
    said = time.monotonic()
    began: dict[str, float] = {}

    def update(what: str, done: int, total: int) -> None:
        nonlocal said
        now, work = time.monotonic(), _work_of(what)
        began[work] = began.get(work, now) if done else now  # a search does the same work again
        if now - said >= LINE_SECONDS:
            said = now
            left = f", about {_shown((now - began[work]) * (total - done) / done)} left" if 0 < done < total else ""
            click.echo(f"{what}: {done:,} of {total:,}{left}", err=True)

    return update


def _work_of(what: str) -> str:
    """What is done, without how it stands: "tune" of "tune, KL 0.0061"."""
    return what.partition(",")[0]


def _shown(seconds: float) -> str:
    """ "40 s", "12 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def first_rank() -> bool:
    """Whether this process speaks for the job: under torchrun one of them is enough."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars on stderr; where stderr is not a terminal, a line now and then, so that a log shows that work goes on."""
    if not first_rank():
        yield silent
        return
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            work = _work_of(what)
            if work not in tasks:
                tasks[work] = bars.add_task(what, total=total)
            bars.update(tasks[work], completed=done, total=total, description=what)

        yield update
