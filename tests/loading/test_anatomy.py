import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pgolf
from pgolf.cli import main
from pgolf.errors import CurvatureError
from pgolf.loading import anatomy
from tests.helpers import generator, toy_module, toy_state

NAMES = ["down.weight", "gain", "tok_emb.weight", "up.weight"]


@pytest.fixture
def artifact(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pgolf.pack(toy_state(), "a.pgolf", method="sdclip", rules=["*=int5"])
    pgolf.pack(toy_state(), "b.pgolf", method="sdclip", rules=["*=int6"], coder="brotli")
    return tmp_path / "a.pgolf"


def curvature(width=48):
    ids = torch.randint(0, 64, (2, 64), generator=generator())
    return pgolf.calibrate(toy_module(toy_state()), [ids])


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def test_every_byte_is_somebodys(artifact):
    facts = pgolf.inspect(artifact)
    assert [t["name"] for t in facts["tensors"]] == NAMES
    assert facts["bytes"] == artifact.stat().st_size
    assert facts["shared_bytes"] + sum(t["bytes"] for t in facts["tensors"]) == pytest.approx(facts["bytes"])
    assert 28 < facts["shared_bytes"] < 900
    assert sum(row["bytes"] for row in facts["layers"]) == pytest.approx(sum(t["bytes"] for t in facts["tensors"]))
    for t in facts["tensors"]:
        if "histogram" in t:
            assert sum(t["histogram"]["counts"]) == t["weights"]
            assert max(map(abs, t["code_range"])) <= 15
    json.dumps(facts, allow_nan=False)


def test_coding_what_was_decoded_gives_the_file_again(artifact):
    from pgolf.loading import dense
    from pgolf.packer.format.artifact import encode

    for path, coder in (("a.pgolf", "rans"), ("b.pgolf", "brotli")):
        entries, meta = dense.read(path)
        assert encode(entries, meta, coder).data == (artifact.parent / path).read_bytes()


def test_a_histogram_widens_until_it_holds_nearly_all():
    narrow = anatomy.histogram(np.array([-1, 0, 0, 1, 9, *[0] * 95]))
    assert narrow["width"] == 1
    assert narrow["counts"][7:10] == [1, 97, 1]
    assert narrow["counts"][16] == 1
    wide = anatomy.histogram(np.arange(-64, 65))
    assert wide["width"] == 8
    assert wide["counts"][8] == 8
    assert sum(wide["counts"]) == 129


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blocks.3.attn.c_q.weight", "blocks.3"),
        ("h.11.mlp", "h.11"),
        ("tok_emb.weight", "tok_emb.weight"),
        ("w1", "w1"),
    ],
)
def test_layers_are_named_by_their_number(name, layer):
    assert anatomy.layer_of(name) == layer


def test_layers_stand_in_the_order_of_their_numbers(tmp_path):
    state = {f"h.{i}.w": torch.randn(8, 8, generator=generator(i)) for i in (10, 9, 2)}
    pgolf.pack(state, tmp_path / "m.pgolf", method="rtn")
    assert [row["layer"] for row in pgolf.inspect(tmp_path / "m.pgolf")["layers"]] == ["h.2", "h.9", "h.10"]


def test_curvature_shares_sum_to_one_and_foreign_ones_are_refused(artifact, tmp_path):
    facts = pgolf.inspect(artifact, curvature())
    assert sum(t.get("curvature_share") or 0 for t in facts["tensors"]) == pytest.approx(1)
    pgolf.pack({"x.weight": torch.randn(64, 64, generator=generator())}, tmp_path / "x.pgolf", method="rtn")
    with pytest.raises(CurvatureError, match="another model"):
        pgolf.inspect(tmp_path / "x.pgolf", curvature())


def test_diff_measures_what_lies_between_two_artifacts(artifact):
    facts = pgolf.diff("a.pgolf", "b.pgolf")
    a, b = pgolf.load("a.pgolf"), pgolf.load("b.pgolf")
    for row in facts["tensors"]:
        x, y = a[row["name"]], b[row["name"]]
        assert row["distance"] == pytest.approx(float((x - y).norm() / x.norm()), rel=1e-4, abs=1e-9)
    assert all(row["distance"] == 0 for row in pgolf.diff("a.pgolf", "a.pgolf")["tensors"])
    assert facts["bytes"] == [artifact.stat().st_size, (artifact.parent / "b.pgolf").stat().st_size]


def test_diff_names_what_only_one_side_has(artifact):
    pgolf.pack({"gain": torch.ones(48), "new": torch.ones(3)}, "c.pgolf", method="rtn")
    rows = {row["name"]: row for row in pgolf.diff("a.pgolf", "c.pgolf")["tensors"]}
    assert rows["new"]["a"] is None
    assert rows["up.weight"]["b"] is None
    assert rows["gain"]["distance"] > 0
    pgolf.pack({"else": torch.ones(3)}, "d.pgolf", method="rtn")
    assert "no tensor in common" in run("diff", "a.pgolf", "d.pgolf", code=2).stderr


def test_the_commands_show_it(artifact):
    curvature().save("c.safetensors")
    out = run("inspect", "a.pgolf", "--curvature", "c.safetensors", "--html", "a.html").stdout
    assert "up.weight" in out
    assert "█" in out
    page = (artifact.parent / "a.html").read_text()
    assert "tok_emb.weight" in page
    assert "--force" in run("inspect", "a.pgolf", "--html", "a.html", code=2).stderr
    assert "0.0000" in run("diff", "a.pgolf", "a.pgolf").stdout
    assert json.loads(run("diff", "a.pgolf", "b.pgolf", "--json").stdout)["tensors"]
    assert "not a pgolf artifact" in run("diff", "a.pgolf", "a.html", code=3).stderr
