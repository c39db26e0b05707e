"""The demo's data and model: text that Python itself carries, a tokenizer of it, and about a minute of training.

No network and no data file: the text is the standard library's own source and the topics of `help()`.
"""

from __future__ import annotations

import importlib
import sysconfig
import tokenize
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pgolf.data.corpus import document_tokens, train_tokenizer
from pgolf.data.shards import WindowSampler, read_shard, write_shard
from pgolf.errors import DataError
from pgolf.train.loop.recipes import RECIPES, Recipe
from pgolf.train.loop.save import save_checkpoint
from pgolf.train.loop.trainer import StepInfo, Trainer
from pgolf.train.model.gpt import GPT, GPTConfig

SKIPPED = {
    *("test", "tests", "idlelib", "lib2to3", "turtledemo"),  # not everywhere installed
    *("encodings", "pydoc_data"),  # tables; the topics come as text
    *("site-packages", "dist-packages"),
}
HELD_OUT_EVERY = 20  # every 20th source file
TOKENIZER_EVERY = 4  # the tokenizer learns from every 4th training document: more would not change it much


@dataclass(frozen=True)
class DemoSettings(Recipe):
    """max_files: source files taken, None for all; model.vocab_size is also the tokenizer's."""

    max_files: int | None = None


DEMO = DemoSettings(**vars(RECIPES["tiny"]))  # about a minute on 2 cores
# A few seconds, for tests.
TINY_DEMO = DemoSettings(
    model=GPTConfig(vocab_size=512, layers=2, dim=64, heads=2, kv_heads=1, mlp_mult=2),
    train=replace(DEMO.train, steps=40),
    batch_size=4,
    seq_len=64,
    max_files=40,
)


@dataclass(frozen=True)
class DemoData:
    """Paths of the two token shards and the tokenizer that `prepare_demo` wrote."""

    train: Path
    val: Path
    tokenizer: Path


def source_files() -> list[tuple[str, str]]:
    """(name, text) of the standard library's modules, sorted by name, without tests and tables."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in root.rglob("*.py") if not SKIPPED.intersection(path.relative_to(root).parts)]
    names = sorted((path.relative_to(root).as_posix(), path) for path in paths)
    return [(name, _read_source(path)) for name, path in names]


def _read_source(path: Path) -> str:
    with tokenize.open(path) as file:
        return file.read()


def help_topics() -> list[tuple[str, str]]:
    """(name, text) of what `help("topics")` lists; empty where a distribution left `pydoc_data` out."""
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return []
    return sorted((f"topics/{name}", text) for name, text in topics.items())


def split_documents(max_files: int | None = None) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(train, held out): lists of (name, text), whole files; the tokenizer sees none that is held out.

    DataError on a Python that ships without its source.
    """
    files = [(name, text) for name, text in source_files() if text.strip()][:max_files]
    held_out = files[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    if not held_out:
        raise DataError(
            f"too few sources in {sysconfig.get_path('stdlib')}: the demo needs a standard library in .py files"
        )
    train = [file for file in files if file not in held_out]
    return train + (help_topics() if max_files is None else []), held_out


def prepare_demo(directory: str | Path, settings: DemoSettings = DEMO) -> DemoData:
    """Write `train.bin`, `val.bin` and `tokenizer.model` to `directory`, which is made if it does not exist."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    data = DemoData(directory / "train.bin", directory / "val.bin", directory / "tokenizer.model")
    train, held_out = split_documents(settings.max_files)
    train_tokenizer([text for _, text in train[::TOKENIZER_EVERY]], data.tokenizer, settings.model.vocab_size)
    write_shard(data.train, document_tokens([text for _, text in train], data.tokenizer))
    write_shard(data.val, document_tokens([text for _, text in held_out], data.tokenizer))
    return data


def train_demo(
    directory: str | Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    settings: DemoSettings = DEMO,
    progress: Callable[[StepInfo], None] | None = None,
    device: str = "cpu",
) -> Path:
    """Train on `directory`/train.bin (see `prepare_demo`) and write `directory`/checkpoint.pt, whose path is returned.

    The checkpoint is {"model": state dict, "config": {"arch", "gpt", "train", "seed", "tokenizer"}}, plain data only: the
    same Python, seed and number of threads give the same one, bit for bit.
    """
    directory = Path(directory)
    if steps is not None:
        settings = replace(settings, train=replace(settings.train, steps=steps))
    sampler = WindowSampler([read_shard(directory / "train.bin")], settings.seq_len, settings.batch_size, seed)
    model = GPT(settings.model, seed=seed).to(device)
    Trainer(model, sampler, settings.train).run(progress)
    path = directory / "checkpoint.pt"
    save_checkpoint(path, model.state_dict(), settings.to_config(seed=seed, tokenizer="tokenizer.model"))
    return path
