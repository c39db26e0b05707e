from dataclasses import replace

import numpy as np
import pytest
import torch

from pgolf.errors import ArtifactError
from pgolf.kernels import rans_decode
from pgolf.kernels.rans_decode import LanesOnDevice, Tables, launch_rans_decode
from pgolf.loading.on_device import OnDevice
from pgolf.packer.coder import rans, stream
from pgolf.packer.coder.layout import LOW
from tests.kernels.places import everywhere, poison
from tests.packer.test_stream import decoded, scalar, walked


def coded_lanes(cases, lane_bytes):
    """What the packer hands to rans.decode when it decodes these matrices: kept and given on."""
    seen = []

    class Spy(OnDevice):
        def decode(self, coded, loops):
            seen.append(coded)
            return super().decode(coded, loops)

    layouts = [layout for _, layout in cases]
    coded = stream.encode([codes for codes, _ in cases], layouts, "x", lane_bytes)
    decoded(coded, layouts, device=Spy(torch.device("cpu")))
    return seen[0]


@pytest.fixture(scope="module")
def mixed():
    """Scalar and trellis matrices, escapes, bits put aside, ends of strips inside lanes. Small: the interpreter is slow."""
    return coded_lanes([scalar(11, 9, 2.0), walked(13, 12, 8), scalar(5, 0, 1.0), scalar(9, 8, 60.0)], 12)


def assert_same(coded, device, block=None):
    expected = rans.decode_lanes(replace(coded, words=np.append(coded.words, np.uint16(0))))
    poison(device)
    found = launch_rans_decode(LanesOnDevice.of(coded, torch.device(device)), block)
    for mine, wanted in zip(found, expected, strict=True):
        assert (mine.cpu().numpy() == wanted).all()


@everywhere
def test_the_bits_of_numpy(device, mixed):
    assert_same(mixed, device)


@everywhere
@pytest.mark.parametrize("block", [8, 32])
def test_damaged_words_do_what_they_do_in_numpy(device, mixed, block):
    """Random states and words, fewer words than are asked for: no read outside, the same wrong codes."""
    rng = np.random.default_rng(block)
    lanes = len(mixed.states)
    states = rng.integers(LOW, 1 << 32, lanes).astype(mixed.states.dtype)
    counts = np.where(np.arange(lanes) == 0, 40, 0).astype(mixed.counts.dtype)
    words = rng.integers(0, 1 << 16, 40).astype(np.uint16)
    assert_same(replace(mixed, states=states, counts=counts, words=words), device, block)


def test_a_page_of_one_symbol_is_shared():
    freqs = np.zeros((2, 256), np.int64)
    freqs[0, [0, 1, 200]] = 1, 1, (1 << 15) - 2
    freqs[1, [7, 9]] = 1 << 14
    tables = Tables.of(freqs)
    assert len(tables.symbols) == 64 * (256 + 1)
    pages = tables.symbols.view(-1, 64)[tables.pages.long()].view(2, -1)
    assert (np.bincount(pages[0], minlength=256) == freqs[0]).all()
    assert (np.bincount(pages[1], minlength=256) == freqs[1]).all()


def test_on_the_host_it_is_the_packers(mixed):
    codes, _ = rans_decode.rans_decode(mixed, torch.device("cpu"))
    assert (codes.numpy() == rans.decode(mixed)).all()


@everywhere
def test_a_lane_must_end_where_it_must(device, mixed, monkeypatch):
    """The check that a GPU's caller makes, on what the kernel returns."""
    place = torch.device(device)
    ends = launch_rans_decode(LanesOnDevice.of(replace(mixed, words=mixed.words ^ np.uint16(1)), place))
    monkeypatch.setattr(rans_decode, "launch_rans_decode", lambda _: ends)
    with pytest.raises(ArtifactError, match="do not end where they must"):
        rans_decode.decode_with_kernel(mixed, place)
    with pytest.raises(ArtifactError, match="missing or left over"):
        rans_decode.decode_with_kernel(replace(mixed, words=mixed.words[1:]), place)
