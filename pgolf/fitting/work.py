"""What a pack of minutes has done so far, kept in a folder beside the artifact, so that the same line goes on after a break.

Kept are rounded matrices, a file each, and instead of its matrices every position of the knob that was coded. What is read
back gives the same bytes as what is computed: a search that begins anew asks for the same positions, and finds them. The folder
is the pack's alone, named by a fingerprint of weights, curvature and plans. Another pack's, or a damaged file, is not used.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.common.files import replacing
from pgolf.errors import ArtifactError
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import Encoded, Entry
from pgolf.packer.plane import Plane, Scale, Spread

SUFFIX = ".work"  # after the artifact's name
KEY = "key"  # the file that says whose the folder is
CURVATURE = "curvature-"  # begins the name of a file of another key, see kept_curvature.py

Arrays = Mapping[str, NDArray[Any]]


def folder_for(artifact: Path) -> Path:
    """Where the work on an artifact is kept."""
    return artifact.with_name(artifact.name + SUFFIX)


def key_of(parts: Iterable[object]) -> str:
    """64 hexadecimal digits that tell one pack from another: of tensors and bytes the contents, of all else what it prints."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            plain = part.detach().cpu().contiguous()
            found.update(f"{plain.dtype} {list(plain.shape)};".encode())
            found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        else:
            found.update(part if isinstance(part, bytes) else f"{part!r};".encode())
    return found.hexdigest()


@dataclass
class Work:
    """A folder of this key. gone_on: whether something kept was found. Once the disk is full, nothing more is kept."""

    folder: Path
    gone_on: bool = False
    _open: bool = True

    @staticmethod
    def at(folder: Path, key: str) -> Work | None:
        """The folder with what was kept under this key, or a new one; None where a folder of somebody else's has the name."""
        try:
            folder.mkdir(exist_ok=True)
            theirs = (folder / KEY).read_text() if (folder / KEY).is_file() else None
            if theirs != key:
                if theirs is None and not all(file.name.startswith(CURVATURE) for file in folder.iterdir()):
                    return None
                _clear(folder, but=CURVATURE)
                folder.mkdir(exist_ok=True)
                with replacing(folder / KEY) as file:
                    file.write(key.encode())
        except (OSError, UnicodeDecodeError):
            return None
        return Work(folder)

    def plane(self, name: str, index: int, step: float) -> Plane | None:
        """A matrix that was rounded at a position of the knob."""
        found = self._read(_name_of(name, index, step))
        if found is None:
            return None
        try:
            trellis, start, row, col = (int(n) for n in found["how"])
            return Plane(
                found["codes"].astype(np.int16) if found["codes"].dtype == np.int8 else found["codes"],
                Scale(found["row"], row) if "row" in found else None,
                Scale(found["col"], col) if "col" in found else None,
                trellis,
                start,
                Spread(found["rows"], found["cols"]) if "rows" in found else None,
            )
        except (KeyError, ValueError):
            return None

    def keep_plane(self, name: str, index: int, step: float, plane: Plane) -> None:
        """Keep a matrix."""
        row, col, codes = plane.row_scale, plane.col_scale, plane.codes
        small = not codes.size or (codes.min() >= -128 and codes.max() < 128)
        arrays = {"codes": codes.astype(np.int8) if small else codes}
        arrays |= {side: scale.index for side, scale in (("row", row), ("col", col)) if scale is not None}
        if plane.spread is not None:
            arrays |= {"rows": plane.spread.rows, "cols": plane.spread.cols}
        steps = [0 if scale is None else scale.per_octave for scale in (row, col)]
        self._write(
            _name_of(name, index, step), arrays | {"how": np.array([plane.trellis, plane.trellis_from, *steps])}
        )

    def coded(self, step: float) -> tuple[dict[str, Entry], Encoded] | None:
        """A position of the knob that was rounded and coded."""
        found = self._read(_coded_name(step))
        if found is None:
            return None
        try:
            encoded = Encoded(found["data"].tobytes(), json.loads(found["bits"].tobytes()))
            return artifact.decode(encoded.data)[0], encoded
        except (KeyError, ValueError, ArtifactError):
            return None

    def keep_coded(self, step: float, encoded: Encoded) -> None:
        """Keep a position of the knob, in place of its matrices."""
        bits = np.frombuffer(json.dumps(encoded.tensor_bits).encode(), np.uint8)
        if self._write(_coded_name(step), {"data": np.frombuffer(encoded.data, np.uint8), "bits": bits}):
            for file in self.folder.glob(f"{_step(step)}-*.npz"):
                file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Nobody needs it any more."""
        self._open = False
        _clear(self.folder)

    def _read(self, name: str) -> dict[str, NDArray[Any]] | None:
        try:
            with (self.folder / name).open("rb") as bare, np.load(bare, allow_pickle=False) as file:
                found = {each: file[each] for each in file.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        self.gone_on = True
        return found

    def _write(self, name: str, arrays: Arrays) -> bool:
        if not self._open:
            return False
        try:
            with replacing(self.folder / name) as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes one keyword for a flag
        except OSError:  # a full disk, or the folder is gone: the pack itself goes on
            self._open = False
        return self._open


def _step(step: float) -> str:
    return step.hex().replace(".", "_")


def _name_of(name: str, index: int, step: float) -> str:
    return f"{_step(step)}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}-{index}.npz"


def _coded_name(step: float) -> str:
    return f"coded-{_step(step)}.npz"


def _clear(folder: Path, but: str | None = None) -> None:
    """Remove a folder of ours, but files whose names begin so; what cannot be removed stays."""
    try:
        for file in folder.iterdir():
            if but is None or not file.name.startswith(but):
                file.unlink()
        folder.rmdir()
    except OSError:
        return
