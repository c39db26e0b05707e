"""What a full disk, a forbidden folder, too little memory, a rival or Ctrl-C leave: the old file, and one clear line."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pgolf
from pgolf.cli import main
from pgolf.common.files import replacing
from pgolf.common.folders import replacing_folder, write_folder
from pgolf.data.shards import write_shard
from pgolf.errors import MemoryLimitError, PgolfError, is_out_of_memory
from pgolf.fitting import trial
from pgolf.models.torchfile import torch_save
from tests.helpers import sweep_inputs, toy_state, without_times

MODEL = "--model toy.py:Toy"
TEXT = "--data val.bin --bytes bytes.bin --seq-len 64"
TRAIN = "train --preset tiny --data data -o run --set vocab_size=64 --set dim=32 --set heads=2 --set kv_heads=1"
TRAIN += " --set rope_dims=8 --set seq_len=16 --set batch_size=4 --set steps=3"
SWEEP = (
    f"sweep ckpt.pt {MODEL} {TEXT} --methods gptq:int6 --bits 4 --baseline none --calib val.bin --tokens 640 --jobs 1"
)
REPORTS = "pack ckpt.pt --budget 9kB --method sdclip --force -o /tmp/m.pgolf --report m.json"
WRITERS = {  # what is written: the command
    "m.pgolf": "pack ckpt.pt --budget 9kB --method sdclip --force -o m.pgolf",
    "c.safetensors": f"calibrate ckpt.pt {MODEL} --calib val.bin --tokens 640 --force -o c.safetensors",
    "out.pt": "unpack packed.pgolf --force -o out.pt",
    "out.safetensors": "unpack packed.pgolf --force -o out.safetensors",
    "hf/model.safetensors": "unpack packed.pgolf --force -o hf",
    "sub/train.py": "export packed.pgolf --script train.py -o sub --force",
    "r.json": f"eval ckpt.pt {MODEL} {TEXT} -o r.json",
    "m.html": "inspect packed.pgolf --html m.html --force",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder."""
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    return tmp_path


def fill(place):
    sweep_inputs(place)
    (place / "data").mkdir()
    write_shard(place / "data" / "train_0.bin", np.random.default_rng(0).integers(0, 64, 2000))
    (place / "train.py").write_text("import pgolf\nprint(sorted(pgolf.load('packed.pgolf')))\n")
    pgolf.pack(toy_state(), place / "packed.pgolf", method="rtn")
    pgolf.load(place / "packed.pgolf")  # numba keeps what it compiles first: not on a disk that is full by then


def run(command, code=0):
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result


def refused(command, code=3):
    """The one line that a command ends with."""
    said = run(command, code).stderr
    assert said.startswith("pgolf: ")
    assert said.count("\n") == 1
    return said


def contents(place):
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def temporaries(place):
    return [p.name for p in place.rglob(".*")]


@contextmanager
def disk_that_holds(num_bytes):
    """No file may grow beyond it: a write then fails as on a full disk, with EFBIG instead of ENOSPC."""
    import torch._dynamo  # noqa: F401 - older torch writes files while it imports this

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def stand_before(place, name):
    """Something at the place of what a command writes: an earlier export where it must be one."""
    if name.startswith("sub/"):
        run("export packed.pgolf --script train.py -o sub")
        (place / "sub" / "older").write_text("older")
    else:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("older")


@pytest.mark.parametrize("num_bytes", [0, 200])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file(folder, name, num_bytes):
    stand_before(folder, name)
    before = contents(folder)
    with disk_that_holds(num_bytes):
        said = refused(WRITERS[name])
    assert "File too large" in said
    assert name.split("/")[0] in said
    assert contents(folder) == before
    assert not temporaries(folder)
    run(WRITERS[name])
    assert contents(folder) != before


def test_a_full_disk_while_training_names_what_it_could_not_write(folder):
    for num_bytes, name in ((0, "train.jsonl"), (20_000, "checkpoint.pt"), (150_000, "state.pt")):
        with disk_that_holds(num_bytes):
            assert f"run/{name}: File too large" in refused(TRAIN)
        assert not temporaries(folder)
    run(TRAIN)
    (folder / "run").rename(folder / "first")
    run(TRAIN)
    first, again = (torch.load(folder / n / "checkpoint.pt")["model"] for n in ("first", "run"))
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_a_sweep_goes_on_when_there_is_room_again(folder):
    run(f"{SWEEP} -o whole")
    for num_bytes in (0, 1000, 2000, 20_000):
        with disk_that_holds(num_bytes):
            assert "File too large" in refused(f"{SWEEP} -o s")
        assert not temporaries(folder)
    run(f"{SWEEP} -o s")
    mine, whole = ({k: v for k, v in contents(folder / n).items() if k.endswith(".json")} for n in ("s", "whole"))
    assert mine.keys() == whole.keys()
    for name, text in mine.items():
        assert without_times(json.loads(text)) == without_times(json.loads(whole[name]))


def test_torch_says_no_more_than_that_the_disk_is_full(tmp_path):
    """Its archive fails a second time when it is closed, whatever part of it could not be written."""
    state = {"a": torch.ones(300, 300), "b": torch.ones(5)}
    torch_save(state, tmp_path / "x.pt")
    size = (tmp_path / "x.pt").stat().st_size
    for num_bytes in (0, 100, 4096, 8192, 9000, 100_000, size - 4096, size - 1):
        with disk_that_holds(num_bytes), pytest.raises(OSError, match=r"File too large.*x\.pt"):
            torch_save(state, tmp_path / "x.pt")
        assert torch.load(tmp_path / "x.pt").keys() == state.keys()
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


@contextmanager
def nobody():
    """Root may write anywhere: be somebody else for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def forbidden(monkeypatch):
    """A user's folder that may be read but not written."""
    with tempfile.TemporaryDirectory(prefix="pgolf-forbidden-") as name:
        place = Path(name)
        fill(place)
        monkeypatch.chdir(place)
        place.chmod(0o555)
        with nobody():
            yield place
        place.chmod(0o755)


def test_a_folder_that_may_not_be_written_is_refused_before_the_work(forbidden):
    assert "nothing can be written in the folder ." in refused(REPORTS, code=2)
    for name in ("m.pgolf", "c.safetensors", "out.pt", "r.json", "m.html", "hf/model.safetensors"):
        assert "nothing can be written in the folder" in refused(WRITERS[name], code=2)
    assert "sub: nothing can be written in the folder" in refused(WRITERS["sub/train.py"], code=2)
    assert "run: Permission denied" in refused(TRAIN)
    with pytest.raises(PermissionError, match=r"m\.pgolf'$"):  # not its temporary sibling
        pgolf.pack(toy_state(), forbidden / "m.pgolf", method="rtn")
    assert not temporaries(forbidden)


def test_a_folder_where_a_file_is_to_be_written(folder):
    (folder / "d").mkdir()
    for command in ("pack ckpt.pt --budget 9kB -o d", "pack ckpt.pt --budget 9kB -o d --force"):
        assert "d is a folder: name the file to write" in refused(command, code=2)
    with pytest.raises(IsADirectoryError, match="d'"):
        pgolf.pack(toy_state(), folder / "d", method="rtn")
    assert not any((folder / "d").iterdir())


def test_rivals_for_one_name_leave_one_whole_file(tmp_path):
    """Threads are rivals as processes are: locks belong to open files."""
    contents = [bytes([n]) * 50_000 for n in range(6)]

    def write(data):
        for _ in range(15):
            with replacing(tmp_path / "x") as file:
                file.write(data)
            write_folder(tmp_path / "d", {"a/b": data, "c": data})

    rivals = [threading.Thread(target=write, args=(data,)) for data in contents]
    for rival in rivals:
        rival.start()
    seen = set()
    while any(rival.is_alive() for rival in rivals):
        seen.add((tmp_path / "x").read_bytes() if (tmp_path / "x").exists() else contents[0])
    assert seen <= set(contents)
    assert (tmp_path / "x").read_bytes() in contents
    assert (tmp_path / "d" / "a" / "b").read_bytes() == (tmp_path / "d" / "c").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "x"]


@pytest.mark.slow
def test_two_packs_to_one_name_both_succeed(folder):
    command = [sys.executable, "-m", "pgolf.cli", *WRITERS["m.pgolf"].split()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    run(WRITERS["m.pgolf"].replace("-o m.pgolf", "-o alone.pgolf"))
    assert (folder / "m.pgolf").read_bytes() == (folder / "alone.pgolf").read_bytes()
    assert not temporaries(folder)


def test_a_folder_that_was_half_made_is_removed_by_the_next_writer(tmp_path):
    killed = """
import os, signal, sys
from pathlib import Path
from pgolf.common.folders import replacing_folder
with replacing_folder(Path(sys.argv[1])) as made:
    (made / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    write_folder(tmp_path / "d", {"old": b"old"})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "d")], env=environment, check=False)
    assert len(temporaries(tmp_path)) == 1
    with replacing_folder(tmp_path / "d") as being_made:
        write_folder(tmp_path / "d", {"new": b"new"})  # takes the dead one's, not the one that is being made
        assert temporaries(tmp_path) == [being_made.name]
        (being_made / "last").write_text("last")
    assert contents(tmp_path) == {"d/last": b"last"}
    assert not temporaries(tmp_path)


def test_where_names_cannot_be_exchanged_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("pgolf.common.folders._exchanged_by_the_kernel", lambda *_: False)
    write_folder(tmp_path / "d", {"old": b"old"})
    write_folder(tmp_path / "d", {"new": b"new"})
    assert contents(tmp_path) == {"d/new": b"new"}
    (tmp_path / "d").rename(tmp_path / ".d.0123.old")  # killed between the two renames
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "d"):
        raise ZeroDivisionError
    assert contents(tmp_path) == {"d/new": b"new"}
    assert not temporaries(tmp_path)


OUT_OF_MEMORY = {
    "Python": MemoryError(),
    "numpy": np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype(np.float64)),
    "torch": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"
    ),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
}


@pytest.mark.parametrize("whose", OUT_OF_MEMORY)
def test_too_little_memory_for_a_tensor_names_it(folder, monkeypatch, whose):
    quantize = trial.Job.quantize

    def starved(self, name, *how):
        if name == "up.weight":
            raise OUT_OF_MEMORY[whose]
        return quantize(self, name, *how)

    monkeypatch.setattr(trial.Job, "quantize", starved)
    (folder / "m.pgolf").write_text("older")
    assert "not enough memory to pack 'up.weight' [96, 48]" in refused(WRITERS["m.pgolf"])
    assert (folder / "m.pgolf").read_text() == "older"
    assert not temporaries(folder)


def test_too_little_memory_anywhere_else_is_one_line_too(folder, monkeypatch):
    def starved(*_, **__):
        raise OUT_OF_MEMORY["torch"]

    monkeypatch.setattr("pgolf.models.checkpoint.read", starved)
    assert "out of memory" in refused(WRITERS["m.pgolf"])


def test_other_failures_are_bugs_and_are_not_hidden(monkeypatch):
    def wrong(*_, **__):
        raise RuntimeError("sizes do not match")

    assert not is_out_of_memory(RuntimeError("sizes do not match"))
    monkeypatch.setattr(trial.Job, "quantize", wrong)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        pgolf.pack(toy_state(), None, method="rtn")


STARVED = """
import resource, sys, torch
from pathlib import Path
import pgolf
from pgolf.errors import MemoryLimitError
small = {"small": torch.randn(64, 64)}
pgolf.pack(small, None, method="gptq", budget=4000)
big = {"big.weight": torch.randn(2048, 4096), **small}
used = 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20), -1))
try:
    pgolf.pack(big, "m.pgolf", method="auto", budget="3MB")
except MemoryLimitError as error:
    sys.exit(f"named: {error}")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS works on Linux")
def test_memory_that_really_runs_out(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STARVED], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "named: not enough memory to pack 'big.weight' [2048, 4096]" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def ctrl_c():
    """The signal is heard, though a shell starts its background jobs (CI may be one) with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_the_middle_of_a_pack(folder, monkeypatch):
    once = trial.Job.run

    def interrupted(self, step):
        once(self, step)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trial.Job, "run", interrupted)
    before = contents(folder)
    said = refused(WRITERS["m.pgolf"], code=130)
    assert "interrupted; nothing is half-written" in said
    assert contents(folder) == before
    assert not temporaries(folder)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_the_file_is_written(folder, monkeypatch):
    """The signal comes between the last byte and the new name."""
    (folder / "m.pgolf").write_text("older")
    before = contents(folder)
    monkeypatch.setattr(os, "fsync", lambda _: signal.raise_signal(signal.SIGINT))
    for name in ("m.pgolf", "sub/train.py", "out.pt"):
        refused(WRITERS[name], code=130)
        assert contents(folder) == before
        assert not temporaries(folder)


def test_errors_are_one_line_whatever_a_file_is_called():
    assert str(MemoryLimitError("a\nb\x1b[31m\u2028c\ud800é")) == r"a\nb\x1b[31m\u2028c\ud800é"
    assert isinstance(MemoryLimitError(), PgolfError)
