"""Other shapes of a run than a trainer's log: CSV, gzip, train.jsonl; and what the command does with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pgolf.cli import main
from pgolf.errors import DataError
from pgolf.oracle.reading import read

STEPS = range(100, 3001, 100)


def loss(step: int) -> float:
    return float(3.2 + 4 * step**-0.3)


def table(*, run: str = "") -> str:
    head = "step,train_time_ms,train_loss,val_bpb" + (",id" if run else "")
    rows = [f"{s},{s * 90},{loss(s):.4f},{loss(s) / 2.7:.4f}{',' + run if run else ''}" for s in STEPS]
    return "\n".join([head, *rows]) + "\n"


def oracle(*arguments: object, code: int = 0) -> Result:
    found = CliRunner().invoke(main, ["oracle", *map(str, arguments)])
    assert found.exit_code == code, (found.output, found.stderr, found.exception)
    return found


def test_a_table_plain_and_zipped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(table())
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(table().encode()))
    for name in ("a.csv", "b.csv.gz"):
        (run,) = read(tmp_path / name)
        assert run.step == 3000
        assert run.milliseconds == 270_000
        assert run.array[0].tolist() == [100, 9000, round(loss(100), 4), round(loss(100) / 2.7, 4)]


def test_a_column_of_names_parts_runs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(table(run="x") + table(run="y").split("\n", 1)[1])
    assert [run.name.rpartition("#")[2] for run in read(tmp_path / "a.csv")] == ["x", "y"]


def test_our_own_log_with_what_lies_beside_it(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": loss(s), "seconds": s / 10, "progress": s / 3000, "tokens": 1000 * s} for s in STEPS]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    with pytest.raises(DataError, match=r"losses in nats only.*train.json"):
        read(path)
    (tmp_path / "train.json").write_text(json.dumps({"parameters": 1000, "score": {"bpb": 1.5, "loss": 3.6}}))
    (run,) = read(path)
    assert (run.total, run.settings["iterations"], run.settings["train_batch_tokens"]) == (3000, 3000.0, 1000.0)
    assert run.nats == pytest.approx(1.5 / 3.6)
    assert "train.jsonl" in oracle(path).output


def test_the_command_draws_and_compares(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(table())
    (tmp_path / "b.csv").write_text(table())
    plot = tmp_path / "p.png"
    oracle(tmp_path / "a.csv", tmp_path / "b.csv", "--plot", plot, "--at", 1000)
    assert plot.read_bytes().startswith(b"\x89PNG")
    facts = json.loads(oracle(tmp_path / "a.csv", tmp_path / "b.csv", "--at", 1000, "--json").output)
    assert len(facts["runs"]) == 2
    assert "one of them" in oracle(tmp_path / "a.csv", "--follow", "--json", code=2).stderr


def test_following_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, waited = tmp_path / "train.log", list[float]()
    lines = [f"step:{s}/3000 train_loss:{loss(s):.4f} val_bpb:{loss(s) / 2.7:.4f} train_time:{s * 90}ms" for s in STEPS]

    def later(seconds: float) -> None:
        waited.append(seconds)
        kept = {1: lines[:10], 2: lines[:20]}.get(len(waited), [*lines, "step:3000/3000 train_loss:nan train_time:1ms"])
        path.write_text("\n".join(kept) + "\n")

    path.write_text("starting\n")
    monkeypatch.setattr("pgolf.commands.oracle.time.sleep", later)
    oracle(path, "--follow", "--every", 3)
    assert set(waited) == {3.0}
    assert len(waited) >= 3


@pytest.mark.parametrize("data", [b"", b"\x1f\x8bbroken", b"nothing here\n", b"step,train_loss\nx,y\n"])
def test_what_is_no_run_is_one_line(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    assert oracle(tmp_path / "a", code=3).stderr.count("\n") == 1
