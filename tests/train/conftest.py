"""A folder of shards that every run may read."""

from pathlib import Path

import numpy as np
import pytest

from pgolf.data.shards import write_shard


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tokens = np.random.default_rng(0).integers(0, 64, 2000)
    tokens[::50] = 1
    write_shard(folder / "train_0.bin", tokens)
    return folder
