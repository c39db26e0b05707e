"""Everything that only a GPU can show, in steps that may be taken in several calls: tests, kernels, a trained model, its pack.

    bash benchmarks/gpu.sh OUT [--minutes 9] [--only STEP]... [--again]       the first time, and to go on
    bash benchmarks/gpu.sh OUT --dry-run                                      each step at toy size on the processor
    python benchmarks/gpu.py --list
    python benchmarks/gpu_carry.py                                            beforehand: text and wheels to bring along

A step that has its result is not taken again, so the same call continues; one that fails does not stop the others, and
the exit code says so. Where less than a step's minutes are left, it waits for the next call. After every step OUT/gpu.json
holds all that is known so far; logs, the curve of the loss and the artifacts lie beside it. What steps leave for each
other stays in .gpu/work, which must outlive the call; OUT may be emptied between calls.
"""

from __future__ import annotations

import argparse
import calendar
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu_goals, gpu_steps
from benchmarks.gpu_steps import ROOT, Command, Place, Step
from pgolf.common.files import write_json

LAST_LINES = 12  # of a failed step's log
MINUTES, DRY_MINUTES = 9.0, 30.0  # of a call: the machine's tool ends a command after ten
GRACE = 20.0  # seconds of a call that no step may use: results are still to be written


class Failed(Exception):
    """A step that ended badly. code: of the command that did."""

    def __init__(self, why: str, code: int = 1) -> None:
        super().__init__(why)
        self.code = code


class Campaign:
    """The steps in one working folder, and what is known of them."""

    def __init__(self, place: Place, out: Path, say: Callable[[str], None]) -> None:
        self.place, self.out, self.say = place, out, say
        self.steps = gpu_steps.steps(place)
        self.log = place.work / "gpu.log"
        self._kept = place.work / "results.json"
        self.results: dict[str, Any] = json.loads(self._kept.read_text()) if self._kept.exists() else {}
        for folder in (place.work, out):
            folder.mkdir(parents=True, exist_ok=True)

    def done(self, step: Step) -> bool:
        """Whether its result and what later steps need of it are there."""
        made = all((self.place.work / name).exists() for name in step.makes)
        return made and bool(self.results.get(step.name, {}).get("ok"))

    def missing(self, step: Step) -> str | None:
        """A file that the step needs and that is not there."""
        return next((name for name in step.needs if not (self.place.work / name).exists()), None)

    def take(self, step: Step, until: float) -> dict[str, Any]:
        """Run a step, but not beyond `until` of the monotonic clock; its record is written whatever becomes of it."""
        began = time.monotonic()
        record: dict[str, Any] = {"what": step.what, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        try:
            for command in step.commands:
                self._run(command, min(until, began + 60 * step.minutes))
            facts = {Path(name).stem: json.loads((self.place.work / name).read_text()) for name in step.facts}
            record |= {"ok": True, "facts": next(iter(facts.values())) if len(facts) == 1 else facts}
        except (Failed, OSError, ValueError) as error:
            record |= {"ok": False, "error": str(error), "code": getattr(error, "code", 1)}
            record |= self._left(step, record["date"])
        record["seconds"] = round(time.monotonic() - began, 1)
        self.results[step.name] = record
        self.write()
        return record

    def _left(self, step: Step, date: str) -> dict[str, Any]:
        """What a step that failed found out before, if anything."""
        began = calendar.timegm(time.strptime(date, "%Y-%m-%dT%H:%M:%SZ"))
        for name in step.facts:
            with suppress(OSError, ValueError):
                path = self.place.work / name
                if path.stat().st_mtime >= began:
                    return {"facts": json.loads(path.read_text())}
        return {}

    def goals(self) -> list[dict[str, Any]]:
        """See gpu_goals."""
        return gpu_goals.reached(self.results)

    def write(self) -> None:
        """Results where they are kept, and with everything to hand over in OUT."""
        machine = self.results.get("setup", {}).get("facts", {})
        whole = {"dry_run": self.place.dry, "machine": machine, "goals": self.goals(), "steps": self.results}
        write_json(self._kept, self.results)
        write_json(self.out / "gpu.json", whole)
        gives = [name for step in self.steps if self.done(step) for name in step.gives]
        for path in (self.log, *(self.place.work / name for name in gives)):
            if path.exists() and self.out / path.name != path:
                shutil.copyfile(path, self.out / path.name)

    def _run(self, command: Command, until: float) -> None:
        environment = dict(os.environ, PYTHONUNBUFFERED="1", OMP_WAIT_POLICY="PASSIVE")
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), self.place["site"]])
        if self.place.dry:
            environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        else:
            environment["PGOLF_NEEDS_GPU"] = "1"
        with open(self.log, "ab") as log:
            log.write(f"\n$ {' '.join(command.arguments)}\n".encode())
            log.flush()
            start = log.tell()
            output = log if command.out is None else open(self.place.work / command.out, "wb")  # noqa: SIM115
            try:
                process = subprocess.Popen(
                    [sys.executable, *command.arguments],
                    cwd=ROOT,
                    env=environment,
                    stdout=output,
                    stderr=log,
                    process_group=0,  # not a session: what a killed call leaves running dies with it
                )
                code = _waited(process, until)
            finally:
                if output is not log:
                    output.close()
        if code not in command.codes:
            said = self.log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
            why = "ran out of time" if code is None else f"exit code {code}"
            raise Failed("\n".join([why, *said[-LAST_LINES:]]), code or 1)


def _waited(process: subprocess.Popen[bytes], until: float) -> int | None:
    """The exit code; None where the time was up and the process with all its children was killed."""
    try:
        return process.wait(max(until - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(campaign: Campaign, wanted: list[Step], minutes: float) -> int:
    """Take the steps that have no result yet; the exit code: 0, 1 where one failed, 3 where there is no GPU."""
    until = time.monotonic() + 60 * minutes - GRACE
    failed = False
    campaign.write()
    for step in wanted:
        if campaign.done(step):
            campaign.say(f"{step.name}: done before")
            continue
        if missing := campaign.missing(step):
            campaign.say(f"{step.name}: waits for {missing}, which an earlier step makes")
            continue
        if time.monotonic() + 60 * step.minutes > until:
            campaign.say(f"{step.name}: waits for the next call, it may take {step.minutes:g} minutes")
            continue
        record = campaign.take(step, until)
        failed |= not record["ok"]
        if step.name == "setup" and not record["ok"]:
            campaign.say(record["error"].splitlines()[-1])
            return int(record["code"])
        campaign.say(f"{step.name}: {'ok' if record['ok'] else record['error']} ({record['seconds']:g} s)")
    for line in gpu_goals.table(campaign.goals(), toy=campaign.place.dry):
        campaign.say(line)
    return int(failed)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="folder for results, at most seven files")
    parser.add_argument("--dry-run", action="store_true", help="every step at toy size on the processor")
    parser.add_argument("--list", action="store_true", help="the steps, their minutes and what has a result")
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="and no other (repeatable)")
    parser.add_argument("--again", action="store_true", help="also what has a result already")
    parser.add_argument("--minutes", type=float, help="that this call may take [9; in a dry run 30]")
    parser.add_argument("--work", type=Path, help="what steps leave for each other [.gpu/work; in a dry run OUT/work]")
    parser.add_argument("--carry", type=Path, default=ROOT / ".gpu" / "carry", help="what gpu_carry.py made")
    options = parser.parse_args(arguments)
    if options.out is None and not options.list:
        parser.error("name a folder for results")
    return options


def main() -> None:
    options = parse()
    device = "cpu" if options.dry_run else "cuda"
    beside = options.out / "work" if options.dry_run and options.out else ROOT / ".gpu" / "work"
    work = (options.work or beside).resolve()
    place = Place(work, options.carry.resolve(), device, options.dry_run)
    known = {step.name: step for step in gpu_steps.steps(place)}
    if unknown := [name for name in options.only if name not in known]:
        sys.exit(f"gpu.py: no step {unknown[0]!r}: there are {', '.join(known)}")
    if options.list:
        for step in known.values():
            print(f"{step.name:<12}{step.minutes:>4g} min  {step.what}")
        return
    campaign = Campaign(place, options.out.resolve(), lambda line: print(line, flush=True))
    wanted = [step for step in known.values() if not options.only or step.name in options.only]
    if options.again:
        campaign.results = {name: r for name, r in campaign.results.items() if name not in {s.name for s in wanted}}
    sys.exit(run(campaign, wanted, options.minutes or (DRY_MINUTES if options.dry_run else MINUTES)))


if __name__ == "__main__":
    main()
