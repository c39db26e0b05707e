"""Folders as Hugging Face's transformers writes and reads them, without it: config.json, model.safetensors whole or in shards."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save
from torch import Tensor

from pgolf.common.files import replacing
from pgolf.errors import CheckpointError, UsageError
from pgolf.models import ties, torchfile

WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
ARTIFACT = "model.pgolf"  # in the place of weights, see loading/hf_folder.py...
STAND_IN = "model.pgolf.safetensors"  # ...and what config.json then names
_WEIGHT_FILES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".gguf", ".onnx", ".pgolf"}
_SECOND = re.compile(r"adapter_model\.(safetensors|bin)|(pytorch_)?model_\d+\.(safetensors|bin)")  # of PEFT, accelerate
_NO_WEIGHTS = ("optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args")  # of trainers
_HEADS = ("lm_head", "embed_out", "output_embeddings")  # what transformers ties to the embedding by itself


@dataclass(frozen=True)
class Folder:
    """tensors by name, config.json, notes for the report. ties: missing name -> the stored name of the same tensor."""

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    notes: tuple[str, ...] = ()
    ties: dict[str, str] | None = None


def read(folder: Path) -> Folder:
    """What a folder holds. Raises CheckpointError."""
    for name, reader in ((WEIGHTS, read_safetensors), (PICKLED, _read_pickled)):
        index = f"{name}.index.json"
        if (folder / name).is_file() or (folder / index).is_file():
            _refuse_second(folder, name)
        if (folder / name).is_file():
            tensors, tied = reader(folder / name)
            return Folder(tensors, config(folder), _unread(folder, {name}), tied)
        if (folder / index).is_file():
            tensors, shards = _sharded(folder, index, reader)
            notes = (f"weights read from the shards of {index}", *_unread(folder, shards))
            return Folder(tensors, config(folder), notes)
    raise CheckpointError(f"{folder}: a folder without {WEIGHTS} or {INDEX}: {_mend(folder)}")


def artifact_in(path: Path) -> Path | None:
    """The artifact in a folder that has no other weights, None of anything else."""
    others = any((path / name).is_file() for name in (WEIGHTS, INDEX, PICKLED, f"{PICKLED}.index.json"))
    return path / ARTIFACT if path.is_dir() and (path / ARTIFACT).is_file() and not others else None


def _unread(folder: Path, taken: set[str]) -> tuple[str, ...]:
    """A note of weights that lie beside those that were taken, as pytorch_model.bin beside model.safetensors."""
    files = (path.name for path in folder.iterdir() if path.suffix in _WEIGHT_FILES and path.name not in taken)
    more = sorted(name for name in files if not name.startswith(_NO_WEIGHTS))
    return (f"beside them in the folder, not read: {', '.join(more[:8])}",) if more else ()


def _refuse_second(folder: Path, taken: str) -> None:
    """Raises CheckpointError where weights of an adapter, or of a second model, lie beside those that would be read."""
    more = sorted(path.name for path in folder.iterdir() if _SECOND.fullmatch(path.name))
    if more:
        raise CheckpointError(
            f"{folder}: holds {', '.join(more[:3])} beside {taken}: name the file to pack; an adapter (LoRA) is merged by "
            "merge_and_unload()"
        )


def _mend(folder: Path) -> str:
    """What to do with a folder of another kind."""
    names = sorted(path.name for path in folder.iterdir())
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        return (
            "it is torch.distributed.checkpoint's, sharded; python -m torch.distributed.checkpoint.format_utils "
            "dcp_to_torch FOLDER OUT.pt makes one file of it"
        )
    if "zero_to_fp32.py" in names or any(name.startswith(("zero_pp_rank", "mp_rank", "bf16_zero")) for name in names):
        return "it is DeepSpeed's; run its zero_to_fp32.py and pack what that writes"
    if any(name.startswith("adapter_model") for name in names):
        return "it holds an adapter (LoRA), not a model; merge_and_unload() it and save that"
    within = (*folder.glob("*"), *folder.glob("snapshots/*"))  # the latter in the hub's cache
    inner = sorted(str(path.relative_to(folder)) for path in within if path.is_dir() and _is_checkpoint(path))
    if inner:
        return f"name the folder in it ({', '.join(inner[:4])}{', ...' * (len(inner) > 4)})"
    files = [name for name in names if Path(name).suffix in _WEIGHT_FILES]
    return _mend_of(folder, files) if files else "save_pretrained(safe_serialization=True)"


def _mend_of(folder: Path, files: list[str]) -> str:
    """What to do with a folder that holds weights under names that are not read."""
    few = f"({', '.join(files[:4])}{', ...' * (len(files) > 4)})"
    if lost := [name for name in files if not (folder / name).exists()]:
        return f"{lost[0]} is a link to nothing: download it again"
    if any(torchfile.SHARD.search(name) for name in files):
        return f"its shards {few} want their index.json: copy the folder again"
    return f"name the file in it {few}, or save_pretrained(safe_serialization=True)"


def _is_checkpoint(folder: Path) -> bool:
    """Whether weights lie in it, or the parts of a sharded checkpoint."""
    return any(path.suffix in {".safetensors", ".distcp"} or path.name.startswith(PICKLED) for path in folder.iterdir())


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(the tensors of one file, missing name -> the stored name that its metadata says). Raises CheckpointError."""
    if path.is_file():
        torchfile.refuse_magic(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            told = file.metadata() or {}
    except (safetensors.SafetensorError, OSError, AttributeError) as error:  # a dtype that this torch lacks
        raise CheckpointError(f"{path}: not a safetensors file ({error}); is it truncated?") from None
    return tensors, {name: kept for name, kept in told.items() if name not in tensors and kept in tensors}


def _read_pickled(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    loaded = torchfile.torch_load(path)
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path}: is not a flat state dict, as transformers writes it: name this file itself")
    return {str(name): tensor for name, tensor in loaded.items()}, {}


Reader = Callable[[Path], tuple[dict[str, Tensor], dict[str, str]]]


def _sharded(folder: Path, index: str, reader: Reader) -> tuple[dict[str, Tensor], set[str]]:
    """(the tensors of all shards, the names of their files)."""
    shards = _json(folder / index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
        raise CheckpointError(f"{folder / index}: has no weight_map from names to files")
    foreign = [s for s in shards.values() if Path(s).name != s]
    if foreign:
        raise CheckpointError(f"{folder / index}: {foreign[0]!r} is not a file of the folder")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        if not os.path.isfile(folder / shard):  # Path's own raises for names too long
            raise CheckpointError(f"{folder / index}: the shard {shard} is not there: copy the folder again")
        tensors |= reader(folder / shard)[0]
    if lost := sorted(shards.keys() - tensors.keys()):
        raise CheckpointError(f"{folder / index}: {lost[0]} is not in the shard that it names")
    return tensors, set(shards.values())


def config(folder: Path) -> dict[str, Any] | None:
    """What a folder's config.json says, None where there is none. Raises CheckpointError."""
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
    names = write_rest(folder, config, like)
    kept, dropped = untied(state)
    with replacing(folder / WEIGHTS) as file:  # last: a folder with weights is whole
        file.write(_saying(save(kept, {"format": "pt"}), dropped))  # without that format from_pretrained refuses it
    (folder / INDEX).unlink(missing_ok=True)
    return [WEIGHTS, *names]


def write_rest(
    folder: Path, config: Mapping[str, Any] | None, like: Path | None, more: Mapping[str, Any] | None = None
) -> list[str]:
    """Write all of a folder but its weights, as `write` does; returns the names. more: what config.json says besides."""
    if like is not None and not like.is_dir():
        raise UsageError(f"--like {like}: not a folder")
    others = [] if like is None else [p for p in sorted(like.iterdir()) if p.is_file() and not _holds_weights(p)]
    folder.mkdir(exist_ok=True)
    for path in others:
        with replacing(folder / path.name) as file, path.open("rb") as original:
            shutil.copyfileobj(original, file)
    theirs = _json(like / CONFIG) if like is not None and CONFIG in {path.name for path in others} else None
    said = {**plain(theirs if theirs is not None else config or {}), **(more or {})}
    if said and said != theirs:
        with replacing(folder / CONFIG) as file:
            file.write((json.dumps(said, indent=2, sort_keys=True) + "\n").encode())
    return sorted({path.name for path in others} | ({CONFIG} if said else set()))


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what it says of an artifact in the place of weights."""
    holds = config.get("transformers_weights") == STAND_IN
    return {k: v for k, v in config.items() if not holds or k not in ("transformers_weights", "quantization_config")}


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold weights, by name."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in _WEIGHT_FILES]


def _holds_weights(path: Path) -> bool:
    return path.suffix in _WEIGHT_FILES or path.name.endswith(".index.json")


def _saying(data: bytes, dropped: Mapping[str, str]) -> bytes:
    """A safetensors file whose metadata also names the tied names, in order: its own writer orders keys at random."""
    if not dropped:
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:end])
    head["__metadata__"] |= dict(sorted(dropped.items()))
    told = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    told += b" " * (-len(told) % 8)
    return len(told).to_bytes(8, "little") + told + data[end:]


def untied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors that share no storage, dropped name -> kept name): a head that is its embedding is dropped.

    from_pretrained ties it again; the file's metadata says its name, as safetensors' own save_model does. Other equal
    tensors are written under every name: from_pretrained would miss them.
    """
    ordered = {name: state[name] for name in sorted(state, key=lambda n: (any(h in n for h in _HEADS), n))}
    shared = ties.in_storage(ordered)
    dropped = {name: first for name, first in shared.items() if any(head in name for head in _HEADS)}
    kept = {
        name: tensor.clone() if name in shared else tensor.contiguous()
        for name, tensor in ordered.items()
        if name not in dropped
    }
    return kept, dropped
