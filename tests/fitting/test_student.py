"""The module that stands for student and teacher: all that holds a weight takes part, and all is put back."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from pgolf.errors import CurvatureError, ModelError
from pgolf.fitting import measure
from pgolf.fitting.closed import pull
from pgolf.fitting.closed.floating import Floating
from pgolf.fitting.closed.student import Student
from pgolf.fitting.closed.units import Unit
from pgolf.fitting.inputs import as_checkpoint, job_of
from pgolf.fitting.live import Live
from pgolf.models import checkpoint
from pgolf.scoring.divergence import divergence
from tests.helpers import generator

VOCAB, DIM = 24, 16
IDS = torch.randint(VOCAB, (3, 8), generator=generator(9))


class Net(nn.Module):
    """A table, two layers, a head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(2))
        self.head = nn.Linear(DIM, VOCAB, bias=False)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator(seed)) / DIM**0.5
            seed += 1
        self.eval()

    def inner(self, x: Tensor) -> Tensor:
        return x

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for layer in self.layers:
            x = x + torch.tanh(layer(self.inner(x)))
        return self.head(x)


def of_equal_content() -> Net:
    """Two matrices that happen to be one: the checkpoint has them once."""
    model = Net()
    model.layers[1].weight.data = model.layers[0].weight.data.clone()
    return model


def of_one_storage() -> Net:
    """Tied by its data, in two parameters."""
    model = Net()
    model.head.weight.data = model.table.weight.data
    return model


@pytest.mark.parametrize(
    ("made", "first", "second"),
    [(of_equal_content, "layers.0.weight", "layers.1.weight"), (of_one_storage, "head.weight", "table.weight")],
)
@pytest.mark.parametrize("named", ["by both names", "by one"])
def test_what_is_one_in_the_checkpoint_is_one_in_the_student(made: Any, first: str, second: str, named: str) -> None:
    model = made()
    source = as_checkpoint(model)
    assert source.aliases == {second: first}
    if named == "by one" and made is of_one_storage:  # as in a file that has a tied weight once
        source = checkpoint.from_mapping(source.tensors)
        assert source.aliases == {}
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    student, changed = Student(source, model), source.tensors[first] * 1.1
    student.reset({first: changed})
    other = copy.deepcopy(model)
    for name in (first, second):
        other.get_parameter(name).data = changed.clone()
    assert student.divergence(IDS).kl == pytest.approx(divergence(model, other, IDS).kl, rel=1e-5)
    with student.at_work(gradients=True):
        _, slopes = student.slopes(IDS, [first])
    p, q = model(IDS).log_softmax(-1).detach(), other(IDS).log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    wanted = torch.autograd.grad(kl, [other.get_parameter(name) for name in (first, second)])
    assert torch.allclose(slopes[first], sum(wanted), rtol=1e-3, atol=1e-7)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places


@pytest.mark.parametrize("learns", [True, False])
def test_the_teacher_is_what_is_packed_whatever_the_module_holds(learns: bool) -> None:
    trained, fresh = Net(), Net(50)
    source, before = as_checkpoint(trained), copy.deepcopy(fresh.state_dict())
    student = Student(source, fresh, learns=learns)
    student.reset(source.tensors)
    with student.at_work(gradients=False):
        assert torch.equal(student.teacher(IDS), trained(IDS))
        assert torch.equal(student.predict(IDS), trained(IDS))
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_under_autocast_the_student_has_its_own_weights() -> None:
    model = Net()
    source = as_checkpoint(model)
    student = Student(source, model)
    student.reset({name: 2 * tensor for name, tensor in source.tensors.items()})
    with torch.autocast("cpu", torch.bfloat16), student.at_work(gradients=True):
        kl, slopes = student.slopes(IDS, [*source.tensors])
    assert kl > 0.01
    assert slopes.keys() == source.tensors.keys()


class Forwards(torch.autograd.Function):
    """A kernel that somebody wrote for inference."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()


class Kernel(Net):
    def inner(self, x: Tensor) -> Tensor:
        return Forwards.apply(x)  # type: ignore[no-any-return]


def test_a_model_without_a_backward_pass_says_so() -> None:
    model = Kernel()
    student = Student(as_checkpoint(model), model)
    with student.at_work(gradients=True), pytest.raises(CurvatureError, match=r"backward pass fails on .*backward"):
        student.slopes(IDS, ["table.weight"])


class Overflowing(Net):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).masked_fill(ids[:, :1, None] == 5, float("inf"))


def test_what_the_model_makes_infinite_teaches_nothing() -> None:
    model, ids = Overflowing(), IDS.clone()
    ids[:, 0] = torch.tensor([1, 5, 2])
    student = Student(as_checkpoint(model), model)
    student.reset({"head.weight": 1.1 * model.head.weight})
    with student.at_work(gradients=True):
        kl, slopes = student.slopes(ids, ["head.weight"])
        some, fewer = student.slopes(ids[[0, 2]], ["head.weight"])
    assert kl == pytest.approx(some * 2 / 3)
    assert torch.allclose(slopes["head.weight"], fewer["head.weight"] * 2 / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_callers_default_dtype_changes_no_kl(dtype: torch.dtype) -> None:
    teacher, student = (9 * each for each in torch.randn(2, 400, 500, generator=generator(1)).split(1))
    wanted = pull.pull(teacher.clone(), student)[0]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert pull.pull(teacher, student)[0] == wanted
    finally:
        torch.set_default_dtype(before)


def test_a_weight_that_is_split_over_ranks() -> None:
    model = Net()
    source = as_checkpoint(model)
    part = torch.zeros(VOCAB, DIM)
    model.head.weight = nn.Parameter(TwoTensor(part, part))
    with pytest.raises(ModelError, match=r"'head\.weight' is split over ranks in Net"):
        Student(source, model)


class Counting(Net):
    """Writes to what the checkpoint has too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(3))
        self.register_buffer("cache", torch.randn(64, DIM, generator=generator(3)))

    def forward(self, ids: Tensor) -> Tensor:
        self.passes.add_(1)
        self.cache.mul_(2)
        return super().forward(ids)


def test_what_a_pass_writes_to_buffers_gets_into_no_artifact() -> None:
    model = Counting()
    source = checkpoint.from_mapping(model.state_dict())  # from a file nobody knows which of its tensors are buffers
    job = job_of(source, search=True, rules="cache=rtn")
    assert job.quantized == ["cache"]
    student = Student(job.source, model)
    floating = Floating(job, student)
    assert "passes" not in floating.small
    student.divergence(IDS)
    floating.refresh([Unit("cache", 0)])
    floating.refresh_small()
    assert all(torch.equal(floating.job.source.tensors[name], source.tensors[name]) for name in ("passes", "cache"))
    assert torch.equal(model.passes, torch.zeros(3))


def test_without_a_gradient_what_was_measured_stands() -> None:
    model = Kernel()
    job = job_of(model, search=True, rules="*.weight=rtn")
    student = Student(job.source, model)
    student.reset({name: 1.5 * student.weights[name] for name in job.quantized})
    found = student.divergence(IDS)
    assert found.kl > 0.1
    told = measure.measured(replace(job, curvatures={"head.weight": [None]}), found, student, Live(model, IDS), {})
    assert (told.kl, told.culprits) == (found.kl, ())
