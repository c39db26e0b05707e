"""Scripts of the contest's record folders before and after `pgolf export`: do they end in the same line?

    python benchmarks/exported_records.py RECORDS [--count 30] [--seed 0] [--audit] [--json OUT.json]

RECORDS: a copy of the folder records/ of openai/parameter-golf, which is no part of this project. Every script drawn is given
the two lines that load an artifact, and is exported with the scripts beside it. Then original and exported run here, in
children of one process that has imported torch, each twice: as it is, which ends at the first package or GPU that is missing;
and with stand-ins for GPU packages and a torch that says it has CUDA, which goes on until something is computed there or a
data file is missing. pgolf itself is hidden from what was exported. --audit: `pgolf audit` of every folder as well, and how
many findings of each kind it makes.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine

import pgolf
from pgolf.cli import main as main_command
from pgolf.commands.export import export

SECONDS = 300
LOADS = "import pgolf as _pgolf, pathlib as _pathlib\n_pgolf.load(_pathlib.Path(__file__).with_name('model.pgolf'))\n"
ABSENT = {"flash_attn", "flash_attn_interface", "fla", "gram_newton_schulz", "xformers", "mamba_ssm", "causal_conv1d"}


class Anything(types.ModuleType):
    """A module that has every name: a function whose results call like decorators."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: lambda function: function


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stand-ins for GPU packages, and no pgolf, as far as each is asked for."""

    def __init__(self, stand_ins: bool, hide: bool) -> None:
        self.stand_ins, self.hide = stand_ins, hide

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        first = name.partition(".")[0]
        if self.hide and first == "pgolf":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return (
            importlib.machinery.ModuleSpec(name, self, is_package=True) if self.stand_ins and first in ABSENT else None
        )

    def create_module(self, spec: Any) -> types.ModuleType:
        return Anything(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def with_loading(source: str) -> str:
    """The script with the two lines after what must stay first."""
    start = 0
    for number, node in enumerate(ast.parse(source).body):
        docstring = number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            start = node.end_lineno or 0
    lines = source.splitlines(keepends=True)
    return "".join(lines[:start]) + LOADS + "".join(lines[start:])


def forked(job: Callable[[], None], folder: Path) -> tuple[str, str, int | None]:
    """(stdout, stderr, exit code) of a job in a child of this process, which has torch already; the code is None for one that
    was stopped."""
    out, err = folder.parent / "stdout", folder.parent / "stderr"
    if not (child := os.fork()):
        os.setsid()
        os.chdir(folder)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = 0
        try:
            job()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    began, status = time.monotonic(), None
    while status is None:
        done, found = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(found)
        elif time.monotonic() - began > SECONDS:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.05)
    return out.read_text(errors="replace"), err.read_text(errors="replace"), status


def last_line(folder: Path, script: str, *, stand_ins: bool, hide: bool) -> str:
    """What a run of a script says last, errors after output, without what differs from run to run."""

    def job() -> None:
        if hide:
            for name in [name for name in sys.modules if name.partition(".")[0] == "pgolf"]:
                del sys.modules[name]
        sys.meta_path.insert(0, Finder(stand_ins, hide))
        if stand_ins:
            torch.cuda.is_available = lambda: True
            torch.cuda.set_device = torch.cuda.manual_seed = torch.cuda.manual_seed_all = lambda *_: None
            subprocess.run = lambda *_, **__: subprocess.CompletedProcess([], 0, "no GPU", "")  # nvidia-smi
        sys.argv, sys.path[0] = [script], str(folder)
        runpy.run_path(str(folder / script), run_name="__main__")

    said, wrong, code = forked(job, folder)
    if code is None:
        return f"still running after {SECONDS} s"
    lines = [line for line in (said + "\n" + wrong).splitlines() if line.strip()]
    last = re.sub(r"0x[0-9a-f]+", "0x", (lines[-1] if lines else "").replace(str(folder), "."))
    return re.sub(r"\d+(\.\d+)?\s?(ms|s)\b", "some time", last)[:300]


def one(script: Path, work: Path, artifact: bytes) -> dict[str, Any]:
    """One record script: exported and run beside the original."""
    home, out = work / "original", work / "exported"
    home.mkdir()
    for other in script.parent.glob("*.py"):
        (home / other.name).write_bytes(other.read_bytes())
    (home / script.name).write_text(with_loading(script.read_text(encoding="utf-8")), encoding="utf-8")
    (home / "model.pgolf").write_bytes(artifact)
    others = [path for path in sorted(home.glob("*.py")) if path.name != script.name]
    words = ["export", str(home / "model.pgolf"), "-o", str(out), "--json"]
    words += [word for file in (home / script.name, *others) for word in ("--script", str(file))]
    words += ["--no-run"] if any("--no-run" in option.opts for option in export.params) else []
    told, wrong, code = forked(lambda: main_command(words), home)
    facts: dict[str, Any] = {"script": f"{script.parent.name}/{script.name}", "raw": script.stat().st_size}
    if code:
        return facts | {"export": f"exit {code}: {wrong.strip()[-300:]}", "same": None}
    weighed = {file["name"]: file["counted_bytes"] for file in json.loads(told)["files"]}
    facts |= {"export": "ok", "counted": weighed[script.name]}
    for kind, stand_ins in (("as it is", False), ("with stand-ins", True)):
        original = last_line(home, script.name, stand_ins=stand_ins, hide=False)
        exported = last_line(out, script.name, stand_ins=stand_ins, hide=True)
        facts[kind] = {"original": original, "exported": exported, "same": original == exported}
    return facts | {"same": facts["as it is"]["same"] and facts["with stand-ins"]["same"]}


def audits(records: Path, work: Path) -> dict[str, Any]:
    """How many findings of each kind the audit of every record folder makes."""
    kinds: Counter[str] = Counter()
    folders, failed = sorted({path.parent for path in records.rglob("submission.json")}), []
    clean = 0
    for folder in folders:
        told, wrong, code = forked(
            lambda folder=folder: main_command(["audit", str(folder), "--no-run", "--json"]), work
        )
        if code not in {0, 4}:
            failed.append(f"{folder.name}: exit {code}: {wrong.strip()[-200:]}")
            continue
        findings = json.loads(told)["findings"]
        kinds.update(finding["kind"] for finding in findings)
        clean += not findings
    return {"folders": len(folders), "clean": clean, "findings": dict(sorted(kinds.items())), "failed": failed}


def main() -> None:
    """Draw, export, run, compare; print a line a script and write everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--audit", action="store_true")
    parser.add_argument("--json", type=Path, default=RESULTS / "exported_records.json")
    options = parser.parse_args()
    every = sorted(options.records.rglob("train_gpt*.py"))
    drawn = sorted(random.Random(options.seed).sample(every, min(options.count, len(every))))
    results = []
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "model.pgolf"
        weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        pgolf.pack({"w": weights}, made, budget="8kB", method="rtn")
        for number, script in enumerate(drawn):
            work = Path(place) / str(number)
            work.mkdir()
            results.append(one(script, work, made.read_bytes()))
            print(json.dumps(results[-1]), flush=True)
        audited = audits(options.records, work) if options.audit else None
    counts = Counter({True: "same", False: "other", None: "refused"}[r["same"]] for r in results)
    facts = {"machine": machine(), "drawn": len(drawn), "of": len(every), "seed": options.seed, "counts": dict(counts)}
    facts |= {"audit": audited} if audited else {}
    options.json.write_text(json.dumps(facts | {"scripts": results}, indent=1) + "\n")
    print(json.dumps(facts | {"machine": None}, indent=1))


if __name__ == "__main__":
    main()
