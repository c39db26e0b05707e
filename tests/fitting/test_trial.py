"""What a job works out once, and what it foresees."""

import pytest
import torch

import pgolf
from pgolf.common import scratch
from pgolf.fitting.inputs import job_of
from pgolf.fitting.trial import Job
from pgolf.packer.coder import general
from pgolf.packer.format import artifact
from pgolf.quant.settings import Settings
from tests.helpers import generator, toy_module, toy_state


def mostly_kept():
    g = generator(4)
    return {
        "table": torch.randn(120, 100, generator=g).half(),
        "codes": torch.randint(-9, 9, (64, 64), generator=g).to(torch.int8),
        "norm": torch.rand(3000, generator=g) + 0.5,
        "w": torch.randn(64, 64, generator=g),
    }


@pytest.fixture
def full_packs(monkeypatch):
    """The steps of all trials that quantized something."""
    steps, run = [], Job.run

    def counted(self, step):
        steps.extend([step] if self.quantized else [])
        return run(self, step)

    monkeypatch.setattr(Job, "run", counted)
    return steps


def test_kept_tensors_are_compressed_once_however_many_trials(monkeypatch, full_packs):
    sizes, compress = [], general.compress

    def counted(raw, *arguments, **options):
        sizes.append(len(raw))
        return compress(raw, *arguments, **options)

    monkeypatch.setattr(general, "compress", counted)
    pgolf.pack(mostly_kept(), None, budget=34_000, rules=["table=keep"], method="gptq")
    assert len(full_packs) >= 2
    assert (sizes.count(2 * 120 * 100), sizes.count(4 * 3000)) == (1, 1)  # table and norm


@pytest.mark.parametrize("budget", [33_200, 34_000, 35_500])
def test_a_search_among_kept_tensors_starts_near(full_packs, budget):
    made = pgolf.pack(mostly_kept(), None, budget=budget, rules=["table=keep"])
    assert budget - 200 <= made.artifact_bytes <= budget
    assert len(full_packs) <= 4


@pytest.mark.parametrize("coder", artifact.CODERS)
def test_what_is_remembered_changes_no_byte(coder):
    job = job_of(mostly_kept(), rules=["table=keep"], search=True, coder=coder)
    first, again = job.run(1.0), job.run(1.0)
    alone = artifact.encode(first.entries, coder=coder)
    assert first.encoded.data == again.encoded.data == alone.data
    assert first.encoded.tensor_bits == again.encoded.tensor_bits == alone.tensor_bits


def test_equal_bytes_of_other_item_sizes_are_remembered_apart():
    pair = {"half": torch.zeros(64, 8).half(), "single": torch.zeros(64, 4)}
    job = job_of(pair, method="keep", search=False)
    assert len(job.run(1.0).encoded.data) == len(job.run(1.0).encoded.data)
    assert {name for name, _ in job.compressed} == {"raw.2", "raw.4"}


def test_kept_tensors_count_as_they_are_stored():
    job = job_of(mostly_kept(), rules=["table=keep"], search=True)
    whole = job.run(1.0)
    kept = whole.size - whole.encoded.tensor_bits["w"] / 8
    assert job.kept_bytes() == pytest.approx(kept, abs=200)  # the tables of `w`
    assert job.kept_bytes() + job.expected_bytes(1.0) == pytest.approx(whole.size, rel=0.02)


@pytest.mark.parametrize("trellis", [0, 8])
def test_piece_by_piece_and_from_files_it_is_the_same_artifact(trellis, monkeypatch):
    def made():
        model = toy_module(toy_state())
        curvature = pgolf.calibrate(model, torch.arange(64).reshape(2, 32) % 50)
        return pgolf.pack(model, None, budget=9000, curvature=curvature, settings=Settings(trellis=trellis))

    usual = made()
    for constant, value in (("MANY", 1), ("LARGE", 1), ("PIECE", 200)):
        monkeypatch.setattr(scratch, constant, value)
    small = made()
    assert small.data == usual.data
    assert small.loss_rise == pytest.approx(usual.loss_rise, rel=1e-5)
