"""The script for a machine with a GPU: it has to be right before there is one."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_goals, gpu_machine, gpu_steps
from benchmarks.gpu_steps import Command, Place, Step
from pgolf.bench import suite
from pgolf.bench.sizes import Sizes
from tests.kernels.places import HAS_GPU, needs_triton

ROOT = Path(__file__).resolve().parents[2]
REAL = Place(Path("/work"), Path("/carry"), "cuda", dry=False)


@needs_triton
@pytest.mark.slow
def test_every_step_runs_at_toy_size(tmp_path):
    environment = dict(os.environ, PYTHON=sys.executable, PYTHONPATH=str(ROOT))
    script = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path), "--dry-run"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "gpu.json").read_text())
    assert facts["dry_run"] is True
    assert facts["machine"].keys() >= {"date", "device", "torch"}
    assert facts["steps"].keys() == {step.name for step in gpu_steps.steps(REAL)}
    assert facts["steps"]["tests"]["facts"]["failures"] == 0
    assert facts["steps"]["eval"]["facts"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "gpu.json", "gpu.log", "golf.pgolf", "tuned.pgolf", "train.jsonl", "work",
    }  # fmt: skip
    again = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    said, goals = again.stdout.splitlines(), len(gpu_goals.GOALS) + 1
    assert [line.partition(": ")[2] for line in said[:-goals]] == ["done before"] * len(facts["steps"])
    assert [row["step"] for row in facts["goals"]].count(None) == 0
    assert all(line.endswith("of a toy") for line in said[-goals + 1 :])


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_a_missing_gpu_is_one_line(tmp_path):
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), str(tmp_path / "out")]
    elsewhere = ["--work", str(tmp_path / "work"), "--carry", str(tmp_path)]
    done = subprocess.run([*script, *elsewhere], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith("gpu.py: cuda was asked for, but torch")
    assert done.stderr == ""


def test_real_steps_fit_a_call_and_what_comes_back():
    """The machine's tool ends a command after ten minutes, and brings back eight files."""
    steps = gpu_steps.steps(REAL)
    assert max(step.minutes for step in steps) + gpu.GRACE / 60 <= gpu.MINUTES + 0.5
    given = {Path(name).name for step in steps for name in step.gives}
    assert len(given | {"gpu.json", "gpu.log"}) <= 8
    made = set()
    for step in steps:
        assert set(step.needs) <= made, f"{step.name} needs what no earlier step makes"
        made |= set(step.makes)
    words = [word for step in steps for command in step.commands for word in command.arguments]
    assert "--toy" not in words
    assert "cpu" not in words


def campaign(folder, *steps):
    said: list[str] = []
    made = gpu.Campaign(Place(folder / "work", folder, "cpu", dry=True), folder / "out", said.append)
    made.steps = list(steps)
    return made, said


def step(name, code, **more):
    return Step(name, "", 1, (Command(("-c", code), f"{name}.json"),), facts=(f"{name}.json",), **more)


def test_a_failed_step_stops_no_other_and_is_tried_again(tmp_path):
    bad, good = step("bad", "print('{}'); raise SystemExit('out of luck')"), step("good", "print('{\"x\": 1}')")
    after = replace(good, name="after", needs=("nowhere.bin",))
    made, said = campaign(tmp_path, bad, after, good)
    assert gpu.run(made, made.steps, 9) == 1
    assert made.results["bad"]["facts"] == {}, "what it told before it failed"
    assert said[0].startswith("bad: exit code 1\nout of luck")
    assert said[1] == "after: waits for nowhere.bin, which an earlier step makes"
    known = json.loads((tmp_path / "out" / "gpu.json").read_text())["steps"]
    assert (known["bad"]["ok"], known["good"]["facts"]) == (False, {"x": 1})
    made, said = campaign(tmp_path, step("bad", "print('{}')"), good)
    assert gpu.run(made, made.steps, 9) == 0
    assert said[1] == "good: done before"


def test_a_step_without_its_time_waits_and_one_that_hangs_is_ended(tmp_path):
    made, said = campaign(tmp_path, step("long", "print('{}')"), step("hangs", "import time; time.sleep(60)"))
    assert gpu.run(made, made.steps[:1], 1.2) == 0
    assert said[0] == "long: waits for the next call, it may take 1 minutes"
    began = time.monotonic()
    record = made.take(made.steps[1], began + 0.5)
    assert record["error"].startswith("ran out of time")
    assert time.monotonic() - began < 20
    assert not made.done(made.steps[1])


def test_results_without_the_files_of_their_step_are_none(tmp_path):
    made, _ = campaign(tmp_path, step("makes", "print('{}')", makes=("big.bin",)))
    made.results["makes"] = {"ok": True}
    assert not made.done(made.steps[0])


def test_what_failed_is_read_from_the_report(tmp_path):
    (tmp_path / "t.xml").write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1" time="2.5"><testcase name="a"/>'
        '<testcase name="b"><failure/></testcase><testcase name="c"><skipped/></testcase></testsuite></testsuites>'
    )
    facts = gpu_machine.tests(tmp_path / "t.xml")
    assert facts == {"tests": 3, "failures": 1, "errors": 0, "skipped": 1, "seconds": 2.5, "failed": ["b"]}


def test_failed_tests_are_counted_and_fail_their_step(tmp_path, capsys, monkeypatch):
    (tmp_path / "t.xml").write_text(
        '<testsuites><testsuite tests="2" failures="1" errors="0" skipped="0" time="1"><testcase name="a"/>'
        '<testcase name="b"><failure/></testcase></testsuite></testsuites>'
    )
    monkeypatch.setattr(sys, "argv", ["gpu_machine.py", "--tests", str(tmp_path / "t.xml")])
    with pytest.raises(SystemExit) as ended:
        gpu_machine.main()
    assert ended.value.code != 0
    assert json.loads(capsys.readouterr().out)["failed"] == ["b"]
    tests = next(step for step in gpu_steps.steps(REAL) if step.name == "tests")
    assert [command.codes for command in tests.commands] == [(0, 1), (0,)]


def test_nothing_is_asked_for_that_no_step_uses():
    """gpu_carry.py brings three packages; the machine has none of these."""
    asked = {*gpu_machine.READERS, *gpu_machine.EXTRA_OF} - gpu_machine.UNUSED
    assert not asked & {"gguf", "distributed"}
    words = " ".join(word for step in gpu_steps.steps(REAL) for c in step.commands for word in c.arguments)
    assert "gguf" not in words


def test_goals_are_the_bars_and_each_has_a_step():
    facts = {
        "rans_decode": {"seconds_for_36M": 4e-3}, "load": {"seconds": {"rans": 0.1}}, "fitting": {"seconds": 9.0},
        "qat": {"ste": {"overhead": 0.05}}, "dequant": {"torch.int8": {"cold_graph": {"share": 0.9}}},
        "quant_linear": [
            {"inputs": 1, "shape": shape, "bits": b, "cold": {"speedup": 2.0}, "hot": {"speedup": 1.0}}
            for shape in ((8192, 8192), (512, 512)) for b in (4, 6)
        ],
        "eval": {n: {"tokens_per_second": 1.0, "mfu": 0.3} for n in ("dense", "artifact")},
    }  # fmt: skip
    bars = suite.bars(facts, Sizes())
    assert {goal.bar for goal in gpu_goals.GOALS} == bars.keys()
    assert {goal.bar: float(goal.limit.split()[1]) for goal in gpu_goals.GOALS if "ms" not in goal.limit}.items() <= {
        name: bar["wanted"] for name, bar in bars.items()
    }.items()
    results = {"kernels": {"ok": True, "facts": {"bars": {"seconds to load": {"measured": 0.2, "met": False}}}}}
    results |= {"load": {"ok": True, "facts": {"bars": {"seconds to load": bars["seconds to load"]}}}}
    results |= {"text": {"ok": True}, "bad": {"ok": False, "facts": {"bars": bars}}}
    rows = gpu_goals.reached(results)
    assert rows[0] == {
        "goal": "load 36M weights from the page cache, all in", "limit": "<= 50 ms", "measured": 0.1, "met": False, "step": "load"
    }  # fmt: skip
    lines = gpu_goals.table(rows, toy=False)
    assert lines[1].split()[-4:] == ["50", "ms", "0.1", "missed"]
    assert all(line.endswith("not measured") for line in lines[2:])


def test_a_package_that_cannot_be_imported_is_told_at_once(tmp_path, monkeypatch):
    (tmp_path / "wants_more.py").write_text("raise ImportError('wants_more needs NumPy 2.3 or less\\nand more')")
    (tmp_path / "half.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    assert gpu_machine.unusable("json") == ""
    assert gpu_machine.unusable("no_such_package") == "no_such_package"
    assert gpu_machine.unusable("half") == "half (No module named 'not_there_at_all')"
    assert gpu_machine.unusable("wants_more") == "wants_more (wants_more needs NumPy 2.3 or less)"
