"""Folders as Hugging Face's transformers writes and reads them: config.json, model.safetensors whole or in shards.

What will surprise you:
* transformers is not needed; what matters is which files it looks for and what it insists on in them.
* A model whose head is tied to its embedding is stored under one name only; from_pretrained ties it again.
* Its loader refuses safetensors whose metadata does not say {"format": "pt"}.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pgolf.common.files import replacing
from pgolf.errors import CheckpointError, UsageError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
_WEIGHT_FILES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".gguf", ".onnx", ".pgolf"}


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None, tuple[str, ...]]:
    """(tensors, config, notes) of a folder. Raises CheckpointError."""
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS), _config(folder), ()
    if (folder / INDEX).is_file():
        return _sharded(folder), _config(folder), (f"weights read from the shards of {INDEX}",)
    raise CheckpointError(f"{folder}: a folder without {WEIGHTS} or {INDEX}: save_pretrained(safe_serialization=True)")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises CheckpointError."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}); is it truncated?") from None


def _sharded(folder: Path) -> dict[str, Tensor]:
    shards = _json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
        raise CheckpointError(f"{folder / INDEX}: has no weight_map from names to files")
    foreign = [s for s in shards.values() if Path(s).name != s]
    if foreign:
        raise CheckpointError(f"{folder / INDEX}: {foreign[0]!r} is not a file of the folder")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        tensors |= read_safetensors(folder / shard)
    if lost := sorted(shards.keys() - tensors.keys()):
        raise CheckpointError(f"{folder / INDEX}: {lost[0]} is not in the shard that it names")
    return tensors


def _config(folder: Path) -> dict[str, Any] | None:
    return _json(folder / CONFIG) if (folder / CONFIG).is_file() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return value


def write(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any] | None, like: Path | None) -> list[str]:
    """Write a folder that from_pretrained opens; returns the names of its files, the weights first.

    config: for config.json, unless `like`, the folder that was packed, has one. Its other files (tokenizer, generation
    settings, code; no weights) are copied. Raises UsageError for a `like` that is no folder.
    """
    from safetensors.torch import save

    if like is not None and not like.is_dir():
        raise UsageError(f"--like {like}: not a folder")
    others = [] if like is None else [p for p in sorted(like.iterdir()) if p.is_file() and not _holds_weights(p)]
    folder.mkdir(exist_ok=True)
    for path in others:
        with replacing(folder / path.name) as file, path.open("rb") as original:
            shutil.copyfileobj(original, file)
    if config is not None and CONFIG not in {path.name for path in others}:
        with replacing(folder / CONFIG) as file:
            file.write((json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    kept, _ = untied(state)
    with replacing(folder / WEIGHTS) as file:  # last: a folder with weights is whole
        file.write(save(kept, {"format": "pt"}))
    (folder / INDEX).unlink(missing_ok=True)
    return [WEIGHTS, *sorted({path.name for path in others} | ({CONFIG} if config is not None else set()))]


def _holds_weights(path: Path) -> bool:
    return path.suffix in _WEIGHT_FILES or path.name.endswith(".index.json")


def untied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors that share no storage, dropped name -> kept name): the first name of tied tensors stays."""
    kept: dict[str, Tensor] = {}
    seen: dict[tuple[int, Any], str] = {}
    dropped: dict[str, str] = {}
    for name in sorted(state, key=lambda n: ("lm_head" in n, n)):  # transformers ties the head to the embedding
        tensor = state[name]
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in seen:
            dropped[name] = seen[key]
        else:
            seen[key], kept[name] = name, tensor.contiguous()
    return kept, dropped
