"""Runs in the process of a trial start: imports scripts, then lets `pgolf.load` read the artifact. Standard library only.

    python starter.py OUT.json ARTIFACT SCRIPT...

OUT.json: {"ends": {script: "Type: message" of what ended it, or null}, "weights": digest of what was loaded, or an error}.
ARTIFACT may be "-".
"""

import hashlib
import json
import os
import sys
import types
from collections.abc import Mapping
from typing import Any


def _started(script: str) -> str | None:
    name = f"pgolf_trial_{len(sys.modules)}"  # not __main__: what stands under a main guard does not run
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    sys.argv = [script]
    sys.modules[name] = module = types.ModuleType(name)  # and stays: functions of it may still be called
    module.__file__ = os.path.abspath(script)
    try:
        with open(script, "rb") as file:
            exec(compile(file.read(), module.__file__, "exec"), module.__dict__)
    except BaseException as error:  # SystemExit as well: how it ends is what is to be known
        return f"{type(error).__name__}: {error}"
    return None


def digest_of(state: Mapping[str, Any]) -> str:
    """Of a state dict: every name, dtype, shape and bit."""
    import torch

    made = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        made.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return made.hexdigest()


def _loaded(artifact: str) -> str:
    try:
        import pgolf

        return digest_of(pgolf.load(artifact))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    """Import the scripts of the command line one after another, and write how each ended, as JSON."""
    out, artifact, *scripts = sys.argv[1:]
    facts: dict[str, Any] = {"ends": {script: _started(script) for script in scripts}}
    if artifact != "-":
        facts["weights"] = _loaded(artifact)
    with open(out, "w", encoding="utf-8") as file:
        json.dump(facts, file)
    sys.stdout.flush()
    os._exit(0)  # threads that a script left running do not hold this up


if __name__ == "__main__":
    main()
