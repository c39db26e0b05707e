"""The folder of a run: `pgolf train` begins it with a preset and shards, stops, goes on and ends there.

state.pt                       what a resumed run needs
checkpoint.pt                  averaged weights, ready to pack, as of the last save
train.jsonl, loss.png          the log and its picture
train.json                     the report
model.pgolf, model.json        with `pack`: the artifact and its report; its BPB is in train.json
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgolf.common import extras, files
from pgolf.common.files import replacing
from pgolf.common.ranks import on_first
from pgolf.common.sizes import parse_size
from pgolf.data import sidecar
from pgolf.data.corpus import BOS, DataFiles, find_data
from pgolf.data.shards import WindowSampler, check_vocabulary, read_shard
from pgolf.errors import PgolfError, StoppedError, UsageError
from pgolf.kernels.device import need
from pgolf.loading import dense
from pgolf.report import write_json
from pgolf.scoring.bpb import EvalResult, evaluate
from pgolf.train.loop.demo_model import DEMO, prepare_demo
from pgolf.train.loop.foresight import Foreseen, Watch, bpb_of_a_nat, first_line
from pgolf.train.loop.interrupts import interrupt_flag
from pgolf.train.loop.memory import check_memory
from pgolf.train.loop.metrics import MetricsLog, plot_loss, read_metrics
from pgolf.train.loop.pack_after import estimated, measured_while_training, pack_checkpoint
from pgolf.train.loop.process_group import Ranks, joined
from pgolf.train.loop.recipes import RECIPES, Recipe, override
from pgolf.train.loop.save import resume as resume_from
from pgolf.train.loop.save import save_checkpoint, save_state
from pgolf.train.loop.stop_if import StopIf, parse
from pgolf.train.loop.trainer import StepInfo, Trainer
from pgolf.train.model.gpt import GPT
from pgolf.train.qat.hooks import QAT
from pgolf.train.qat.settings import QATSettings, parse_options

SAVE_SECONDS = 120.0  # of training between two saves
SCORED_TOKENS = 65536  # held-out targets that the closing BPB is taken over

AfterStep = Callable[[StepInfo], None]


@dataclass(frozen=True)
class TrainReport:
    """What a run did, as train.json holds it.

    score: on held-out text, None without a validation shard and its sidecar or tokenizer. qat: what QAT touched, None without.
    packed: file, bytes and held-out score of the artifact that `pack` asked for, None without.
    """

    checkpoint: Path
    parameters: int
    steps: int
    tokens: int
    seconds: float
    score: EvalResult | None
    notes: tuple[str, ...]
    qat: str | None = None
    packed: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; the checkpoint by its name."""
        return asdict(self) | {"checkpoint": self.checkpoint.name, "notes": list(self.notes)}


def train(
    preset: str,
    out: str | Path,
    *,
    data: str | Path | None = None,
    tokenizer: str | Path | None = None,
    minutes: float | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    seed: int = 0,
    device: str | None = None,
    qat: QATSettings | str | None = None,
    pack: str | None = None,
    progress: AfterStep | None = None,
    stop_if: StopIf | str | None = None,
    foreseen: Callable[[Foreseen], None] | None = None,
) -> TrainReport:
    """Train `preset` (tiny, small, golf) into the folder `out`, which is made.

    A folder that holds a run is continued or refused, never overwritten, and used by one run at a time. Ctrl-C or SIGTERM
    waits for the step's end, saves, then raises KeyboardInterrupt, on every rank that there is; a second one does not wait.
    Under `torchrun` every rank calls this, rank 0 alone writes.
    data: a folder of shards (see `find_data`); None: the standard library's text, for tiny alone. overrides: "name=value"
    settings (see `override`); minutes: ends the run. device: None is CUDA where there is one. qat: settings, or as
    `parse_options` reads them. pack: a byte budget to pack the result to, by the best method. progress: called after
    each step, on rank 0. foreseen: called there with what the run is foreseen to come to, from a tenth of it on; stop_if: ends
    the run where that is so, see `stop_if.parse`. UsageError, DataError, CheckpointError; BudgetError if the result does not
    fit `pack`; StoppedError by stop_if and KeyboardInterrupt, both after saving; PgolfError if the loss stops being finite.
    """
    recipe = _recipe(preset, minutes, overrides)
    how = parse_options(qat) if isinstance(qat, str) else qat
    ends = parse(stop_if) if isinstance(stop_if, str) else stop_if
    if ends is not None and "size" in ends.names and pack is None:
        raise UsageError("--stop-if asks for the size of the artifact: say with --pack SIZE what is to be packed")
    extras.need("sentencepiece", "matplotlib")  # an error now, not after hours
    if pack is not None:
        parse_size(pack)
        extras.need("numba", "scipy")
    wanted = need(device, kernels=False)
    with ExitStack() as stack, joined(wanted) as (ranks, own):
        run = _Run(Path(out), recipe, ranks, own, seed, how, pack, ends, foreseen)
        stack.callback(run.release)
        run.open(resume)
        found = _files(preset, data, tokenizer, run, recipe.model.vocab_size)
        trainer = run.train(found, resume, progress)
        return run.close(trainer, found, pack)


def _recipe(preset: str, minutes: float | None, overrides: Sequence[str]) -> Recipe:
    if preset not in RECIPES:
        raise UsageError(f"--preset {preset}: known are {', '.join(RECIPES)}")
    if minutes is not None and minutes <= 0:
        raise UsageError(f"--minutes {minutes:g}: must be above 0")
    return override(RECIPES[preset], [*overrides, *([] if minutes is None else [f"minutes={minutes}"])])


def _files(preset: str, data: str | Path | None, tokenizer: str | Path | None, run: _Run, vocab_size: int) -> DataFiles:
    """The data of --data, or the demo's text, written to out/data once by rank 0."""
    if data is not None:
        return find_data(data, vocab_size, tokenizer)
    if preset != "tiny":
        raise UsageError(f"--preset {preset} needs --data DIR, a folder of token shards; `pgolf tokenize` makes one")

    folder = run.out / "data"
    if run.ranks.rank == 0 and not (folder / "val.bin").exists():
        prepare_demo(folder, replace(DEMO, model=run.recipe.model))
    run.ranks.agree(0.0, run.device)  # the others wait
    return find_data(folder, vocab_size)


class _Run:
    """One folder, one recipe, one process."""

    def __init__(
        self,
        out: Path,
        recipe: Recipe,
        ranks: Ranks,
        device: torch.device,
        seed: int,
        qat: QATSettings | None,
        pack: str | None = None,
        ends: StopIf | None = None,
        foreseen: Callable[[Foreseen], None] | None = None,
    ) -> None:
        self.out, self.recipe, self.ranks, self.device, self.seed = out, recipe, ranks, device, seed
        self.qat, self.pack, self.ends, self.foreseen = qat, pack, ends, foreseen
        self.hopeless = ""  # why --stop-if ends the run
        self._values: dict[str, float] = {}  # last foreseen
        self._held: int | None = None
        self.state, self.checkpoint, self.log = out / "state.pt", out / "checkpoint.pt", out / "train.jsonl"

    @property
    def writes(self) -> bool:
        return self.ranks.rank == 0

    def open(self, resume: bool) -> None:
        """Make the folder, ours until `release`. UsageError if it holds a run that is not to be resumed, or one that goes on."""
        if self.state.exists() and not resume:
            raise UsageError(f"{self.out} holds a run already: add --resume, or name another --out")
        if not self.state.exists() and resume:
            raise UsageError(f"nothing to resume: there is no {self.state}")
        self.ranks.agree(0.0, self.device)  # nobody writes before all have looked
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"{self.out} is a file: -o names the folder of a run")
        self.out.mkdir(parents=True, exist_ok=True)
        taken = self.writes and not self._take()
        if self.ranks.agree(float(taken), self.device) > 0:
            raise UsageError(f"{self.out}: another process trains there; wait for it, or name another --out")

    def _take(self) -> bool:
        """Whether the folder was nobody's; it is locked then, as long as this process has it open."""
        if os.name == "nt":  # folders cannot be opened there
            return True
        self._held = os.open(self.out, os.O_RDONLY)
        return files.is_free(self._held)

    def release(self) -> None:
        """Others may train there; a folder in which nothing was written yet goes."""
        if self.writes:
            with suppress(OSError):  # it holds something, or was never made
                self.out.rmdir()
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def train(self, files: DataFiles, resume: bool, progress: AfterStep | None) -> Trainer:
        """Train to the end, and save."""
        trainer, config = self._trainer(files), self._config(files)
        if resume:
            resume_from(trainer, self.state, self._settings(trainer))
        first = self._first_line(trainer, files)
        with interrupt_flag(echoed="RANK" in os.environ) as trainer.interrupted:
            if self.writes:
                self._train_and_save(trainer, first, config, progress)
            else:
                trainer.run(self._leave)
        return trainer

    def close(self, trainer: Trainer, files: DataFiles, pack: str | None) -> TrainReport:
        """Score what the checkpoint holds, in float32; write train.json and loss.png; pack, and score that.

        Rank 0 scores and writes, all calibrate and round together; every rank gets rank 0's report, or its error.
        """
        report = on_first(lambda: self._closed(trainer, files))
        if pack is None:
            return report
        path = self.out / "model.pgolf"
        made = pack_checkpoint(self.checkpoint, path, trainer.sampler, budget=pack, seed=self.seed)
        return on_first(lambda: self._closed_packed(report, path, made.artifact_bytes, trainer, files))

    def _closed(self, trainer: Trainer, files: DataFiles) -> TrainReport:
        report = self._report(trainer, self._score(trainer.model, files))
        plot_loss(self.log, self.out / "loss.png")
        self._write(report, self._config(files))
        return report

    def _trainer(self, files: DataFiles) -> Trainer:
        recipe, cuda = self.recipe, self.device.type == "cuda"
        shards = [read_shard(path) for path in files.train]
        for shard, path in zip(shards, files.train, strict=True):
            check_vocabulary(shard, recipe.model.vocab_size, owner=f"model (shard {path.name})")
        check_memory(recipe, self.ranks.world, self.device)
        sampler = WindowSampler(shards, recipe.seq_len, recipe.batch_size, self.seed, bos=BOS)
        model = GPT(recipe.model, seed=self.seed, compute_dtype=torch.bfloat16 if cuda else torch.float32)
        model = model.to(self.device)
        return Trainer(model, sampler, recipe.train, ranks=self.ranks, compile=cuda, qat=self._hooks(model, sampler))

    def _hooks(self, model: GPT, sampler: WindowSampler) -> QAT | None:
        if self.qat is None:
            return None
        measure = measured_while_training(model, sampler, seed=self.seed)
        return QAT(model, curvature=measure, **vars(self.qat))

    def _config(self, files: DataFiles) -> dict[str, Any]:
        """The checkpoint's; the tokenizer is copied beside it."""
        if files.tokenizer is not None and self.writes and not (self.out / "tokenizer.model").exists():
            with replacing(self.out / "tokenizer.model") as file:
                file.write(files.tokenizer.read_bytes())
        return self.recipe.to_config(seed=self.seed, tokenizer="tokenizer.model" if files.tokenizer else "")

    def _settings(self, trainer: Trainer) -> dict[str, Any]:
        """What a resumed run must share with the one that it continues."""
        return {
            **asdict(self.recipe),
            "seed": self.seed,
            "qat": None if self.qat is None else asdict(self.qat),
            "ranks": self.ranks.world,
            "shard tokens": [len(shard) for shard in trainer.sampler.shards],
        }

    def _train_and_save(
        self, trainer: Trainer, first: Mapping[str, float], config: dict[str, Any], progress: AfterStep | None
    ) -> None:
        log, saved = MetricsLog(self.log, keep=trainer.step_count), trainer.seconds
        watch = self._watch(trainer, first)

        def after(info: StepInfo) -> None:
            nonlocal saved
            log(info, **(first if info.step == 1 else {}))
            if watch is not None:
                self._judge(trainer, info, watch)
            if info.interrupted or info.progress >= 1.0 or info.seconds - saved > SAVE_SECONDS:
                saved = info.seconds
                self._save(trainer, config)
            self._leave(info)
            if progress is not None:
                progress(info)

        try:
            trainer.run(after)
        except StoppedError:
            raise
        except PgolfError as error:
            kept = f"{self.checkpoint} is the last good one" if self.checkpoint.exists() else "nothing was saved yet"
            raise type(error)(f"{error}; {kept}") from None
        finally:
            log.close()
        if watch is not None and watch.failed:
            trainer.notes.append(f"size and packed score were not foreseen to the end: {watch.failed}")

    def _first_line(self, trainer: Trainer, files: DataFiles) -> dict[str, float]:
        """What the first line of train.jsonl says of the whole run. UsageError for a --stop-if of a BPB that it cannot know."""
        counts = self._byte_counts(files)
        first = first_line(
            parameters=sum(param.numel() for param in trainer.model.parameters()),
            vocab_size=self.recipe.model.vocab_size,
            batch_tokens=self.recipe.batch_size * self.recipe.seq_len,
            seq_len=self.recipe.seq_len,
            ranks=self.ranks.world,
            minutes=self.recipe.train.minutes,
            bpb_per_nat=math.nan if counts is None else bpb_of_a_nat(counts, SCORED_TOKENS),
        )
        if self.ends is not None and self.ends.names & {"final", "packed"} and "bpb_per_nat" not in first:
            raise UsageError(
                "--stop-if asks for a BPB: that needs a validation shard, and its tokenizer or byte sidecar"
            )
        return first

    def _watch(self, trainer: Trainer, first: Mapping[str, float]) -> Watch | None:
        """Who foresees the end, where somebody asks."""
        if self.ends is None and self.foreseen is None:
            return None
        budget = self.pack
        estimate = None if budget is None else lambda: estimated(trainer, budget=budget, seed=self.seed)
        return Watch(first, read_metrics(self.log) if trainer.step_count else [], estimate)

    def _judge(self, trainer: Trainer, info: StepInfo, watch: Watch) -> None:
        """Look ahead; where --stop-if holds, every rank is to leave after the next step, as after a signal."""
        if (seen := watch.after(asdict(info))) is not None:
            self._values = seen.values()
            if self.foreseen is not None:
                self.foreseen(seen)
        if self.ends is not None and not self.hopeless and info.progress < 1.0:
            values = {**self._values, "step": float(info.step), "seconds": info.seconds}
            self.hopeless = self.ends.reason(values)
            if self.hopeless and trainer.interrupted is not None:
                trainer.interrupted.set()

    def _leave(self, info: StepInfo) -> None:
        """Every rank leaves after the same step, for the same reason, and none before rank 0 has saved."""
        if not info.interrupted:
            return
        hopeless = self.ranks.agree(float(bool(self.hopeless)), self.device)
        if self.ends is None or not hopeless:
            raise KeyboardInterrupt
        why = self.hopeless or "rank 0 has the reason"
        raise StoppedError(
            f"--stop-if ended the run after step {info.step:,}: {why}; {self.checkpoint} is saved, --resume without it goes on"
        )

    def _save(self, trainer: Trainer, config: dict[str, Any]) -> None:
        looped = getattr(trainer.model, "looped", True)  # a checkpoint from before the loop starts is one without it
        save_checkpoint(self.checkpoint, trainer.averaged_state(), config | {"looped": looped})
        save_state(self.state, trainer.state_dict(), self._settings(trainer))

    def _write(self, report: TrainReport, config: dict[str, Any]) -> None:
        facts = report.to_json() | {"config": config, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
        write_json(self.out / "train.json", facts)

    def _closed_packed(
        self, report: TrainReport, path: Path, num_bytes: int, trainer: Trainer, files: DataFiles
    ) -> TrainReport:
        """The report with the artifact of the checkpoint: its name, bytes, and score."""
        trainer.model.load_state_dict(dense.load(path))
        score = self._score(trainer.model, files)
        packed = {"file": path.name, "bytes": num_bytes, "score": None if score is None else asdict(score)}
        report = replace(report, packed=packed)
        self._write(report, self._config(files))
        return report

    def _report(self, trainer: Trainer, score: EvalResult | None) -> TrainReport:
        parameters = sum(param.numel() for param in trainer.model.parameters())
        tokens = trainer.step_count * self.recipe.batch_size * self.recipe.seq_len
        return TrainReport(
            checkpoint=self.checkpoint,
            parameters=parameters,
            steps=trainer.step_count,
            tokens=tokens,
            seconds=trainer.seconds,
            score=score,
            notes=tuple(trainer.notes),
            qat=None if trainer.qat is None else f"{trainer.qat.report().headline}, in {trainer.qat.updates} updates",
        )

    def _score(self, model: Any, files: DataFiles) -> EvalResult | None:
        counts = self._byte_counts(files)
        if counts is None or files.val is None:
            return None
        model.compute_dtype = torch.float32
        tokens = read_shard(files.val)
        return evaluate(model.forward_logits, tokens, counts, seq_len=self.recipe.seq_len, max_tokens=SCORED_TOKENS)

    def _byte_counts(self, files: DataFiles) -> NDArray[np.integer] | None:
        """Of the validation shard's tokens; None where it, or what counts its bytes, is not here."""
        if files.val is None or (files.tokenizer is None and not sidecar.beside(files.val)):
            return None
        return sidecar.byte_counts(files.val, read_shard(files.val), tokenizer=files.tokenizer)
