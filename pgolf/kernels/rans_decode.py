"""`rans_decode`: the coder's lanes to codes, a thread a lane, the same bits as `pgolf.packer.coder.rans.decode`.

What will surprise you:
* A lane's next symbol waits for its last, and there are only a few thousand lanes. So what counts is the number of
  loads that wait for each other, three a symbol, and that all three find their data in the first cache: a table is 512
  numbers of pages, pages of 64 symbols (those of one symbol shared by all tables), and 256 frequencies.
* Nothing else of a symbol waits for the lane's state: its context is fetched a symbol ahead, and the next word of the
  lane is fetched whether it will be needed or not.
* A trellis state moves by shift and exclusive or (docs/FORMAT.md), because a table would be a fourth load.
* A damaged lane reads its own words to the last word of all and no further; where it ends gives it away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.kernels.device import jit, jit_for_any, tl, triton
from pgolf.kernels.launch import launch
from pgolf.kernels.staging import together
from pgolf.kernels.strips import Strips
from pgolf.packer.coder import rans
from pgolf.packer.coder.layout import TABLE, CodedLanes, contexts_by_strip
from pgolf.packer.coder.loops import Loops

Array = NDArray[Any]

DOUBLE = 1 << 9  # context bit: the code is 2·value + parity (a trellis lattice), not the value itself
PAGE = 64  # slots; of a table of 2^15 slots few pages hold more than one symbol
SCHEDULERS = 4  # of a processor of the GPU: each runs a warp at a time


class Decoded(NamedTuple):
    """codes: int16 [N] in strip order, ESCAPED where the symbol was an escape. strips: where they lie and of which
    classes they are, for kernels that go on with them; None where the processor decoded."""

    codes: Tensor
    strips: Strips | None


def rans_decode(coded: CodedLanes, device: torch.device, loops: Loops | None = None) -> Decoded:
    """The codes on `device`, as `pgolf.packer.coder.rans.decode`.

    loops: what the processor may use, where it is the one. Raises ArtifactError if a lane does not end where it must.
    """
    if device.type == "cuda":
        return decode_with_kernel(coded, device)
    return Decoded(rans_decode_reference(coded, device, loops), None)


def rans_decode_reference(coded: CodedLanes, device: torch.device, loops: Loops | None = None) -> Tensor:
    """See `rans_decode`."""
    return torch.from_numpy(rans.decode(coded, loops)).to(device)


def decode_with_kernel(coded: CodedLanes, device: torch.device) -> Decoded:
    """The kernel, whatever the device, and the check of every lane's end."""
    rans.check_lanes(coded)
    given = LanesOnDevice.of(coded, device)
    codes, final, read = launch_rans_decode(given)
    ends = torch.stack([final, read]).cpu().numpy()
    rans.check_ends(coded, *ends)
    return Decoded(codes, given.strips)


@dataclass(frozen=True)
class Tables:
    """pages: int32 [T · 512], the page of each 64 slots; symbols: uint8 [P · 64]; entries: int32 [T · 256],
    frequency << 16 | cumulative frequency. The first 256 pages hold one symbol each."""

    pages: Tensor
    symbols: Tensor
    entries: Tensor

    @staticmethod
    def of(freqs: Array) -> Tables:
        """On the host. freqs: int64 [T, 256], rows sum to 2^15."""
        slots = np.tile(np.arange(256, dtype=np.uint8), len(freqs)).repeat(freqs.ravel()).reshape(-1, PAGE)
        mixed = slots[:, 0] != slots[:, -1]
        pages = np.where(mixed, 255 + np.cumsum(mixed), slots[:, 0]).astype(np.int32)
        symbols = np.concatenate([np.arange(256, dtype=np.uint8).repeat(PAGE), slots[mixed].ravel()])
        cumulative = np.cumsum(freqs, axis=1, dtype=np.int32) - freqs
        entries = (freqs.astype(np.int32) << 16 | cumulative).ravel()
        return Tables(*(torch.from_numpy(a) for a in (pages, symbols, entries)))


@dataclass(frozen=True)
class LanesOnDevice:
    """All that the kernel reads, on the device.

    states: int32 [K]; first_word: int64 [K + 1], where each lane's words begin, and the end; words: int16, one more than
    there are. bounds: int64 [K + 1], symbols of each lane; first_strip: int64 [K]. lookup: int16, contexts with DOUBLE,
    at what `strips` says of each symbol. feedback, branch: of the trellis (0 where there is none).
    """

    states: Tensor
    first_word: Tensor
    words: Tensor
    bounds: Tensor
    first_strip: Tensor
    strips: Strips
    lookup: Tensor
    tables: Tables
    feedback: int
    branch: int

    @staticmethod
    def of(coded: CodedLanes, device: torch.device) -> LanesOnDevice:
        """Of what the packer decodes, in one copy."""
        bounds = coded.bounds
        base, first_row, rows, lookup = contexts_by_strip(coded)
        arrays = (
            coded.states.astype(np.uint32).view(np.int32),
            np.concatenate([[0], coded.ends()]),
            np.append(coded.words, np.zeros(1, np.uint16)).astype(np.uint16, copy=False).view(np.int16),
            bounds,
            np.searchsorted(coded.starts, bounds[:-1]),
            coded.starts,
            base,
            first_row,
            rows.view(np.int16),
            _marked(lookup, coded.codes).view(np.int16),
        )
        tables = Tables.of(coded.freqs)
        host = [*map(torch.from_numpy, arrays), tables.pages, tables.symbols, tables.entries]
        states, first_word, words, ends, first, starts, base_of, first_rows, row, contexts, *of_tables = together(
            host, device
        )
        following, trellis = coded.transitions, len(coded.transitions) > rans.ONE_STATE
        return LanesOnDevice(
            states,
            first_word,
            words,
            ends,
            first,
            Strips(starts, base_of, first_rows, row, int(coded.starts[-1])),
            contexts,
            Tables(*of_tables),
            feedback=int(following[1 << 3 | 2]) if trellis else 0,
            branch=int(following[2 | 1]) if trellis else 0,
        )


def _marked(lookup: Array, codes: Array) -> Array:
    """uint16: contexts, with DOUBLE where symbol 129, the value 1, does not stand for the code 1."""
    double = np.append(codes.reshape(-1, 256)[:, 129] != 1, False)
    marked: Array = lookup | DOUBLE * double.take(lookup & TABLE, mode="clip").astype(np.uint16)
    return marked


def launch_rans_decode(given: LanesOnDevice, block: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel, whatever the device: (codes int16 [N], final states int64 [K], words read up to int64 [K])."""
    lanes, device, strips = len(given.states), given.states.device, given.strips
    codes = torch.empty(given.strips.symbols, dtype=torch.int16, device=device)
    states, ends = (torch.empty(lanes, dtype=torch.int64, device=device) for _ in range(2))
    if lanes:
        block = block or lanes_of_a_program(lanes, device)
        launch(
            rans_decode_kernel, (triton.cdiv(lanes, block),), given.states, given.first_word, given.words, given.bounds,
            given.first_strip, strips.starts, strips.base, strips.first_row, strips.rows, given.lookup,
            given.tables.pages, given.tables.symbols, given.tables.entries, codes, states, ends, lanes,
            len(given.words) - 1, given.feedback, given.branch, BLOCK=block, num_warps=1,
        )  # fmt: skip
    return codes, states, ends


def lanes_of_a_program(lanes: int, device: torch.device) -> int:
    """8 to 32: as few as it takes to give every scheduler work, for lanes of one warp wait for each other's loads."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return min(32, max(8, int(triton.next_power_of_2(lanes // (SCHEDULERS * processors)))))


@jit_for_any("lanes", "last_word", "feedback", "branch")
def rans_decode_kernel(  # type: ignore[no-untyped-def]  # Triton gives the types
    states, first_word, words, bounds, first_strip, starts, base, first_row, rows, lookup, pages, symbols, entries,
    codes, final, ends, lanes, last_word, feedback, branch, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK lanes a program, a symbol of each at every step; see `rans_decode`."""
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = lane < lanes
    x = tl.load(states + lane, known, other=0).to(tl.uint32, bitcast=True)
    pointer = tl.load(first_word + lane, known, other=0)
    at = tl.load(bounds + lane, known, other=0)
    stop = tl.load(bounds + lane + 1, known, other=0)
    strip = tl.load(first_strip + lane, known, other=0) - 1
    edge = at
    column = tl.zeros((BLOCK,), tl.int64)
    row = tl.zeros((BLOCK,), tl.int64)
    node = tl.zeros((BLOCK,), tl.int32)
    context, _, strip, edge, column, row = ahead(
        starts, base, first_row, rows, lookup, at, stop, strip, edge, column, row
    )
    steps = tl.max(stop - at, 0)
    step = steps * 0
    while step < steps:
        running = at < stop
        word = tl.load(words + tl.minimum(pointer, last_word), running, other=0).to(tl.int32) & 0xFFFF
        following, turned, strip, edge, column, row = ahead(
            starts, base, first_row, rows, lookup, at + 1, stop, strip, edge, column, row
        )
        parity = tl.where((context & 0x100) != 0, node & 1, 0)
        table = (context & 0xFF) + parity
        slot = (x & 0x7FFF).to(tl.int32)
        page = tl.load(pages + table * 512 + (slot >> 6), running, other=0)
        symbol = tl.load(symbols + page * 64 + (slot & 63), running, other=0).to(tl.int32)
        entry = tl.load(entries + table * 256 + symbol, running, other=0)
        reduced = (entry >> 16).to(tl.uint32) * (x >> 15) + (slot - (entry & 0xFFFF)).to(tl.uint32)
        need = running & (reduced < 65536)
        x = tl.where(running, tl.where(need, (reduced << 16) | word.to(tl.uint32), reduced), x)
        pointer += need.to(tl.int64)
        value = tl.where((context & 0x200) != 0, 2 * (symbol - 128) + parity, symbol - 128)
        tl.store(codes + at, tl.where(symbol < 2, -32768, value).to(tl.int16), running)
        moved = (node >> 1) ^ ((node & 1) * feedback) ^ ((symbol & 1) * branch)
        node = tl.where(turned, 0, tl.where((context & 0x100) != 0, moved, node))
        context = following
        at += 1
        step += 1
    tl.store(final + lane, x.to(tl.int64), known)
    tl.store(ends + lane, pointer, known)


@jit
def ahead(starts, base, first_row, rows, lookup, at, stop, strip, edge, column, row):  # type: ignore[no-untyped-def]  # Triton gives the types
    """The context of symbol `at` of each lane, whether a strip begins there, and the strip, its end, column and row."""
    running = at < stop
    turned = running & (at == edge)
    strip = strip + turned.to(tl.int64)
    edge = tl.where(turned, tl.load(starts + strip + 1, turned, other=0), edge)
    column = tl.where(turned, tl.load(base + strip, turned, other=0), column)
    row = tl.where(turned, tl.load(first_row + strip, turned, other=0), row)
    of_row = tl.load(rows + row, running, other=0).to(tl.int64) & 0xFFFF
    context = tl.load(lookup + column + of_row, running, other=0).to(tl.int32) & 0xFFFF
    return context, turned, strip, edge, column, row + 1
