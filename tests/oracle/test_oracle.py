"""Logs of all shapes into runs, and what is foreseen of them."""

import json
import math
import re

import pytest
from click.testing import CliRunner

from pgolf.cli import main
from pgolf.errors import DataError
from pgolf.oracle.features import features
from pgolf.oracle.model import ANCHOR, foresee
from pgolf.oracle.reading import read

HEAD = "model_params:26993756\nworld_size:8\n"
HEAD += "train_batch_tokens:786432 train_seq_len:2048 iterations:20000 max_wallclock_seconds:600.000\n"


def made(last=1000, start=""):
    lines = [start + HEAD + "vocab_size:1024\nstep:0/20000 val_loss:6.93 val_bpb:4.1044 train_time:0ms step_avg:0ms"]
    for step in range(100, last + 1, 100):
        loss = 1.9 + 2.5 * step**-0.3
        lines.append(f"step:{step}/20000 train_loss:{loss:.4f} train_time:{84 * step}ms step_avg:84.00ms")
        if step % 500 == 0:
            lines.append(f"step:{step}/20000 val_loss:{loss:.4f} val_bpb:{loss * 0.59226:.4f} train_time:{84 * step}ms")
    return "\n".join(lines) + "\n"


def runs_of(tmp_path, raw):
    path = tmp_path / "a.log"
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return read(path)


@pytest.mark.parametrize(
    "raw",
    [
        made().encode("utf-16"), made().replace("\n", "\r\n").encode(), made().replace("step:", "\x1b[32mstep:").encode(),
        (made() + "step:1100/20000 train_loss:2.").encode(), made().replace("step:", "step: ").encode(),
    ],
)  # fmt: skip
def test_a_log_is_read_however_it_is_written(tmp_path, raw):
    (run,) = runs_of(tmp_path, raw)
    assert (run.step, run.settings["n_params"], run.total) == (1000, 26993756, None)
    assert run.nats == pytest.approx(0.59226, abs=1e-4)


@pytest.mark.parametrize(
    "line",
    ["500/20000 train_loss: 3.3393 train_time: 0.8m tok/s: 7725942", "step:500/20000 loss:3.3393 t:48000ms avg:96ms"],
)
def test_shapes_of_a_step(tmp_path, line):
    (run,) = runs_of(tmp_path, f"warmup_step: 1/20\n{line}\n")
    assert run.points[0][:3] == (500.0, 48000.0, 3.3393)


def test_two_runs_in_a_file_and_one_twice(tmp_path):
    assert [run.step for run in runs_of(tmp_path, made(1000) + made(600))] == [1000, 600]
    assert len(runs_of(tmp_path, made() + made())) == 1


def test_foreseen_inside_the_fit_and_not_outside(tmp_path):
    one = foresee(runs_of(tmp_path, made())[0])
    assert (one.how, one.knot) == ("fitted", "step 1000")
    assert 1.0 < one.bands["unpacked"].low < one.bands["unpacked"].value < one.bands["unpacked"].high < 1.3
    other = foresee(runs_of(tmp_path, made().replace("26993756", "999999999999"))[0])
    assert other.how == "curve"
    assert "parameters" in other.outside[0]


def scaled(by):
    """The log of `made` with every loss `by` times as high."""
    number = re.compile(r"((?:train_loss|val_loss|val_bpb):)([\d.]+)")
    return number.sub(lambda found: f"{found[1]}{float(found[2]) * by:.6f}", made())


def test_a_level_beyond_the_usual_still_moves_the_score(tmp_path):
    low, lower = (foresee(runs_of(tmp_path, scaled(by))[0]) for by in (0.9, 0.885))
    assert (low.how, lower.how) == ("fitted", "fitted")
    ratio = lower.bands["unpacked"].value / low.bands["unpacked"].value
    assert ratio == pytest.approx((0.885 / 0.9) ** ANCHOR, abs=0.002)


def test_the_first_losses_are_features(tmp_path):
    start = "step:10/20000 train_loss:6.0 train_time:840ms\nstep:50/20000 train_loss:4.5 train_time:4200ms\n"
    (run,) = runs_of(tmp_path, made().replace("step:100/", start + "step:100/", 1))
    found, without = features(run, 1000), features(runs_of(tmp_path, made())[0], 1000)
    assert found["after_10"] == pytest.approx(math.log(6.0 * 0.59226) - found["level"], abs=1e-3)
    assert math.isnan(without["after_10"])
    assert (
        found["after_200"]
        == without["after_200"]
        == pytest.approx(math.log((1.9 + 2.5 * 200**-0.3) / 2.2147), abs=0.01)
    )
    assert foresee(run).bands["unpacked"].value != foresee(runs_of(tmp_path, made())[0]).bands["unpacked"].value


def test_a_loss_that_is_no_number(tmp_path):
    found = foresee(runs_of(tmp_path, made() + "step:1100/20000 train_loss:nan train_time:9ms\n")[0])
    assert (found.how, found.outside) == ("nothing", ["the loss is no number from step 1100 on"])


def test_no_step_is_one_line(tmp_path):
    with pytest.raises(DataError, match="no line of a training step"):
        runs_of(tmp_path, "hello\n")


def test_the_command(tmp_path):
    (tmp_path / "a.log").write_text(made())
    (tmp_path / "b.log").write_text(made(2000))
    result = CliRunner().invoke(main, ["oracle", str(tmp_path / "a.log"), str(tmp_path / "b.log"), "--json"])
    assert result.exit_code == 0, result.output
    assert [run["step"] for run in json.loads(result.stdout)["runs"]] == [1000, 2000]
