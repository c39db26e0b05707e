"""Figures of README.md and docs/MEASURED.md are those of the JSON files that they name."""

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest

from benchmarks import bytes_kl, figures, tax, width_read

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MEASURED = (ROOT / "docs" / "MEASURED.md").read_text()
SIZE = (ROOT / "docs" / "SIZE.md").read_text()


def result(name):
    return json.loads((figures.RESULTS / f"{name}.json").read_text())


def rounded(value, places):
    return f"{value:.{places}f}".removeprefix("0")


def test_the_table_of_the_readme_is_its_result():
    missing = [line for line in tax.table(result("tax_golf3m")) if line not in README]
    assert not missing


def test_what_bits_cost_is_the_result_of_tax():
    missing = [line for line in tax.prices(result("tax_golf3m")) if line not in SIZE]
    assert not missing


def test_the_best_sizes_are_those_of_width():
    tables = [line for equal in ("time", "tokens") for line in width_read.table(result("width")["rows"], equal)]
    assert not [line for line in tables if line not in SIZE]


@pytest.mark.parametrize("path", sorted(figures.RESULTS.glob("rivals_*.json")), ids=lambda path: path.stem)
def test_the_tables_of_rivals_are_their_results(path):
    missing = [line for line in bytes_kl.table(result(path.stem)["rows"]) if line not in MEASURED]
    assert not missing


@pytest.mark.parametrize("model", ["golf3m", "llama"])
def test_the_ablation_is_its_results(model):
    values = {}
    for row in result(f"ablation_{model}")["rows"]:
        values.setdefault(row["name"], []).append(row["bits_saved"])
    told = MEASURED[MEASURED.index("## Each step of `auto`") : MEASURED.index("## The closed loop")]
    for name, saved in values.items():
        if not name.startswith("default"):
            mean = rounded(abs(fmean(saved)), 3) if abs(fmean(saved)) < 1 else f"{fmean(saved):.3f}"
            assert f"{'−' if fmean(saved) < 0 else ''}{mean} ± {rounded(stdev(saved), 3)}" in told, name


def test_every_result_has_its_source_and_every_source_its_script():
    assert {path.stem for path in figures.RESULTS.glob("*.json")} <= figures.SOURCES.keys()
    for name, source in figures.SOURCES.items():
        missing = [path for path in source.paths if not (ROOT / path).exists()]
        assert not missing, (name, missing)


def test_measured_lists_every_result():
    """A result that does not name its commit has git's: the next one of its file, under which nobody can write it down."""
    told = dict(re.findall(r"(?m)^\| (\w+) \| (\w*) \| [\d-]* \| `python .*` \|$", MEASURED))
    assert told.keys() == {path.stem for path in figures.RESULTS.glob("*.json")}
    for name, commit in told.items():
        own = figures.head(result(name))["commit"].rstrip("+")
        assert not own or commit[:7] == own[:7], f"{name}: write its line anew (benchmarks/figures.py --table)"


def test_without_git_nothing_is_called_up_to_date(monkeypatch):
    monkeypatch.setattr(figures, "ROOT", Path("/nowhere"))
    found = figures.found()
    assert all(figure.changes is None for figure in found)
    assert "not known" in figures.lines(found, every=True)[-1]


def test_a_change_since_is_seen(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=n", "-c", "user.email=e@e"]
        subprocess.run(["git", *who, "-C", str(tmp_path), *words], check=True, capture_output=True)

    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tiny.json").write_text('{"date": "2026-01-02"}')
    (tmp_path / "pgolf").mkdir()
    git("init")
    git("add", "-A")
    git("commit", "-m", "measured")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "RESULTS", tmp_path / "results")
    assert [figure.changes for figure in figures.found()] == [0]
    (tmp_path / "pgolf" / "train").write_text("changed")
    git("add", "-A")
    git("commit", "-m", "changed")
    (found,) = figures.found()
    assert (found.changes, found.stale, found.date) == (1, True, "2026-01-02")


def test_the_command_runs_from_a_clone():
    done = subprocess.run(
        [sys.executable, "benchmarks/figures.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "results are older" in done.stdout
