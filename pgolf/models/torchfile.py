"""Files that torch.save wrote, and word of what else a file may be: read without running anything of its pickle."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pgolf.common.files import replacing
from pgolf.errors import CheckpointError
from pgolf.models import inert

MOST_STRANGERS = 64  # classes of a file that are stood in for
TASTE = 512  # bytes of a file's beginning that tell what it is
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")  # of a Hugging Face folder
_MAGIC = {  # first bytes of files that people take for checkpoints: what they are, and the mend
    b"\x89PGOLF": "is a pgolf artifact already: pgolf unpack makes a checkpoint of it",
    b"GGUF": "is a GGUF file of llama.cpp: pack the checkpoint that it was made from",
    b"\x89HDF": "is an HDF5 file (Keras?): load it in its framework and save a state dict by torch.save",
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: run git lfs pull",
    b"\x93NUMPY": "is a single NumPy array: save {name: torch.from_numpy(array)} by torch.save",
    b"<!DOCTYPE": "is a web page: the download went wrong",
    b"<html": "is a web page: the download went wrong",
    b"PAR1": "is a table of text (parquet): name the file that holds the weights",
    b"\x80\x04\x95": "is a plain pickle: load it, and torch.save() its state dict",
    b"\x80\x05\x95": "is a plain pickle: load it, and torch.save() its state dict",
    **dict.fromkeys(
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!"),
        "is compressed: unpack it and name what was in it",
    ),
}
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_WANTED = (  # what a pickle asks for: what it then is, and the mend
    (
        "torch.distributed._shard",
        "its tensors are sharded over ranks: gather a full state dict (FULL_STATE_DICT) on rank 0",
    ),
    ("torch.distributed.", "its tensors are sharded over ranks (DTensor): gather each with tensor.full_tensor()"),
    ("torchao.", "its tensors are quantized by torchao: save the state dict from before quantize_()"),
    ("torch.nn.modules.", "it is a whole module, pickled with its code: load it in your trainer"),
)


def refuse_foreign(path: Path) -> None:
    """Raises CheckpointError for a file of another kind, and for one that is only a part of a model."""
    shard = SHARD.search(path.name)
    if shard and int(shard[2]) > 1:
        raise CheckpointError(f"{path}: is one of {int(shard[2])} shards of a model: name the folder, {path.parent}")
    if path.suffix == ".distcp" or path.name == ".metadata":
        raise CheckpointError(
            f"{path}: is a part of a sharded checkpoint: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{path.parent} OUT.pt makes one file of it"
        )
    with path.open("rb") as file:
        start = file.read(TASTE)
    if _is_text(start) and not is_safetensors(path):
        what = "text (JSON?)" if start.lstrip().startswith((b"{", b"[")) else "text"
        if not any(start.startswith(magic) for magic in _MAGIC):
            raise CheckpointError(f"{path}: is {what}, not a checkpoint: name the file that holds the weights")
    if start and not start.strip(b"\0"):
        raise CheckpointError(
            f"{path}: begins with {len(start)} zeros, as a download that broke off does: copy it again"
        )
    if start.startswith(b"PK\3\4") and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: its end is missing: it is truncated, copy it again")
    if start[257:262] == b"ustar":
        raise CheckpointError(f"{path}: is a tar archive: unpack it and name what was in it")
    if not start and path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: is an empty file")
    refuse_magic(path)


def refuse_magic(path: Path) -> None:
    """Raises CheckpointError for a file that begins as those of another kind do."""
    with path.open("rb") as file:
        start = file.read(max(map(len, _MAGIC)))
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            raise CheckpointError(f"{path}: {what}")


def _is_text(start: bytes) -> bool:
    """Whether the beginning of a file is printable ASCII."""
    return bool(start) and all(c in b"\t\n\r\f" or 32 <= c < 127 for c in start)


def is_safetensors(path: Path) -> bool:
    """Whether a file is one of safetensors, whatever it is called; by its name where its first bytes tell nothing."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return True
    return path.suffix == ".safetensors" and not start.startswith((b"PK\x03\x04", b"\x80\x02"))  # torch.save's


def torch_load(path: Path) -> Any:
    """What torch.save wrote, its checksums checked, mapped where it is a zip archive. Raises CheckpointError."""
    if path.suffix == ".safetensors":  # torch.load would go by the name
        raise CheckpointError(f"{path}: is a file of torch.save under safetensors' name: call it {path.stem}.pt")
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        return _loaded(path)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from None
    except Exception as error:  # torch.load raises nearly anything on foreign bytes
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint that torch.load reads ({reason})") from None


def _loaded(path: Path) -> Any:
    """What torch.load gives, with stand-ins for all that is data. Each attempt names one more of them.

    Raises what torch.load raised at first where they do not help.
    """
    known: dict[str, type] = {}
    first: Exception | None = None
    for _ in range(MOST_STRANGERS):
        try:
            return _attempted(path, known.values())
        except Exception as error:
            first = first or error
            if not (isinstance(error, pickle.UnpicklingError) and inert.learned(str(error), known)):
                break
    assert first is not None
    raise first


def _attempted(path: Path, stand_ins: Iterable[type]) -> Any:
    with warnings.catch_warnings(), inert.allowed(stand_ins):
        warnings.simplefilter("ignore")  # torch's advice on old formats is for its authors
        if zipfile.is_zipfile(path) and _is_unicode(path):  # torch maps a file by its name in UTF-8
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:
            return torch.load(_Bounded(file, path.stat().st_size), map_location="cpu", weights_only=True)


def _is_unicode(path: Path) -> bool:
    return str(path).isascii() or str(path) == str(path).encode(errors="replace").decode()


def torch_save(value: Any, path: Path) -> None:
    """Write by torch.save, whole or not at all. Raises OSError."""
    with replacing(path) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch closes its archive after a failed write, and that fails again
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _refuse_kinds(names: list[str], path: Path) -> None:
    """Raises CheckpointError for archives that are not torch.save's, by the names of their parts."""
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        raise CheckpointError(
            f"{path}: is a TorchScript archive, which holds code: torch.save(torch.jit.load(...).state_dict(), ...)"
        )
    if inner & {"archive_format", "models/model.json"} or "serialized_exported_program.json" in names:
        raise CheckpointError(
            f"{path}: is a program of torch.export: torch.save(torch.export.load(...).state_dict, ...)"
        )
    if not inner & {"data.pkl", "constants.pkl"} and (held := [n for n in names if n.endswith(_CHECKPOINTS)]):
        raise CheckpointError(f"{path}: is a zip archive that holds {held[0]}: unpack it and name that")
    if names and all(name.endswith(".npy") for name in names):
        raise CheckpointError(
            f"{path}: is an archive of NumPy arrays: save {{name: torch.from_numpy(array)}} by torch.save"
        )


def _check_archive(path: Path) -> None:
    """Refuse an archive that a reader could understand in two ways, or whose parts do not match their checksums.

    torch.save stores its parts one by one as they are, each with its CRC-32; torch.load does not look at it.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        _refuse_kinds([p.filename for p in parts], path)
        stored = all(p.compress_type == zipfile.ZIP_STORED and p.file_size == p.compress_size for p in parts)
        plain = stored and not any(p.flag_bits & 1 for p in parts)  # 1: encrypted
        if not plain or len({p.filename for p in parts}) < len(parts):
            raise CheckpointError(
                f"{path}: a zip archive with compressed or repeated parts, not what torch.save writes"
            )
        if sum(p.file_size for p in parts) > path.stat().st_size:
            raise CheckpointError(f"{path}: the parts of this zip archive overlap: it is damaged, or hostile")
        if bad := archive.testzip():
            raise CheckpointError(
                f"{path}: {bad} in it does not match its checksum: it is damaged, copy it again (if it was saved without "
                "checksums, save it again after torch.serialization.set_crc32_options(True))"
            )


class _Bounded:
    """A file that never reads beyond its end: Python's own allocates first whatever length a hostile pickle asks for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, length: int = -1) -> bytes:
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if length < 0 else min(length, left))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _refused(path: Path, reason: str) -> CheckpointError:
    if "loading DTensors" in reason or "load DTensors" in reason:
        return CheckpointError(f"{path}: {_WANTED[1][1]}")
    try:
        wanted = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:
        wanted = []
    if not wanted:
        wanted = re.findall(r"Unsupported global: GLOBAL ([\w.]+)", reason)  # of an old file, which torch does not list
    if not wanted:
        first = reason.partition("WeightsUnpickler error: ")[2] or reason  # the true one stands after torch's advice
        first = first.strip().split("\n")[0][:160]
        return CheckpointError(f"{path}: not a checkpoint that torch.load reads with weights_only ({first})")
    wanted = [name for name in wanted if not inert.stands_for(name)] or wanted
    for prefix, what in _WANTED:
        if any(name.startswith(prefix) for name in wanted):
            named = ", ".join(wanted[:3]) + (f" and {len(wanted) - 3} more" if len(wanted) > 3 else "")
            return CheckpointError(
                f"{path}: its pickle wants {named}, which pgolf will not run; {what}, and torch.save(model.state_dict(), ...)"
            )
    return CheckpointError(
        f"{path}: its pickle wants {', '.join(wanted)}, which pgolf will not run; re-save it with "
        "torch.save(model.state_dict(), ...), or allow them yourself with torch.serialization.add_safe_globals"
    )
