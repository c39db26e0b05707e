"""Logs of contest trainers into runs: which line is a step, a setting, a score or a size stands in tables of patterns.

Trainers print one thing in many shapes, print their own source first, and count their warm-up too, so a line counts only
where it begins as a step does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from pgolf.oracle.run import Run

NUMBER = r"[-+]?(?:\d[\d,_]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+|nan|inf(?:inity)?)"
_BEFORE = (
    r"^(?:\d{9,}(?:\.\d+)?\s+|\[[^\]]*\]\s*|\d{4}-\d\d-\d\d[T ][\d:.,]+Z?\s*|\d\d:\d\d:\d\d\S*\s+|"
    r"rank\s?\d+:?\s*|[|>*-]\s*)*"
)
HEADS = [  # how a line of progress begins: step, planned steps
    re.compile(_BEFORE + r"(?:step|iter|iteration|s)\s*[:= ]\s*(\d+)(?:\s*/\s*(\d+))?(?=[\s|,:\])]|$)", re.I),
    re.compile(_BEFORE + r"(\d+)/(\d+)(?=\s)"),
]
FIELDS = {  # what the last words before a number are called: (column, preference)
    "ce": ("loss", 3), "ce_loss": ("loss", 3), "train_loss": ("loss", 2), "train loss": ("loss", 2), "loss": ("loss", 1),
    "tl": ("loss", 1), "val_loss": ("val_loss", 2), "val loss": ("val_loss", 2), "vl": ("val_loss", 1),
    "val_bpb": ("val_bpb", 2), "val bpb": ("val_bpb", 2), "bpb": ("val_bpb", 1), "train_time": ("time", 2),
    "train time": ("time", 2), "time": ("time", 1), "elapsed": ("time", 1), "tt": ("time", 1), "t": ("time", 1),
    "step_avg": ("average", 2), "step avg": ("average", 2), "avg": ("average", 1), "sa": ("average", 1),
}  # fmt: skip
_PAIR = re.compile(
    rf"([A-Za-z_][A-Za-z_]*(?: (?:loss|bpb|time|avg))?)\s*[:=]\s*({NUMBER})\s*(ms|min|m|s|h)?(?![A-Za-z_\d])", re.I
)
UNITS = {"ms": 1.0, "s": 1e3, "": 1.0, "m": 6e4, "min": 6e4, "h": 3.6e6}
SETTINGS = {  # name: what stands before its number
    "n_params": r"(?:model_params|n_params|num_params|total_params|model params|total params|parameters)",
    "train_batch_tokens": r"(?:train_batch_tokens|batch_tokens)",
    "train_seq_len": r"train_seq_len",
    "iterations": r"(?:iterations|num_iterations|max_steps)",
    "max_wallclock_s": r"(?:max_wallclock_seconds|max_wallclock_s|max_wallclock)",
    "world_size": r"world_size",
    "vocab": r"(?:vocab_size|vocab)",
    "seed": r"seed",
}
_SETTINGS = {
    name: re.compile(rf"(?<![A-Za-z_]){words}\s*[:=]\s*(\d[\d,_]*(?:\.\d+)?)(?![\w(])")
    for name, words in SETTINGS.items()
}
_VOCAB = re.compile(r"(?:fineweb\w*_sp|fineweb_|sp)(\d{3,6})(?:_bpe)?(?=[\b_/.\s]|$)")
_STOP = re.compile(r"stopping[_ ]early", re.I)
_STOP_STEP = re.compile(r"step\s*:\s*(\d+)")
_SIZE = re.compile(r"total submission size[^:\n]*:\s*([\d,_]+)\s*(?:bytes|B)\b", re.I)
_SCORE = re.compile(
    rf"val_bpb\s*[:=]\s*({NUMBER})(?![\w.])", re.I
)  # not the ".4" of a printed source's {{val_bpb:.4f}}
LABELS = [  # of a score after training, the first that fits
    ("other", r"n-?gram|cache|oracle|progress|running|mixer|hedge"),
    ("ttt", r"ttt|lora"),
    ("sliding", r"sliding|stride|_sw\b|slide"),
    ("post_ema", r"post[-_ ]?ema|pre[-_ ]?quant|swa\b|averaged"),
    ("quantized", r"quant|round-?_?trip|int\d"),
]
_LABELS = [(kind, re.compile(pattern, re.I)) for kind, pattern in LABELS]
_MODE = re.compile(r"eval[_ ]mode\s*[:=]\s*(\w+)", re.I)
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-_]")


def text_of(raw: bytes) -> str:
    """The text of a log: UTF-8, or UTF-16 with a mark or with every other byte 0; colours gone, a return is a line's end."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = raw.decode("utf-16", "replace")
    elif len(raw) > 3 and raw[1:400:2].count(0) > 0.8 * len(raw[1:400:2]):
        text = raw.decode("utf-16-le", "replace")
    elif len(raw) > 3 and raw[0:400:2].count(0) > 0.8 * len(raw[0:400:2]):
        text = raw.decode("utf-16-be", "replace")
    else:
        text = raw.decode("utf-8-sig", "replace")
    return _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def parse(text: str, name: str) -> list[Run]:
    """The runs of a log, in its order; the same run twice is one. A last step line that is cut off counts for nothing."""
    reader = _Reader(name)
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if len(line) < 2000:  # a packed script's line has nothing to say, and much of it
            reader.line(line.strip(), cut=number == len(lines) - 1)
    return reader.close()


class _Reader:
    """Goes through a log once. A step that starts again from the beginning is another run."""

    def __init__(self, name: str) -> None:
        self.name, self.runs, self.run = name, list[Run](), Run(name)
        self.heading: dict[str, float] = {}  # settings that were read since the last step
        self.mode = ""

    def line(self, line: str, cut: bool) -> None:
        if _STOP.search(line):
            step = _STOP_STEP.search(line)
            self.run.total = int(step[1]) if step else self.run.step
        elif head := next(filter(None, (pattern.match(line) for pattern in HEADS)), None):
            if not cut:
                self._progress(line, head)
        elif not cut or line.endswith(("bytes", "ms", "s")):
            self._other(line)

    def _progress(self, line: str, head: re.Match[str]) -> None:
        rest = line[head.end() :]
        found = _fields(rest)
        if not found.keys() & {"loss", "val_loss", "val_bpb"} or self._after_training(rest):
            return
        step, planned = int(head[1]), head[2]
        if self.run.points and step < self.run.step and (step <= 10 or 5 * step < self.run.step):
            self._next()
        run = self.run
        run.settings |= self.heading
        self.heading = {}
        if planned and int(planned) > 0:
            run.settings["iterations"] = float(planned)
        loss = math.nan if re.match(r"\s*\[[^\]]*[A-Za-z]", rest) else found.get("loss", math.nan)
        bpb, nats = found.get("val_bpb", math.nan), found.get("val_loss", math.nan)
        said = [found[key] for key in ("loss", "val_loss", "val_bpb") if key in found]
        if any(not math.isfinite(value) for value in said) and run.broken is None:
            run.broken = step
        if 0 < bpb < math.inf and 0 < nats < math.inf and step > 0:
            run.nats = bpb / nats
        elapsed = found.get("time", math.nan)
        if math.isnan(elapsed) and step:
            elapsed = step * found.get("average", math.nan)
        run.points.append((float(step), elapsed, loss if loss > 0 else math.nan, bpb if bpb > 0 else math.nan))
        if planned and step == int(planned) and math.isfinite(bpb):
            run.total = step

    def _after_training(self, rest: str) -> bool:
        return self.run.total is not None and bool(re.search(r"ttt|adapt|chunk|running", rest, re.I))

    def _other(self, line: str) -> None:
        if size := _SIZE.search(line):
            self.run.size = int(re.sub(r"[,_]", "", size[1]))
        elif score := _SCORE.search(line):
            self._score(line, float(score[1].replace(",", "")))
        elif mode := _MODE.search(line):
            self.mode = mode[1]
        else:
            for name, pattern in _SETTINGS.items():
                if found := pattern.search(line):
                    self.heading.setdefault(name, float(re.sub(r"[,_]", "", found[1])))
            if "vocab" not in self.heading and (found := _VOCAB.search(line)):
                self.heading["vocab"] = float(found[1])

    def _score(self, line: str, bpb: float) -> None:
        label = line.partition("val_")[0] + " " + self.mode
        kind = next((kind for kind, pattern in _LABELS if pattern.search(label)), "")
        if kind == "post_ema" and re.search(r"diagnostic quantized", line):
            kind = "quantized"
        if self.run.points and kind and kind != "other" and 0.3 < bpb < 20:
            if self.run.total is None:
                self.run.total = self.run.step
            old = self.run.scores.get(kind, math.inf)
            self.run.scores[kind] = bpb if kind == "post_ema" else min(old, bpb)

    def _next(self) -> None:
        self.runs.append(self.run)
        self.run = Run(self.name, settings=dict(self.heading) or dict(self.run.settings))
        self.heading, self.mode = {}, ""

    def close(self) -> list[Run]:
        runs = [run for run in [*self.runs, self.run] if run.points]
        distinct = list({str(run.points): run for run in reversed(runs)}.values())[::-1]
        for number, run in enumerate(distinct, 1):
            run.name = self.name if len(distinct) == 1 else f"{self.name}#{number}"
        return distinct


def _fields(rest: str) -> dict[str, float]:
    """The numbers of a line of progress by column; times in milliseconds."""
    best: dict[str, tuple[int, float]] = {}
    for words, number, unit in _pairs(rest):
        column, weight = FIELDS.get(words, ("", 0))
        if column and weight > best.get(column, (0, 0.0))[0]:
            scale = UNITS[unit] if column in {"time", "average"} else 1.0
            best[column] = (weight, number * scale)
    return {column: value for column, (_, value) in best.items()}


def _pairs(rest: str) -> Iterator[tuple[str, float, str]]:
    for words, number, unit in _PAIR.findall(rest):
        yield words.lower(), float(re.sub(r"[,_]", "", number)), unit.lower()
