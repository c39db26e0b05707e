"""Fits the oracle on figures of contest runs and says how good it is: `python benchmarks/oracle.py [--write]`.

Needs ../shared/data/oracle. --write replaces pgolf/oracle/coefficients.json and benchmarks/results/oracle.json; the same figures
give the same bytes. Whole folders are left out wherever an error is reported; "nested" also chooses among CHOICES without them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.oracle_runs import PLANNED, Row, figures, number, rows_at, scores
from pgolf.common.files import write_text
from pgolf.oracle import curve
from pgolf.oracle.features import NAMES, PRODUCTS, SHARES, STEPS
from pgolf.oracle.model import ANCHOR, TARGETS, doubt, doubts_of, row_of
from pgolf.oracle.run import Run

PACKAGE = Path(__file__).resolve().parents[1] / "pgolf" / "oracle" / "coefficients.json"
RESULTS = Path(__file__).resolve().parent / "results" / "oracle.json"
RIDGE, FOLDS = 20.0, 8
PRODUCT_RIDGE = 900.0  # products are many, and each says little
OLD_PRODUCTS = {
    ("level", "total"),
    ("total", "total"),
    ("level", "level"),
    ("validated", "level"),
    ("validated", "total"),
}
MARGINS = (0.1, 0.9)  # of the errors between which a band of 80% lies
RANGED = ("level", "total", "parameters", "vocabulary", "nats", "batch", "length", "pace")


@dataclass(frozen=True)
class Choice:
    """What was chosen of the fit by its errors: the robust loss's width, the share of the level that the score follows, all
    products or five, the first losses or none of them."""

    huber: float = 0.01
    anchor: float = ANCHOR
    products: bool = True
    opening: bool = True

    def columns(self) -> np.ndarray:
        """Which regressors of `row_of` it has."""
        names = [("",), *((name,) for name in NAMES), *PRODUCTS, *((name,) for name in NAMES)]
        few = [self.products or len(name) == 1 or name in OLD_PRODUCTS for name in names]
        return np.array(few) & [self.opening or not {"after_10", "after_200"} & set(name) for name in names]


SHIPPED = Choice()
CHOICES = [Choice(*each) for each in product((0.005, 0.01, 0.02), (0.0, ANCHOR), (False, True), (False, True))]


def ranges(rows: list[Row]) -> dict[str, list[float]]:
    """Between which values of a feature the fit has folders: many seeds of one odd thing make it no less odd."""
    found = {}
    for name in RANGED:
        by_folder = defaultdict(list)
        for row in rows:
            if not math.isnan(row.found[name]):
                by_folder[row.folder].append(row.found[name])
        low, high = np.quantile(
            [np.median(values) for values in by_folder.values()], [0.004, 0.98 if name == "level" else 0.996]
        )
        margin = 0.0 if name == "level" else 0.02 + 0.05 * (high - low)
        found[name] = [round(float(low - margin), 4), round(float(high + margin), 4)]
    found["total"] = [round(math.log(limit), 4) for limit in PLANNED]
    return found


def inside(row: Row, limits: dict[str, list[float]]) -> bool:
    return all(not (row.found[n] < low or row.found[n] > high) for n, (low, high) in limits.items())


def scale_of(rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array([[row.found[name] for name in NAMES] for row in rows])
    table[:, np.isnan(table).all(0)] = 0.0  # what no log of this kind says
    middle = np.nanmedian(table, 0)
    spread = np.maximum(1.4826 * np.nanmedian(np.abs(table - middle), 0), 0.5 * np.nanstd(table, 0)) + 1e-3
    return middle, spread


def weights_of(design: np.ndarray, y: np.ndarray, folders: np.ndarray, choice: Choice = SHIPPED) -> np.ndarray:
    """Huber's loss with a ridge, by reweighting; a folder counts as the root of its runs. 0 for what the choice leaves out."""
    chosen, (_, counted) = choice.columns(), np.unique(folders, return_inverse=True)
    base = np.bincount(counted)[counted] ** -0.5
    ridge = np.full(design.shape[1], RIDGE)
    ridge[0], ridge[1 + len(NAMES) :][: len(PRODUCTS)] = 1e-6, PRODUCT_RIDGE if choice.products else RIDGE
    x, w, weights = design[:, chosen], base, np.zeros(design.shape[1])
    for _ in range(12):
        found = np.linalg.solve(x.T @ (x * w[:, None]) + np.diag(ridge[chosen]), x.T @ (w * y))
        w = base * np.minimum(1, choice.huber / np.maximum(np.abs(y - x @ found), 1e-9))
    weights[chosen] = found
    return weights


def fold_of(groups: np.ndarray, folds: int = FOLDS) -> np.ndarray:
    names = np.unique(groups)
    return np.random.default_rng(28).permutation(len(names))[np.searchsorted(names, groups)] % folds


class Fit:
    """One knot and target: design, left-out residuals, weights, doubt, bands."""

    def __init__(self, rows: list[Row], target: str, middle: np.ndarray, spread: np.ndarray) -> None:
        self.rows = [row for row in rows if math.isfinite(row.score[target])]
        self.design = np.array([row_of(row.found, middle, spread) for row in self.rows])
        self.y = np.array([row.score[target] for row in self.rows])
        self.level = np.array([row.found["level"] for row in self.rows])
        self.folders = np.array([row.folder for row in self.rows])
        self.authors = np.array([row.author for row in self.rows])
        validated = np.array([row.found["validated"] > 0 for row in self.rows])
        self.validated = bool(validated.any())
        self.speaks = validated if self.validated else ~validated  # runs that this fit is for; others only help
        self.order = np.array([0.0 if math.isnan(row.pr) else row.pr for row in self.rows])

    def weights(self, use: np.ndarray, choice: Choice = SHIPPED) -> np.ndarray:
        return weights_of(self.design[use], (self.y - choice.anchor * self.level)[use], self.folders[use], choice)

    def foreseen(self, test: np.ndarray, use: np.ndarray, choice: Choice = SHIPPED) -> np.ndarray:
        """log BPB of the rows `test` by a fit on the rows `use`."""
        return choice.anchor * self.level[test] + self.design[test] @ self.weights(use, choice)

    def left_out(
        self, use: np.ndarray, groups: np.ndarray | None = None, choice: Choice = SHIPPED, folds: int = FOLDS
    ) -> np.ndarray:
        """Foreseen log BPB of the rows `use`, by fits without their folders (or groups); NaN elsewhere."""
        fold, found = fold_of(self.folders if groups is None else groups, folds), np.full(len(self.y), np.nan)
        for out in range(folds):
            test = use & (fold == out)
            if test.any():
                found[test] = self.foreseen(test, use & (fold != out), choice)
        return found

    def nested(self) -> np.ndarray:
        """Like left_out, each fold by the choice whose error is least inside the others."""
        fold, found = fold_of(self.folders), np.full(len(self.y), np.nan)
        for out in range(FOLDS):
            rest = fold != out
            errors = [self.error(rest, self.left_out(rest, choice=choice, folds=3)) for choice in CHOICES]
            found[~rest] = self.foreseen(~rest, rest, CHOICES[int(np.argmin(errors))])
        return found

    def error(self, use: np.ndarray, foreseen: np.ndarray) -> float:
        """Mean absolute error in BPB of those of the rows `use` that this fit is for."""
        return float(np.abs(np.exp(self.y) - np.exp(foreseen))[use & self.speaks].mean())

    def forward(self, use: np.ndarray) -> np.ndarray:
        """Foreseen log BPB of later rows by fits on earlier ones, five steps in time; NaN for the first ones."""
        found = np.full(len(self.y), np.nan)
        cuts = np.quantile(self.order[use], [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
        for begin, end in pairwise(cuts):
            test = use & (self.order > begin) & (self.order <= end)
            if test.any():
                found[test] = self.foreseen(test, use & (self.order <= begin))
        return found

    def bands(self, use: np.ndarray) -> tuple[list[float], list[float], np.ndarray]:
        """(weights of doubt, band in units of it, foreseen values left out) from the rows `use`. The bands hold 80% of folders
        left out. Runs with validation are few and later ones odder: there they also hold later pull requests foreseen from
        earlier ones."""
        by_folder = self.left_out(use)
        z = np.array([doubts_of(row) for row in self.design])
        x, size = z[use], np.log(np.abs(self.y - by_folder)[use] + 1e-3)
        ridge = 60 * np.eye(z.shape[1])
        ridge[0, 0] = 1e-6
        about = np.linalg.solve(x.T @ x + ridge, x.T @ size)
        about[0] -= float(np.mean(x @ about))
        about = np.round(about, 4)
        scale = np.array([doubt(row, about.tolist()) for row in self.design])
        held = [by_folder, self.forward(use)] if self.validated else [by_folder]
        samples = [(self.y - foreseen) / scale for foreseen in held]
        kept = [use & self.speaks & np.isfinite(sample) for sample in samples]
        ends = [margins(s[k], self.folders[k]) for s, k in zip(samples, kept, strict=True) if k.sum() >= 10]
        ends = ends or [margins(samples[0][use], self.folders[use])]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        return about.tolist(), [round(float(min(low, -1e-4)), 5), round(float(max(high, 1e-4)), 5)], by_folder


def margins(errors: np.ndarray, folders: np.ndarray) -> np.ndarray:
    """The two MARGINS of errors, a folder counting once: those with many seeds are the usual ones."""
    order, (_, counted) = np.argsort(errors), np.unique(folders, return_inverse=True)
    weight = (1 / np.bincount(counted)[counted])[order]
    return np.interp(MARGINS, (np.cumsum(weight) - weight / 2) / weight.sum(), errors[order])


def error_of(y: np.ndarray, p: np.ndarray, folders: np.ndarray) -> dict[str, Any]:
    miss = np.abs(np.exp(y) - np.exp(p))
    by_folder = [float(miss[folders == f].mean()) for f in np.unique(folders)]
    return {"mean": r4(miss.mean()), "median": r4(np.median(miss)), "mean_of_folders": r4(np.mean(by_folder)),
            "runs": len(y), "folders": len(by_folder)}  # fmt: skip


def r4(value: float) -> float:
    return round(float(value), 4)


def packing_alone(fit: Fit) -> float:
    """Mean error of final scores foreseen by one who knows the score before packing: what no look at the training can mend."""
    before = np.array([row.score["unpacked"] for row in fit.rows])
    known = np.isfinite(before)
    kept, fit.level = fit.level, np.where(known, before, 0.0)
    foreseen, fit.level = fit.left_out(known, choice=Choice(anchor=1.0)), kept
    return r4(fit.error(known, foreseen))


def naive(fit: Fit, use: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the mean of all other folders, level less their median drop), log BPB."""
    folds, level = fold_of(fit.folders), fit.level
    mean, drop = np.full(len(fit.y), np.nan), np.full(len(fit.y), np.nan)
    for fold in range(FOLDS):
        test, rest = use & (folds == fold), use & (folds != fold)
        if test.any():
            mean[test] = np.log(np.exp(fit.y[rest]).mean())
            drop[test] = level[test] + np.median((fit.y - level)[rest])
    return mean, drop


def coverage(fit: Fit, use: np.ndarray, foreseen: np.ndarray, about: list[float], bands: list[float]) -> float:
    scale = np.array([doubt(row, about) for row in fit.design])
    error = (fit.y - foreseen) / scale
    return r4(np.mean((error >= bands[0])[use] & (error <= bands[1])[use]))


def later(fit: Fit, kind: np.ndarray, share: float) -> dict[str, Any]:
    """The last pull requests foreseen from the first `share`, bands from the first alone."""
    cut = np.quantile(fit.order[kind], share)
    early, late = fit.order <= cut, (fit.order > cut) & kind
    if late.sum() < 10 or (early & kind).sum() < 10:
        return {}
    about, bands, _ = fit.bands(early)
    foreseen = fit.foreseen(np.ones(len(fit.y), bool), early)
    return error_of(fit.y[late], foreseen[late], fit.folders[late]) | {
        "covered": coverage(fit, late, foreseen, about, bands)
    }


def leads(
    fit: Fit, foreseen: np.ndarray, use: np.ndarray, about: list[float], bands: Any
) -> tuple[float, dict[str, Any]]:
    """(slope of the log odds of a lead in units of its band, how often leads of some sizes came true)."""
    rng = np.random.default_rng(28)
    pool = np.flatnonzero(use)
    a, b = rng.choice(pool, 60000), rng.choice(pool, 60000)
    apart = fit.folders[a] != fit.folders[b]
    a, b = a[apart], b[apart]
    half = np.array([doubt(row, about) * (bands[1] - bands[0]) / 2 for row in fit.design])
    lead, truth = foreseen[b] - foreseen[a], fit.y[b] - fit.y[a]
    unit = lead / np.hypot(half[a], half[b])
    right = (truth > 0).astype(float)
    slope = min(
        np.arange(0.2, 8, 0.05), key=lambda k: float(np.mean(np.logaddexp(0, -k * unit * np.sign(right - 0.5))))
    )
    table: dict[str, Any] = {}
    for low, high in ((0, 0.002), (0.002, 0.005), (0.005, 0.01), (0.01, 0.02), (0.02, 0.05)):
        for name, x in (("foreseen", foreseen), ("raw", fit.level), ("final", fit.y)):
            size = np.abs(np.exp(x[a]) - np.exp(x[b]))
            at = (size >= low) & (size < high)
            judged = x if name != "final" else foreseen
            right_way = np.sign(judged[b] - judged[a]) == np.sign(truth)
            table.setdefault(f"{low:g}-{high:g}", {})[name] = [r4(right_way[at].mean()), int(at.sum())]
    return r4(slope), table


def curve_errors(runs: list[tuple[dict[str, str], Run]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """How far the run's own curve, continued, was from the end, by the share of the run that was over."""
    shares = [0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95]
    found: dict[str, list[list[float]]] = {target: [] for target in TARGETS}
    said: dict[str, Any] = {}
    for share in shares:
        miss: dict[str, list[float]] = {target: [] for target in TARGETS}
        for facts, run in runs:
            total = number(facts["steps_total"])
            seen = run.until(int(share * total))
            law = curve.power_law(*curve.points_of(seen)) if seen.nats > 0 else None
            if law is not None and 1000 <= total <= 100000:
                end = law[0] + law[1] * total ** -law[2]
                for target, score in scores(facts).items():
                    if math.isfinite(score):
                        miss[target].append(score - math.log(end))
        for target in TARGETS:
            q = np.quantile(miss[target], [0.1, 0.5, 0.9])
            found[target].append([round(float(x), 4) for x in q])
            said[f"{target} at {share:g}"] = {"runs": len(miss[target]), "median_error": r4(q[1]),
                "mean_absolute_after": r4(np.mean(np.abs(np.exp(np.array(miss[target]) - q[1]) - 1)) * 1.15)}  # fmt: skip
    return {"shares": shares, "errors": found}, said


def fitted(name: str, rows: list[Row]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what is shipped, target -> (errors, leads)) of one knot and kind."""
    limits = ranges(rows)
    every_row, rows = rows, [row for row in rows if inside(row, limits)]
    middle, spread = (np.round(x, 4) for x in scale_of(rows))
    entry: dict[str, Any] = {"range": limits, "middle": middle.tolist(), "spread": spread.tolist()}
    said = {}
    for target in TARGETS:
        fit = Fit(rows, target, middle, spread)
        every = np.ones(len(fit.y), bool)
        about, band, foreseen = fit.bands(every)
        entry[target] = {"weights": [round(float(w), 6) for w in fit.weights(every)], "doubt": about, "band": band}
        mean, drop = naive(fit, fit.speaks)
        use = fit.speaks
        item = error_of(fit.y[use], foreseen[use], fit.folders[use])
        item["outside"] = int(Fit(every_row, target, middle, spread).speaks.sum() - use.sum())
        item["mean_of_all"] = error_of(fit.y[use], mean[use], fit.folders[use])["mean"]
        item["level_less_drop"] = error_of(fit.y[use], drop[use], fit.folders[use])["mean"]
        alone = fit.left_out(every, fit.authors)
        item["authors_left_out"] = error_of(fit.y[use], alone[use], fit.folders[use])["mean"]
        if name.startswith("step 1000"):
            item["nested"] = error_of(fit.y[use], fit.nested()[use], fit.folders[use])["mean"]
        if name.startswith("step 1000") and target == "final":
            item["packing_alone"] = packing_alone(fit)
        item["covered"] = coverage(fit, use, foreseen, about, band)
        item["later"] = {f"{share:g}": later(fit, use, share) for share in (0.6, 0.7, 0.8)}
        said[target] = (item, leads(fit, foreseen, use, about, band))
    return entry, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    runs = list(figures())
    shipped: dict[str, Any] = {"knots": {}, "lead": {}}
    said: dict[str, Any] = {"unflagged": {"runs": len(runs), "folders": len({facts["folder_id"] for facts, _ in runs})}}
    for knot in [*(f"step {s}" for s in STEPS), *(f"share {s:g}" for s in SHARES)]:
        for kind in ("validated", "trained"):
            name = f"{knot}, {kind}"
            shipped["knots"][name], found = fitted(name, rows_at(runs, knot, kind == "validated"))
            said |= {f"{name}, {target}": item for target, (item, _) in found.items()}
            if name.startswith("step 1000"):
                _, stopped = fitted("", rows_at(runs, knot, kind == "validated", stopped=True))
                said[f"{name}, with runs stopped by hand"] = {
                    target: item["mean"] for target, (item, _) in stopped.items()
                }
            if name == "step 1000, validated":
                for target, (_, leading) in found.items():
                    shipped["lead"][target], said[f"leads, {target}"] = leading
    shipped["curve"], said["curve"] = curve_errors(runs)
    if args.write:
        write_text(PACKAGE, compact(shipped))
        write_text(RESULTS, compact(said))
    for key, item in said.items():
        if "1000" in key or "leads" in key or args.write:
            print(key, item)


def compact(value: dict[str, Any]) -> str:
    """JSON, an entry of an entry a line."""
    import json

    lines = []
    for key, item in value.items():
        if isinstance(item, dict):
            inner = ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in item.items())
            lines.append(f" {json.dumps(key)}: {{\n  {inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(item)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    main()
