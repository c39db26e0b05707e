"""The user's own model code: `--model FILE.py:NAME`, run as it is (it is their code), checked against the weights."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pgolf.errors import ModelError, UsageError

_PARALLEL, _COMPILED = "module.", "_orig_mod"  # what DDP and AveragedModel, and torch.compile, put into names
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel


def load(spec: str, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The module that NAME in FILE.py makes (a class or a function without arguments), holding `state`, in eval mode.

    Raises UsageError for a malformed spec, ModelError for code that fails or weights that do not match.
    """
    path, name = _split(spec, "--model", "a class or function that makes the module")
    model = _build(_run_file(path), path, name)
    if state is not None:
        load_state(model, state)
    return model.eval()


def function(spec: str, option: str) -> Callable[..., Any]:
    """The function NAME in FILE.py, for the command line's `option`. Raises UsageError and ModelError like `load`."""
    path, name = _split(spec, option, "a function")
    found = _run_file(path, option).get(name)
    if not callable(found):
        raise ModelError(f"{option} {path}: no function {name!r} in it")
    return found


def _split(spec: str, option: str, what: str) -> tuple[Path, str]:
    path_text, colon, name = spec.rpartition(":")
    if not colon or not name or not path_text:
        raise UsageError(f"{option} {spec!r}: write FILE.py:NAME, NAME {what}")
    path = Path(path_text)
    if not path.is_file():
        raise ModelError(f"{option} {path}: no such file")
    return path, name


def _run_file(path: Path, option: str = "--model") -> dict[str, object]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{option} {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # the file may import its neighbours
    previous = sys.modules.get(spec.name)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ModelError(f"{option} {path}: importing it fails ({type(error).__name__}: {one_line(error)})") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
        if previous is not None:
            sys.modules[spec.name] = previous
    return vars(module)


def _build(names: dict[str, object], path: Path, name: str) -> nn.Module:
    maker = names.get(name)
    if isinstance(maker, nn.Module):
        return maker
    if not callable(maker):
        modules = sorted(
            n for n, v in names.items() if isinstance(v, type) and issubclass(v, nn.Module) and v is not nn.Module
        )
        raise ModelError(
            f"--model {path}: no class or function {name!r} in it; modules there: {', '.join(modules) or 'none'}"
        )
    try:
        model = maker()
    except Exception as error:
        raise ModelError(
            f"--model {path}:{name}: building it fails ({type(error).__name__}: {one_line(error)}); "
            "name a function without arguments that returns the module"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"--model {path}:{name}: returns {type(model).__name__}, not an nn.Module")
    return model


def one_line(error: BaseException) -> str:
    """An exception's text on one line, shortened."""
    return " ".join(str(error).split())[:160]


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Name -> the name without what wrappers put in: "module." where all have it, "_orig_mod." of any compiled part.

    AveragedModel's counter, the only name without "module.", does not count.
    """
    bare = {name: ".".join(part for part in name.split(".") if part != _COMPILED) for name in names}
    inner = [name for name in bare.values() if name != _COUNTER]
    while inner and all(name.startswith(_PARALLEL) for name in inner):
        bare = {name: short.removeprefix(_PARALLEL) for name, short in bare.items()}
        inner = [name for name in bare.values() if name != _COUNTER]
    return bare


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights strictly, wrapper prefixes aside. Raises ModelError naming missing, unexpected and misshapen keys."""
    theirs = model.state_dict()
    full = {bare: name for name, bare in unwrapped(theirs).items()}
    given = {full.get(bare, bare): state[name] for name, bare in unwrapped(state).items()}
    if _COUNTER not in theirs:
        given.pop(_COUNTER, None)
    missing, unexpected = sorted(theirs.keys() - given.keys()), sorted(given.keys() - theirs.keys())
    shapes = [
        f"{n} is {list(given[n].shape)} and should be {list(theirs[n].shape)}"
        for n in sorted(theirs.keys() & given.keys())
        if given[n].shape != theirs[n].shape
    ]
    problems = [
        *([f"missing {_some(missing)}"] if missing else []),
        *([f"unexpected {_some(unexpected)}"] if unexpected else []),
        *([_some(shapes)] if shapes else []),
    ]
    if problems:
        raise ModelError(f"the weights do not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(given)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
