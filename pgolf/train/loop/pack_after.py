"""From a trained model to an artifact: curvature measured on training text, and the pack that `--pack` asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from pgolf.common import ranks
from pgolf.data.shards import WindowSampler
from pgolf.fitting import packing
from pgolf.fitting.estimate import Estimate, estimate
from pgolf.models import checkpoint
from pgolf.quant.curvature.collect import calibrate
from pgolf.quant.curvature.store import Curvature
from pgolf.report import Report, write_json
from pgolf.train.loop.trainer import Trainer
from pgolf.train.model import rebuild

QAT_TOKENS = 8192  # of a calibration in the middle of training, while the clock runs
PACK_TOKENS = 32768
OTHER_SEED = 1 << 20  # added to the run's seed: calibration windows are then no batch that training just saw


def training_curvature(model: nn.Module, sampler: WindowSampler, *, tokens: int, seed: int) -> Curvature:
    """The curvature of `model` over about `tokens` tokens of the sampler's own shards, shared out among the ranks of a group.

    Over several ranks it is another sample of one rank's: labels are drawn by rank, and sums are of parts.
    """
    windows = WindowSampler(
        sampler.shards, sampler.seq_len, max(1, tokens // sampler.seq_len), seed + OTHER_SEED, sampler.bos
    )
    mine = windows.batch(0)[ranks.rank() :: ranks.size(), :-1]
    return calibrate(model, mine if len(mine) else [], seed=seed)


def measured_while_training(model: nn.Module, sampler: WindowSampler, *, seed: int) -> Callable[[], Curvature]:
    """What `QAT` takes as its curvature: a function that measures the model as it then is."""
    return lambda: training_curvature(model, sampler, tokens=QAT_TOKENS, seed=seed)


def estimated(trainer: Trainer, *, budget: str, seed: int) -> Estimate:
    """What the averaged weights would pack to now. Its loss rises by nobody's word in a process group: ranks calibrate together,
    and only the first is asked."""
    alone = trainer.ranks.world == 1
    curvature = training_curvature(trainer.model, trainer.sampler, tokens=QAT_TOKENS, seed=seed) if alone else None
    return estimate(trainer.averaged_state(), budget=budget, curvature=curvature)


def pack_checkpoint(path: Path, out: Path, sampler: WindowSampler, *, budget: str, seed: int) -> Report:
    """Pack a checkpoint of our trainer by the best method into `out` with its report beside it, as .json.

    In a group every rank calls this: they calibrate and round together, rank 0 reads and writes. Raises BudgetError where it
    cannot fit.
    """
    source = ranks.on_first(lambda: checkpoint.read(path))
    model = rebuild.from_config(source.config or {}, source.state_dict())
    curvature = training_curvature(model, sampler, tokens=PACK_TOKENS, seed=seed)
    report = packing.pack(source, out, budget=budget, curvature=curvature)
    if ranks.rank() == 0:
        write_json(out.with_suffix(".json"), report.to_json() | {"path": out.name})
    return report
