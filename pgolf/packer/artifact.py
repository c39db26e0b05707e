"""Named tensors <-> artifact: which are planes, which are kept byte for byte, which are another name of the same storage.

What will surprise you:
* numpy has no bfloat16 or float8, so a dtype is a name and an item size here; kept tensors are opaque bytes.
* With a general coder (`coder="brotli"`, as the contest packs) codes are stored row-major at the narrowest integer
  width and nothing is said of trellis or spread: reconstruction needs codes and scales only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import ArtifactError, PgolfError
from pgolf.packer import codec, container, general, plain
from pgolf.packer.plane import Plane
from pgolf.packer.stream import Device
from pgolf.packer.threads import on_threads

DTYPE_SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
}  # fmt: skip
CODERS = ("rans", "brotli", "zstd", "lzma", "zlib")
_FIELDS = {"coder", "check", "tensors", "meta", "planes"}
_ITEM_SIZES = {"half": 2, "escapes": 4, "index": 4}  # of sections worth a byte shuffle
_PIECE = 1 << 15  # codes at a time


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
    matrices = [plane for _, plane in planes]
    if coder == "rans":
        packed = codec.encode(matrices)
        sections, head = packed.sections, packed.head
    else:
        sections, head = plain.encode(matrices)
    sections |= _raw_sections([entries[name] for name in names])
    stored = dict(zip(sections, on_threads(lambda n: _compress(n, sections[n], coder), sections), strict=True))
    head |= {
        "coder": coder,
        "check": f"{checksum([plane.codes for plane in matrices]):016x}",
        "tensors": [_record(name, entries[name]) for name in names],
        "meta": dict(meta or {}),
    }
    bits = _sum_bits(planes, packed.plane_bits, packed.side_bits) if coder == "rans" else _plain_bits(planes, stored)
    return Encoded(container.dump(head, sections, stored), bits | _raw_bits(entries, stored))


def _raw_section(entry: Entry) -> str:
    return f"raw.{DTYPE_SIZES[entry.stored or entry.dtype]}"


def _raw_sections(entries: Sequence[Entry]) -> dict[str, bytes]:
    """Kept tensors' bytes, those of one item size together."""
    parts: dict[str, list[bytes]] = {}
    for entry in entries:
        if entry.raw:
            parts.setdefault(_raw_section(entry), []).append(entry.raw)
    return {name: b"".join(data) for name, data in parts.items()}


def _compress(name: str, data: bytes, coder: str) -> general.Compressed:
    kind, _, part = name.rpartition(".")
    if coder != "rans" and kind == "codes":
        return general.compress(data, 1, (coder,))
    if part in {"words", "aside"}:  # already at their entropy
        return general.compress(data, 1, ("stored",))
    return general.compress(data, min(int(part), 8) if kind == "raw" else _ITEM_SIZES.get(part, 1))


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


def checksum(codes: Sequence[NDArray[np.signedinteger]]) -> int:
    """Σ code_i · (2i + 1) mod 2^64 over all codes in file order: any order of summation gives it, a GPU's too."""
    starts = np.cumsum([0, *(matrix.size for matrix in codes)])[:-1].tolist()
    return sum(on_threads(_partial_checksum, codes, starts)) % (1 << 64)


def _partial_checksum(codes: NDArray[np.signedinteger], start: int) -> int:
    weights = np.arange(1, 2 * _PIECE, 2, dtype=np.int64)  # in pieces: |code| < 2^31, so no sum leaves 64 bits
    flat, total = codes.reshape(-1), 0
    for at in range(0, flat.size, _PIECE):
        piece = flat[at : at + _PIECE].astype(np.int64)
        total += int(piece @ weights[: piece.size]) + 2 * (start + at) * int(piece.sum())
    return total


def decode(data: bytes, device: Device | None = None) -> tuple[dict[str, Entry], dict[str, Any]]:
    """(entries, meta) of an artifact. Raises ArtifactError unless every byte is accounted for.

    device: decodes the entropy-coded planes and holds their codes; None: numpy.
    """
    parsed = container.parse(data)
    try:
        return _decode(parsed, device), dict(parsed.head["meta"])
    except PgolfError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ArtifactError(f"the artifact's header is inconsistent ({error!r}): it is damaged") from None


def _decode(parsed: container.Parsed, device: Device | None) -> dict[str, Entry]:
    head = parsed.head
    coder = head["coder"]
    if coder not in CODERS:
        raise ArtifactError(f"the artifact was coded with {coder!r}, which this pgolf does not know: upgrade pgolf")
    fields = _FIELDS | ({"lanes", "families"} if coder == "rans" else set())
    if head.keys() != fields or not isinstance(head["meta"], dict):
        raise ArtifactError("the artifact's header has the wrong fields: it is damaged")
    described = _parse_records(head["tensors"])
    if coder == "rans":
        records = codec.parse(head)
        _check_shapes(described, [(r.rows, r.cols) for r in records])
        sections = _sections(parsed, described, codec.section_limits(records))
        planes = codec.decode(sections, head, records, device)
    else:
        widths = plain.parse(head)
        _check_shapes(described, [(r.rows, r.cols) for r in widths])
        sections = _sections(parsed, described, plain.section_limits(widths))
        planes = plain.decode(sections, widths)
    total = (device.checksum if device else checksum)([plane.codes for plane in planes])
    if f"{total:016x}" != head["check"]:
        raise ArtifactError("the decoded codes do not match their checksum: the artifact is damaged")
    return _assemble(described, planes, sections)


@dataclass(frozen=True)
class _Described:
    """A tensor as the header has it: an entry without its planes or bytes, and how many planes it has."""

    name: str
    entry: Entry
    planes: int

    def raw_size(self) -> int:
        """Bytes that it has in its raw section."""
        kept = self.entry.alias is None and self.planes == 0
        return prod(self.entry.shape) * DTYPE_SIZES[self.entry.stored or self.entry.dtype] if kept else 0


def _parse_records(records: Any) -> list[_Described]:
    described = [_parse_record(record) for record in records]
    by_name = {d.name: d.entry for d in described}
    if [d.name for d in described] != sorted(by_name):
        raise ArtifactError("tensor names repeat or are out of order: the artifact is damaged")
    for name, entry in by_name.items():
        target = by_name.get(entry.alias) if entry.alias is not None else entry
        if target is None or target.alias is not None:
            raise ArtifactError(f"tensor {name!r} shares storage with no stored tensor: the artifact is damaged")
    return described


def _parse_record(record: Any) -> _Described:
    match record:
        case [str(name), str(dtype), list(shape), int(kind) | str(kind), str(stored), str(note)] if (
            {dtype, stored or dtype} <= DTYPE_SIZES.keys()
            and codec.all_integers(shape)
            and min(shape, default=0) >= 0
            and prod(n or 1 for n in shape) < 1 << 40
            and (isinstance(kind, str) or (type(kind) is int and kind >= 0))
        ):
            alias = kind if isinstance(kind, str) else None
            entry = Entry(dtype, tuple(shape), None, None, alias, stored or None, note)
            return _Described(name, entry, 0 if isinstance(kind, str) else kind)
    raise ArtifactError("a tensor record is malformed: the artifact is damaged")


def _check_shapes(described: Sequence[_Described], shapes: Sequence[tuple[int, int]]) -> None:
    """Every tensor's planes have one shape and as many codes as the tensor has numbers; none is left over."""
    rest = iter(shapes)
    for d in described:
        mine = list(islice(rest, d.planes))
        if len(mine) != d.planes or len(set(mine)) > 1 or (mine and d.planes * prod(mine[0]) != prod(d.entry.shape)):
            raise ArtifactError(f"the planes of tensor {d.name!r} do not fit its shape: the artifact is damaged")
    if next(rest, None) is not None:
        raise ArtifactError("planes are left over after the last tensor: the artifact is damaged")


def _sections(
    parsed: container.Parsed, described: Sequence[_Described], limits: dict[str, tuple[int, int]]
) -> dict[str, bytes]:
    """The raw sections, once their declared sizes are what the header's tensors need."""
    raw: dict[str, int] = {}
    for d in described:
        if size := d.raw_size():
            raw[_raw_section(d.entry)] = raw.get(_raw_section(d.entry), 0) + size
    limits = limits | {name: (size, size) for name, size in raw.items()}
    declared = {name: section.size for name, section in parsed.stored.items()}
    for name in declared.keys() | limits.keys():
        fewest, most = limits.get(name, (0, 0))
        if not fewest <= declared.get(name, 0) <= most:
            raise ArtifactError(f"section {name!r} does not have the size that its tensors need: it is damaged")
    return parsed.sections()


def _assemble(described: Sequence[_Described], planes: Sequence[Plane], sections: dict[str, bytes]) -> dict[str, Entry]:
    rest, at = iter(planes), dict.fromkeys(sections, 0)
    entries: dict[str, Entry] = {}
    for d in described:
        if d.entry.alias is not None:
            entries[d.name] = d.entry
        elif d.planes:
            entries[d.name] = replace(d.entry, planes=tuple(islice(rest, d.planes)))
        elif size := d.raw_size():
            section = _raw_section(d.entry)
            entries[d.name] = replace(d.entry, raw=sections[section][at[section] : at[section] + size])
            at[section] += size
        else:
            entries[d.name] = replace(d.entry, raw=b"")
    return entries


def write(path: Path, data: bytes) -> None:
    """Write an artifact whole or not at all."""
    with container.replacing(path) as file:
        file.write(data)
