import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path

import pytest
from click.testing import CliRunner

from pgolf.cli import main
from pgolf.errors import DataError, UsageError
from pgolf.sweep import run as sweeps
from pgolf.sweep.executors import InProcess, WorkerLostError, executor
from pgolf.sweep.measure import measure
from pgolf.sweep.points import points_of
from pgolf.sweep.setup import Setup
from tests.helpers import sweep_inputs, without_times

MODEL = ("--model", "toy.py:Toy", "--data", "val.bin", "--bytes", "bytes.bin", "--seq-len", "64")
PLAN = points_of("sdclip:int5,rtn:int8,contest", [5000, 6000])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep_inputs(tmp_path)
    return tmp_path


def setup_in(folder, **changes):
    names = {"checkpoint": "ckpt.pt", "data": "val.bin", "sidecar": "bytes.bin"}
    paths = {key: str(folder / name) for key, name in names.items()}
    return Setup(**{**paths, "model": f"{folder / 'toy.py'}:Toy", "seq_len": 64, **changes})


def measured(folder, out, plan=PLAN, **more):
    return sweeps.sweep(setup_in(folder), plan, folder / out, executor=InProcess(), **more)


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


class Stops(InProcess):
    """An executor that is interrupted before its n-th task."""

    def __init__(self, tasks):
        self.left = tasks

    def submit(self, fn, /, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().submit(fn, *args, **kwargs)


def test_results_hold_every_setting_and_figure(folder):
    results = measured(folder, "s", baseline="contest")
    assert results == json.loads((folder / "s" / "results.json").read_text())
    assert [p["key"] for p in results["points"]] == [p.key for p in PLAN]
    for p in results["points"]:
        assert p["budget"] is None or p["bytes"] <= p["budget"]
        assert p["rise"] == pytest.approx(p["bpb"] - results["before"]["bpb"])
        assert p["loss_rise"] == pytest.approx(p["kl"], abs=0.05)  # of random text: a rise scatters about the KL
        assert 0 < p["kl"] < p["kl_rare"]
        assert (p["kl_tokens"], p["same_top"] <= 1) == (2999, True)
        assert p["bits_per_weight"] == pytest.approx(8 * p["bytes"] / results["before"]["weights"])
    assert len(results["settings"]["checkpoint"]) == 64
    assert {"pgolf", "torch", "numpy"} <= results["settings"]["versions"].keys()
    assert len(results["comparison"]) == 2 * 5


@pytest.mark.parametrize("tasks", [0, 1, 4])
def test_a_sweep_cut_short_goes_on_to_the_same_results(folder, tasks):
    whole = measured(folder, "whole", baseline="contest")
    with pytest.raises(KeyboardInterrupt):
        sweeps.sweep(setup_in(folder), PLAN, folder / "cut", executor=Stops(tasks), baseline="contest")
    assert not (folder / "cut" / "results.json").exists()
    assert len(list((folder / "cut" / "points").iterdir())) == tasks
    counter = Stops(len(PLAN) + 1 - tasks)  # exactly what is left
    resumed = sweeps.sweep(setup_in(folder), PLAN, folder / "cut", executor=counter, baseline="contest")
    assert counter.left == 0
    assert without_times(resumed) == without_times(whole)


def test_more_methods_add_to_a_folder(folder):
    measured(folder, "s", PLAN[:2])
    counter = Stops(len(PLAN) - 2)
    more = sweeps.sweep(setup_in(folder), PLAN[2:], folder / "s", executor=counter)
    assert [p["key"] for p in more["points"]] == [p.key for p in PLAN]


def test_a_changed_setting_is_named_and_refused_unless_forced(folder):
    measured(folder, "s", PLAN[:1])
    old = (folder / "s" / "results.json").read_text()
    changed = setup_in(folder, max_tokens=500)
    with pytest.raises(UsageError, match=r"another max_tokens: .*--force"):
        sweeps.sweep(changed, PLAN[:1], folder / "s", executor=InProcess())
    assert (folder / "s" / "results.json").read_text() == old
    results = sweeps.sweep(changed, PLAN[:1], folder / "s", executor=InProcess(), force=True)
    assert results["before"]["tokens"] == 500
    (folder / "toy.py").write_text((folder / "toy.py").read_text() + "# changed\n")
    with pytest.raises(UsageError, match="another max_tokens, model: "):
        measured(folder, "s", PLAN[:1])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("points/before.json", {"bpb": "1.5"}),
        ("points/before.json", {"tokens": 0}),
        ("points/KEY.json", {"bytes": None}),
        ("points/KEY.json", {"bytes": -3}),
        ("points/KEY.json", {"bpb": float("nan")}),
        ("points/KEY.json", {"step": "x"}),
        ("sweep.json", {"plan": [{"series": "auto"}]}),
        ("sweep.json", {"shared": 3}),
    ],
)
def test_damaged_files_of_a_sweep_are_named(folder, name, change):
    measured(folder, "s", PLAN[:1])
    path = folder / "s" / name.replace("KEY", PLAN[0].key)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=rf"{path.name}: not readable as a sweep's JSON .*; delete it and run again"):
        measured(folder, "s", PLAN[:1])
    if path.name != "sweep.json":
        path.unlink()
        assert measured(folder, "s", PLAN[:1])["points"][0]["bytes"] > 0


def test_a_budget_out_of_reach_is_a_result(folder):
    results = measured(folder, "s", points_of("sdclip", [300, 6000]))
    assert "smallest reachable" in results["points"][0]["refused"]
    assert results["points"][1]["bytes"] <= 6000
    assert results["pareto"] == [results["points"][1]["key"]]


def test_calibration_runs_once_and_is_kept(folder):
    arguments = ("sweep", "ckpt.pt", *MODEL, "--methods", "gptq:int6", "--bits", "4", "--calib", "val.bin",
                 "--tokens", "512", "--baseline", "none", "--jobs", "1", "-o", "s")  # fmt: skip
    run(*arguments)
    kept = (folder / "s" / "curvature.safetensors").stat()
    assert all(p["predicted_rise"] for p in json.loads((folder / "s" / "results.json").read_text())["points"])
    run(*arguments[:-2], "--bits", "4,5", "-o", "s")
    assert (folder / "s" / "curvature.safetensors").stat().st_mtime_ns == kept.st_mtime_ns
    assert "calibration.tokens" in run(*arguments, "--tokens", "600", code=2).stderr


def test_tuned_points_stand_beside_the_open_loops(folder):
    arguments = ("sweep", "ckpt.pt", *MODEL, "--calib", "val.bin", "--tokens", "512", "--baseline", "none", "--budgets", "5kB",
                 "--jobs", "1", "-o", "s", "--tune", "6k", "--methods")  # fmt: skip
    run(*arguments, "auto")
    assert not list((folder / "s").glob("text-*"))
    run(*arguments, "auto,auto+tune")
    opened, tuned = json.loads((folder / "s" / "results.json").read_text())["points"]
    assert (opened["series"], tuned["series"], tuned["tune"]) == ("auto", "auto+tune", 6000)
    assert "tuned" not in opened
    assert tuned["tuned"]["tokens"] >= 4000
    assert tuned["tuned"]["kl"] <= tuned["tuned"]["kl_before"]
    assert max(opened["bytes"], tuned["bytes"]) <= 5000
    assert [path.name for path in (folder / "s").glob("text-*")] == ["text-6000.safetensors"]
    for path in (folder / "s" / "points").glob(f"{tuned['key']}.json"):
        path.unlink()  # as if it had been interrupted: it is made by whoever goes on, in its own text
    (folder / "s" / "text-6000.safetensors").unlink()
    run(*arguments[:-2], "9k", "--methods", "auto")
    _, again = json.loads((folder / "s" / "results.json").read_text())["points"]
    assert without_times(again) == without_times(tuned)
    (folder / "s" / "text-6000.safetensors").write_bytes(b"x")
    assert "remove it" in run(*arguments[:-5], "--budgets", "5.2kB", *arguments[-5:], "auto+tune", code=3).stderr
    assert "--tune needs text" in run("sweep", "ckpt.pt", *MODEL, "--calib", "none", "--budgets", "5kB", "--baseline",
                                      "none", "--methods", "auto+tune", "--tune", "6k", "-o", "t", code=2).stderr  # fmt: skip


def test_two_processes_give_what_one_gives(folder):
    plan = points_of("sdclip:int5,rtn:int8", [5000])
    with executor(2, None) as two:
        results = sweeps.sweep(setup_in(folder), plan, folder / "two", executor=two)
    assert without_times(results) == without_times(measured(folder, "one", plan))


def dies_at_first(setup, point):
    """`measure`, but the worker that is given the second point of PLAN is killed with it; always, where a file says so."""
    place = Path(setup.checkpoint).parent
    if point == PLAN[1] and ((place / "always").exists() or not (place / "died").exists()):
        (place / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(setup, point)


def test_a_worker_that_is_killed_costs_its_point_one_retry_elsewhere(folder, monkeypatch):
    monkeypatch.setattr(sweeps, "measure", dies_at_first)
    with executor(2, None) as two:
        results = sweeps.sweep(setup_in(folder), PLAN[:3], folder / "two", executor=two)
    assert (folder / "died").exists()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert without_times(results) == without_times(measured(folder, "one", PLAN[:3]))


def test_a_point_that_kills_two_workers_ends_the_sweep_and_the_others_are_kept(folder, monkeypatch):
    monkeypatch.setattr(sweeps, "measure", dies_at_first)
    (folder / "always").touch()
    with pytest.raises(WorkerLostError, match=r"killed .* finished points are kept"), executor(2, None) as two:
        sweeps.sweep(setup_in(folder), PLAN[:3], folder / "s", executor=two)
    assert (folder / "s" / "points" / "before.json").exists()
    assert not (folder / "s" / "points" / f"{PLAN[1].key}.json").exists()


class Unlucky(InProcess):
    """Somebody's executor, which fails the first attempt at everything."""

    def __init__(self, error):
        self.seen, self.error = set(), error

    def submit(self, fn, /, *args, **kwargs):
        if repr(args) in self.seen:
            return super().submit(fn, *args, **kwargs)
        self.seen.add(repr(args))
        failed = Future()
        failed.set_exception(self.error)
        return failed


@pytest.mark.parametrize("error", [BrokenExecutor("gone"), RuntimeError("the node was taken away")])
def test_any_executor_will_do(folder, error):
    results = sweeps.sweep(setup_in(folder), PLAN[:2], folder / "s", executor=Unlucky(error))
    assert without_times(results) == without_times(measured(folder, "one", PLAN[:2]))


def test_the_command_takes_an_executor_of_the_users(folder):
    (folder / "mine.py").write_text(
        "from concurrent.futures import ThreadPoolExecutor\ndef make():\n    print('made')\n    return ThreadPoolExecutor(2)\n"
        "def no():\n    return 3\ndef bad():\n    raise OSError('no cluster')\n"
    )
    arguments = ("sweep", "ckpt.pt", *MODEL, "--methods", "sdclip:int5", "--bits", "4", "--calib", "none", "-o", "s")
    run(*arguments, "--baseline", "none", "--executor", "mine.py:make")
    assert len(json.loads((folder / "s" / "results.json").read_text())["points"]) == 1
    assert "makes a int" in run(*arguments, "--executor", "mine.py:no", code=3).stderr
    assert "OSError: no cluster" in run(*arguments, "--executor", "mine.py:bad", code=3).stderr
    assert "exclude" in run(*arguments, "--executor", "mine.py:no", "--dask", "tcp://a:1", code=2).stderr


def test_an_error_in_a_point_ends_the_sweep_with_its_message(folder):
    (folder / "val.bin").write_bytes(b"x" * 2000)
    with executor(1, None) as one, pytest.raises(DataError, match="not a token shard"):
        sweeps.sweep(setup_in(folder), PLAN[:1], folder / "s", executor=one)


def test_ctrl_c_exits_130_and_leaves_a_folder_that_goes_on(folder):
    arguments = ["sweep", "ckpt.pt", *MODEL, "--methods", "sdclip:int5", "--bits", "4,5", "--calib", "none", "-o", "s"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pgolf.cli", *arguments, "--jobs", "2"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((folder / "s" / "points").glob("*.json")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: everybody gets it
    _, said = child.communicate(timeout=60)
    assert "Traceback" not in said
    if child.returncode == 0:
        pytest.skip("the sweep was quicker than the signal")
    assert child.returncode == 130
    run(*arguments, "--jobs", "1")
    assert len(json.loads((folder / "s" / "results.json").read_text())["points"]) == 7


def test_the_command_prints_tables_or_json_and_draws(folder):
    arguments = ("sweep", "ckpt.pt", *MODEL, "--methods", "sdclip:int5", "--bits", "4,5", "--calib", "none", "-o", "s")
    result = run(*arguments, "--jobs", "1")
    assert "bytes at equal BPB" in result.stdout
    assert "7 of 7 points" in result.stderr
    for name in ("frontier.png", "frontier.svg", "frontier.html"):
        assert (folder / "s" / name).stat().st_size > 2000
    assert json.loads(run(*arguments, "--json").stdout)["baseline"] == "contest"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "auto"), "needs a size"),
        (("--bits", "none"), "--bits"),
        (("--bits", "4", "--coder", "lha"), "--coder"),
        (("--bits", "4", "--baseline", "magic"), "unknown method"),
        (("--bits", "4", "--seeds"), "two or more"),
        (("--bits", "4", "-o", "toy.py"), "is a file"),
        (("--bits", "4", "-o", "."), "not empty"),
        (("--bits", "4", "--dask", "tcp://127.0.0.1:9"), "--dask"),
        (("--bits", "4", "--set", "x=int6"), "matches no tensor"),
    ],
)
def test_mistakes_get_one_line(folder, arguments, message):
    some = ("--methods", "rtn", "--calib", "none", "--jobs", "1", "-o", "s")
    result = run("sweep", "ckpt.pt", *MODEL, *some, *arguments, code=2)
    assert message in result.stderr


def test_bytes_must_be_countable(folder):
    some = ("--model", "toy.py:Toy", "--data", "val.bin", "--bits", "4", "-o", "s")
    assert "--tokenizer" in run("sweep", "ckpt.pt", *some, code=2).stderr
    assert "several checkpoints" in run("sweep", "ckpt.pt", "ckpt.pt", *some, code=2).stderr


WORKERS = """
import os, sys, time
from pgolf.sweep.executors import executor
if __name__ == "__main__":
    with executor(2, None) as two:
        print(two.submit(os.getpid).result(), flush=True)
        time.sleep(100)
"""


@pytest.mark.slow
def test_workers_end_when_their_sweep_is_killed(tmp_path):
    (tmp_path / "main.py").write_text(WORKERS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(tmp_path / "main.py")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    worker = int(child.stdout.readline())
    child.kill()
    child.wait()
    child.stdout.close()  # without waiting for its end: the worker holds it too
    deadline = time.monotonic() + 20
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(worker)


def running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.filterwarnings("ignore")  # distributed's own, about sockets and loops
def test_points_run_on_a_dask_cluster(folder):
    distributed = pytest.importorskip("distributed", reason="the package distributed is not installed: pgolf[dask]")
    plan = points_of("sdclip:int5,rtn:int8", [5000])
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        executor(1, cluster.scheduler_address) as on_dask,
    ):
        results = sweeps.sweep(setup_in(folder), plan, folder / "dask", executor=on_dask)
    assert without_times(results) == without_times(measured(folder, "one", plan))
