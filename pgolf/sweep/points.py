"""What a sweep measures: methods as people spell them, sizes, and the list of points that follows.

* Methods are separated by commas, and so are the settings of one: `auto,gptq:int6,k=12.85,rtn:int8` is three methods.
  A word that names a method begins the next one.
* A method whose `k` or `step` is fixed has nothing to search: it is one point, whatever the budgets. Several of them
  that differ in nothing else are one series, a curve.
* `auto+tune` is `auto` with the closed loop after it, on as many tokens as the sweep says.
* A point's key is a hash of its own settings, so a folder can be extended by more methods and sizes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pgolf.common import grammar
from pgolf.errors import UsageError
from pgolf.fitting import baselines, plan
from pgolf.packer.format.artifact import CODERS
from pgolf.quant import METHODS, Settings
from pgolf.quant.settings import HALF, LOG_SCALE

OPTIONS = ("trellis", "two_sided", "unbias", "damp_inputs", "damp_outputs")  # where results.json has always had them
TUNED = "+tune"  # after a method's name
CODER_NAMES = {"ours": "rans"} | {name: name for name in CODERS}


@dataclass(frozen=True)
class Point:
    """One pack to be made. series: the curve that it lies on; label: what tells it from the others of its series.

    rules: as `--set`; options: fields of Settings; budget: bytes of the artifact, None where the step is fixed.
    tune: tokens of the closed loop, None without.
    """

    series: str
    label: str
    method: str
    rules: tuple[str, ...] = ()
    options: dict[str, float] = field(default_factory=dict)
    coder: str = "rans"
    budget: int | None = None
    tune: int | None = None

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name its result: a hash of all settings."""
        facts = asdict(self)
        if self.tune is None:
            del facts["tune"]  # folders of before there was a choice go on
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def how(self) -> dict[str, Any]:
        """Arguments of `fitting.packing.pack`."""
        scales = LOG_SCALE if self.coder == "rans" else HALF
        options: dict[str, Any] = {"scale_per_octave": scales} | self.options
        settings = Settings(**options)
        words = ",".join(rule.removeprefix("*=") for rule in self.rules)  # of all tensors, as --method says them
        return {
            "method": f"{self.method}:{words}" if words else self.method,
            "rules": (),
            "settings": settings,
            "coder": self.coder,
            "budget": self.budget,
            "tune": self.tune,
        }


def points_of(
    methods: str, budgets: Iterable[int], *, coders: Sequence[str] = ("rans",), tune: int | None = None
) -> list[Point]:
    """Every method at every budget with every coder. Raises UsageError for what it cannot read.

    methods: "auto,auto+tune,gptq:int6,k=12.85,contest"; coders: "ours" or "rans", "brotli", "zstd", "lzma", "zlib".
    tune: tokens that methods with "+tune" are tuned on.
    """
    sizes = sorted(set(budgets))
    points: list[Point] = []
    for spec in split_methods(methods):
        if spec == "contest":
            points += contest_points()
            continue
        for coder in coders:
            points += _method_points(spec, sizes, _coder(coder), len(coders) > 1, tune)
    return list({p.key: p for p in points}.values())


def split_methods(text: str) -> list[str]:
    """ "auto,gptq:int6,k=9" -> ["auto", "gptq:int6,k=9"]. Raises UsageError where the first word is no method."""
    specs: list[str] = []
    for word in grammar.words_of(text):
        name = word.partition(":")[0].strip()
        if name.removesuffix(TUNED) in METHODS or name == "contest":
            specs.append(word)
        elif specs and ":" in specs[-1] and ":" not in word:
            specs[-1] += f",{word}"
        else:
            raise UsageError(f"--methods: unknown method {name!r}; {grammar.hint(name, [*METHODS, 'contest'])}")
    if not specs:
        raise UsageError("--methods names no method")
    return specs


def contest_points() -> list[Point]:
    """The contest's packer at several clips: a curve without any search."""
    return [
        Point("contest", f"k={k:g}", how["method"], (), {"step": how["settings"].step}, how["coder"])
        for k in baselines.CONTEST_K
        for how in [baselines.contest(k)]
    ]


def _coder(name: str) -> str:
    if name not in CODER_NAMES:
        raise UsageError(f"--coder {name!r} is not known; known: {', '.join(CODER_NAMES)}")
    return CODER_NAMES[name]


def _method_points(spec: str, budgets: Sequence[int], coder: str, name_coder: bool, tokens: int | None) -> list[Point]:
    name, _, rest = spec.partition(":")
    method = name.removesuffix(TUNED)
    tune = None if name == method else tokens
    if name != method and tokens is None:
        raise UsageError(f"--methods {name} needs --tune TOKENS: how much text to tune on")
    words = grammar.words_of(rest)
    said = plan.read_settings(words, method, option=f"--methods {spec!r}")
    options = {name: +value for name, value in said.items() if name in OPTIONS and isinstance(value, (int, float))}
    Point("", "", method, options=options).how()  # refuses what no method understands before anything is measured
    rule_words = [w for w in words if _name(w) not in options]
    rules = (f"*={','.join(rule_words)}",) if rule_words else ()
    knob = [w for w in rule_words if _name(w) in {"k", "step"}]
    named = [w for w in words if w not in knob]
    series = name + (f":{','.join(named)}" if named else "") + (f" + {coder}" if name_coder else "")
    if knob:
        return [Point(series, ",".join(knob), method, rules, options, coder, None, tune)]
    if not budgets:
        raise UsageError(f"{spec} needs a size to aim at: add --budgets 8MB,16MB or --bits 2,3,4, or fix its k or step")
    return [Point(series, f"{size:,} B", method, rules, options, coder, size, tune) for size in budgets]


def _name(word: str) -> str:
    """The name of NAME=VALUE."""
    return word.partition("=")[0].strip()
