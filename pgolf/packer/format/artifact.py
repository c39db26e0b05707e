"""Named tensors <-> artifact: which are planes, which are kept byte for byte, which are another name of the same storage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.common import files
from pgolf.common.threads import on_threads
from pgolf.errors import ArtifactError, PgolfError
from pgolf.packer.backends import registry
from pgolf.packer.coder import codec, general
from pgolf.packer.coder.loops import Loops
from pgolf.packer.coder.stream import Device
from pgolf.packer.format import container, plain
from pgolf.packer.plane import Plane

# Bytes an item, by name: numpy lacks bfloat16 and float8, so kept tensors are opaque bytes here.
DTYPE_SIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "complex64": 8,
    "complex128": 16,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
}  # fmt: skip
CODERS = ("rans", "brotli", "zstd", "lzma", "zlib")
_FIELDS = {"coder", "check", "tensors", "meta", "planes"}
_ITEM_SIZES = {"half": 2, "escapes": 4, "index": 4, "lanes": 4}  # of sections worth a byte shuffle
DROPPED = "dropped"  # of meta: names of buffers that the model's class makes by itself
SAFE_SCALE = 2.0**96  # with any 32-bit code, far from the largest float32
_PIECE = 1 << 15  # codes at a time
Memory = dict[tuple[str, bytes], general.Compressed]  # (section, raw bytes) -> what it compressed to


@dataclass(frozen=True)
class Entry:
    """One tensor of an artifact: exactly one of planes, raw and alias is set.

    planes: the matrix, or the slices of a bank along its first dimension. raw: little-endian bytes. alias: the name of
    the entry whose storage this one shares. stored: dtype the raw bytes have, where it is not `dtype`.
    part_of: the name of the entry in whose stored matrix, below its own rows, the rows of this one's only plane are. Its own
    name is the later one; several follow one another by name.
    note: how it was quantized or why it was kept, for people.
    """

    dtype: str
    shape: tuple[int, ...]
    planes: tuple[Plane, ...] | None = None
    raw: bytes | None = None
    alias: str | None = None
    part_of: str | None = None
    stored: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Encoded:
    """data: the artifact; tensor_bits: name -> bits of the codes and scales of a coded tensor. All else: see shares.py."""

    data: bytes
    tensor_bits: dict[str, float] = field(repr=False)


def encode(
    entries: Mapping[str, Entry],
    meta: Mapping[str, Any] | None = None,
    coder: str = "rans",
    memory: Memory | None = None,
) -> Encoded:
    """The artifact of `entries`, the same bytes for any order of them. meta: JSON-able.

    coder: one of CODERS; all but rans are general ones, which keep of a plane what its weights need (format/plain.py).
    memory: what kept tensors' sections compressed to, looked up and filled, for one artifact after another of one model.
    """
    names = sorted(entries)
    held = list(_matrices(entries))
    matrices = [plane for _, plane in held]
    if coder == "rans":
        packed = codec.encode(matrices, registry.loops())
        sections, head = packed.sections, packed.head
    else:
        sections, head = plain.encode(matrices)
    kept, memory = _raw_sections([entries[name] for name in names]), {} if memory is None else memory
    known = {name: memory[name, data] for name, data in kept.items() if (name, data) in memory}
    sections |= kept
    fresh = [name for name in sections if name not in known]
    stored = known | dict(zip(fresh, on_threads(lambda n: _compress(n, sections[n], coder), fresh), strict=True))
    memory |= {(name, data): stored[name] for name, data in kept.items()}
    head |= {
        "coder": coder,
        "check": checksum(matrices),
        "tensors": [_record(name, entries[name]) for name in names],
        "meta": dict(meta or {}),
    }
    own = [packed.plane_bits, packed.side_bits] if coder == "rans" else [plain.bits(matrices, stored)]
    return Encoded(container.dump(head, sections, stored, _version(entries)), _sum_bits(held, own))


def _version(entries: Mapping[str, Entry]) -> int:
    """Of the format: the oldest whose readers know all that is used."""
    return _version_for(any(entry.part_of is not None for entry in entries.values()))


def _version_for(stacks: bool) -> int:
    return 2 if stacks else 1


def check_version(data: container.Data, stacks: bool) -> None:
    """Raises ArtifactError where a file is not of the version that its tensors ask for. stacks: some share a matrix."""
    if container.version(data) != _version_for(stacks):
        raise ArtifactError("the artifact holds what its format version does not: it is damaged")


def _matrices(entries: Mapping[str, Entry]) -> Iterator[tuple[dict[str, int], Plane]]:
    """The matrices in file order, each with its rows of every entry that has some."""
    below: dict[str, list[str]] = {}
    for name in sorted(entries):
        if (home := entries[name].part_of) is not None:
            below.setdefault(home, [home]).append(name)
    for name in sorted(entries):
        mine = below.get(name, [name]) if entries[name].part_of is None else []
        for parts in zip(*(entries[each].planes or () for each in mine), strict=True):
            yield {each: len(plane.codes) for each, plane in zip(mine, parts, strict=True)}, Plane.joined(parts)


def raw_section(entry: Entry) -> str:
    """Where a kept tensor's bytes are."""
    return f"raw.{DTYPE_SIZES[entry.stored or entry.dtype]}"


def _raw_sections(entries: Sequence[Entry]) -> dict[str, bytes]:
    """Kept tensors' bytes, those of one item size together."""
    parts: dict[str, list[bytes]] = {}
    for entry in entries:
        if entry.raw:
            parts.setdefault(raw_section(entry), []).append(entry.raw)
    return {name: b"".join(data) for name, data in parts.items()}


def _compress(name: str, data: bytes, coder: str) -> general.Compressed:
    kind, _, part = name.rpartition(".")
    if coder != "rans" and kind == "codes":
        return general.compress(data, 1, (coder,))
    if part in {"words", "aside"}:  # already at their entropy
        return general.compress(data, 1, ("stored",))
    return general.compress(data, min(int(part), 8) if kind == "raw" else _ITEM_SIZES.get(part, 1))


def _sum_bits(held: list[tuple[dict[str, int], Plane]], bits: list[list[float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for i, (rows, _) in enumerate(held):
        taken = sum(b[i] for b in bits) / max(sum(rows.values()), 1)
        for name, count in rows.items():
            total[name] = total.get(name, 0.0) + taken * count
    return total


def _record(name: str, entry: Entry) -> list[Any]:
    """[name, dtype, shape, kind, other, note]; kind: number of planes, −bytes a kept number (other: its stored dtype if
    that is not `dtype`), or 0 (other: the name whose storage it shares, or in whose matrix its rows follow)."""
    elsewhere = entry.alias if entry.part_of is None else entry.part_of
    kind = 0 if elsewhere is not None else len(entry.planes or ()) or -DTYPE_SIZES[entry.stored or entry.dtype]
    return [name, entry.dtype, list(entry.shape), kind, elsewhere or entry.stored or "", entry.note]


def checksum(planes: Sequence[Plane]) -> int:
    """Σ code_i · (2i + 1) mod 2^64 over all codes in file order: any order of summation gives it, a GPU's too."""
    total, first = 0, 1
    for plane in planes:
        for piece in np.array_split(plane.codes.ravel(), plane.codes.size // _PIECE + 1):
            total += int(piece @ np.arange(first, first + 2 * piece.size, 2))  # 64-bit integers wrap around
            first += 2 * piece.size
    return total % 2**64


def decode(data: bytes, device: Device | None = None) -> tuple[dict[str, Entry], dict[str, Any]]:
    """(entries, meta) of an artifact. Raises ArtifactError unless every byte is accounted for.

    device: decodes the entropy-coded planes and holds their codes; None: the processor, compiled where numba is there.
    """
    head, stored, content = container.parse(data)
    with told_as_damage():
        entries = {}
        tensors = contents(head, stored, content, registry.loops(), device or registry.host())
        below: dict[str, Plane] = {}  # rows that belong to later names, by the first
        for (name, dtype, shape, kind, other, note), planes, raw in tensors:
            kept = {"raw": raw, "stored": other or None} if kind < 0 else {"part_of": other or None}
            if other in below and kind == 0:
                planes = [below.pop(other)]
            rest = kept if planes or kind else {"alias": other}
            check_scales(name, planes)
            if len(planes) == 1 and prod(shape) < prod(planes[0].codes.shape):
                rows = prod(shape) // planes[0].codes.shape[1]
                below[other or name] = planes[0].part(slice(rows, None))
                planes = [planes[0].part(slice(rows))]
            entries[name] = Entry(dtype, tuple(shape), tuple(planes) or None, note=note, **rest)
        check_version(data, any(entry.part_of is not None for entry in entries.values()))
        return entries, head["meta"]


@contextmanager
def told_as_damage() -> Iterator[None]:
    """What only a file that no encoder wrote makes go wrong, as an ArtifactError."""
    try:
        yield
    except PgolfError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise ArtifactError(f"the artifact is inconsistent ({error!r}): it is damaged") from None


def contents(
    head: dict[str, Any],
    stored: dict[str, container.Stored],
    content: int,
    loops: Loops | None = None,
    device: Device | None = None,
) -> Iterator[tuple[list[Any], list[Plane], bytes]]:
    """(record in the header, planes, raw bytes) of each tensor of a parsed file, once everything is checked.

    A plane comes with the tensor that it begins with, whole: rows beyond the tensor's own are those of the tensors that
    name it, in their order.
    """
    check_head(head, {name: size for name, (_, _, _, size) in stored.items()})
    sections = container.unpack(stored, content)
    planes = _planes(head, sections, loops, device)
    if head["check"] != (device.checksum if device else checksum)(planes):
        raise ArtifactError("the decoded codes do not match their checksum: the artifact is damaged")
    rest, kept = iter(planes), {name: BytesIO(data) for name, data in sections.items()}
    for record in head["tensors"]:
        kind = record[3]
        # Where kind > 0 there is no such section, hence nothing to read.
        yield (
            record,
            [next(rest) for _ in range(kind)],
            kept.get(f"raw.{-kind}", BytesIO()).read(-kind * prod(record[2])),
        )


def _planes(
    head: dict[str, Any], sections: dict[str, bytes], loops: Loops | None, device: Device | None
) -> list[Plane]:
    return codec.read(head, sections, loops, device) if head["coder"] == "rans" else plain.read(head, sections)


def check_head(head: dict[str, Any], declared: dict[str, int]) -> None:
    """Raises ArtifactError for a coder or fields that this format lacks, and where tensors, planes and the sections'
    declared sizes do not fit each other."""
    if head.get("coder") not in CODERS:
        raise ArtifactError(f"the artifact was coded with {head.get('coder')!r}, unknown to this pgolf: upgrade pgolf")
    if head.keys() != _FIELDS or not isinstance(head["meta"], dict):
        raise ArtifactError("the artifact's header has the wrong fields: it is damaged")
    check_tensors(head["tensors"])
    coder = codec if head["coder"] == "rans" else plain
    coder.check_planes(head["planes"])
    check_shapes(head["tensors"], [(rows, cols) for rows, cols, *_ in head["planes"]])
    limits = coder.section_limits(head["planes"]) | _raw_limits(head["tensors"])
    for name in declared.keys() | limits.keys():
        fewest, most = limits.get(name, (0, 0))
        if not fewest <= declared.get(name, 0) <= most:
            raise ArtifactError(f"section {name!r} does not have the size that its tensors need: it is damaged")


def check_tensors(records: Sequence[Any]) -> None:
    """Raises ArtifactError for malformed records, names out of order, and names of what is not stored."""
    kinds = {record[0]: record[3] for record in records if _is_tensor(record)}
    if len(kinds) != len(records) or list(kinds) != sorted(kinds):
        raise ArtifactError("tensor records are malformed, repeated or out of order: the artifact is damaged")
    for name, _, _, kind, other, _ in records:
        if kind == 0 and not kinds.get(other):
            raise ArtifactError(f"tensor {name!r} shares storage with no stored tensor: the artifact is damaged")


def _is_tensor(record: Any) -> bool:
    match record:
        case [str(_), str(dtype), list(shape), int(kind), str(other), str(_)] if dtype in DTYPE_SIZES:
            fits = kind == -DTYPE_SIZES.get(other or dtype, 0) if kind < 0 else not kind or not other
            numbers = codec.all_integers([*shape, kind]) and min(shape, default=0) >= 0
            return fits and numbers and prod(n or 1 for n in shape) < 1 << 40
    return False


def check_shapes(records: Sequence[Any], shapes: Sequence[tuple[int, int]]) -> None:
    """Every tensor's planes have one shape and as many codes as the tensor has numbers, or as it has together with those
    that name it and whose rows follow; none is left over."""
    rest, naming = iter(shapes), dict[str, list[Any]]()
    for record in records:
        if record[3] == 0:
            naming.setdefault(record[4], []).append(record)
    for name, dtype, shape, kind, *_ in records:
        mine = list(islice(rest, max(kind, 0)))
        if kind <= 0:
            continue
        fits = len(mine) == kind and len(set(mine)) == 1
        if not fits or not (kind * prod(mine[0]) == prod(shape) or _stacked(mine, name, dtype, shape, naming)):
            raise ArtifactError(f"the planes of tensor {name!r} do not fit its shape: the artifact is damaged")
    if next(rest, None) is not None:
        raise ArtifactError("planes are left over after the last tensor: the artifact is damaged")


def _stacked(
    planes: list[tuple[int, int]], name: str, dtype: str, shape: list[int], naming: Mapping[str, list[Any]]
) -> bool:
    """Whether a single plane is filled by whole rows of a tensor and of the later ones of its dtype that name it."""
    parts, (rows, cols) = naming.get(name, []), planes[0]
    sizes = [prod(shape), *(prod(part[2]) for part in parts)]
    alike = all(part[0] > name and part[1] == dtype for part in parts)
    return (
        len(planes) == 1
        and bool(name)
        and alike
        and all(n and n % cols == 0 for n in sizes)
        and sum(sizes) == rows * cols
    )


def _raw_limits(records: Sequence[Any]) -> dict[str, tuple[int, int]]:
    """Fewest and most bytes of the sections of kept tensors: they are known exactly."""
    raw: dict[str, int] = {}
    for _, _, shape, kind, *_ in records:
        if kind < 0:
            raw[f"raw.{-kind}"] = raw.get(f"raw.{-kind}", 0) - kind * prod(shape)
    return {name: (size, size) for name, size in raw.items()}


def check_scales(name: str, planes: Sequence[Plane]) -> None:
    """Raises ArtifactError for weights beyond float32, which no encoder writes. Codes that a device holds are left to it."""
    for plane in planes:
        with np.errstate(all="ignore"):
            most = prod(float(s.values().max(initial=0)) for s in (plane.row_scale, plane.col_scale) if s)
            if (
                not most < SAFE_SCALE
                and isinstance(plane.codes, np.ndarray)
                and not np.isfinite(plane.reconstruct()).all()
            ):
                raise ArtifactError(f"the scales of tensor {name!r} are out of range: the artifact is damaged")


def write(path: Path, data: bytes) -> None:
    """Write an artifact whole or not at all."""
    with files.replacing(path) as file:
        file.write(data)
