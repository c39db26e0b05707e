"""The folder of a sweep: what is done is on disk before the next point is asked for.

sweep.json               what all points share, and the plan so far
curvature.safetensors    calibrated once
text-N.safetensors       what tuned points learn from, N tokens
points/KEY.json          one finished point each
results.json             all points of the plan, compared; and the pictures drawn from it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pgolf.common.nested import differences
from pgolf.errors import DataError, UsageError
from pgolf.report import write_json
from pgolf.sweep.points import Point

BEFORE = "before"  # the key of the unquantized checkpoint
SCORE = ("bpb", "loss", "tokens", "text_bytes", "score_seconds")  # figures of every point...
PACKED = (
    "bytes",
    "bits_per_weight",
    "quantized_bits_per_weight",
    "pack_seconds",
    "load_seconds",
)  # ...and of a packed one
MOST = 1e15  # beyond it no figure of a sweep is


@dataclass(frozen=True)
class Folder:
    """A sweep's folder. plan: every point asked for so far, in the order of asking."""

    path: Path
    plan: tuple[Point, ...]

    @property
    def curvature(self) -> Path:
        """Where the curvature of the checkpoint is kept."""
        return self.path / "curvature.safetensors"

    def done(self) -> dict[str, dict[str, Any]]:
        """Key -> result of every finished point of the plan, and of the checkpoint itself."""
        keys = [BEFORE, *(p.key for p in self.plan)]
        return {key: _read(self._point(key), _is_result) for key in keys if self._point(key).is_file()}

    def keep(self, key: str, result: Mapping[str, Any]) -> None:
        """Write one point's result."""
        write_json(self._point(key), result)

    def _point(self, key: str) -> Path:
        return self.path / "points" / f"{key}.json"


def open_folder(path: Path, shared: Mapping[str, Any], points: Sequence[Point], *, force: bool) -> Folder:
    """The folder at `path`, made or continued, with `points` in its plan.

    shared: `setup.identity`. Where it differs from the folder's (checkpoint, text, calibration, versions), figures could
    not be compared: force begins anew, else UsageError.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file: -o names the folder of a sweep")
    known = _read(path / "sweep.json", _is_plan) if (path / "sweep.json").is_file() else None
    if known is None and path.is_dir() and not all(_unfinished(p) for p in path.iterdir()):
        raise UsageError(f"{path} is not a sweep's folder and not empty: give another name with -o")
    if known is not None and (changed := differences(known["shared"], shared)):
        if not force:
            raise UsageError(
                f"{path} holds a sweep with another {', '.join(changed)}: name another folder with -o, or --force to "
                "measure its points anew"
            )
        _clear(path)
        known = None
    old = [_point(facts) for facts in known["plan"]] if known else []
    plan = tuple({p.key: p for p in (*old, *points)}.values())
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "sweep.json", {"shared": dict(shared), "plan": [asdict(p) for p in plan]})
    (path / "points").mkdir(exist_ok=True)
    return Folder(path, plan)


def discard_unused(folder: Folder) -> None:
    """Remove a folder in which a sweep has made nothing yet but its plan."""
    if not folder.done() and {path.name for path in folder.path.iterdir()} <= {"sweep.json", "points"}:
        shutil.rmtree(folder.path, ignore_errors=True)


def _unfinished(path: Path) -> bool:
    """Whether a file is what a sweep leaves that was killed before it had written anything."""
    return path.name.startswith(".sweep.json.")


def _point(facts: Mapping[str, Any]) -> Point:
    return Point(**{**facts, "rules": tuple(facts["rules"])})


def _clear(path: Path) -> None:
    shutil.rmtree(path / "points", ignore_errors=True)
    for name in ("curvature.safetensors", "results.json", *(file.name for file in path.glob("text-*.safetensors"))):
        (path / name).unlink(missing_ok=True)


def _read(path: Path, good: Callable[[Any], bool]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not good(found):
            raise ValueError("fields are missing or of another type")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as a sweep's JSON ({error}); delete it and run again") from None
    return dict(found)


def _is_plan(found: Any) -> bool:
    match found:
        case {"shared": dict(), "plan": list(points)}:
            return all(map(_is_point, points))
    return False


def _is_point(facts: Any) -> bool:
    match facts:
        case {"series": str(), "label": str(), "method": str(), "coder": str(), "rules": list(rules),
              "options": dict(options), "budget": None | int(), **rest}:  # fmt: skip
            tune = rest.pop("tune", None)  # folders of before it have none
            return (
                not rest
                and (tune is None or type(tune) is int)
                and all(isinstance(r, str) for r in rules)
                and all(map(is_number, options.values()))
            )
    return False


def _is_result(found: Any) -> bool:
    """Whether `measure` can have made it: a refusal, or figures without one missing."""
    needed: tuple[str, ...]
    match found:
        case {"refused": str()}:
            return True
        case {"bytes": int(size)}:
            needed = (*SCORE, *PACKED)
            extra = [found.get("predicted_rise"), found.get("step")]
            fits = size > 0 and all(x is None or is_number(x) for x in extra) and isinstance(found.get("notes"), list)
        case {"weights": int(), "checkpoint_bytes": int()}:
            needed, fits = (*SCORE, "weights", "checkpoint_bytes"), True
        case _:
            return False
    positive = all(is_number(found.get(name)) and found[name] > 0 for name in ("tokens", "text_bytes"))
    return fits and positive and all(is_number(found.get(name)) for name in needed)


def is_number(value: Any) -> bool:
    """Whether JSON holds a figure of a sane size there."""
    return type(value) in {int, float} and abs(value) < MOST
