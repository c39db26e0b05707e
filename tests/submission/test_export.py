import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import pgolf
from pgolf.cli import main
from pgolf.code import script, weigh
from pgolf.errors import ArtifactError, BudgetError, DataError, UsageError
from pgolf.submission import count, export
from tests.helpers import toy_state

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = '''"""Scores the model beside it."""
from __future__ import annotations
import sys
from pathlib import Path
import torch
import pgolf

def main(path: Path) -> None:
    """Print what the weights add up to."""
    state = pgolf.load(path)
    print({name: [str(t.dtype), int(t.contiguous().view(torch.uint8).long().sum())] for name, t in state.items()})

if "--wrong" in sys.argv:
    sys.exit("this went wrong")
if __name__ == "__main__":
    main(Path(__file__).with_name("m.pgolf"))
'''
BLOCKED = """
import importlib.abc, runpy, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {"pgolf", "numba", "scipy", "zstandard", "safetensors", "click", "rich"}:
            raise ImportError(f"{name} is not in a submission's requirements")
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, ".")
runpy.run_path(sys.argv[1], run_name="__main__")
"""


UNTRIED = export.How(prove=False)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A user's folder: train.py and m.pgolf."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    state = toy_state() | {"half": torch.randn(64, 40).to(torch.bfloat16), "codes": torch.arange(4096) % 7}
    pgolf.pack(state | {"tied": state["up.weight"]}, tmp_path / "m.pgolf", budget="12kB")
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def python(folder, *arguments, path=""):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | ({"PYTHONPATH": path} if path else {})
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def listed(folder):
    """Bytes of all files by an independent count, those for people left out."""
    total = 0
    for parent, _, names in os.walk(folder):
        total += sum(os.stat(os.path.join(parent, name)).st_size for name in names)
    return total - sum((folder / name).stat().st_size for name in ("submission.json", "requirements.txt"))


def test_the_submission_prints_the_same_without_pgolf_and_counts_every_byte(made):
    before = python(made, "train.py", path=str(ROOT))
    facts = json.loads(run("export", "m.pgolf", "--script", "train.py", "-o", "out", "--json").stdout)
    assert facts["proof"] == [
        "train.py: compiled; imported to the end",
        "m.pgolf: pgolf.load of a fresh process without pgolf gave its bits",
    ]
    assert {p.name for p in (made / "out").iterdir()} == {
        "train.py", "m.pgolf", "submission.json", "requirements.txt"
    }  # fmt: skip
    assert python(made / "out", "-c", BLOCKED, "train.py") == before != ""
    unpacked = made / "out" / "train_.py"
    assert facts["total"] == listed(made / "out") - unpacked.stat().st_size == count.count(made / "out").total
    assert facts["verdict"] == "PASS"
    needs = [f"{name}=={version(name).partition('+')[0]}" for name in ("brotli", "numpy", "torch")]
    assert (made / "out" / "requirements.txt").read_text().split() == needs
    told = json.loads((made / "out" / "submission.json").read_text())
    assert told["bytes_total"] == told["bytes_code"] + told["bytes_model"] == facts["total"]
    assert {"author", "github_id", "name", "blurb", "date", "val_loss", "val_bpb"} <= told.keys()
    assert (made / "out" / "m.pgolf").read_bytes() == (made / "m.pgolf").read_bytes()
    raw = {f["name"]: f["raw_bytes"] for f in facts["files"]}
    assert raw["train.py"] == len(SCRIPT.encode())


def test_pack_counts_the_code_as_export_ships_it(made):
    (made / "more.py").write_text("import train\n" + "def f(number: int) -> int:\n    return number\n" * 40)
    (made / "done.py").write_bytes(script.self_extracting(b"x = 1\n" * 400))
    files = ["train.py", "more.py", "done.py"]
    report = pgolf.pack(toy_state(), "n.pgolf", budget="40kB", code=files)
    exported = export.export(Path("n.pgolf"), [Path(f) for f in files], Path("out"), how=UNTRIED)
    assert report.total_bytes == exported.total == listed(made / "out")
    assert report.total_bytes == exported.code + (made / "n.pgolf").stat().st_size


DROP_IN = """import sys, pgolf
if "--train" in sys.argv:
    pgolf.pack({}, "new.pgolf", curvature=pgolf.calibrate(None, []))
print(sorted(pgolf.load("m.pgolf")))
"""


def test_a_script_that_also_trains_is_shown_to_score_without_pgolf(made):
    (made / "drop.py").write_text(DROP_IN)
    words = ("export", "m.pgolf", "--script", "drop.py", "-o", "out")
    refused = run(*words, code=2).stderr
    assert "drop.py line 3: pgolf.pack, drop.py line 3: pgolf.calibrate." in refused
    assert "--smoke ARGS" in refused
    failed = run(*words, "--smoke", "--train", code=3).stderr
    assert "python drop.py --train: ended with exit code 1: AttributeError: module 'pgolf' has no attribute" in failed
    assert not (made / "out").exists()
    facts = json.loads(run(*words, "--smoke", "", "--json").stdout)
    assert facts["proof"] == ["python drop.py: ran to the end in a fresh process without pgolf"]
    assert facts["notes"] == [
        "without pgolf these would fail, and the trial did not come to them: "
        "drop.py line 3: pgolf.pack, drop.py line 3: pgolf.calibrate"
    ]
    assert facts["code"] == weigh.counted(["drop.py"])["drop.py"]


def test_with_pgolf_installed_a_script_may_pack_first(made):
    """As the README's drop-in does."""
    text = DROP_IN.replace("{}", '{"w": __import__("torch").eye(9)}').replace("pgolf.calibrate(None, [])", "None")
    (made / "drop.py").write_text(text)
    before = python(made, "drop.py", "--train", path=str(ROOT))
    facts = json.loads(
        run(
            "export", "m.pgolf", "--script", "drop.py", "-o", "out", "--needs-pgolf", "--smoke", "--train", "--json"
        ).stdout
    )
    assert python(made / "out", "drop.py", "--train", path=str(ROOT)) == before
    assert f"pgolf=={pgolf.__version__}" in (made / "out" / "requirements.txt").read_text().split()
    assert facts["code"] < 400 < weigh.counted(["drop.py"])["drop.py"]
    assert facts["proof"] == ["python drop.py --train: ran to the end in a fresh process"]


def test_check_recounts_and_fails_with_code_4(made):
    run("export", "m.pgolf", "--script", "train.py", "-o", "out", "--no-run")
    assert "PASS" in run("export", "--check", "out", "--no-run").stdout
    (made / "out" / "more.bin").write_bytes(bytes(5000))
    facts = json.loads(run("export", "--check", "out", "--no-run", "--json").stdout)
    assert facts["total"] == listed(made / "out")
    failed = run("export", "--check", "out", "--no-run", "--limit", "10kB", code=4)
    assert "FAIL" in failed.stdout
    assert "over the limit of 10,000 B" in failed.stderr
    assert (
        "FAIL"
        in run("export", "m.pgolf", "--script", "train.py", "-o", "b", "--no-run", "--limit", "9kB", code=4).stdout
    )
    (made / "out" / "link").symlink_to("/etc/passwd")
    assert "link is a link" in run("export", "--check", "out", code=2).stderr


def test_several_scripts_keep_their_places(made):
    (made / "lib").mkdir()
    (made / "lib" / "parts.py").write_text("import pgolf\ndef load(path):\n    return sorted(pgolf.load(path))\n")
    (made / "main.py").write_text("from lib import parts\nprint(parts.load('m.pgolf'))\n")
    (made / "tokens.model").write_bytes(bytes(100))
    scripts = ("--script", "main.py", "--script", "lib/parts.py", "--script", "tokens.model")
    run("export", "m.pgolf", *scripts, "-o", "out", "--no-run")
    assert (made / "out" / "tokens.model").read_bytes() == bytes(100)
    assert "half" in python(made / "out", "-c", BLOCKED, "main.py")


def test_only_an_earlier_export_is_replaced(made):
    run("export", "m.pgolf", "--script", "train.py", "-o", "out", "--no-run")
    assert "--force" in run("export", "m.pgolf", "--script", "train.py", "-o", "out", code=2).stderr
    (made / "out" / "stale.py").write_text("x")
    run("export", "m.pgolf", "--script", "train.py", "-o", "out", "--force", "--no-run")
    assert not (made / "out" / "stale.py").exists()
    (made / "work").mkdir()
    (made / "work" / "precious").write_text("x")
    assert "exists" in run("export", "m.pgolf", "--script", "train.py", "-o", "work", "--force", code=2).stderr
    assert [p.name for p in (made / "work").iterdir()] == ["precious"]
    (made / "linked").symlink_to(made / "work")
    run("export", "m.pgolf", "--script", "train.py", "-o", "linked", "--force", code=2)
    assert not [p for p in made.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("def (:", DataError, r"bad\.py: not a Python script"),
        ("print(1)", UsageError, "no --script imports pgolf"),
        ("import pgolf.quant", UsageError, r"bad\.py line 1: pgolf\.quant\. Export a script"),
        (
            "import os\nfrom pgolf import load, pack",
            UsageError,
            r"only pgolf\.load and pgolf\.load_into, .* line 2: pgolf\.pack",
        ),
        ("import pgolf\npgolf.load('a')\ndef f():\n    pgolf.calibrate(1)", UsageError, r"line 4: pgolf\.calibrate"),
    ],
)
def test_scripts_that_would_fail_are_refused(made, text, error, says):
    (made / "bad.py").write_text(text)
    with pytest.raises(error, match=says):
        export.export(Path("m.pgolf"), [Path("bad.py")], Path("out"))
    assert not (made / "out").exists()


def test_names_that_clash_or_do_not_exist_are_refused(made):
    (made / "sub").mkdir()
    (made / "sub" / "train.py").write_text(SCRIPT)
    (made / "sub" / "submission.json").write_text("{}")
    for scripts in (["sub/train.py", "train.py"], ["train.py", "sub/../train.py"]):
        with pytest.raises(UsageError, match="already has a file named"):
            export.export(Path("m.pgolf"), [Path(s) for s in scripts], Path("out"))
    with pytest.raises(UsageError, match=r"already has a file named submission\.json"):
        export.export(Path("m.pgolf"), [Path("sub/train.py"), Path("sub/submission.json")], Path("out"))
    with pytest.raises(UsageError, match=r"none\.py: No such file"):
        export.export(Path("m.pgolf"), [Path("none.py")], Path("out"))
    assert "needs ART" in run("export", code=2).stderr
    assert "takes no ART" in run("export", "m.pgolf", "--check", "sub", code=2).stderr
    assert "not a folder" in run("export", "--check", "nowhere", code=2).stderr


def test_artifacts_that_the_decoder_cannot_load_are_not_shipped(made):
    pgolf.pack(toy_state(), "z.pgolf", method="rtn", coder="zstd")
    with pytest.raises(ArtifactError, match="--coder rans"):
        export.export(Path("z.pgolf"), [Path("train.py")], Path("out"))
    (made / "cut.pgolf").write_bytes((made / "m.pgolf").read_bytes()[:-5])
    with pytest.raises(ArtifactError, match="truncated"):
        export.export(Path("cut.pgolf"), [Path("train.py")], Path("out"))


def test_a_count_over_the_limit_names_the_largest_file():
    found = count.Count([count.File("a.py", 9, 5), count.File("m", 90, 90)], limit=80)
    with pytest.raises(BudgetError, match="95 B are 15 B over the limit of 80 B; most of it: m 90 B"):
        found.check()


@pytest.mark.slow
def test_the_banked_example_scores_the_same_after_export(tmp_path):
    (tmp_path / "banks.py").write_bytes((ROOT / "examples" / "banks.py").read_bytes())
    before = python(tmp_path, "banks.py", path=str(ROOT)).splitlines()[-1]
    how = export.How(smoke="")  # it holds its training as well
    facts = export.export(tmp_path / "model.pgolf", [tmp_path / "banks.py"], tmp_path / "out", how=how)
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    assert python(empty, "-c", BLOCKED, str(tmp_path / "out" / "banks.py")).strip() == before
    assert before.startswith("bpb ")
    assert facts.total == count.count(tmp_path / "out").total
