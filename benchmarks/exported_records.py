"""Scripts of the contest's record folders before and after `pgolf export`: do they end in the same line?

    python benchmarks/exported_records.py RECORDS [--count 30] [--seed 0] [--audit] [--json OUT.json]

RECORDS: a copy of the folder records/ of openai/parameter-golf, which is no part of this project. Every script drawn is given
the two lines that load an artifact, and is exported with the scripts beside it. Then original and exported run on this
machine, each twice: as it is, which ends at the first package or GPU that is missing; and with stand-ins for GPU packages
and a torch that says it has CUDA, which goes on until something is computed there or a data file is missing. pgolf itself is
hidden from what was exported. --audit: `pgolf audit` of every folder as well, and how many findings of each kind it makes.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine

SECONDS = 300
LOADS = "import pgolf as _pgolf, pathlib as _pathlib\n_pgolf.load(_pathlib.Path(__file__).with_name('model.pgolf'))\n"
STAND_INS = """
import importlib.abc, importlib.machinery, importlib.util, os, sys, types
ABSENT = {"flash_attn", "flash_attn_interface", "fla", "gram_newton_schulz", "xformers", "mamba_ssm", "causal_conv1d"}
class Anything(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *a, **k: (lambda f: f)
class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        if first == "pgolf" and os.environ.get("HIDE_PGOLF"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        if first in ABSENT and os.environ.get("STAND_INS"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return Anything(spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, StandIns())
if os.environ.get("STAND_INS"):
    import torch
    torch.cuda.is_available = lambda: True
    torch.cuda.set_device = torch.cuda.manual_seed = torch.cuda.manual_seed_all = lambda *a: None
"""


def with_loading(source: str) -> str:
    """The script with the two lines after what must stay first."""
    start = 0
    for number, node in enumerate(ast.parse(source).body):
        docstring = number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            start = node.end_lineno or 0
    lines = source.splitlines(keepends=True)
    return "".join(lines[:start]) + LOADS + "".join(lines[start:])


def last_line(folder: Path, script: str, guard: Path, *, stand_ins: bool, hide: bool) -> str:
    """What a run says last on stderr, or else on stdout, without what differs from run to run."""
    environment = os.environ | {"PYTHONPATH": str(guard), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{guard}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] += "" if hide else os.pathsep + os.environ.get("PYTHONPATH", "")
    environment |= {"HIDE_PGOLF": "1"} if hide else {}
    environment |= {"STAND_INS": "1"} if stand_ins else {}
    try:
        done = subprocess.run(
            [sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True, errors="replace",
            timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"still running after {SECONDS} s"
    lines = [line for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    said = lines[-1] if lines else ""
    said = re.sub(r"0x[0-9a-f]+", "0x", said.replace(str(folder), "."))
    return re.sub(r"\d+(\.\d+)?\s?(ms|s)\b", "some time", said)[:300]


def one(script: Path, work: Path, artifact: bytes, guard: Path) -> dict[str, Any]:
    """One record script: exported and run beside the original."""
    home, out = work / "original", work / "exported"
    home.mkdir()
    for other in script.parent.glob("*.py"):
        (home / other.name).write_bytes(other.read_bytes())
    (home / script.name).write_text(with_loading(script.read_text(encoding="utf-8")), encoding="utf-8")
    (home / "model.pgolf").write_bytes(artifact)
    others = [str(path) for path in sorted(home.glob("*.py")) if path.name != script.name]
    words = [sys.executable, "-m", "pgolf", "export", str(home / "model.pgolf"), "-o", str(out)]
    for file in (str(home / script.name), *others):
        words += ["--script", file]
    exported = subprocess.run([*words, "--json"], capture_output=True, text=True, check=False)
    facts: dict[str, Any] = {"script": f"{script.parent.name}/{script.name}", "raw": script.stat().st_size}
    if exported.returncode:
        return facts | {"export": f"exit {exported.returncode}: {exported.stderr.strip()[-300:]}", "same": None}
    told = json.loads(exported.stdout)
    facts |= {"export": "ok", "counted": (out / script.name).stat().st_size, "proof": told.get("proof", [])}
    for kind, stand_ins in (("as it is", False), ("with stand-ins", True)):
        ends = [
            last_line(folder, script.name, guard, stand_ins=stand_ins, hide=hide)
            for folder, hide in ((home, False), (out, True))
        ]
        facts[kind] = {"original": ends[0], "exported": ends[1], "same": ends[0] == ends[1]}
    return facts | {"same": facts["as it is"]["same"] and facts["with stand-ins"]["same"]}


def audits(records: Path) -> dict[str, Any]:
    """How many findings of each kind the audit of every record folder makes."""
    kinds: Counter[str] = Counter()
    folders, failed = sorted({path.parent for path in records.rglob("submission.json")}), []
    clean = 0
    for folder in folders:
        words = [sys.executable, "-m", "pgolf", "audit", str(folder), "--no-run", "--json"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode not in {0, 4}:
            failed.append(f"{folder.name}: exit {done.returncode}: {done.stderr.strip()[-200:]}")
            continue
        findings = json.loads(done.stdout)["findings"]
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
        guard = Path(place) / "guard"
        guard.mkdir()
        (guard / "sitecustomize.py").write_text(STAND_INS)
        (guard / "nvidia-smi").write_text("#!/bin/sh\necho no GPU\n")
        (guard / "nvidia-smi").chmod(0o755)
        state = {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}
        torch.save(state, Path(place) / "c.pt")
        pack = [sys.executable, "-m", "pgolf", "pack", f"{place}/c.pt", "--calib", "none", "-o", f"{place}/model.pgolf"]
        subprocess.run([*pack, "--budget", "8kB"], check=True, capture_output=True)
        artifact = (Path(place) / "model.pgolf").read_bytes()
        for number, script in enumerate(drawn):
            work = Path(place) / str(number)
            work.mkdir()
            results.append(one(script, work, artifact, guard))
            print(json.dumps(results[-1]), flush=True)
    counts = Counter({True: "same", False: "other", None: "refused"}[r["same"]] for r in results)
    facts = {"machine": machine(), "drawn": len(drawn), "of": len(every), "seed": options.seed, "counts": dict(counts)}
    facts |= {"audit": audits(options.records)} if options.audit else {}
    options.json.write_text(json.dumps(facts | {"scripts": results}, indent=1) + "\n")
    print(json.dumps(facts | {"machine": None}, indent=1))


if __name__ == "__main__":
    main()
