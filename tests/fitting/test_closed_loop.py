"""The closed loop: it must help, fill the budget, leave the model alone, and never be worse than the open loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pgolf
from pgolf.errors import ModelError, UsageError
from pgolf.fitting import inputs
from pgolf.fitting.closed import repair, tune, work
from pgolf.fitting.closed.floating import rounded
from pgolf.fitting.closed.knob import Knob
from pgolf.fitting.closed.student import Student
from pgolf.fitting.closed.units import Unit, grouped, units_in_order
from pgolf.fitting.live import Live, split
from pgolf.fitting.trial import Job
from pgolf.models import checkpoint
from pgolf.quant.curvature.uses import in_order
from pgolf.scoring.divergence import divergence
from tests.helpers import generator

WIDTH, VOCAB, LAYERS = 48, 64, 4
BUDGET = 6400  # bytes: about 3 bits a weight


class Banked(nn.Module):
    """Layers in one bank, passed twice; a tied head; a gain used elementwise; a buffer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        g = generator(3)
        self.emb = nn.Parameter((torch.randn(VOCAB, WIDTH, generator=g)).to(dtype))
        self.bank = nn.Parameter((torch.randn(LAYERS, WIDTH, WIDTH, generator=g) / WIDTH**0.5).to(dtype))
        self.out = nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype)
        self.out.weight.data = (torch.randn(WIDTH, WIDTH, generator=g) / WIDTH**0.5).to(dtype).t()  # strides of its own
        self.nothing = nn.Parameter(torch.zeros(0, 7, dtype=dtype))
        self.gain = nn.Parameter(torch.ones(WIDTH, dtype=dtype))
        self.register_buffer("mask", torch.linspace(0.9, 1.1, WIDTH, dtype=dtype))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb[ids] * self.mask
        for _ in range(2):
            for k in range(LAYERS):
                x = x + torch.tanh(nn.functional.linear(x, self.bank[k]))
        x = self.out(x * self.gain)
        return nn.functional.linear(x, self.emb) / WIDTH**0.5


def text(sequences: int = 96, length: int = 32, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (sequences, length), generator=generator(seed))


def packed(model: nn.Module, path: Path | None = None, **more: object) -> pgolf.Report:
    curvature = pgolf.calibrate(model, text(seed=9))
    return pgolf.pack(model, path, budget=BUDGET, curvature=curvature, text=text(400), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Banked, pgolf.Report, Path]:
    model, path = Banked(), tmp_path_factory.mktemp("closed") / "m.pgolf"
    return model, packed(model, path, tune="40k"), path


def test_it_helps_and_fills_the_budget(report: tuple[Banked, pgolf.Report, Path]) -> None:
    model, made, path = report
    assert made.tuned
    assert made.measured
    assert made.tuned.helped, made.tuned
    assert made.tuned.kl < 0.9 * made.tuned.kl_before
    assert made.tuned.kl == pytest.approx(made.measured.kl)
    assert 0 <= (made.headroom or 0) <= 200
    student = copy.deepcopy(model)
    pgolf.load_into(path, student)
    _, held = split(text(400))
    alone = divergence(model, student, held)
    assert alone.kl == pytest.approx(made.measured.kl, rel=1e-4)
    assert alone.tokens == held.numel() == made.measured.tokens
    assert math.isclose(alone.rise, made.measured.rise, rel_tol=1e-3, abs_tol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = Banked().train()
    model.gain.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    addresses = {name: value.data_ptr() for name, value in model.named_parameters()}
    torch.manual_seed(5)
    packed(model, tune="8k")
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(5)))
    assert model.training
    assert not model.gain.requires_grad
    assert model.emb.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == addresses
    assert all(p.grad is None for p in model.parameters())


def test_the_same_bytes_again(report: tuple[Banked, pgolf.Report, Path]) -> None:
    model, made, _ = report
    assert packed(model, tune="40k").data == made.data
    assert packed(model, tune="40k", seed=1).data != made.data


@pytest.fixture
def broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact's path, whose pack with --tune was broken off half-way."""
    monkeypatch.setattr(work, "EVERY", 0.0)
    path, steps, plain = tmp_path / "m.pgolf", 0, Student.slopes

    def interrupted(self: Student, ids: Tensor, names: list[str]) -> tuple[float, dict[str, Tensor]]:
        nonlocal steps
        steps += 1
        if steps > 25:
            raise KeyboardInterrupt
        return plain(self, ids, names)

    with monkeypatch.context() as patch:
        patch.setattr(Student, "slopes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            packed(Banked(), path, tune="40k")
    assert [file.name for file in tmp_path.iterdir()] == ["m.pgolf.tuning"]
    return path


def test_after_a_break_it_goes_on(broken_off: Path, report: tuple[Banked, pgolf.Report, Path]) -> None:
    made = packed(Banked(), broken_off, tune="40k")
    assert made.tuned
    assert made.tuned.notes == "gone on with after a break"
    assert made.data == report[1].data == broken_off.read_bytes()
    assert list(broken_off.parent.iterdir()) == [broken_off]


@pytest.mark.parametrize(
    "other", [{"tune": "41k"}, {"tune": "40k", "seed": 1}, {"tune": "40k", "rules": ["gain=keep"]}]
)
def test_another_pack_does_not_go_on_from_it(broken_off: Path, other: dict[str, object]) -> None:
    made = packed(Banked(), broken_off, **other)
    assert made.tuned
    assert made.tuned.notes == ""


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"", lambda data: b"nonsense" + data])
def test_a_damaged_file_of_work_is_begun_anew(broken_off: Path, damage: Callable[[bytes], bytes]) -> None:
    kept = broken_off.with_name("m.pgolf.tuning")
    kept.write_bytes(damage(kept.read_bytes()))
    made = packed(Banked(), broken_off, tune="40k")
    assert made.tuned
    assert made.tuned.notes == ""
    assert not kept.exists()


def test_a_number_that_changed_on_disk_is_seen(tmp_path: Path) -> None:
    def state() -> dict[str, object]:
        return {"done": 2, "steps": {"w": 1.5}, "moving": [torch.full((64,), 3.0)], "adam": [None, [torch.zeros(())]]}

    made = work.Work(tmp_path / "m.pgolf.tuning", "key", _kept=-math.inf)
    made.keep(state)
    found = made.kept()
    assert found
    assert torch.equal(found["moving"][0], torch.full((64,), 3.0))
    assert made.path
    data, three = bytearray(made.path.read_bytes()), torch.tensor(3.0).numpy().tobytes()
    data[data.index(16 * three) + 2] ^= 1  # torch.load compares no sum
    made.path.write_bytes(data)
    assert made.kept() is None


def test_a_folder_of_that_name_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "m.pgolf.tuning"
    folder.mkdir()
    made = work.Work(folder, "key", _kept=-math.inf)
    made.keep(lambda: {"done": 1})
    assert made.kept() is None
    made.remove()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_pack_with_a_deadline_keeps_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work.Work, "keep", lambda self, state: pytest.fail("kept") if self.path else None)
    packed(Banked(), tmp_path / "m.pgolf", tune="8k", deadline=100.0)


def test_what_a_user_keeps_and_buffers_do_not_move(report: tuple[Banked, pgolf.Report, Path]) -> None:
    model, _, path = report
    loaded = pgolf.load(path)
    assert torch.equal(loaded["mask"], model.mask)
    assert not torch.equal(loaded["gain"], model.gain)  # nobody asked for it
    made = packed(model, path.with_name("kept.pgolf"), tune="8k", rules=["gain=keep", "mask=bf16"])
    loaded = pgolf.load(path.with_name("kept.pgolf"))
    assert torch.equal(loaded["gain"], model.gain)
    assert torch.equal(loaded["mask"], model.mask.bfloat16().float())
    assert made.tuned


def test_a_bfloat16_model() -> None:
    made = packed(Banked(torch.bfloat16), tune="30k")
    assert made.tuned
    assert made.tuned.kl <= made.tuned.kl_before
    assert {row.dtype for row in made.rows} == {"bfloat16"}


def test_held_text_is_never_tuned_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    plain = Student.slopes

    def noted(self: Student, ids: Tensor, names: list[str]) -> tuple[float, dict[str, Tensor]]:
        seen.append(ids)
        return plain(self, ids, names)

    monkeypatch.setattr(Student, "slopes", noted)
    packed(Banked(), tune="30k")
    _, held = split(text(400))
    rows = {tuple(row.tolist()) for ids in seen for row in ids}
    assert seen
    assert not rows & {tuple(row.tolist()) for row in held}


def test_what_does_not_help_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Banked()
    opened = packed(model)
    monkeypatch.setattr(repair.Repair, "run", lambda self, steps: (_ for _ in ()).throw(repair.Diverged()))
    made = packed(model, tune="8k")
    assert made.data == opened.data
    assert made.tuned
    assert not made.tuned.helped
    assert made.tuned.notes.count("diverged") == 2
    assert made.tuned.kl == made.tuned.kl_before == opened.measured.kl  # type: ignore[union-attr]


def test_steps_that_go_wild_are_taken_again_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "RATE", 30.0)
    monkeypatch.setattr(tune, "SLOWER", 1e-5)
    made = packed(Banked(), tune="16k")
    assert made.tuned
    assert made.tuned.helped
    assert made.tuned.notes == "steps at a rate of 30 diverged"


def test_without_a_budget_the_knob_stays() -> None:
    model = Banked()
    curvature = pgolf.calibrate(model, text(seed=9))
    made = pgolf.pack(model, None, curvature=curvature, text=text(400), tune="30k", rules=["*=step=60"])
    assert made.tuned
    assert made.tuned.helped
    assert made.step is None
    assert all("step=60" in row.method for row in made.rows if row.error is not None)


@pytest.mark.parametrize("method", ["gptq", "sdclip"])
def test_other_methods(method: str) -> None:
    made = packed(Banked(), tune="16k", method=method)
    assert made.tuned
    assert made.measured
    assert made.tuned.kl <= made.tuned.kl_before


class Detached(Banked):
    """Whose `out` alone a gradient reaches: nothing that is left to move after it has one."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.emb[ids] @ self.bank[0] * self.gain
        return nn.functional.linear(self.out(x), self.emb.detach())


def test_what_no_gradient_reaches_does_not_move() -> None:
    made = packed(Detached(), tune="30k")
    assert made.tuned
    assert made.tuned.kl <= made.tuned.kl_before


def test_nothing_to_round_is_nothing_to_tune() -> None:
    model = Banked()
    made = pgolf.pack(model, None, method="keep", text=text(), tune="8k")
    assert made.tuned
    assert made.measured
    assert (made.tuned.helped, made.tuned.notes, made.measured.kl) == (False, "no tensor is quantized", 0.0)


def test_where_one_matrix_is_rounded_the_rest_has_all_steps() -> None:
    model = Banked()
    curvature = pgolf.calibrate(model, text(seed=9))
    kept = ["emb=keep", "bank=keep"]
    made = pgolf.pack(model, None, curvature=curvature, text=text(400), tune="8k", rules=kept)
    assert made.tuned
    assert 7000 < made.tuned.tokens <= 8192


@pytest.mark.parametrize("caller", ["inference mode", "float64", "bfloat16"])
def test_the_same_bytes_whatever_its_caller_does(caller: str) -> None:
    model, ids, more = Banked(), text(16, seed=9), text(60)

    def made() -> bytes:
        return pgolf.pack(model, None, budget=BUDGET, curvature=pgolf.calibrate(model, ids), text=more, tune=2000).data

    plain, before = made(), torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, caller, before))
    try:
        with torch.inference_mode(caller == "inference mode"):
            assert made() == plain
    finally:
        torch.set_default_dtype(before)


def test_no_time_no_tuning() -> None:
    made = packed(Banked(), tune="500M", deadline=4.0)
    assert made.tuned
    assert made.seconds < 30
    late = packed(Banked(), tune="500M", deadline=0.01)
    assert late.tuned
    assert not late.tuned.helped
    assert "too little time" in late.tuned.notes


def test_units_stand_in_the_order_of_their_use() -> None:
    model = Banked()
    job = inputs.job_of(model, search=True)
    student = Student(job.source, model)
    units = units_in_order(job, in_order(student.model, student.run, text(1)), {})
    assert units == [Unit("emb", 0), *(Unit("bank", k) for k in range(LAYERS)), Unit("out.weight", 0)]
    for count in range(1, 9):
        groups = grouped(job, units, count)
        assert [unit for group in groups for unit in group] == units
        assert len(groups) == min(count, len(units))
        assert all(groups)


def test_divergence_of_nothing_and_of_a_shift() -> None:
    model, ids = Banked().requires_grad_(False), text(5)
    same = divergence(model, model, ids)
    assert (same.kl, same.rise, same.same_top, same.kl_error) == (0.0, 0.0, 1.0, 0.0)
    other = copy.deepcopy(model)
    other.emb.data[:, 0] += 0.5
    p, q = (m(ids).double().log_softmax(-1) for m in (model, other))
    found = divergence(model, other, ids)
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    before = -p[:, :-1].gather(-1, ids[:, 1:, None]).mean()
    assert found.loss == pytest.approx(float(before), rel=1e-5)


@pytest.mark.parametrize(
    ("said", "tokens"), [("1.5M", 1_500_000), ("500k", 500_000), (4096, 4096), ("off", None), (None, None)]
)
def test_sizes_of_text(said: str | int | None, tokens: int | None) -> None:
    assert tune.tokens_of(said) == tokens


@pytest.mark.parametrize("said", ["much", "-5", "1e99", "k", "nan"])
def test_bad_sizes_of_text(said: str) -> None:
    with pytest.raises(UsageError, match="--tune"):
        tune.tokens_of(said)


def test_what_cannot_be_tried_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Banked()
    with pytest.raises(UsageError, match="needs a model and text"):
        pgolf.pack(model, None, budget=BUDGET, tune="8k")
    with pytest.raises(UsageError, match="needs the module"):
        pgolf.pack(model.state_dict(), None, budget=BUDGET, text=text())
    with pytest.raises(UsageError, match="int64"):
        pgolf.pack(model, None, budget=BUDGET, text=text().float())
    monkeypatch.setattr(Job, "run", lambda job, step: pytest.fail("rounded before it was said"))
    with pytest.raises(UsageError, match="more text"):
        pgolf.pack(model, None, budget=BUDGET, text=Live(model, text(2)), tune="8k")
    stranger = checkpoint.from_mapping({"other": torch.randn(64, 64, generator=generator())})
    with pytest.raises(ModelError, match="'other'"):
        pgolf.pack(stranger, None, budget=BUDGET, text=Live(model, text(2), text(9)), tune="8k")


def test_what_cannot_be_measured_is_packed_all_the_same() -> None:
    stranger = checkpoint.from_mapping({"other": torch.randn(64, 64, generator=generator())})
    made = pgolf.pack(stranger, None, budget=BUDGET, text=Live(Banked(), text(2)))
    assert made.measured is None
    assert "not measured: 'other' of the checkpoint is no weight of Banked" in made.notes[-1]

    class Overflowing(Banked):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) / torch.zeros(())

    made = pgolf.pack(Overflowing(), None, method="sdclip", text=text())
    assert made.measured is None
    assert any("gives NaN or infinity" in note for note in made.notes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_that_learns_nothing_is_the_same_one(dtype: torch.dtype) -> None:
    model = Banked(dtype)
    source, before = inputs.as_checkpoint(model), copy.deepcopy(model.state_dict())
    found = []
    for learns in (True, False):
        student = Student(source, model, learns=learns)
        found.append(student.divergence(text(4)))
        student.reset({name: source.tensors[name] * 1.05 for name in ("bank", "mask")})
        found.append(student.divergence(text(4)))
    assert found[0].kl == found[2].kl == 0.0
    assert found[1] == found[3]
    assert found[1].kl > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_kept_tensors_have_come_to_take_is_left_for_them() -> None:
    model = Banked()
    job = inputs.job_of(model, search=True)
    opened = job.run(3.0)
    turned = []
    for gains in (torch.ones(WIDTH), torch.rand(WIDTH, generator=generator())):
        knob = Knob(job, opened, opened.size)
        moved = replace(job, source=replace(job.source, tensors=job.source.tensors | {"gain": gains}))
        left = [Unit("bank", index) for index in range(LAYERS)]
        knob.turn(moved, left, rounded(moved, [Unit("emb", 0), Unit("out.weight", 0)], knob.step))
        turned.append((knob.step, knob.kept))
    (first, ones), (then, numbers) = turned
    assert numbers - ones > 50
    assert 1.02 * first < then < 1.2 * first
