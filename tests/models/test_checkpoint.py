import json
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from pgolf.errors import CheckpointError
from pgolf.models import checkpoint


def save(tmp_path, value, name="c.pt"):
    torch.save(value, tmp_path / name)
    return tmp_path / name


def test_plain_state_dict_and_safetensors_read_alike(tmp_path):
    state = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3)}
    save_file(state, tmp_path / "c.safetensors")
    for path in (save(tmp_path, state), tmp_path / "c.safetensors"):
        read = checkpoint.read(path)
        assert list(read.tensors) == ["a", "b"]
        assert all(torch.equal(read.tensors[n], state[n]) for n in state)


@pytest.mark.parametrize(
    ("wrap", "where"),
    [
        (lambda s: {"model": s, "optimizer": {"state": {0: {"m": torch.ones(1)}}}, "step": 3}, "model"),
        (lambda s: {"epoch": 1, "state_dict": s, "ema": s}, "state_dict"),
        (lambda s: {"checkpoint": {"net": s}}, "checkpoint.net"),
        (lambda s: {"odd_name": s}, "odd_name"),
    ],
)
def test_nested_state_dicts_are_found_and_named(tmp_path, wrap, where):
    read = checkpoint.read(save(tmp_path, wrap({"w": torch.ones(2)})))
    assert list(read.tensors) == ["w"]
    assert any(repr(where) in note for note in read.notes)


def test_several_unknown_state_dicts_are_not_guessed(tmp_path):
    with pytest.raises(CheckpointError, match=r"several state dicts \(left, right\)"):
        checkpoint.read(save(tmp_path, {"left": {"w": torch.ones(1)}, "right": {"w": torch.ones(1)}}))


def test_config_beside_the_state_dict_is_kept(tmp_path):
    read = checkpoint.read(save(tmp_path, {"model": {"w": torch.ones(1)}, "config": {"dim": 3, "name": "x"}}))
    assert read.config == {"dim": 3, "name": "x"}


def test_ties_become_aliases_and_come_back_shared(tmp_path):
    w = torch.randn(4, 4)
    read = checkpoint.read(save(tmp_path, {"emb": w, "head": w, "other": w.clone(), "view": w[:2]}))
    assert read.aliases == {"head": "emb"}
    state = read.state_dict()
    assert state["head"].data_ptr() == state["emb"].data_ptr()
    assert torch.equal(state["view"], w[:2])


def test_unsafe_globals_are_named_with_the_mend(tmp_path):
    path = save(tmp_path, {"model": {"w": torch.ones(1)}, "schedule": json.loads})
    with pytest.raises(CheckpointError, match=r"json\.loads.*add_safe_globals"):
        checkpoint.read(path)


def test_non_finite_weights_are_named(tmp_path):
    nan = float("nan")
    state = {"ok": torch.ones(2), "sick": torch.tensor([1.0, nan]), "worse": torch.tensor([[nan, nan], [nan, 0.0]])}
    said = (
        r"NaN in sick \(1 of 2 values, the first at \[1\]\), worse \(3 of 4 values, the first at \[0, 0\]\): .*diverged"
    )
    with pytest.raises(CheckpointError, match=said):
        checkpoint.read(save(tmp_path, state))
    with pytest.raises(CheckpointError, match="f8"):
        checkpoint.from_mapping({"f8": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)})


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 not really", bytes(1000)])
def test_foreign_files_are_refused(tmp_path, content):
    for name in ("x.pt", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="x"):
            checkpoint.read(tmp_path / name)


def test_truncated_checkpoints_are_refused(tmp_path):
    path = save(tmp_path, {"w": torch.randn(1000)})
    data = path.read_bytes()
    for cut in (10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(CheckpointError):
            checkpoint.read(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3), "single tensor"),
        ({"a": 1, "b": "x"}, "no state dict"),
        ([1, 2], "no state dict"),
    ],
)
def test_files_without_weights_say_so(tmp_path, value, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(save(tmp_path, value))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.read(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="folder"):
        checkpoint.read(tmp_path)


def test_tensors_that_cannot_be_packed_are_named():
    with pytest.raises(CheckpointError, match=r"'s'.*dense"):
        checkpoint.from_mapping({"s": torch.eye(3).to_sparse()})
    with pytest.raises(CheckpointError, match=r"'m'.*meta"):
        checkpoint.from_mapping({"m": torch.empty(3, device="meta")})
    with pytest.raises(CheckpointError, match="no tensors"):
        checkpoint.from_mapping({"x": 3})


def test_what_is_not_a_tensor_is_left_out_with_a_note():
    read = checkpoint.from_mapping({"w": torch.ones(1), "step": 3})
    assert any("step" in note for note in read.notes)


def test_old_pickle_format_is_read(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "old.pt")
    assert torch.equal(checkpoint.read(tmp_path / "old.pt").tensors["w"], torch.ones(3))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4).t(),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.tensor([1 + 2j]),
        torch.randn(5).to(torch.float8_e5m2),
        torch.arange(3, dtype=torch.int16),
    ],
)
def test_bytes_round_trip_any_dtype_and_layout(tensor):
    back = checkpoint.from_bytes(checkpoint.to_bytes(tensor), checkpoint.dtype_name(tensor.dtype), tuple(tensor.shape))
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert checkpoint.to_bytes(back) == checkpoint.to_bytes(tensor)
