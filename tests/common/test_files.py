"""A file is written whole or not at all, whatever a crash, a cleaner or a full disk does meanwhile."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pgolf.cli import main
from pgolf.common import files, folders


def test_replacing_writes_whole_files(tmp_path):
    target = tmp_path / "model.pgolf"
    target.write_bytes(b"old")
    with files.replacing(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["model.pgolf"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_replacing_leaves_nothing_behind(tmp_path, error):
    def fail():
        with files.replacing(tmp_path / "model.pgolf") as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == []


def test_what_went_wrong_is_told_even_if_somebody_took_the_file(tmp_path):
    def fail():
        with files.replacing(tmp_path / "model.pgolf"):
            for left in tmp_path.iterdir():
                left.unlink()
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        fail()


def test_replacing_a_directory_leaves_it_alone(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(IsADirectoryError, match="model"), files.replacing(tmp_path / "model"):
        pytest.fail("what is written into this block is lost")
    assert os.listdir(tmp_path) == ["model"]


WRITE_FOREVER = """
import sys, time
from pathlib import Path
from pgolf.common.files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    """And only that: the temporary file of a writer that lives is left alone."""
    target = tmp_path / "mod[el].pgolf"
    target.write_bytes(b"old")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(target)], stdout=subprocess.PIPE) for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"writing\n"
        assert len(list(tmp_path.iterdir())) == 3
        writers[0].kill()
        writers[0].wait()
        assert target.read_bytes() == b"old"
        with files.replacing(target) as file:
            file.write(b"new")
        assert target.read_bytes() == b"new"
        assert len(list(tmp_path.iterdir())) == 2
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    with files.replacing(target) as file:
        file.write(b"newer")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"newer"]


def test_a_new_file_waits_for_a_cleaner_that_looks_at_it(tmp_path, monkeypatch):
    """A cleaner lets go once somebody waits; whoever does not wait writes a file that is about to be removed."""
    fcntl = pytest.importorskip("fcntl")
    real = fcntl.flock

    def flock(file, how):
        if not how & fcntl.LOCK_NB:
            cleaner.close()
        real(file, how)

    with open(tmp_path / "a", "xb") as file, open(tmp_path / "a", "rb") as cleaner:
        assert files.lock(cleaner.fileno())
        assert files.lock(file.fileno()) is False
        monkeypatch.setattr(fcntl, "flock", flock)
        assert files.lock(file.fileno(), wait=True)


def test_a_new_file_that_a_cleaner_took_is_made_again(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    real, calls = fcntl.flock, []

    def flock(file, how):
        calls.append(how)
        if len(calls) == 1:
            next(tmp_path.glob(".m.*.tmp")).unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with files.replacing(tmp_path / "m") as file:
        file.write(b"new")
    assert (tmp_path / "m").read_bytes() == b"new"
    assert calls == [fcntl.LOCK_EX] * 2


@pytest.mark.parametrize("locks", [True, False])
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, locks):
    """Systems without locks rename closed files only, and never know whether another file was left behind."""
    if not locks:
        monkeypatch.setattr(files, "fcntl", None)
    elif files.fcntl is None:
        pytest.skip("no locks on this system")
    events, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda number: events.append(("fsync", os.fstat(number).st_size)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append(("closed", file.closed)), replace(*names)))
    (tmp_path / ".m.0.tmp").write_bytes(b"left behind")
    with files.replacing(tmp_path / "m") as file:
        file.write(b"new")
    assert events == [("fsync", 3), ("closed", not locks)]
    assert len(list(tmp_path.iterdir())) == (1 if locks else 2)


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, files.replacing(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert caught.value.filename == str(tmp_path / "other")


def test_a_full_disk_is_named(tmp_path):
    """/dev/full stands for one: every write to it fails."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")

    def fill():
        with files.replacing(tmp_path / "a") as file, open("/dev/full", "wb") as full:
            os.dup2(full.fileno(), file.fileno())
            file.write(b"x")

    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert caught.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def special(folder, kind):
    """Something that is no regular file, at folder/x."""
    path = folder / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # names of sockets are short
    elif kind == "device":
        try:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    elif kind == "folder":
        path.mkdir()
    else:
        (folder / "target").write_bytes(b"precious")
        path.symlink_to(folder / ("target" if kind == "symbolic link" else "nowhere"))
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has none of them")
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "symbolic link", "dangling symbolic link"])
def test_only_regular_files_are_replaced(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = special(tmp_path, kind)
    before = path.lstat().st_mode
    with (
        pytest.raises(OSError, match=f"is a {kind.removeprefix('dangling ')}, a file was to be written"),
        files.replacing(path),
    ):
        pass
    for command in (
        ["pack", "c.pt", "-o", "x", "--force"],
        ["calibrate", "c.pt", "--model", "m.py:M", "-o", "x", "--force"],
    ):
        said = CliRunner().invoke(main, command)
        assert said.exit_code == 2
        assert f"x is a {kind.removeprefix('dangling ')}: name the file to write" in said.stderr
    assert path.lstat().st_mode == before
    assert sorted(os.listdir(tmp_path)) == ["target", "x"] if kind == "symbolic link" else ["x"]


def test_a_folder_takes_the_place_of_a_folder_only(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(NotADirectoryError), folders.replacing_folder(tmp_path / "file"):
        pass
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    folders.write_folder(tmp_path / "link", {"a": b"1"})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_bytes() == b"1"
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "real"]
