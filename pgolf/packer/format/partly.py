"""An artifact whose tensors are decoded one by one, when they are asked for.

The header is read and held against the file when it is opened. The file has one checksum for all of its bytes: it is
looked at when the first tensor is asked for, so that names and shapes can be read of a damaged file, and no weight. What
only the decoding of everything would show (the checksum of all codes) is not looked at; the coder's lanes tell by their
ends whether they were read rightly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from pgolf.errors import ArtifactError
from pgolf.packer.backends import registry
from pgolf.packer.coder import codec, general
from pgolf.packer.coder.partly import Matrices
from pgolf.packer.coder.stream import Layout
from pgolf.packer.format import artifact, container, plain
from pgolf.packer.format.artifact import Entry
from pgolf.packer.plane import Plane

LARGE = ("codes.", "raw.")  # sections that are only looked into, however they are stored


class Partly:
    """An artifact's bytes, in memory or mapped; see above. Raises ArtifactError."""

    def __init__(self, data: container.Data) -> None:
        self._data, self._sound = data, False
        with artifact.told_as_damage():
            self.head, stored, _ = container.parse(data, whole=False)
            artifact.check_head(self.head, {name: size for name, (_, _, _, size) in stored.items()})
            self._sections = _Sections(stored)
            self._records = {record[0]: record for record in self.head["tensors"]}
            self._planes, self._offsets, self._rows = _places(self.head)
            artifact.check_version(data, bool(self._rows.keys() - self._planes.keys()))
            self._coded: tuple[list[Any], Matrices] | None = None
            self._last: tuple[str, list[Plane]] | None = None  # of a matrix that others have rows of

    @property
    def names(self) -> list[str]:
        """Of all tensors, in the order of the file."""
        return list(self._records)

    def dtype(self, name: str) -> str:
        """Of a tensor, as its name. KeyError where there is no such tensor."""
        dtype: str = self._records[name][1]
        return dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor. KeyError as above."""
        return tuple(self._records[name][2])

    def home(self, name: str) -> str:
        """The name whose storage a tensor has: its own, or of what it is tied to."""
        other: str = self._records[name][4]
        return name if self._records[name][3] or name in self._rows else other

    def entry(self, name: str) -> Entry:
        """What `artifact.decode` has under a name; of the others nothing is kept."""
        _, dtype, shape, kind, other, note = self._records[name]
        if not kind and name not in self._rows:
            return Entry(dtype, tuple(shape), alias=other, note=note)
        if not self._sound:
            container.refuse_damaged(self._data)
            self._sound = True
        with artifact.told_as_damage():
            if kind < 0:
                first, size = self._offsets[name], -kind * prod(shape)
                raw = bytes(self._sections[f"raw.{-kind}"][first : first + size]) if size else b""
                return Entry(dtype, tuple(shape), raw=raw, stored=other or None, note=note)
            planes = self._decoded(other or name)
            if name in self._rows:
                planes = [planes[0].part(self._rows[name])]
            artifact.check_scales(name, planes)
            return Entry(dtype, tuple(shape), tuple(planes), part_of=other or None, note=note)

    def _decoded(self, name: str) -> list[Plane]:
        """The planes of a tensor, with the rows of those that follow in them."""
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        numbers = self._planes[name]
        planes = self._rans(numbers) if self.head["coder"] == "rans" else plain.read(self.head, self._sections, numbers)
        self._last = (name, planes) if name in self._rows else None
        return planes

    def _rans(self, numbers: range) -> list[Plane]:
        records = self.head["planes"]
        if self._coded is None:
            codec.check_amounts(records, self._sections)
            described = codec.descriptions(records, self._sections, registry.loops())
            layouts = [Layout(spread, *record[2:5]) for record, (_, _, spread) in zip(records, described, strict=True)]
            self._coded = described, Matrices(self._sections, "codes", layouts, registry.loops(), registry.host())
        described, matrices = self._coded
        return [
            Plane(matrices.matrix(i), row, col, records[i][2], records[i][3], spread)
            for i, (row, col, spread) in ((i, described[i]) for i in numbers)
        ]


def _places(head: Mapping[str, Any]) -> tuple[dict[str, range], dict[str, int], dict[str, slice]]:
    """(tensor -> its planes, kept tensor -> where it begins in its section, tensor -> its rows of a matrix that it shares)."""
    planes, offsets, rows = dict[str, range](), dict[str, int](), dict[str, slice]()
    at, taken, filled = 0, dict[str, int](), dict[str, int]()
    for name, _, shape, kind, other, _ in head["tensors"]:
        if kind < 0:
            offsets[name] = taken.get(f"raw.{-kind}", 0)
            taken[f"raw.{-kind}"] = offsets[name] - kind * prod(shape)
            continue
        if kind > 0:
            planes[name] = range(at, at + kind)
            at += kind
        home = name if kind else other
        high, wide = head["planes"][planes[home].start][:2] if home in planes else (0, 0)
        if (kind == 1 and prod(shape) < high * wide) or home in filled:
            start = filled.get(home, 0)
            filled[home] = start + prod(shape) // wide
            rows[name] = slice(start, filled[home])
    return planes, offsets, rows


class _Sections(Mapping[str, Any]):
    """The raw sections by name, each decompressed when it is first looked at; one that is stored as it is stays where it is."""

    def __init__(self, stored: Mapping[str, container.Stored]) -> None:
        self._stored, self._raw = stored, dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        if name not in self._raw:
            raw = _decompressed(*self._stored[name])
            self._raw[name] = raw if name.startswith(LARGE) else bytes(raw)
        return self._raw[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _decompressed(data: Any, codec_number: int, shuffle: int, size: int) -> Any:
    if general.BY_NUMBER[codec_number] == "stored" and shuffle == 1:
        if len(data) != size:
            raise ArtifactError("a stored section has the wrong size: the artifact is damaged")
        return data
    return general.decompress(bytes(data), codec_number, shuffle, size)
