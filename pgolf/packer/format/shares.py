"""What each tensor adds to an artifact, by what it holds; all of it adds up to the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pgolf.packer.coder import general
from pgolf.packer.format import artifact, container
from pgolf.packer.format.artifact import Entry


@dataclass(frozen=True)
class Shares:
    """tensors: name -> bytes. headers: name -> bytes of them that its description takes. shared: bytes that belong to no
    single one: preamble, configuration, tables, lane ends."""

    tensors: dict[str, float]
    headers: dict[str, float]
    shared: float


def of(data: bytes, entries: Mapping[str, Entry], coded_bits: Mapping[str, float]) -> Shares:
    """The shares of an artifact's tensors. coded_bits: `Encoded.tensor_bits`.

    A coded tensor has the bits of its codes and scales, a kept one what it adds to the kept ones of its item size before
    it (by name: of equal masks the first pays, see general.shares), and every one what its description adds to the header.
    """
    head, stored, _ = container.parse(data)
    kept, headers = _kept(entries, stored), _described(head, container.header_size(data))
    own = {name: coded_bits.get(name, 0.0) / 8 + kept.get(name, 0.0) + headers[name] for name in sorted(entries)}
    return Shares(own, headers, len(data) - sum(own.values()))


def _kept(entries: Mapping[str, Entry], stored: Mapping[str, container.Stored]) -> dict[str, float]:
    """Kept tensor -> its bytes in the compressed section."""
    found: dict[str, float] = {}
    raw = {name: entries[name] for name in sorted(entries) if entries[name].raw}
    for section, (data, codec, shuffle, _) in stored.items():
        mine = {name: entry.raw or b"" for name, entry in raw.items() if artifact.raw_section(entry) == section}
        found |= zip(mine, general.shares(list(mine.values()), len(data), codec, shuffle), strict=True)
    return found


def _described(head: Mapping[str, Any], size: int) -> dict[str, float]:
    """Tensor -> bytes of the stored header, which has `size`, that its record and those of its planes take."""
    records = {record[0]: record for record in head["tensors"]}
    planes: Iterator[Any] = iter(head["planes"])
    told = [[record, *islice(planes, max(record[3], 0))] for record in records.values()]
    rest = {name: value for name, value in head.items() if name not in {"tensors", "planes"}}
    pieces = [container.canonical(value) for value in (rest, *told)]
    return dict(zip(records, general.shares(pieces, size)[1:], strict=True))
