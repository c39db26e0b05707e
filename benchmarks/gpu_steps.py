"""What is measured on a GPU, step by step, the most valuable first: each an independent command line or two, under nine minutes.

`benchmarks/gpu.py` runs them. A step reads what earlier ones left in the working folder, and says what that is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
SHARED = ROOT.parent / "shared" / "data"
TESTS = (
    "tests/kernels",
    "tests/loading/test_on_device.py",
    "tests/scoring/test_static.py",
    "tests/scoring/test_bpb.py",
)


@dataclass(frozen=True)
class Place:
    """work: folder that keeps everything from one call to the next. carry: what was brought along (gpu_carry.py).
    device: cuda, or cpu in a dry run. dry: every size a toy's."""

    work: Path
    carry: Path
    device: str
    dry: bool

    def __getitem__(self, name: str) -> str:
        return str(self.work / name)


@dataclass(frozen=True)
class Command:
    """arguments of this Python. out: file in the working folder that takes its standard output. codes: exit codes after which
    the step goes on."""

    arguments: tuple[str, ...]
    out: str | None = None
    codes: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Step:
    """minutes: that it needs at most. needs: files in the working folder that earlier steps made. makes: files for later
    steps. facts: name -> JSON file that holds its result. gives: files to hand over, under 16 MiB each."""

    name: str
    what: str
    minutes: float
    commands: tuple[Command, ...]
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()


def python(*arguments: object, out: str | None = None) -> Command:
    return Command(tuple(str(word) for word in arguments), out)


def pgolf(*arguments: object, out: str | None = None) -> Command:
    return python("-m", "pgolf", *arguments, out=out)


DRY_MINUTES = 4  # of a busy machine
TESTERS = 8  # processes of pytest: a kernel compiles on one core, and there are some hundred
FAILING = 1  # exit code of pytest; gpu_machine.py then counts
VOCABULARY = 512  # of a dry run
TEXT = ("train.bin", "val.bin", "tokenizer.model")
CHECKPOINT, ARTIFACT, TUNED = "golf/checkpoint.pt", "golf.pgolf", "tuned.pgolf"


def steps(place: Place) -> list[Step]:
    """In the order of their worth: what cannot be had without a GPU first, what only takes longer without one last."""
    found = [
        _setup(place),
        _text(place),
        _tests(place),
        _bench(place, "kernels", "kernels and loading against the device's best", 4, "load,rans_decode,dequant,softcap_nll"),
        _train(place),
        _pack(place, "pack", "the trained model in 16 MB", 4, ARTIFACT),
        _eval(place, "eval", "bits per byte and speed of the artifact and the checkpoint", ARTIFACT, CHECKPOINT),
        _bench(place, "load", "loading and decoding the trained artifact", 2, _of_artifact(place), ARTIFACT),
        _bench(place, "products", "quant_linear beside torch.matmul", 8, "quant_linear"),
        _bench(place, "others", "quant_linear beside torchao, gemlite and torch's own", 8, "others"),
        _bench(place, "speed", "evaluation dense, unpacked and packed", 4, "eval"),
        _bench(place, "fitting", "curvature and rounding of 36M parameters", 4, "fitting"),
        _bench(place, "qat", "what QAT costs an update", 8, "qat"),
        _sweep(place),
        _pack(place, "tuned", "the same with the closed loop", 8, TUNED, "--tune", "512" if place.dry else "500k"),
        _eval(place, "tuned-eval", "bits per byte of the closed loop's artifact", TUNED, ARTIFACT),
    ]  # fmt: skip
    return [replace(step, minutes=DRY_MINUTES) for step in found] if place.dry else found


def _setup(place: Place) -> Step:
    wheels = sorted(str(path) for path in place.carry.glob("wheels/*.whl"))
    target = ("--target", place["site"], "--upgrade")
    install = python("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", *target, *wheels)
    check = python(HERE / "gpu_machine.py", "--device", place.device, out="machine.json")
    return Step(
        "setup",
        "packages that were brought along; the device",
        2,
        (install, check) if wheels else (check,),
        makes=("machine.json",),
        facts=("machine.json",),
    )


def _text(place: Place) -> Step:
    if place.dry:
        pages = sorted(str(path) for path in (ROOT / "docs").glob("*.md"))
        make: tuple[Command, ...] = (
            pgolf("tokenize", *pages, "-o", place["text"], "--vocab-size", VOCABULARY),
            python(HERE / "gpu_carry.py", "--rename", place["text"], place.work),
        )
    else:
        make = (python(HERE / "gpu_carry.py", "--text", place.carry, place.work),)
    return Step("text", "the text in the contest's tokens", 4, make, makes=TEXT)


def _tests(place: Place) -> Step:
    chosen = ("-k", "by_hand") if place.dry else ("-m", "gpu or not slow", "-n", TESTERS)
    files = ("tests/kernels/test_quant_linear.py",) if place.dry else TESTS
    others = ("-W", "default")  # versions that are not ours may warn
    junit = f"--junitxml={place['tests.xml']}"
    return Step(
        "tests",
        "the kernels' tests, compiled on the device",
        6,
        (
            replace(python("-m", "pytest", "-q", *others, *chosen, *files, junit), codes=(0, FAILING)),
            python(HERE / "gpu_machine.py", "--tests", place["tests.xml"], out="tests.json"),
        ),
        facts=("tests.json",),
    )


def _of_artifact(place: Place) -> str:
    """What is measured of it: Triton's interpreter takes minutes for so many symbols."""
    return "load" if place.dry else "load,rans_decode"


def _bench(place: Place, name: str, what: str, minutes: float, only: str, artifact: str | None = None) -> Step:
    toy = ("--toy",) if place.dry else ()
    file = ("--artifact", place[artifact]) if artifact else ()
    command = pgolf("bench", "--device", place.device, "--only", only, *toy, *file, "-o", place[f"{name}.json"])
    return Step(name, what, minutes, (command,), needs=(artifact,) if artifact else (), facts=(f"{name}.json",))


def _train(place: Place) -> Step:
    data = ("--data", place["train.bin"], "--val", place["val.bin"], "--tokenizer", place["tokenizer.model"])
    sizes = f"vocab_size={VOCABULARY},dim=48,heads=2,steps=3,seq_len=32,batch_size=4"
    toy = ("--preset", "tiny", "--set", sizes, "--context", 32, "--probes", 1, "--val-tokens", 512, "--minutes", 1)
    size = toy if place.dry else ("--preset", "golf", "--minutes", 6.5)
    return Step(
        "train",
        "36M parameters on the text",
        9,
        (python(HERE / "train_golf.py", *data, "--device", place.device, *size, "--out", place["golf"]),),
        needs=TEXT,
        makes=(CHECKPOINT,),
        facts=("golf/train.json",),
        gives=("golf/train.jsonl",),
    )  # fmt: skip


def _length(place: Place) -> tuple[str, ...]:
    return ("--seq-len", "32") if place.dry else ()


def _text_of(place: Place) -> tuple[str, ...]:
    few = ("--max-tokens", "512") if place.dry else ()
    return ("--data", place["val.bin"], "--tokenizer", place["tokenizer.model"], *_length(place), *few)


def _calibration(place: Place) -> tuple[str, ...]:
    return ("--calib", place["train.bin"], "--tokens", "512" if place.dry else "65536")


def _pack(place: Place, name: str, what: str, minutes: float, out: str, *more: str) -> Step:
    budget = ("--budget", "60kB" if place.dry else "16MB")
    how = (*budget, *_calibration(place), *_length(place), "--device", place.device, *more)
    command = pgolf("pack", place[CHECKPOINT], *how, "-o", place[out], "--force", "--json", out=f"{name}.json")
    needs = (CHECKPOINT, TEXT[0])
    return Step(name, what, minutes, (command,), needs, makes=(out,), facts=(f"{name}.json",), gives=(out,))


def _eval(place: Place, name: str, what: str, *sources: str) -> Step:
    models = [place[source] for source in sources]
    command = pgolf("eval", *models, *_text_of(place), "--device", place.device, "--json", out=f"{name}.json")
    return Step(name, what, 3, (command,), needs=(*sources, *TEXT[1:]), facts=(f"{name}.json",))


def _sweep(place: Place) -> Step:
    sizes = ("--bits", "3") if place.dry else ("--budgets", "10MB,13MB,16MB")
    methods = ("--methods", "auto:trellis=0" if place.dry else "auto,gptq")
    how = (*sizes, *methods, *_calibration(place), "--device", place.device, "--jobs", 1)
    command = pgolf("sweep", place[CHECKPOINT], *_text_of(place), *how, "-o", place["sweep"])
    return Step(
        "sweep", "bytes against bits per byte, beside the contest's packer", 8, (command,), (CHECKPOINT, *TEXT),
        facts=("sweep/results.json",),
    )  # fmt: skip
