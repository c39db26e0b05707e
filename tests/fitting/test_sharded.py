"""Modules that ranks hold in parts: gathered tensor by tensor, or refused with the line to write instead."""

import pytest
import torch
from torch import distributed
from torch.distributed.pipelining import Pipe

import pgolf
from pgolf.common import scratch
from pgolf.errors import ModelError
from pgolf.models.gathered import whole
from pgolf.quant.curvature.store import Curvature
from tests.common.ranks_job import calm_model
from tests.common.test_ranks import two_ranks


def test_a_fully_sharded_module_packs_as_one_that_holds_all(tmp_path):
    first, second = two_ranks(tmp_path, "fully sharded")
    assert sorted(first["shapes"]) == [[24], [24, 96], [32, 48], [48, 48]]  # half of each
    assert first["rounded"]
    assert second["rounded"]
    alone = pgolf.pack(calm_model(), None, budget="9kB", curvature=Curvature.load(tmp_path / "shared.curv"))
    assert (tmp_path / "m.pgolf").read_bytes() == alone.data
    sharded, stage = first["said"]
    assert "is sharded over ranks (DTensor)" in sharded
    assert "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))" in sharded
    assert stage.startswith("a PipelineStage of torch.distributed.pipelining is no model: give the module of which")


def test_what_a_pipeline_made_is_refused():
    pipe = Pipe.__new__(Pipe)
    torch.nn.Module.__init__(pipe)
    for attempt in (pgolf.pack, pgolf.calibrate):
        with pytest.raises(ModelError, match=r"a Pipe of .* give the module from before it was split"):
            attempt(pipe, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64])
def test_what_was_gathered_lies_in_a_file(tmp_path, monkeypatch, dtype):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    kept, plain = [], scratch.kept
    monkeypatch.setattr(scratch, "kept", lambda array: kept.append(array.nbytes) or plain(array))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for tensor in (torch.arange(1 << 20).view(1024, 1024).to(dtype), torch.tensor(3).to(dtype)):
            shards = [Shard(0)] if tensor.dim() else None
            found = whole(distribute_tensor(tensor, init_device_mesh("cpu", (1,)), shards))
            assert torch.equal(found, tensor)
            assert found.dtype == dtype
    finally:
        distributed.destroy_process_group()
    assert kept == [dtype.itemsize << 20, dtype.itemsize]
    plain_one = torch.ones(3)
    assert whole(plain_one) is plain_one
