"""The user's own model code: `--model FILE.py:NAME`, run as it is (it is their code), checked against the weights.

What it prints goes to stderr: stdout is for our data.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgolf.common import scratch
from pgolf.errors import ModelError, UsageError
from pgolf.models import blueprint
from pgolf.models.names import COUNTER, fitted
from pgolf.models.packed import is_packed


def load(
    spec: str, state: Mapping[str, Tensor] | None = None, *, dropped: Collection[str] = (), seed: int | None = None
) -> nn.Module:
    """The module that NAME in FILE.py makes (a class or a function without arguments), holding `state`, in eval mode.

    dropped: as in `load_state`. seed: where torch's generator stands while the module is made; afterwards it stands where
    it stood. Raises UsageError for a malformed spec, ModelError for code that fails or weights that do not match.
    """
    path, name = _split(spec, "--model", "a class or function that makes the module")
    found = _run_file(path)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = _build(found, path, name)
    if state is not None:
        load_state(model, state, dropped)
    for part in model.modules():  # not model.eval(): a class may merge adapters into its weights then
        part.training = False
    return model


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
    neighbours = str(path.parent.resolve())
    sys.path.insert(0, neighbours)  # the file may import its neighbours
    previous, arguments, here = sys.modules.get(spec.name), sys.argv, Path.cwd()
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.argv = [str(path)]  # ours are none of the file's business, and trainers read their own source by it
    try:
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ModelError(f"{option} {path}: importing it fails ({type(error).__name__}: {one_line(error)})") from error
    finally:
        sys.argv = arguments
        os.chdir(here)  # what else the user named is meant from here
        with suppress(ValueError):  # the file may have changed it too
            sys.path.remove(neighbours)
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
        with redirect_stdout(sys.stderr):
            model = maker()
    except (Exception, SystemExit) as error:
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


def names_in(model: nn.Module, state: Iterable[str]) -> dict[str, str]:
    """Name in `state` -> name in the module's state dict, whichever of the two is wrapped; what fits nothing stays."""
    plan = blueprint.of(model)
    bare = fitted([name for name in state if name != COUNTER], plan.full.keys())
    return {name: plan.full.get(short, short) for name, short in bare.items()}


def refuse_foreign(model: nn.Module, plan: blueprint.Blueprint, dropped: Iterable[str]) -> None:
    """Raises ModelError for names, left out of an artifact, of what the module does not make by itself."""
    unsaved = set(blueprint.plain_names(model, dict(model.named_buffers(remove_duplicate=False))).values())
    for name in dropped:
        if name in plan.buffers or name in unsaved:
            continue
        if name in plan.full:
            raise ModelError(
                f"the artifact leaves out {name} (--drop), which is a parameter of {plan.kind}: pack it again"
            )
        raise ModelError(
            f"the artifact leaves out {name} (--drop), and {plan.kind} makes no such buffer: another class?"
        )


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], dropped: Collection[str] = (), *, filed: bool = False
) -> None:
    """Load weights strictly, what wrappers do to names aside; a name that is tied to one that is there may be missing.

    dropped: buffers that an artifact leaves out; the module keeps what it made itself. filed: a large module's parameters lie
    in files then (common/scratch.py), for `state` holds them too. Raises ModelError naming missing, unexpected and misshapen
    keys, two values of one parameter, and what was dropped and is no buffer of the module.
    """
    fitted = fitted_state(model, state, dropped)
    large = filed and sum(parameter.numel() for parameter in model.parameters()) >= scratch.MANY
    taken = _put_into_files(model, fitted) if large else set()
    put(model, {name: tensor for name, tensor in fitted.items() if name not in taken}, strict=not taken)


def _put_into_files(model: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """Give large parameters on the CPU their values, kept in files; returns their names."""
    done: dict[int, Tensor] = {}
    taken = set()
    for name, place in model.state_dict(keep_vars=True).items():
        size = place.numel() * place.element_size() if isinstance(place, nn.Parameter) else 0
        if size >= scratch.LARGE and place.device.type == state[name].device.type == "cpu":
            if id(place) not in done:
                plain = state[name].detach().to(place.dtype).contiguous().view(torch.uint8)
                done[id(place)] = torch.from_numpy(scratch.kept(plain.numpy())).view(place.dtype)
            place.data = done[id(place)]
            taken.add(name)
    return taken


def fitted_state(
    model: nn.Module, state: Mapping[str, Tensor], dropped: Collection[str] = (), later: Collection[str] = ()
) -> dict[str, Tensor]:
    """The state dict of the module that `load_state` loads, checked as there; without the parameters of the names `later`,
    of which only the shape counts: the caller puts something else in their stead."""
    plan, theirs = blueprint.of(model), model.state_dict()
    if packed := [name for name, tensor in theirs.items() if is_packed(tensor)]:
        raise ModelError(
            f"{packed[0]} of {plan.kind} is packed, which nothing can be loaded into: build the module anew"
        )
    named = names_in(model, [*state, *dropped])
    short = {name: bare for bare, name in plan.full.items()}
    bare = {name: short.get(there, there) for name, there in named.items()}
    given = {bare[name]: tensor for name, tensor in state.items() if name in bare}
    left = [bare[name] for name in dropped if name in bare]
    refuse_foreign(model, plan, left)
    given |= {name: theirs[plan.full[name]] for name in plan.missing(given) if name in left}
    plan.check(given)
    if empty := [name for name, tensor in theirs.items() if isinstance(tensor, Tensor) and tensor.is_meta]:
        raise ModelError(f"{empty[0]} of {plan.kind} has no data (meta device): build the module on a real device")
    full = {plan.full[bare]: tensor for bare, tensor in plan.completed(given).items()}
    counters = {
        name: state.get(name, tensor) for name, tensor in theirs.items() if name not in short
    }  # of moving averages
    replaced = {plan.ties.get(bare[name], bare[name]) for name in later}
    return {
        n: t for n, t in (counters | full).items() if plan.ties.get(short.get(n, n), short.get(n, n)) not in replaced
    }


def put(model: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """`load_state_dict` of what fits by name and shape. ModelError where a tensor of the module cannot be written to."""
    try:
        model.load_state_dict(state, strict=strict)
    except RuntimeError as error:  # names and shapes fit; what is left is the tensors' own, as of inference_mode
        reason = str(error).rpartition("an exception occurred : ")[2] or str(error)
        kind = blueprint.of(model).kind
        raise ModelError(f"the weights cannot be put into {kind}: {' '.join(reason.split())[:200]}") from error
