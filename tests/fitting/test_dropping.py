"""--drop: buffers that the class makes by itself are not stored, and nothing else can be left out."""

import json

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import pgolf
from pgolf.cli import main
from pgolf.errors import ArtifactError, ModelError, UsageError
from pgolf.models import blueprint, buffers, checkpoint, usermodel
from pgolf.packer.format import artifact
from tests.helpers import generator

CODE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(48, 48, bias=False)
        angles = torch.outer(torch.arange(128.0), 10000 ** -(torch.arange(16) / 16.0))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("mask", torch.tril(torch.ones(96, 96, dtype=torch.bool)))
        self.register_buffer("noise", torch.randn(40))
        self.register_buffer("steps", torch.tensor(0))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(64, 48)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
    def forward(self, ids):
        x = self.emb(ids)
        for block in self.blocks:
            x = x + block.fc(x) * block.cos.mean()
        return x @ self.emb.weight.T
"""
MADE_ALIKE = {f"blocks.{i}.{k}" for i in range(3) for k in ("cos", "mask")} | {"blocks.1.steps", "blocks.2.steps"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(CODE)
    model = net()
    model.blocks[0].steps += 7
    torch.save(model.state_dict(), "c.pt")
    return tmp_path


def net(seed=5):
    return usermodel.load("net.py:Net", seed=seed)


def read():
    return checkpoint.read("c.pt", like=net())


def run(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def test_what_a_fresh_module_has_bit_for_bit_is_known(folder):
    found = buffers.compared(read(), net(), lambda: net(1))
    assert found.rebuilt == MADE_ALIKE  # noise is drawn, and one counter has counted
    lucky = buffers.compared(read(), net(), net)
    assert {name for name in lucky.rebuilt if "noise" in name} == {"blocks.0.noise", "blocks.1.noise", "blocks.2.noise"}


def test_bits_decide_not_values(folder):
    state = torch.load("c.pt")
    state["blocks.1.steps"] = state["blocks.1.steps"].to(torch.int32)
    state["blocks.2.cos"] = torch.where(state["blocks.2.cos"] == 1, 1.0, state["blocks.2.cos"]).double()
    torch.save(state, "c.pt")
    found = buffers.compared(read(), net(), lambda: net(1))
    assert found.rebuilt == MADE_ALIKE - {"blocks.1.steps", "blocks.2.cos"}


def test_no_build_is_made_for_models_without_buffers(tmp_path):
    plain = nn.Linear(4, 4)
    found = checkpoint.from_mapping(plain.state_dict(), like=blueprint.of(plain))
    assert buffers.compared(found, plain, lambda: pytest.fail("built again")).rebuilt == frozenset()


def test_seeds_leave_the_global_generator_where_it_was(folder):
    before = torch.random.get_rng_state()
    assert not torch.equal(net(1).blocks[0].noise, net(2).blocks[0].noise)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dropped_buffers_are_the_modules_own_and_all_else_is_loaded(folder):
    whole = pgolf.pack(read(), "a.pgolf", method="rtn")
    report = pgolf.pack(read(), "b.pgolf", method="rtn", drop=["*.cos", "*.mask"])
    gone = {f"blocks.{i}.{k}" for i in range(3) for k in ("cos", "mask")}
    assert {each.name for each in report.dropped} == gone
    assert sum(each.num_bytes for each in report.dropped) == pytest.approx(
        whole.artifact_bytes - report.artifact_bytes, rel=0.05
    )
    assert pgolf.load("b.pgolf").keys() == torch.load("c.pt").keys() - gone
    assert pgolf.inspect("b.pgolf")["dropped"] == sorted(gone)
    assert pgolf.inspect("a.pgolf")["dropped"] == []
    for load in (pgolf.load_into, pgolf.load_module):
        other, same = net(9), net(9)
        load("b.pgolf", other)
        load("a.pgolf", same)
        for name, tensor in same.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), name
        assert other.blocks[0].steps == 7
    left = [fate for fate in report.account if fate.fate == "left out"]
    assert {fate.path for fate in left} == gone
    assert {fate.why for fate in left} == {"left out with --drop, the model's class makes it"}


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        ("*.fc.weight", "would leave out parameters, which no class makes again: blocks.0.fc.weight"),
        ("blocks.*", "parameters"),
        ("emb.weight", "name buffers only"),
        ("*.sin", "'*.sin' matches no tensor"),
    ],
)
def test_parameters_and_misses_are_refused(folder, drop, words):
    with pytest.raises(UsageError) as caught:
        pgolf.pack(read(), "b.pgolf", drop=["*.cos", drop])
    assert words in str(caught.value)
    assert not (folder / "b.pgolf").exists()


def test_without_a_module_nobody_knows_what_is_a_buffer(folder):
    with pytest.raises(UsageError, match=r"needs --model FILE\.py:NAME"):
        pgolf.pack("c.pt", None, drop="*.cos")
    assert pgolf.pack(net(), None, method="rtn", drop="*.cos").dropped[0].rebuilt is None


def test_one_tensor_of_several_names_stays_under_those_that_are_left(folder):
    """The masks of the three blocks are one tensor, stored under the name of the first."""
    report = pgolf.pack(read(), "b.pgolf", method="rtn", drop="blocks.0.mask")
    rows = {row.name: row for row in report.rows}
    assert rows["blocks.1.mask"].method == "kept as bool"
    assert rows["blocks.2.mask"].method == "shared with blocks.1.mask"
    assert torch.equal(pgolf.load("b.pgolf")["blocks.2.mask"], net().blocks[0].mask)
    assert {fate.name: fate.why for fate in report.account if fate.fate == "alias"}["blocks.2.mask"] == "blocks.1.mask"
    pgolf.pack(read(), "b.pgolf", method="rtn", drop="blocks.1.mask")
    assert (
        pgolf.inspect("b.pgolf")["tensors"][
            [t["name"] for t in pgolf.inspect("b.pgolf")["tensors"]].index("blocks.2.mask")
        ]["shared_with"]
        == "blocks.0.mask"
    )


def test_a_module_that_does_not_make_it_is_refused(folder):
    pgolf.pack(read(), "b.pgolf", method="rtn", drop="*.cos")

    def changed(*replacements):
        code = CODE
        for old, new in replacements:
            assert old in code
            code = code.replace(old, new)
        (folder / "other.py").write_text(code)
        return usermodel.load("other.py:Net")

    as_parameter = changed(('self.register_buffer("cos", angles.cos())', "self.cos = nn.Parameter(angles.cos())"))
    with pytest.raises(ModelError, match=r"blocks\.0\.cos \(--drop\), which is a parameter of Net"):
        pgolf.load_into("b.pgolf", as_parameter)
    without = changed(('self.register_buffer("cos", angles.cos())', "pass"))
    with pytest.raises(ModelError, match=r"Net makes no such buffer"):
        pgolf.load_module("b.pgolf", without)
    with pytest.raises(ModelError, match="missing"):  # of what was not dropped
        pgolf.load_into(
            "b.pgolf",
            changed(
                (
                    'self.register_buffer("mask"',
                    'self.register_buffer("more", torch.ones(3)); self.register_buffer("mask"',
                )
            ),
        )
    unsaved = changed(("angles.cos())", "angles.cos(), persistent=False)"))
    assert torch.equal(pgolf.load_into("b.pgolf", unsaved).emb.weight, pgolf.load("b.pgolf")["emb.weight"])


def test_wrapped_modules_keep_what_they_made(folder):
    pgolf.pack(read(), "b.pgolf", method="rtn", drop=["*.cos", "*.steps"])
    wrapped = nn.DataParallel(net(9))
    pgolf.load_into("b.pgolf", wrapped)
    assert torch.equal(wrapped.module.emb.weight, pgolf.load("b.pgolf")["emb.weight"])
    assert wrapped.module.blocks[0].steps == 0


def test_same_bytes_for_any_order_and_none_for_no_drop(folder):
    assert (
        pgolf.pack(read(), None, drop=["*.cos", "*.mask"]).data
        == pgolf.pack(read(), None, drop=["*.mask", "*.cos"]).data
    )
    assert "dropped" not in artifact.decode(pgolf.pack(read(), None).data)[1]


@pytest.mark.parametrize("listed", ["blocks.0.cos", [1], {"a": 1}, None])
def test_a_damaged_list_is_refused(tmp_path, listed):
    entries = {"w": artifact.Entry("float32", (1,), raw=bytes(4))}
    (tmp_path / "a.pgolf").write_bytes(artifact.encode(entries, {"dropped": listed}).data)
    with pytest.raises(ArtifactError, match="no list of names"):
        pgolf.load_into(tmp_path / "a.pgolf", nn.Linear(1, 1))


def test_the_commands(folder):
    plain = run("pack", "c.pt", "--model", "net.py:Net", "--calib", "none", "--method", "rtn", "-o", "a.pgolf")
    note = next(line for line in plain.stdout.splitlines() if "bit for bit" in line)
    assert "--drop 'blocks.*.cos' --drop 'blocks.*.mask' --drop blocks.1.steps" in note.replace(
        "'blocks.1.steps'", "blocks.1.steps"
    )
    assert "noise" not in note
    assert note.startswith("note: buffers, kept to the bit, take ")
    told = run("pack", "c.pt", "--model", "net.py:Net", "--calib", "none", "--method", "rtn", "-o", "b.pgolf", "--drop", "*.cos",
               "--drop", "*.noise", "--report", "r.json").stdout  # fmt: skip
    assert "dropped            blocks.*.cos (3 buffers), would take" in told
    assert "though the model's class makes other values than the checkpoint's: blocks.0.noise" in told
    facts = json.loads((folder / "r.json").read_text())
    assert {each["name"]: each["rebuilt"] for each in facts["dropped"]}["blocks.0.noise"] is False
    assert (folder / "b.pgolf").stat().st_size < (folder / "a.pgolf").stat().st_size - 3000
    assert (
        "left out           blocks.*.cos (3 buffers), blocks.*.noise (3 buffers): the model's class makes"
        in run("inspect", "b.pgolf").stdout
    )
    unpacked = run("unpack", "b.pgolf", "-o", "u.pt", "--json")
    assert "blocks.0.cos" in json.loads(unpacked.stdout)["dropped"]
    assert "left out" in unpacked.stderr
    assert "needs --model" in run("pack", "c.pt", "--drop", "*.cos", "-o", "d.pgolf", code=2).stderr
    assert "parameters" in run("pack", "c.pt", "--model", "net.py:Net", "--drop", "*", "-o", "d.pgolf", code=2).stderr


def test_a_model_of_a_dropped_artifact_is_scored_as_before(folder):
    from pgolf.commands.models import model_with
    from pgolf.commands.shared import ModelOptions

    pgolf.pack(read(), folder / "a.pgolf", method="rtn")
    pgolf.pack(read(), folder / "b.pgolf", method="rtn", drop=["*.cos", "*.mask"])
    ids = torch.randint(0, 64, (2, 9), generator=generator(1))
    logits = [model_with(folder / name, ModelOptions("net.py:Net", None))(ids) for name in ("a.pgolf", "b.pgolf")]
    assert torch.equal(*logits)
