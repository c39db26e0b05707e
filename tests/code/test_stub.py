"""The stub runs where nothing of pgolf, torch or numba can be imported, and gives the bits that pgolf.load gives."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from pgolf.code import script as scripts
from pgolf.code import stub
from pgolf.code.minify import minified
from pgolf.errors import ArtifactError
from pgolf.fitting import packing
from pgolf.loading import dense
from pgolf.packer import weights
from pgolf.packer.coder.trellis import next_states
from pgolf.packer.format import artifact
from pgolf.packer.format.artifact import DTYPE_SIZES, Entry
from pgolf.packer.plane import HALF, Plane, Scale, Spread
from pgolf.quant.settings import Settings

PROGRAM = """
import pickle, sys
for blocked in ("pgolf", "numba", "torch", "scipy", "zstandard"):
    sys.modules[blocked] = None
exec(open(sys.argv[1]).read())
pickle.dump(load(sys.argv[2]), open(sys.argv[3], "wb"))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("stub") / "stub.py"
    path.write_text(stub.source())
    return path


def run(script, data, folder):
    """What the stub loads in a process of its own."""
    (folder / "m.pgolf").write_bytes(data)
    files = [str(script), str(folder / "m.pgolf"), str(folder / "out")]
    subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM, *files], check=True, capture_output=True, text=True)
    return pickle.loads((folder / "out").read_bytes())


def as_tensor(flat, stored, shape, dtype):
    return torch.from_numpy(flat).view(getattr(torch, stored)).reshape(shape).to(getattr(torch, dtype))


def bits(tensor):
    return tensor.clone().flatten().view(torch.uint8)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        got = as_tensor(*found[name])
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        assert bits(got).equal(bits(tensor)), name


def planes(rng):
    """Planes of every kind: wide, sparse, empty, with each kind of scale, with a trellis and without."""

    def codes(rows, cols, sigma):
        return np.rint(rng.normal(0, sigma, (rows, cols)) * np.exp(rng.normal(0, 0.5, rows))[:, None]).astype(np.int32)

    def scale(size, per_octave):
        return Scale.nearest(rng.uniform(0.01, 2, size), per_octave)

    yield "usual", Plane(codes(300, 40, 2.0), scale(300, 8), scale(40, 8))
    yield "tall", Plane(codes(2100, 5, 4.0), scale(2100, HALF))
    yield "wide codes", Plane(codes(90, 30, 3000.0), scale(90, 64), scale(30, HALF))
    yield "huge codes", Plane(rng.integers(-(2**31), 2**31, (20, 9)).astype(np.int32))
    yield "rare codes", Plane(np.where(rng.random((200, 50)) < 1e-3, 10**6, 0).astype(np.int32))
    yield "zeros", Plane(np.zeros((40, 40), np.int32), scale(40, 1))
    yield "empty", Plane(np.zeros((0, 7), np.int32), None, scale(7, 4))
    yield "no columns", Plane(np.zeros((7, 0), np.int32), scale(7, 4))


def trellis_plane(rng, rows, cols, states=8):
    successors = next_states(states)
    spread = Spread(rng.integers(-9, 26, rows).astype(np.int32), rng.integers(-3, 4, cols).astype(np.int32))
    sums = spread.rows[:, None] + spread.cols
    codes = 2 * np.rint(rng.normal(0, 1, (rows, cols)) * np.exp2(sums / 4 - 1)).astype(np.int64)
    state = np.zeros(cols, np.int64)
    for i in range(rows):
        state = state * (i % 1024 > 0)
        on = sums[i] >= 2
        codes[i] += state & 1 & on
        state = np.where(on, successors[state, codes[i] >> 1 & 1], state)
    return Plane(codes.astype(np.int32), Scale.nearest(rng.uniform(1, 2, rows), 8), None, states, 2, spread)


def stack(whole):
    """Three tensors in the rows of one matrix; the parts' names do not follow the first one's at once."""
    parts = {"heads.0": slice(0, 20), "tops.10": slice(20, 21), "tops.9": slice(21, 60)}
    made = {}
    for name, rows in parts.items():
        part = whole.part(rows)
        home = "heads.0" if rows.start else None
        made[name] = Entry("float16", part.codes.shape, planes=(part,), part_of=home)
    return made


def big_integers(rng):
    """Values that float32 would round."""
    return Plane(rng.integers(-(2**31), 2**31, (20, 9)).astype(np.int32))


def entries(rng):
    found = {name: Entry("float32", p.codes.shape, planes=(p,)) for name, p in planes(rng)}
    bank = tuple(trellis_plane(rng, 50, 12) for _ in range(3))
    found |= {
        "trellis": Entry("bfloat16", (1100, 13), planes=(trellis_plane(rng, 1100, 13),)),
        "bank": Entry("float16", (3, 50, 12), planes=bank),
        "vector": Entry("float32", (1100,), planes=(trellis_plane(rng, 1100, 1),)),
        "tied": Entry("float32", (300, 40), alias="usual"),
        **stack(trellis_plane(rng, 60, 12)),
        "cast": Entry("float32", (9,), raw=rng.normal(size=9).astype("<f2").tobytes(), stored="float16"),
        "scalar": Entry("float32", (), raw=np.float32(1.5).tobytes()),
        "nothing": Entry("float32", (0, 3), raw=b""),
        "bytes": Entry("uint8", (2, 6, 4), planes=(Plane(rng.integers(0, 256, (2, 24)).astype(np.int32)),)),
        "counts": Entry("int64", (2, 20, 9), planes=tuple(big_integers(rng) for _ in range(2))),
    }
    for dtype, size in DTYPE_SIZES.items():
        raw = rng.integers(0, 2 if dtype == "bool" else 100, 6 * size).astype(np.uint8).tobytes()
        found[f"kept {dtype}"] = Entry(dtype, (2, 3), raw=raw)
    return found


def test_every_kind_of_tensor(script, tmp_path):
    made = artifact.encode(entries(np.random.default_rng(0))).data
    (tmp_path / "m.pgolf").write_bytes(made)
    assert_same(run(script, made, tmp_path), dense.load(tmp_path / "m.pgolf"))


@pytest.mark.parametrize("method", ["auto", "gptq", "sdclip", "rtn"])
def test_what_pack_writes(script, tmp_path, method):
    generator = torch.Generator().manual_seed(0)
    state = {"w": torch.randn(200, 64, generator=generator), "b": torch.randn(64, generator=generator).bfloat16()}
    state |= {"tied": state["w"], "bank": torch.randn(3, 32, 64, generator=generator).half()}
    for trellis in (0, 8) if method == "auto" else (0,):
        made = packing.pack(state, tmp_path / "m.pgolf", method=method, settings=Settings(trellis=trellis))
        assert_same(run(script, made.data, tmp_path), dense.load(tmp_path / "m.pgolf"))


def test_an_artifact_of_nothing(script, tmp_path):
    assert run(script, artifact.encode({}).data, tmp_path) == {}


def test_with_torch_it_gives_tensors(script, tmp_path):
    (tmp_path / "m.pgolf").write_bytes(artifact.encode(entries(np.random.default_rng(1))).data)
    space: dict = {}
    exec(script.read_text(), space)
    expected = dense.load(tmp_path / "m.pgolf")
    for load in (space["load"], weights.load):
        found = load(tmp_path / "m.pgolf", torch)
        assert found["tied"] is found["usual"]
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape
            assert bits(found[name]).equal(bits(tensor))


def test_damage_is_refused(script, tmp_path):
    space: dict = {}
    exec(script.read_text(), space)
    made = artifact.encode({"w": Entry("float32", (40, 30), planes=(Plane(np.eye(40, 30, dtype=np.int32)),))}).data
    for at in range(0, len(made), 5):
        (tmp_path / "m.pgolf").write_bytes(made[:at] + bytes([made[at] ^ 4]) + made[at + 1 :])
        with pytest.raises(Exception, match=r"."):
            space["load"](tmp_path / "m.pgolf")
        with pytest.raises(ArtifactError):
            weights.load(tmp_path / "m.pgolf")


def test_it_is_small_and_the_same_every_time():
    assert stub.source() == stub.source()
    small = minified(stub.source().encode(), "stub")
    alone = min(len(scripts.literal(data)) for _, data in scripts.compressed(small))
    assert alone + len("#coding:l1\nimport brotli;exec(brotli.decompress())") <= 3072
    plain = b"print('a script that is long enough to be worth packing')\n" * 20
    assert len(scripts.self_extracting(stub.source().encode() + plain)) - len(scripts.self_extracting(plain)) <= 3072
