"""Codes made whole on a device: the integers of numpy, whatever the shapes, and damage is found before anything is read."""

import numpy as np
import pytest
import torch

from pgolf.errors import ArtifactError
from pgolf.kernels import rans_decode
from pgolf.loading import on_device
from pgolf.packer.coder import stream
from pgolf.packer.coder.stream import Layout
from pgolf.packer.coder.strips import to_strips
from tests.kernels.places import everywhere, poison
from tests.packer.test_stream import decoded, flat, scalar, walked


def with_(codes, layout, at, value):
    codes = codes.copy()
    codes.flat[at] = value
    return codes, layout


def only_escapes(rows, cols):
    return np.arange(rows * cols, dtype=np.int32).reshape(rows, cols) * 4001 - 70_000, Layout(flat(rows, cols, 0))


def zeros(rows, cols):
    return np.zeros((rows, cols), np.int32), Layout(flat(rows, cols, -30))


CASES = {
    "a row": [with_(*scalar(1, 37, 40.0), [3, 36], 99_999)],
    "a column": [scalar(1031, 1, 3.0), with_(*scalar(1031, 1, 300.0), [0, 1023, 1024, 1030], -(2**31))],
    "zeros": [zeros(5, 7), zeros(1, 1), zeros(0, 3), zeros(3, 0)],
    "only escapes": [only_escapes(3, 11), scalar(4, 4, 1.0), only_escapes(1, 1)],
    "wide and narrow": [scalar(9, 5, 2.0), scalar(13, 3, 9000.0), scalar(2, 2, 0.3), scalar(7, 3, 2**20)],
    "trellis": [walked(29, 7, 8), with_(*walked(31, 3, 8, seed=1), [], 0), scalar(6, 2, 500.0)],
    "nothing": [],
}


def through_kernels(monkeypatch, device):
    """A device that decodes with the kernels wherever it is."""
    monkeypatch.setattr(on_device, "rans_decode", lambda coded, place, _: rans_decode.decode_with_kernel(coded, place))
    return on_device.OnDevice(torch.device(device))


@everywhere
@pytest.mark.parametrize("name", CASES)
def test_the_integers_of_numpy(device, name, monkeypatch):
    codes, layouts = zip(*CASES[name], strict=True) if CASES[name] else ((), ())
    coded = stream.encode(codes, layouts, "x", 60)
    poison(device)
    found = decoded(coded, layouts, device=through_kernels(monkeypatch, device))
    for mine, wanted in zip(found, codes, strict=True):
        assert mine.shape == wanted.shape
        assert (mine.cpu().numpy() == wanted).all()


@everywhere
@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("escapes", lambda data: data[4:], "escapes are missing or left over"),
        ("escapes", lambda data: data + bytes(4), "escapes are missing or left over"),
        ("aside", lambda data: data[1:], "do not fit the codes"),
        ("aside", lambda data: data + bytes(1), "do not fit the codes"),
    ],
)
def test_damage(device, part, change, said, monkeypatch):
    codes, layouts = zip(with_(*scalar(11, 3, 900.0), [5], 2**30), scalar(3, 2, 1.0), strict=True)
    coded = stream.encode(codes, layouts, "x", 60)
    coded.sections[f"x.{part}"] = change(coded.sections[f"x.{part}"])
    with pytest.raises(ArtifactError, match=said):
        decoded(coded, layouts, device=through_kernels(monkeypatch, device))


def test_strips_of_several_blocks_are_turned_back():
    there = on_device.OnDevice(torch.device("cpu"))
    for shape in ((2048, 3), (2050, 2), (1024, 1), (1025, 4), (5, 0), (3000, 0), (0, 5)):
        matrix = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
        assert (there.from_strips(torch.from_numpy(to_strips(matrix)), shape).numpy() == matrix).all()
