"""What all points of a sweep share, and the proof that it is still the same when a sweep goes on."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf import __version__
from pgolf.common.threads import workers
from pgolf.errors import DataError
from pgolf.train.model.rebuild import Maker

if TYPE_CHECKING:
    from pgolf.data.tokenizers import Convention

_READ = 1 << 20
_FILES = ("checkpoint", "data", "tokenizer", "sidecar")
LIBRARIES = ("torch", "numpy", "scipy", "numba", "brotli", "zstandard")  # what figures can depend on


@dataclass(frozen=True)
class Setup:
    """Inputs and scoring of every point. Paths are absolute: workers start elsewhere.

    data: a shard, or text with the files `more` behind it. model: FILE.py:NAME or a folder, None where the checkpoint says
    what it is; trusted: as in `train.model.rebuild.Maker`. curvature: a file, None to pack without.
    state: which of the checkpoint's weights. sidecar: byte counts instead of a tokenizer. rules: `--set`s that hold for
    every method. texts: the folder of what tuned points learn from, see tuning.py. seed: of the order in which it is read.
    """

    checkpoint: str
    data: str
    model: str | None = None
    logits: str | None = None
    tokenizer: str | None = None
    sidecar: str | None = None
    count: Convention = "exact"
    seq_len: int = 1024
    stride: int | None = None
    max_tokens: int | None = None
    rules: tuple[str, ...] = ()
    curvature: str | None = None
    device: str = "cpu"
    state: str | None = None
    more: tuple[str, ...] = ()
    trusted: bool = False
    texts: str | None = None
    seed: int = 0

    @property
    def maker(self) -> Maker:
        """What builds the model."""
        return Maker(self.model, self.state, self.trusted)


def resolved(setup: Setup) -> Setup:
    """The same with absolute paths, the model's file among them."""

    def absolute(path: str | None) -> str | None:
        return str(Path(path).resolve()) if path else None

    file, colon, name = (setup.model or "").rpartition(":")
    return replace(
        setup,
        checkpoint=str(Path(setup.checkpoint).resolve()),
        data=str(Path(setup.data).resolve()),
        more=tuple(str(Path(path).resolve()) for path in setup.more),
        model=f"{absolute(file)}:{name}" if colon and file else absolute(setup.model),
        tokenizer=absolute(setup.tokenizer),
        sidecar=absolute(setup.sidecar),
        curvature=absolute(setup.curvature),
    )


def calibration_facts(curvature: Path | None, calib: Sequence[str], *, tokens: int, seed: int) -> dict[str, Any]:
    """JSON of how the curvature of a sweep is made, {} for none: from a file, or over the files or by the word of --calib.
    Raises DataError."""
    if curvature:
        return {"file": file_hash(curvature)}
    if not calib or calib[0] == "none":
        return {}
    texts = [name if name in {"self", "random"} else file_hash(name) for name in calib]
    text = texts[0] if len(texts) == 1 else hashlib.sha256("".join(texts).encode()).hexdigest()
    return {"text": text, "tokens": tokens, "seed": seed}


def identity(setup: Setup, calibration: dict[str, Any]) -> dict[str, Any]:
    """Everything that a point's figures depend on besides its own settings, as JSON. Raises DataError (unreadable).

    Files count by their content: a checkpoint that was trained on under the same name is another, a moved folder is not.
    """
    facts = asdict(setup) | {"calibration": calibration, "rules": list(setup.rules), "versions": versions()}
    del facts["curvature"], facts["texts"], facts["seed"]  # made from the rest, or named in `calibration`
    for name in ("state", "more", "trusted"):
        if not facts[name]:
            del facts[name]  # folders of before there was a choice go on
    if setup.more:
        facts["more"] = [file_hash(path) for path in setup.more]
    for name in _FILES:
        facts[name] = content_hash(facts[name]) if facts[name] else None
    if setup.model and Path(setup.model).is_dir():
        facts["model"] = file_hash(Path(setup.model) / "config.json")
    elif setup.model:
        path, _, name = setup.model.rpartition(":")
        facts["model"] = f"{file_hash(path)}:{name}"
    return facts


def content_hash(path: str | Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files. Raises DataError."""
    if not Path(path).is_dir():
        return file_hash(path)
    files = sorted(p for p in Path(path).iterdir() if p.is_file())
    return hashlib.sha256("".join(f"{p.name} {file_hash(p)}\n" for p in files).encode()).hexdigest()


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file. Raises DataError."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_READ):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """pgolf, Python and the libraries that figures can depend on."""
    return {"pgolf": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in LIBRARIES
    }


def machine() -> dict[str, Any]:
    """What it ran on, for the head of results."""
    return {"cpu": platform.processor() or platform.machine(), "cores": workers(), "system": platform.system()}
