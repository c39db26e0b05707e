"""Named tensors <-> artifact: which are planes, which are kept byte for byte, which are another name of the same storage.

What will surprise you:
* numpy has no bfloat16 or float8, so a dtype is a name and an item size here; kept tensors are opaque bytes.
* With a general coder (`coder="brotli"`, as the contest packs) codes are stored row-major at the narrowest integer
  width and nothing is said of trellis or spread: reconstruction needs codes and scales only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError, PgolfError
from pgolf.packer import codec, container, general
from pgolf.packer.plane import HALF, Plane, Scale

DTYPE_SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
}  # fmt: skip
CODERS = ("rans", "brotli", "zstd", "lzma", "zlib")
_WIDTHS = {1: "<i1", 2: "<i2", 4: "<i4"}


@dataclass(frozen=True)
class Entry:
    """One tensor of an artifact: exactly one of planes, raw and alias is set.

    planes: the matrix, or the slices of a bank along its first dimension. raw: little-endian bytes. alias: the name of
    the entry whose storage this one shares. stored: dtype the raw bytes have, where it is not `dtype`.
    note: how it was quantized or why it was kept, for people.
    """

    dtype: str
    shape: tuple[int, ...]
    planes: tuple[Plane, ...] | None = None
    raw: bytes | None = None
    alias: str | None = None
    stored: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Encoded:
    """data: the artifact; tensor_bits: name -> bits of its own codes and description (shared headers excluded)."""

    data: bytes
    tensor_bits: dict[str, float] = field(repr=False)


def encode(entries: Mapping[str, Entry], meta: Mapping[str, Any] | None = None, coder: str = "rans") -> Encoded:
    """The artifact of `entries`, the same bytes for any order of them. coder: one of CODERS. meta: JSON-able."""
    names = sorted(entries)
    planes = [(name, plane) for name in names for plane in entries[name].planes or ()]
    if coder == "rans":
        packed = codec.encode([plane for _, plane in planes])
        sections, head, bits = packed.sections, packed.head, _sum_bits(planes, packed.plane_bits, packed.side_bits)
    else:
        sections, head = _plain_sections([plane for _, plane in planes])
        bits = {}
    raw: dict[int, list[bytes]] = {}
    for name in names:
        entry = entries[name]
        if entry.raw is not None:
            raw.setdefault(DTYPE_SIZES[entry.stored or entry.dtype], []).append(entry.raw)
    sections |= {f"raw.{size}": b"".join(parts) for size, parts in raw.items() if any(parts)}
    stored = {name: _compress(name, data, coder) for name, data in sections.items()}
    head |= {
        "coder": coder,
        "check": checksum([plane.codes for _, plane in planes]),
        "tensors": [_record(name, entries[name]) for name in names],
        "meta": dict(meta or {}),
    }
    if coder != "rans":
        bits = _plain_bits(planes, stored)
    return Encoded(container.dump(head, stored), bits | _raw_bits(entries, stored))


def _compress(name: str, data: bytes, coder: str) -> general.Compressed:
    if name.endswith((".words", ".aside")):  # already at their entropy
        return general.Compressed(data, "stored", 1, len(data))
    item = {"half": 2, "escapes": 4}.get(
        name.rsplit(".", maxsplit=1)[-1], int(name[4:]) if name.startswith("raw.") else 1
    )
    if coder == "rans":
        return general.compress(data, min(item, 8))
    return general.compress(data, 1, (coder,)) if name.startswith("codes.") else general.compress(data, item)


def _sum_bits(planes: list[tuple[str, Plane]], *bits: list[float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for i, (name, _) in enumerate(planes):
        total[name] = total.get(name, 0.0) + sum(b[i] for b in bits)
    return total


def _plain_bits(planes: list[tuple[str, Plane]], stored: dict[str, general.Compressed]) -> dict[str, float]:
    """A general coder's bytes, shared out by the entropy of each plane's codes."""
    weights: dict[str, float] = {}
    for name, plane in planes:
        counts = np.unique(plane.codes, return_counts=True)[1]
        entropy = float((counts * np.log2(plane.codes.size / counts)).sum())
        weights[name] = weights.get(name, 1e-9) + entropy
    scale = 8 * sum(len(s.data) for n, s in stored.items() if not n.startswith("raw.")) / max(sum(weights.values()), 1)
    return {name: weight * scale for name, weight in weights.items()}


def _raw_bits(entries: Mapping[str, Entry], stored: dict[str, general.Compressed]) -> dict[str, float]:
    """Kept tensors' share of their compressed section."""
    bits = {}
    for name, entry in entries.items():
        if entry.raw is not None:
            section = stored.get(f"raw.{DTYPE_SIZES[entry.stored or entry.dtype]}")
            bits[name] = 8.0 * len(entry.raw) * len(section.data) / section.size if section and section.size else 0.0
        elif entry.alias is not None:
            bits[name] = 0.0
    return bits


def _record(name: str, entry: Entry) -> list[Any]:
    """[name, dtype, shape, kind, stored dtype or "", note]; kind: number of planes, 0 for raw bytes, or an alias."""
    kind: int | str = entry.alias if entry.alias is not None else len(entry.planes or ())
    return [name, entry.dtype, list(entry.shape), kind, entry.stored or "", entry.note]


def checksum(codes: Sequence[NDArray[np.int32]]) -> int:
    """Σ code_i · (2i + 1) mod 2^64 over all codes in file order: any order of summation gives it, a GPU's too."""
    total, first = 0, 0
    with np.errstate(over="ignore"):
        for matrix in codes:
            flat = matrix.reshape(-1)
            for at in range(0, flat.size, 1 << 20):
                piece = flat[at : at + (1 << 20)].astype(np.int64)
                weight = np.arange(first + at, first + at + piece.size, dtype=np.int64) * 2 + 1
                total += int(np.dot(piece, weight))
            first += flat.size
    return total % (1 << 64)


def _plain_sections(planes: Sequence[Plane]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Codes at their narrowest width, scales as half bits or 32-bit indices."""
    parts: dict[str, list[bytes]] = {}
    records = []
    for plane in planes:
        top = int(np.abs(plane.codes.astype(np.int64)).max(initial=0))
        width = 1 if top < 128 else 2 if top < 1 << 15 else 4
        parts.setdefault(f"codes.{width}", []).append(plane.codes.astype(_WIDTHS[width]).tobytes())
        for scale in (plane.row_scale, plane.col_scale):
            if scale is not None:
                half = scale.per_octave == HALF
                parts.setdefault("half" if half else "index", []).append(
                    scale.index.astype("<u2" if half else "<i4").tobytes()
                )
        records.append([*plane.codes.shape, *map(_per_octave, (plane.row_scale, plane.col_scale)), width])
    return {name: b"".join(p) for name, p in parts.items() if any(p)}, {"planes": records}


def _per_octave(scale: Scale | None) -> int:
    return codec.NO_SCALE if scale is None else scale.per_octave


def _parse_plain(sections: dict[str, bytes], head: dict[str, Any]) -> list[Plane]:
    cursors = {name: memoryview(data) for name, data in sections.items() if not name.startswith("raw.")}

    def take(name: str, dtype: str, count: int) -> NDArray[np.int32]:
        data, size = cursors.get(name, memoryview(b"")), count * np.dtype(dtype).itemsize
        if len(data) < size:
            raise ArtifactError(f"section {name} is too short: the artifact is damaged")
        cursors[name] = data[size:]
        return np.frombuffer(data[:size], dtype).astype(np.int32)

    def scale(per_octave: int, count: int) -> Scale | None:
        if per_octave == codec.NO_SCALE:
            return None
        return Scale(take(*(("half", "<u2") if per_octave == HALF else ("index", "<i4")), count), per_octave)

    planes = []
    for record in head["planes"]:
        match record:
            case [int(rows), int(cols), int(row), int(col), int(width)] if (
                rows >= 0 <= cols and {row, col} <= codec.PER_OCTAVES and width in _WIDTHS
            ):
                codes = take(f"codes.{width}", _WIDTHS[width], rows * cols).reshape(rows, cols)
                planes.append(Plane(codes, scale(row, rows), scale(col, cols)))
            case _:
                raise ArtifactError("a plane record has the wrong fields: the artifact is damaged")
    if any(len(rest) for rest in cursors.values()):
        raise ArtifactError("bytes left over after the last plane: the artifact is damaged")
    return planes


def decode(data: bytes) -> tuple[dict[str, Entry], dict[str, Any]]:
    """(entries, meta) of an artifact. Raises ArtifactError unless every byte is accounted for."""
    head, stored = container.parse(data)
    try:
        return _decode(head, stored), head["meta"]
    except PgolfError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ArtifactError(f"the artifact's header is inconsistent ({error!r}): it is damaged") from None


def _decode(head: dict[str, Any], stored: dict[str, general.Compressed]) -> dict[str, Entry]:
    records = [_parse_record(r) for r in head["tensors"]]
    names = [name for name, _, _ in records]
    if names != sorted(set(names)):
        raise ArtifactError("tensor names repeat or are out of order: the artifact is damaged")
    _check_raw_sizes(records, stored)
    sections = {name: general.decompress(section) for name, section in stored.items()}
    coder = head["coder"]
    if coder not in CODERS:
        raise ArtifactError(f"the artifact was coded with {coder!r}, which this pgolf does not know: upgrade pgolf")
    planes = codec.decode(sections, head) if coder == "rans" else _parse_plain(sections, head)
    if checksum([plane.codes for plane in planes]) != head["check"]:
        raise ArtifactError("the decoded codes do not match their checksum: the artifact is damaged")
    return _assemble(records, planes, sections)


def _parse_record(record: Any) -> tuple[str, Entry, int]:
    match record:
        case [str(name), str(dtype), list(shape), int(kind) | str(kind), str(kept), str(note)] if (
            {dtype, kept or dtype} <= DTYPE_SIZES.keys()
            and all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
            and prod(n or 1 for n in shape) < 1 << 40
        ):
            alias = kind if isinstance(kind, str) else None
            return name, Entry(dtype, tuple(shape), None, None, alias, kept or None, note), 0 if alias else int(kind)
    raise ArtifactError("a tensor record is malformed: the artifact is damaged")


def _raw_size(entry: Entry, planes: int) -> int:
    kept = entry.alias is None and planes == 0
    return prod(entry.shape) * DTYPE_SIZES[entry.stored or entry.dtype] if kept else 0


def _check_raw_sizes(records: list[tuple[str, Entry, int]], stored: dict[str, general.Compressed]) -> None:
    wanted: dict[str, int] = {}
    for _, entry, planes in records:
        if size := _raw_size(entry, planes):
            section = f"raw.{DTYPE_SIZES[entry.stored or entry.dtype]}"
            wanted[section] = wanted.get(section, 0) + size
    if wanted != {name: s.size for name, s in stored.items() if name.startswith("raw.")}:
        raise ArtifactError("kept tensors do not fit their section: the artifact is damaged")


def _assemble(
    records: list[tuple[str, Entry, int]], planes: list[Plane], sections: dict[str, bytes]
) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    queue, at = iter(planes), dict.fromkeys(sections, 0)
    for name, entry, count in records:
        if entry.alias is not None:
            entries[name] = entry
        elif count:
            mine = tuple(islice(queue, count))
            _check_planes(name, entry, mine, count)
            entries[name] = Entry(entry.dtype, entry.shape, mine, note=entry.note)
        else:
            section, size = f"raw.{DTYPE_SIZES[entry.stored or entry.dtype]}", _raw_size(entry, 0)
            start = at.get(section, 0)
            at[section] = start + size
            raw = sections.get(section, b"")[start : start + size]
            entries[name] = Entry(entry.dtype, entry.shape, None, raw, None, entry.stored, entry.note)
    if next(queue, None) is not None:
        raise ArtifactError("planes are left over after the last tensor: the artifact is damaged")
    for name, entry in entries.items():
        target = entries.get(entry.alias) if entry.alias is not None else None
        if entry.alias is not None and (target is None or target.alias is not None):
            raise ArtifactError(f"tensor {name!r} shares storage with no stored tensor: the artifact is damaged")
    return entries


def _check_planes(name: str, entry: Entry, planes: tuple[Plane, ...], count: int) -> None:
    shapes = {plane.codes.shape for plane in planes}
    size = sum(plane.codes.size for plane in planes)
    if len(planes) != count or len(shapes) != 1 or size != prod(entry.shape):
        raise ArtifactError(f"the planes of tensor {name!r} do not fit its shape: the artifact is damaged")


def write(path: Path, data: bytes) -> None:
    """Write an artifact whole or not at all."""
    with container.replacing(path) as file:
        file.write(data)
