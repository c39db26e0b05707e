"""Small matrices with the same inputs are one matrix, to the quantizer and in the file, and each its own everywhere else."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pgolf
from pgolf.fitting import stacks
from pgolf.fitting.inputs import job_of
from pgolf.fitting.live import split
from pgolf.fitting.trial import Trial
from pgolf.loading import dense
from pgolf.packer.format import artifact, container
from pgolf.quant.curvature.loss import loss_rise
from pgolf.quant.curvature.stacked import stacked
from pgolf.quant.curvature.store import MatrixCurvature
from pgolf.scoring.divergence import divergence
from tests.helpers import generator

HEADS, WIDTH, VOCAB = 6, 24, 40


class Headed(nn.Module):
    """Two layers with a parameter for each head, q and v apart, and a tied table."""

    def __init__(self):
        super().__init__()
        g = generator(5)
        self.table = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=g))
        for kind in "qv":
            heads = [nn.Parameter(0.2 * torch.randn(4, WIDTH, generator=g)) for _ in range(2 * HEADS)]
            setattr(self, kind, nn.ParameterList(heads))

    def forward(self, ids):
        x = F.embedding(ids, self.table)
        for layer in range(2):
            h, mine = F.layer_norm(x, (WIDTH,)), slice(layer * HEADS, (layer + 1) * HEADS)
            q = torch.cat([F.linear(h, w) for w in self.q[mine]], -1)
            v = torch.cat([F.linear(h, w) for w in self.v[mine]], -1)
            x = x + torch.sigmoid(q) * v
        return F.linear(x, self.table)


@pytest.fixture(scope="module")
def model():
    return Headed().eval()


@pytest.fixture(scope="module")
def curvature(model):
    return pgolf.calibrate(model, torch.randint(0, VOCAB, (16, 32), generator=generator(6)))


def test_heads_of_a_layer_are_one_matrix(model, curvature):
    found = job_of(model, curvature, search=True).stacks
    layers = {tuple(sorted(f"{kind}.{HEADS * layer + i}" for i in range(HEADS))) for kind in "qv" for layer in range(2)}
    assert set(found.values()) == layers
    assert all(first == names[0] for first, names in found.items())


def test_the_artifact_loads_as_ever(model, curvature, tmp_path):
    path = tmp_path / "m.pgolf"
    report = pgolf.pack(model, path, budget=2600, curvature=curvature)
    assert container.version(path.read_bytes()) == 2
    loaded, state = pgolf.load(path), model.state_dict()
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert loaded[name].shape == tensor.shape
        assert float((loaded[name] - tensor).norm() / tensor.norm()) < 0.5
    assert len(report.data) <= 2600
    assert sum(row.num_bytes for row in report.rows) + report.shared_bytes == pytest.approx(len(report.data))
    foreseen = {row.name: row.loss_rise for row in report.rows}
    known = {name: curvature.matrices(name) for name in state}
    for name, rise in foreseen.items():
        assert rise == pytest.approx(loss_rise(loaded[name] - state[name], known[name][0]), rel=1e-4)
    packed = Headed()
    pgolf.load_into(path, packed)
    assert torch.equal(packed.q[3], loaded["q.3"])


def test_stacks_buy_something(model, curvature):
    job = job_of(model, curvature, search=True)
    together, alone = job.run(8.0), replace(job, stacks={}, prepared={}).run(8.0)
    assert container.version(alone.encoded.data) == 1
    assert together.size < alone.size
    assert job.rise(together) < 1.05 * job.rise(alone)


def test_same_bytes_for_any_thread_count(model, curvature):
    threads, made = torch.get_num_threads(), set()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            made.add(pgolf.pack(model, None, budget=2600, curvature=curvature).data)
    finally:
        torch.set_num_threads(threads)
    assert len(made) == 1


@pytest.mark.parametrize("rule", ["q.*=keep", "q.3=keep", "q.1=step=0.5", "v.*=bf16", "*.1=sdclip,int5"])
def test_rules_part_what_they_treat_apart(model, curvature, rule):
    report = pgolf.pack(model, None, budget=9000, curvature=curvature, rules=[rule])
    entries, _ = artifact.decode(report.data)
    state, loaded = model.state_dict(), dense.tensors_of(entries)
    kept = {name for name, entry in entries.items() if entry.planes is None}
    if "keep" in rule:
        asked = {"q.3"} if rule.startswith("q.3") else {name for name in state if name.startswith("q.")}
        assert kept == asked
    for name in kept:
        assert torch.allclose(loaded[name], state[name], rtol=2**-8)


def test_other_methods_are_what_their_names_say(model, curvature):
    report = pgolf.pack(model, None, curvature=curvature, rules=["q.*=gptq,int6", "v.*=quick"])
    assert container.version(report.data) == 1


def test_too_large_a_budget_keeps_whole_stacks(model, curvature):
    report = pgolf.pack(model, None, budget=10**6, curvature=curvature)
    loaded = dense.tensors_of(artifact.decode(report.data)[0])
    for name, tensor in model.state_dict().items():
        assert torch.allclose(loaded[name], tensor, rtol=1e-3, atol=1e-4), name


def test_an_estimate_counts_all_of_a_stack(model, curvature):
    report = pgolf.pack(model, None, budget=2600, curvature=curvature)
    found = pgolf.estimate(model, budget=2600, curvature=curvature)
    assert found.num_bytes == len(report.data)
    assert found.bits_per_weight == pytest.approx(report.bits_per_weight, rel=1e-6)
    assert found.loss_rise == pytest.approx(report.loss_rise, rel=1e-6)


def test_the_closed_loop_rounds_and_stores_them_as_one(model, curvature):
    text = torch.randint(0, VOCAB, (160, 32), generator=generator(7))
    report = pgolf.pack(model, None, budget=2600, curvature=curvature, text=text, tune=40_000)
    entries = artifact.decode(report.data)[0]
    assert len(report.data) <= 2600
    assert report.tuned.helped
    stacks = [sorted(f"{kind}.{k}" for k in mine) for kind in "qv" for mine in (range(HEADS), range(HEADS, 2 * HEADS))]
    parts = {name: entry.part_of for name, entry in entries.items() if entry.part_of}
    assert parts == {name: first for first, *rest in stacks for name in rest}
    student, (_, held) = Headed().eval(), split(text)
    student.load_state_dict(dense.tensors_of(entries))
    assert divergence(model, student, held).kl == pytest.approx(report.tuned.kl, rel=1e-4)


def one(H, G):
    return MatrixCurvature(torch.tensor(H), torch.tensor(G), torch.eye(2))


def test_the_curvature_of_a_stack_has_the_same_traces():
    parts = [one([[2.0, 0.5], [0.5, 1.0]], [[1.0, 0.2], [0.2, 3.0]]), one([[1.0, 0.0], [0.0, 4.0]], [[2.0]])]
    whole = stacked(parts)
    assert whole.G.shape == (3, 3)
    assert not whole.G[:2, 2].any()
    for part, rows in zip(parts, (slice(2), slice(2, 3)), strict=True):
        own = part.G * part.H.trace()
        assert torch.allclose(whole.G[rows, rows] * whole.H.trace(), own)
    across = sum(part.G.trace() * part.H for part in parts)
    assert torch.allclose(whole.H * whole.G.trace(), across)


def test_a_diagonal_among_them_makes_all_diagonal_and_zeros_do_no_harm():
    full, thin = one([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.9], [0.9, 1.0]]), one([[1.0, 0.0], [0.0, 1.0]], [2.0, 3.0])
    assert stacked([full, thin]).G.tolist() == [1.0, 1.0, 2.0, 3.0]
    none = one([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0])
    assert torch.isfinite(stacked([none, none]).G).all()


def test_no_stack_is_higher_than_a_path_is_long(model, curvature):
    job = job_of(model, curvature, search=True)
    known = curvature.matrices("q.0")
    tensors = {f"w.{i}": torch.zeros(30, WIDTH) for i in range(80)}
    plans = dict.fromkeys(tensors, job.plans["q.0"])
    found = stacks.found(tensors, plans, dict.fromkeys(tensors, known), tied=["w.7"])
    assert all(sum(len(tensors[name]) for name in names) <= stacks.MOST for names in found.values())
    assert {name for names in found.values() for name in names} == tensors.keys() - {"w.7"}
    assert isinstance(job.run(8.0), Trial)
