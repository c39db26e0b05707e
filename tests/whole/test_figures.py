"""Figures of README.md and docs/MEASURED.md are those of the JSON files that they name."""

import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest

from benchmarks import bytes_kl, figures, width_read

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SIZE = (ROOT / "docs" / "SIZE.md").read_text()
MEASURED = (ROOT / "docs" / "MEASURED.md").read_text()
BYTES_A_TOKEN = 933_546 / 442_368  # of the validation text that tax.py scores
BITS_A_NAT = 1 / 0.6931471805599453


def result(name):
    return json.loads((figures.RESULTS / f"{name}.json").read_text())


def rounded(value, places):
    return f"{value:.{places}f}".removeprefix("0")


def cells(label):
    """Of the row of README's table that begins with a label, without bold type."""
    (row,) = re.findall(rf"(?m)^\| \*{{0,2}}{re.escape(label)}.*$", README)
    return [cell.strip() for cell in row.replace("*", "").split("|")[1:-1]]


def tax(name):
    """Bytes, bits a weight and rise in bits per byte of a packer, means over calibrations."""
    rows = [row[name] for row in result("tax_golf3m")["rows"]]
    num_bytes = fmean(row["bytes"] for row in rows)
    return num_bytes, 8 * num_bytes / 3_213_844, fmean(row["rise"] for row in rows) * BITS_A_NAT / BYTES_A_TOKEN


@pytest.mark.parametrize(("label", "name"), [("contest: full-Hessian", "contest"), ("pgolf, same bytes", "auto")])
def test_the_rows_at_equal_bytes_are_those_of_tax(label, name):
    rows = re.findall(rf"(?m)^\| \*{{0,2}}{re.escape(label)}.*$", README)
    num_bytes, bits, rise = tax(name)
    assert f"{num_bytes:,.0f} B" in rows[0]
    assert re.search(rf"\| {bits:.1f}\d \|", rows[0])
    assert rounded(rise, 5) in rows[0]


def test_the_ratios_are_those_of_tax():
    found, rows = result("tax_golf3m"), re.findall(r"(?m)^\| \*\*pgolf, same bytes.*$", README)
    assert f"{found['rise']:.2f}x the tax; {found['kl']:.2f}x in KL" in rows[0]


def test_the_other_rows_are_points_of_the_frontier():
    points = {point["bytes"]: point for point in result("frontier_golf3m")["points"]}
    for label in ("contest, k=20", "pgolf, two thirds"):
        _, num_bytes, bits, rise = cells(label)
        point = points[int(num_bytes.removesuffix(" B").replace(",", ""))]
        assert bits == f"{point['bits_per_weight']:.2f}"
        assert rise == rounded(point["rise"], 5)


def test_the_row_at_equal_bpb_is_the_frontiers():
    (found,) = [
        line["bytes_ratio_at_equal_bpb"]
        for line in result("frontier_golf3m")["comparison"]
        if line["variant"] == "+ 8-state trellis (default)" and line["bytes_ratio_at_equal_bpb"]
    ][:1]
    _, num_bytes, _, rise = cells("pgolf, same BPB")
    contest = min(
        (p for p in result("frontier_golf3m")["points"] if p["name"] == "contest"),
        key=lambda p: abs(p["bytes"] - 1_421_000),
    )
    assert f"{found:.2f}x the bytes" in num_bytes
    assert float(num_bytes.split(" B")[0].replace(",", "")) == pytest.approx(found * contest["bytes"], rel=1e-3)
    assert rise == rounded(contest["rise"], 5)


def test_the_best_sizes_are_those_of_width():
    tables = [line for equal in ("time", "tokens") for line in width_read.table(result("width")["rows"], equal)]
    assert not [line for line in tables if line not in SIZE]


@pytest.mark.parametrize("path", sorted(figures.RESULTS.glob("rivals_*.json")), ids=lambda path: path.stem)
def test_the_tables_of_rivals_are_their_results(path):
    missing = [line for line in bytes_kl.table(result(path.stem)["rows"]) if line not in MEASURED]
    assert not missing


def test_the_ablation_is_its_results():
    values = {}
    for row in result("ablation_golf3m")["rows"]:
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
