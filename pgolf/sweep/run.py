"""The whole sweep: plan, calibrate once, measure what is not measured yet, compare, write results.json.

The order in which points finish never shows: results stand in the order of the plan and are rebuilt from the folder each
time, so a sweep that was killed and continued ends with the same file, times aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.errors import PgolfError, UsageError
from pgolf.report import write_json
from pgolf.sweep import comparison
from pgolf.sweep.executors import WorkerLostError
from pgolf.sweep.folder import BEFORE, Folder, discard_unused, open_folder
from pgolf.sweep.measure import measure
from pgolf.sweep.points import Point
from pgolf.sweep.setup import Setup, identity, machine
from pgolf.sweep.tuning import Tuning, path_in

if TYPE_CHECKING:
    from pgolf.quant.curvature.store import Curvature

FORMAT = 1
Watch = Callable[[list[dict[str, Any]]], None]  # called with the rows so far, finished and not


def sweep(
    setup: Setup,
    points: Sequence[Point],
    out: str | Path,
    *,
    executor: Executor,
    calibrate: Callable[[], Curvature] | None = None,
    calibration: Mapping[str, Any] | None = None,
    tuning: Callable[[int], Tuning] | None = None,
    baseline: str | None = None,
    force: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Measure `points` into the folder `out` and return what its results.json holds.

    calibrate: makes the curvature, called once a folder; None packs without, unless setup.curvature names a file.
    calibration: JSON that says how, for results and for telling a changed setting. tuning: makes the text of so many tokens
    for points that are tuned. baseline: the series to compare
    with. force: measure anew what was measured with other settings. Raises UsageError (changed settings) and what
    reading, packing and scoring raise; finished points stay.
    """
    series = {p.series for p in points}
    if baseline is not None and baseline not in series:
        raise UsageError(f"--baseline {baseline!r} is not among the series: {', '.join(sorted(series))}")
    shared = identity(setup, dict(calibration or {}))
    folder = open_folder(Path(out), shared, points, force=force)
    try:
        return _swept(folder, setup, shared, executor, calibrate, tuning, baseline, watch)
    except Exception:
        discard_unused(folder)
        raise


def _swept(
    folder: Folder,
    setup: Setup,
    shared: Mapping[str, Any],
    executor: Executor,
    calibrate: Callable[[], Curvature] | None,
    tuning: Callable[[int], Tuning] | None,
    baseline: str | None,
    watch: Watch | None,
) -> dict[str, Any]:
    """What `sweep` does once it has a folder."""
    if calibrate is not None:
        if not folder.curvature.is_file():
            calibrate().save(folder.curvature)
        setup = replace(setup, curvature=str(folder.curvature.resolve()))
    setup = replace(setup, texts=str(folder.path.resolve()))
    done = folder.done()
    for tokens in sorted({p.tune for p in folder.plan if p.tune is not None and p.key not in done}):
        _keep_text(path_in(folder.path, tokens), tokens, tuning)
    todo = [(BEFORE, None), *((p.key, p) for p in folder.plan)]
    tell = watch or (lambda _: None)
    tell(rows(folder, done))
    for key, result in _measured(executor, setup, [(k, p) for k, p in todo if k not in done]):
        folder.keep(key, result)
        done[key] = result
        tell(rows(folder, done))
    found = results(folder, done, shared, baseline)
    write_json(folder.path / "results.json", found)
    return found


def _keep_text(path: Path, tokens: int, make: Callable[[int], Tuning] | None) -> None:
    """Make the file of a text that is tuned on where it is not there yet."""
    if path.is_file():
        return
    if make is None:
        raise UsageError("points to be tuned need a text: name a --calib")
    make(tokens).save(path)


def _measured(
    executor: Executor, setup: Setup, todo: Sequence[tuple[str, Point | None]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, result) of every task as it finishes. An executor may also run a task at once, in `submit`.

    A task whose worker failed it, by its death or by an error that is not ours, is given out once more.
    """
    pending: dict[Future[dict[str, Any]], str] = {}
    points, again = dict(todo), set[str]()

    def finished(timeout: float | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        for future in wait(pending, timeout, FIRST_COMPLETED).done:
            key = pending.pop(future)
            error = future.exception()
            if error is None:
                yield key, future.result()
            elif isinstance(error, PgolfError) or (key in again and not isinstance(error, BrokenExecutor)):
                raise error
            elif key in again:
                raise _lost() from None
            else:
                again.add(key)
                give_out(key)

    def give_out(key: str) -> None:
        try:
            pending[executor.submit(measure, setup, points[key])] = key
        except BrokenExecutor:
            raise _lost() from None

    for key in points:
        give_out(key)
        yield from finished(timeout=0)
    while pending:
        yield from finished()


def _lost() -> WorkerLostError:
    return WorkerLostError(
        "a process of the sweep was killed (out of memory?), and so was the next that took its point: run it again with fewer "
        "--jobs; finished points are kept"
    )


def rows(folder: Folder, done: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every point of the plan with its figures, or without any where it is still to be measured."""
    before = done.get(BEFORE)
    return [_row(p, done.get(p.key), before) for p in folder.plan]


def _row(point: Point, result: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> dict[str, Any]:
    row = asdict(point) | {"key": point.key, "rules": list(point.rules)} | dict(result or {})
    if before and result and "bpb" in result:
        row |= {"rise": result["bpb"] - before["bpb"], "loss_rise": result["loss"] - before["loss"]}
    return row


def results(
    folder: Folder, done: Mapping[str, Mapping[str, Any]], shared: Mapping[str, Any], baseline: str | None
) -> dict[str, Any]:
    """What results.json holds, of all finished points; the checkpoint itself must be among them."""
    points, before = rows(folder, done), done[BEFORE]
    return {
        "format": FORMAT,
        "settings": dict(shared),
        "machine": machine(),
        "before": dict(before),
        "points": points,
        "pareto": comparison.pareto(points),
        "baseline": baseline,
        "comparison": comparison.comparison(points, baseline, before["bpb"]) if baseline else [],
    }
