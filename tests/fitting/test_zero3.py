"""Parameters that DeepSpeed's ZeRO-3 has split are known by its mark, and refused."""

import pytest
import torch

import pgolf
from pgolf.errors import CheckpointError, CurvatureError
from tests.common.ranks_job import calm_model


def test_what_zero_3_has_split_is_neither_packed_nor_calibrated():
    model = calm_model()
    model.get_parameter("up.weight").ds_id = 7
    with pytest.raises(CheckpointError, match=r"'up\.weight' is split .* zero_to_fp32"):
        pgolf.pack(model, None, budget="9kB")
    with pytest.raises(CurvatureError, match=r"'up\.weight' is split .* zero_to_fp32"):
        pgolf.calibrate(model, torch.zeros(1, 8, dtype=torch.int64))
