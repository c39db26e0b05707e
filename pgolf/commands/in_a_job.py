"""A command in a job of several processes, as torchrun starts them: it speaks once, and all of them end with one exit code.

Every rank tells rank 0 how it ended, and rank 0 tells all how the job did. Both listen from the beginning, in a group of their
own, so that a failure on one rank, a signal to one and the death of one are known to all at once, whatever they wait for. Who
does not end by himself then, in a collective that nobody else comes to, is ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from threading import Condition, Event, Lock, Thread, main_thread
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import click

SHARED = {"train", "pack", "calibrate"}  # every rank has work in them; the other commands are rank 0's
SETTLE = 1.0  # seconds in which several ranks find the same mistake, or one hears why another is gone
GRACE = 5.0  # seconds that a rank has to end by itself
WORD = 1024  # bytes of a message
SIGNALS = (signal.SIGINT, signal.SIGTERM)
BUG, LOST, INTERRUPTED = 1, 3, 130  # exit codes, see cli.py

_joined = Event()
_said: list[str] = []  # errors of this process, which in a job one rank tells


class End(NamedTuple):
    """How a rank or the job ended: an exit code, what there is to be said of it, and whose end it is."""

    code: int
    says: str = ""
    rank: int = 0


def several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this process and others."""
    return "TORCHELASTIC_RUN_ID" in environment and int(environment.get("WORLD_SIZE", "1")) > 1


def say(line: str) -> None:
    """Print an error; in a job it is kept for its end, which one rank tells."""
    if _joined.is_set():
        _said.append(line)
    else:
        click.echo(f"pgolf: {line}", err=True)


def run(name: str, command: Callable[[], Any]) -> NoReturn:
    """Run a command on every rank, or on rank 0 where the others could do nothing, and end this process as the job ends.

    command: ends by SystemExit, or returns an exit code.
    """
    from torch import cuda, distributed  # slow to start

    from pgolf.common import ranks

    if not distributed.is_gloo_available():
        sys.exit("pgolf: this build of torch has no gloo, over which ranks talk: run the command without torchrun")
    if cuda.is_available():
        cuda.set_device(int(os.environ["LOCAL_RANK"]) % cuda.device_count())
    _joined.set()
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda.is_available() else "gloo")
    group, rank = distributed.new_group(backend="gloo", timeout=ranks.PATIENCE), distributed.get_rank()
    job = _First(rank, group, others_work=name in SHARED) if rank == 0 else _Other(rank, group)
    job.listen()
    if name in SHARED:
        job.ended(_end_of(command, rank))
    elif rank == 0:
        if not name.startswith("-"):
            click.echo(f"pgolf: {name} is the work of rank 0 alone, the others wait for it", err=True)
        with ranks.alone():
            job.ended(_end_of(command, rank))
    outcome = job.outcome()
    for number in SIGNALS:  # torchrun ends the others as soon as one has ended with an error
        signal.signal(number, signal.SIG_IGN)
    if outcome.rank == rank and outcome.code == BUG:
        click.echo(job.own.says if job.own else outcome.says, err=True)
    distributed.destroy_process_group()
    sys.stdout.flush()
    sys.exit(outcome.code)


def _end_of(command: Callable[[], Any], rank: int) -> End:
    """How a command ends here. Only rank 0 prints."""
    try:
        if rank == 0:
            code = command()
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                code = command()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        return End(INTERRUPTED, "interrupted", rank)
    except BaseException as error:  # a bug, or what torch says where a rank is gone
        return End(BUG, "".join(traceback.format_exception(error)), rank)
    return End(code if isinstance(code, int) else int(code is not None), _said[-1] if _said else "", rank)


class _Job:
    """What the sides share: this process's own end, signals, and a way out where the main thread finds none."""

    def __init__(self, rank: int, group: Any) -> None:
        self.rank, self.group = rank, group
        self.own: End | None = None
        self.done = Event()  # the command has ended here
        self.changed = Condition()
        self._interrupted = self._woken = False

    def listen(self) -> None:
        """From here on signals are heard, even where the main thread waits in a collective."""
        self._near, self._far = socket.socketpair()
        self._far.setblocking(False)
        signal.set_wakeup_fd(self._far.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._interrupt)
        Thread(target=self._hear, daemon=True).start()

    def ended(self, end: End) -> None:
        """The command has ended here."""
        if not self._woken:  # else another's end is the reason
            self.note(end)
        self.done.set()

    def note(self, end: End) -> None:
        """This rank's end is known, at the latest now."""
        with self.changed:
            self.own = self.own or end
            self.changed.notify_all()

    def outcome(self) -> End:
        """How the job ended, once that is known."""
        raise NotImplementedError

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._interrupted and not self.done.is_set():  # a second one would break what the first one ends
            self._interrupted = True
            raise KeyboardInterrupt

    def _hear(self) -> None:
        """The first signal that ends the job; not one that training waits for, which saves."""
        while number := self._near.recv(1):
            if not self._woken and signal.getsignal(number[0]) == self._interrupt:
                self.note(End(INTERRUPTED, "interrupted; nothing is half-written", self.rank))

    def _end_within_grace(self) -> bool:
        """Whether the command has ended here, after it was told to."""
        if not self.done.wait(SETTLE):
            self._woken = True
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(main_thread().ident or 0, signal.SIGINT)
        return self.done.wait(GRACE)


class _First(_Job):
    """Rank 0's side. ends: how ranks ended, in the order in which that became known."""

    def __init__(self, rank: int, group: Any, *, others_work: bool) -> None:
        super().__init__(rank, group)
        self.others, self.others_work = range(1, group.size()), others_work
        self.ends: dict[int, End] = {}
        self._telling, self._told = Lock(), False

    def listen(self) -> None:
        super().listen()
        for rank in self.others:
            Thread(target=self._listen_to, args=(rank,), daemon=True).start()
        Thread(target=self._watch, daemon=True).start()

    def note(self, end: End) -> None:
        super().note(end)
        self._add(end)

    def outcome(self) -> End:
        with self.changed:
            self.changed.wait_for(lambda: self._failed() or not self.others_work or self._all_ended())
            self.changed.wait_for(lambda: not self._failed() or self._explained(), SETTLE)
        end = self._tell()
        with self.changed:
            self.changed.wait_for(self._all_ended, SETTLE + GRACE)  # nobody is left talking
        return end

    def _add(self, end: End) -> None:
        with self.changed:
            if not self.ends.get(end.rank, End(0)).code:
                self.ends[end.rank] = end
            self.changed.notify_all()

    def _listen_to(self, rank: int) -> None:
        lost = End(LOST, f"rank {rank} ended without a word: was it killed, or out of memory?", rank)
        self._add(_received(rank, self.group) or lost)

    def _watch(self) -> None:
        with self.changed:
            self.changed.wait_for(self._failed)
        if not self._end_within_grace():
            _leave(self._tell().code)

    def _all_ended(self) -> bool:
        return self.ends.keys() >= {*self.others}

    def _failed(self) -> list[End]:
        return [end for end in self.ends.values() if end.code]

    def _explained(self) -> list[End]:
        return [end for end in self._failed() if end.code != BUG and end.says]

    def _cause(self) -> End:
        """The first failure that explains itself; rank 0 tells best what several ranks found."""
        first = next(iter([*self._explained(), *self._failed()]), End(0))
        mine = self.ends.get(0, End(0))
        return mine if mine.says and mine.code == first.code else first

    def _tell(self) -> End:
        """Say what the end of the job is, here and to the others, once."""
        with self._telling:
            end = self._cause()
            if not self._told:
                self._told = True
                if end.says and end.code != BUG:
                    alike = end.rank == 0 or end.code == INTERRUPTED or end.says.startswith("rank ")
                    click.echo(f"pgolf: {'' if alike else f'rank {end.rank}: '}{end.says}", err=True)
                for rank in self.others:
                    _sent(end, rank, self.group)
            return end


class _Other(_Job):
    """The side of every other rank."""

    def __init__(self, rank: int, group: Any) -> None:
        super().__init__(rank, group)
        self._heard, self._sending = Event(), Lock()
        self._end = End(0)

    def listen(self) -> None:
        super().listen()
        Thread(target=self._wait, daemon=True).start()

    def note(self, end: End) -> None:
        with self._sending:
            if self.own is None:
                super().note(end)
                _sent(end, 0, self.group)

    def outcome(self) -> End:
        self._heard.wait()
        self.ended(End(0, "", self.rank))
        return self._end

    def _wait(self) -> None:
        lost = "rank 0 ended without a word: was it killed, or out of memory?"
        end = _received(0, self.group)
        if end is None and self.rank == 1:
            sys.__stderr__ and sys.__stderr__.write(f"pgolf: {lost}\n")
        self._end = end or End(LOST, lost)
        self._heard.set()
        if not self._end_within_grace():
            _leave(self._end.code)


def _leave(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)  # the main thread waits where no exception reaches it; files are whole or not there


def _sent(end: End, rank: int, group: Any) -> None:
    """Send a message; to the dead it is not."""
    import torch
    from torch import distributed

    text = json.dumps(end)
    while len(text) > WORD:
        end = end._replace(says=end.says[: len(end.says) // 2])
        text = json.dumps(end)
    try:
        distributed.send(torch.tensor(list(text.ljust(WORD).encode()), dtype=torch.uint8), rank, group=group)
    except RuntimeError:
        return


def _received(rank: int, group: Any) -> End | None:
    """A rank's message; None where it is gone."""
    import torch
    from torch import distributed

    message = torch.zeros(WORD, dtype=torch.uint8)
    try:
        distributed.recv(message, rank, group=group)
    except RuntimeError:
        return None
    return End(*json.loads(bytes(message.tolist())))
