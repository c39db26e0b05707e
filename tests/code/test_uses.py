"""What a script uses, found without running it."""

import ast
import sys

import pytest
import torch
from torch import nn

import pgolf
from pgolf.code import payload, script, stand_in
from pgolf.code.uses import pgolf_uses
from tests.helpers import toy_module, toy_state


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pgolf\npgolf.load('a')", ["2 load"]),
        ("import pgolf as pg\npg.pack(1)\ndef f():\n    return pg.load", ["2 pack", "4 load"]),
        ("from pgolf import load as get, pack\nget('a')", ["1 load", "1 pack", "2 load"]),
        ("import pgolf.quant\npgolf.quant.METHODS", ["1 quant", "2 quant"]),
        ("from pgolf.quant import METHODS", ["1 quant"]),
        ("import pgolf\nf(pgolf)", ["2 "]),
        ("import pgolf\ngetattr(pgolf, 'pack')", ["2 "]),
        ("import importlib\nimportlib.import_module('pgolf.train')", ["2 train"]),
        ("import pgolf as p\ndef f(params):\n    return [p for p in params]\nlambda p: p + 1", []),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pgolf import Report", []),
        ("import pgolf\nif False:\n    pgolf.pack()\nelse:\n    pgolf.load('a')", ["5 load"]),
        ("def f():\n    import pgolf\n    pgolf.calibrate()", ["3 calibrate"]),
        ("async def f(*, pgolf):\n    pgolf.calibrate()", []),
    ],
)
def test_parts_of_pgolf_are_found(source, found):
    assert [f"{use.line} {use.name}" for use in pgolf_uses(ast.parse(source))] == found


@pytest.fixture
def served(tmp_path, monkeypatch):
    """What a script with the stand-in in it calls pgolf."""
    monkeypatch.chdir(tmp_path)
    state = toy_state()
    pgolf.pack(state | {"tied": state["up.weight"]}, "m.pgolf", method="rtn")
    text = "import pgolf\npgolf.load('m.pgolf', device='cpu')\npgolf.load_into('m.pgolf', None)\n"
    made = stand_in.with_decoder(ast.parse(text)).decode()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pgolf", pgolf)
        exec(made[: made.index("import pgolf")], {})
        return sys.modules["pgolf"]


def test_load_serves_a_device_and_keeps_ties(served):
    found = served.load("m.pgolf", device="cpu")
    assert served is not pgolf
    assert found["tied"] is found["up.weight"]
    expected = pgolf.load("m.pgolf")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_load_into_fills_modules_wrapped_or_not(served):
    pgolf.pack(toy_state(), "n.pgolf", method="rtn")
    for word in ("", "module", "_orig_mod"):  # as DDP and torch.compile name what they wrap
        bare = toy_module(toy_state(1))
        model = nn.ModuleDict({word: bare}) if word else bare
        assert served.load_into("n.pgolf", model) is model
        assert all(torch.equal(bare.state_dict()[n], t) for n, t in pgolf.load("n.pgolf").items())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        served.load_into("m.pgolf", toy_module(toy_state()))
    with pytest.raises(RuntimeError, match="Missing key"):
        served.load_into("n.pgolf", nn.Sequential(nn.Linear(2, 2)))


B85 = """import lzma as L,base64 as B
exec(L.decompress(B.b85decode({data!r}),format=L.FORMAT_RAW,filters=[{{"id":L.FILTER_LZMA2}}]))"""


def test_scripts_that_unpack_themselves_are_opened():
    import base64
    import lzma
    import zlib

    source = b"import torch\nprint('hello')\n" * 3
    raw = lzma.compress(source, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])
    b85, b64 = base64.b85encode(raw).decode(), base64.b64encode(zlib.compress(source)).decode()
    for text in (
        B85.format(data=b85),
        f"from zlib import *\nimport zlib as z\nfrom base64 import b64decode as d\nD={b64!r}\nexec(z.decompress(d(D)).decode())",
        f"exec(compile(__import__('zlib').decompress(__import__('base64').b64decode({b64!r})),'x','exec'))",
        script.extracting(source).decode("latin-1"),
    ):
        raw = text.encode("latin-1")
        assert payload.inner(raw) == source
        assert payload.inner(script.extracting(raw) if raw.isascii() else raw) == source


@pytest.mark.parametrize(
    "text",
    [
        "print(1)",
        "exec(open('a').read())",
        "D=D\nexec(D)",
        "exec(f(b'x'))",
        "def (:",
        "import zlib\nexec(zlib.decompress(b'x'))",
    ],
)
def test_other_scripts_are_not(text):
    assert payload.inner(text.encode()) is None
