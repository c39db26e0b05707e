"""Tables and closing lines for the terminal, each drawn from JSON: what a command found is what `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pgolf.common.sizes import show_size
from pgolf.report.columns import Cells, fitted
from pgolf.report.names import pattern, skeleton
from pgolf.report.nearness import asked_lines, measured_lines

if TYPE_CHECKING:
    from rich.table import Table

MOST_LINES = 6  # of one kind


def _compact() -> Table:
    from rich.table import Table  # what prints JSON starts without it

    return Table(box=None, header_style="bold", pad_edge=False)


def account_lines(account: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was left out of the checkpoint and why, folded by where it lay; names that are one tensor."""
    folds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for item in account:
        if item["fate"] == "left out":
            folds.setdefault((item["path"].partition(".")[0], item["why"]), []).append(item)
    lines = [
        f"left out           {_folded(top, items)}, {show_size(sum(i['num_bytes'] for i in items))}: {why}"
        for (top, why), items in list(folds.items())[:MOST_LINES]
    ]
    if (more := len(folds) - MOST_LINES) > 0:
        lines.append(f"left out           {more} more kinds, see --json")
    aliases = [f"{item['name']} = {item['why']}" for item in account if item["fate"] == "alias"]
    if aliases:
        rest = f" and {len(aliases) - MOST_LINES} more" if len(aliases) > MOST_LINES else ""
        lines.append(f"one tensor         {', '.join(aliases[:MOST_LINES])}{rest}")
    return lines


def dropped_lines(dropped: Sequence[Mapping[str, Any]]) -> list[str]:
    """Buffers that the model's class must make, those of one pattern together, with the bytes that they would take."""
    groups: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for item in dropped:
        groups.setdefault((skeleton(item["name"]), item["rebuilt"]), []).append(item)
    said = {True: ", the class makes the same", False: ", the class makes other values", None: ""}
    lines = [
        f"dropped            {pattern([i['name'] for i in items])}{_count(items)}, would take "
        f"{show_size(sum(i['num_bytes'] for i in items))}{said[rebuilt]}"
        for (_, rebuilt), items in list(groups.items())[:MOST_LINES]
    ]
    more = len(groups) - MOST_LINES
    return [*lines, f"dropped            {more} more kinds, see --json"] if more > 0 else lines


def _count(items: Sequence[object]) -> str:
    return f" ({len(items)} buffers)" if len(items) > 1 else ""


def _folded(top: str, items: Sequence[Mapping[str, Any]]) -> str:
    return str(items[0]["path"]) if len(items) == 1 else f"{top} ({len(items)} tensors)"


def pack_summary(report: Mapping[str, Any]) -> list[str]:
    """The closing lines of `pgolf pack`."""
    lines = [f"note: {note}" for note in report["notes"]]
    lines += account_lines(report.get("account", []))
    lines += dropped_lines(report.get("dropped", []))
    lines.append(f"quantized weights  {report['bits_per_weight']:.3f} bits each")
    if report["loss_rise"] is not None:
        lines.append(f"predicted rise     {report['loss_rise']:.5f} nats per token")
    lines += asked_lines(report.get("asked"))
    lines += measured_lines(report.get("measured"), report.get("tuned"))
    lines += [
        shared_line(report["shared_bytes"]),
        f"artifact           {show_size(report['artifact_bytes'])}",
    ]
    for name, num_bytes in report["code_bytes"].items():
        lines.append(f"code               {show_size(num_bytes)}  {name}")
    if report["budget"] is not None:
        share = 100 * report["headroom"] / report["budget"]
        lines.append(
            f"budget             {show_size(report['budget'])}, used {show_size(report['total_bytes'])}, "
            f"headroom {show_size(report['headroom'])} ({share:.2f}%)"
        )
    lines.append(f"time               {report['seconds']:.1f} s")
    return lines


def estimate_lines(facts: Mapping[str, Any]) -> list[str]:
    """What `pgolf estimate` says, from Estimate.to_json()."""
    bar = f" ± {show_size(facts['error_bytes'])}" if facts["error_bytes"] else " (packed whole: exact)"
    lines = [f"note: {note}" for note in facts["notes"]]
    lines.append(f"artifact           {show_size(facts['num_bytes'])}{bar}")
    lines += [f"code               {show_size(size)}  {name}" for name, size in facts["code_bytes"].items()]
    if facts["budget"] is not None:
        lines.append(f"budget             {show_size(facts['budget'])}, foreseen {show_size(facts['total_bytes'])}")
    lines.append(f"quantized weights  {facts['bits_per_weight']:.3f} bits each, {facts['sampled']:.0%} of them tried")
    lines.append(f"relative error     {facts['relative_error']:.4f}")
    if facts["loss_rise"] is not None:
        lines.append(f"predicted rise     {facts['loss_rise']:.5f} nats per token")
    lines.append(f"time               {facts['seconds']:.1f} s")
    return lines + _advice_lines(facts)


def _advice_lines(facts: Mapping[str, Any]) -> list[str]:
    """What `--advise` adds: a larger and a smaller model in the same bytes."""
    lines = []
    for name in ("larger", "smaller") if "advice" in facts else ():
        other = facts["advice"][name]
        head = f"{name:19}{other['weights']:,} weights of {other['bits_per_weight']:.3f} bits"
        if not other["fits"]:
            lines.append(f"{head}: would not fit")
        elif other["break_even"] is None:
            lines.append(f"{head}; --curvature tells what that costs")
        else:
            lines.append(
                f"{head}, predicted rise {other['loss_rise']:.5f}: better here if, before packing, its loss is"
            )
            margin = other["break_even"]
            bound = f"lower by more than {margin:.5f}" if margin >= 0 else f"higher by less than {-margin:.5f}"
            lines.append(f"{'':19}{bound} nats per token")
    return lines


def evaluation_lines(facts: Mapping[str, Any]) -> list[str]:
    """What `pgolf eval` says of one model or of two, and of the audit."""
    lines = []
    for name, result in _evaluated(facts).items():
        lines += [f"{name}  {result['source']}"] if name else []
        lines.append(_score_line(result))
    if change := facts.get("difference"):
        lines.append(f"difference B - A  {change['value']:+.5f}{_spread(change, paired=True)}")
    return lines + [
        f"{_VERDICTS[check['passed']]}  {check['name']:<14}{_measured(check['number']):>12}  {check['detail']}"
        for check in facts.get("audit", [])
    ]


def evaluation_notes(facts: Mapping[str, Any]) -> list[str]:
    """What a user of `pgolf eval` should know besides."""
    return [result["note"] for result in _evaluated(facts).values() if result["note"]]


_VERDICTS = {True: "PASS", False: "FAIL", None: "SKIP"}


def _evaluated(facts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name -> result; the only one has no name."""
    return {"A": facts["a"], "B": facts["b"]} if "difference" in facts else {"": facts}


def _score_line(result: Mapping[str, Any]) -> str:
    return (
        f"bpb {result['bpb']:.5f}{_spread(result)}  loss {result['loss']:.5f}  perplexity {result['perplexity']:.4g}  "
        f"tokens {result['tokens']:,}  bytes {result['bytes']:,}  {result['tokens_per_second']:,.0f} tokens/s  "
        f"({result['how']})"
    )


def _spread(figure: Mapping[str, Any], *, paired: bool = False) -> str:
    if figure["standard_error"] is None:
        return "  (one document: no standard error)"
    if not paired:
        return f" ± {figure['standard_error']:.5f}"
    interval = f"95% {figure['low']:+.5f} to {figure['high']:+.5f}"
    return f" ± {figure['standard_error']:.5f}  ({interval}, p {figure['p']:.2g}, {figure['documents']} documents)"


def _measured(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:,}" if isinstance(number, int) else f"{number:.6f}"


def submission_table(facts: Mapping[str, Any]) -> Table:
    """The table of `pgolf export`, from Count.to_json()."""
    table = _compact()
    table.add_column("file", overflow="fold")
    table.add_column("raw bytes", justify="right", no_wrap=True)
    table.add_column("counted", justify="right", no_wrap=True)
    table.add_column("how", overflow="fold")
    for file in facts["files"]:
        table.add_row(file["name"], f"{file['raw_bytes']:,}", f"{file['counted_bytes']:,}", file["how"])
    return table


def submission_lines(facts: Mapping[str, Any]) -> list[str]:
    """What stands below the table: other ways to pack the scripts, what was tried, notes, what is left, the verdict."""
    lines = [
        f"{file['name']} otherwise: minified {f['minified']:,} B; that by zlib {f['zlib']:,} B, by LZMA in base 85 "
        f"{f['lzma_base85']:,} B, by brotli {f['brotli']:,} B"
        for file in facts["files"]
        if (f := file["forms"])
    ]
    lines += [f"tried: {line}" for line in facts["proof"]] + [f"note: {line}" for line in facts["notes"]]
    limit = facts["limit"]
    lines.append(f"code {facts['code']:,} B, which leaves {facts['left_for_weights']:,} B for weights")
    return [*lines, f"{facts['verdict']}: {facts['total']:,} B of {limit:,} B"]


def inspect_table(facts: Mapping[str, Any], width: int | None = None) -> Table:
    """Every tensor of an artifact, with a picture of its codes around zero, in at most `width` columns."""
    rows = []
    for t in facts["tensors"]:
        codes = "{}..{}".format(*t["code_range"]) if "code_range" in t else ""
        picture = sparkline(t["histogram"]["counts"]) if "histogram" in t else ""
        rows.append([
            t["name"], "×".join(map(str, t["shape"])) or "scalar", t["dtype"], _how(t), f"{t['bytes']:,.0f}",
            f"{t['bits_per_weight']:.2f}", _percent(t.get("curvature_share")), codes, picture,
        ])  # fmt: skip
    heads = ["tensor", "shape", "dtype", "how", "bytes", "bits/weight", "curvature", "codes", ""]
    return _fitted(Cells(heads, rows), width, dispensable=(7, 2, 3, 8, 6, 1, 5), words=(0, 1, 2, 3))


def _fitted(cells: Cells, width: int | None, dispensable: Sequence[int], words: Sequence[int]) -> Table:
    """A table of what has room; words: columns that stand to the left. A caption says what had none."""
    found = fitted(cells, width, dispensable)
    left = {cells.heads[i] for i in words} | {""}
    table = _compact()
    for head in found.heads:
        table.add_column(head, justify="left" if head in left else "right", overflow="fold", no_wrap=head not in left)
    for row in found.rows:
        table.add_row(*row)
    if found.gone:
        table.caption, table.caption_justify = f"no room for {', '.join(found.gone)}: see --json", "left"
    return table


def _how(t: Mapping[str, Any]) -> str:
    if "shared_with" in t:
        return f"shared with {t['shared_with']}"
    return f"kept as {t['kept_as']} ({t['note']})" if "kept_as" in t else str(t["note"])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def sparkline(counts: Sequence[int]) -> str:
    """One of eight bars for each count, the highest full; a blank for none."""
    top = max(counts, default=0)
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * n // top)] for n in counts) if top else ""


def layers_table(facts: Mapping[str, Any], width: int | None = None) -> Table:
    """Where the bytes go, a bar for each layer, in at most `width` columns."""
    top = max(row["bytes"] for row in facts["layers"]) or 1
    rows = [
        [
            row["layer"], f"{row['weights']:,}", f"{row['bytes']:,.0f}", f"{100 * row['bytes'] / facts['bytes']:.1f}%",
            f"{row['bits_per_weight']:.2f}", _percent(row["curvature_share"]), "█" * round(32 * row["bytes"] / top),
        ]
        for row in facts["layers"]
    ]  # fmt: skip
    heads = ["layer", "weights", "bytes", "share", "bits/weight", "curvature", ""]
    return _fitted(Cells(heads, rows), width, dispensable=(6, 5, 1, 3, 4), words=(0,))


def left_out_lines(names: Sequence[str]) -> list[str]:
    """Of buffers that an artifact leaves to the model's class."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(skeleton(name), []).append(name)
    told = [f"{pattern(group)}{_count(group)}" for group in groups.values()]
    more = f" and {len(told) - MOST_LINES} more kinds" if len(told) > MOST_LINES else ""
    return [f"left out           {', '.join(told[:MOST_LINES])}{more}: the model's class makes them"] if told else []


def shared_line(num_bytes: float) -> str:
    """Of an artifact, what no row has."""
    return f"shared             {num_bytes:,.0f} B of header and tables that belong to no single tensor"


def inspect_summary(facts: Mapping[str, Any]) -> list[str]:
    """The closing lines of `pgolf inspect`."""
    bits = 8 * facts["bytes"] / max(facts["weights"], 1)
    return [
        *left_out_lines(facts.get("dropped", [])),
        shared_line(facts["shared_bytes"]),
        f"artifact           {facts['bytes']:,} B, {len(facts['tensors'])} tensors, {bits:.3f} bits a weight",
    ]


def diff_table(facts: Mapping[str, Any], width: int | None = None) -> Table:
    """The table of `pgolf diff`, in at most `width` columns."""
    rows = []
    for row in facts["tensors"]:
        a, b = row["a"], row["b"]
        more = f"{b['bytes'] - a['bytes']:+,.0f}" if a and b else ""
        rows.append([
            row["name"], *(side["how"] if side else "absent" for side in (a, b)),
            *(f"{side['bytes']:,.0f}" if side else "" for side in (a, b)), more,
            *(f"{side['bits_per_weight']:.2f}" if side else "" for side in (a, b)),
            "" if row["distance"] is None else f"{row['distance']:.4f}",
        ])  # fmt: skip
    heads = ["tensor", "how in A", "how in B", "bytes A", "bytes B", "B - A", "bits A", "bits B", "distance"]
    return _fitted(Cells(heads, rows), width, dispensable=(1, 2, 6, 7, 3, 4), words=(0, 1, 2))


def diff_summary(facts: Mapping[str, Any]) -> str:
    """The closing line of `pgolf diff`."""
    a, b = facts["bytes"]
    return f"A {a:,} B, B {b:,} B ({b - a:+,} B, {b / a:.3f}x); distance is ‖A − B‖ / ‖A‖"


def demo_table(result: Mapping[str, Any]) -> Table:
    """The table of `pgolf demo`: what each artifact weighs and what quantization cost."""
    table = _compact()
    table.add_column("artifact")
    for name in ("bytes", "bits/weight", "BPB", "rise", "pack s", "load s"):
        table.add_column(name, justify="right")
    table.add_row(
        "checkpoint (float32)", f"{result['checkpoint_bytes']:,}", "32", f"{result['bpb_before']:.4f}", "", "", ""
    )
    for p in result["points"]:
        figures = (f"{p['bytes']:,}", f"{p['bits_per_weight']:.2f}", f"{p['bpb']:.4f}")
        rise = f"{p['rise']:+.4f}"
        table.add_row(
            f"{p['series']} ({p['file']})", *figures, rise, f"{p['pack_seconds']:.1f}", f"{p['load_seconds']:.2f}"
        )
    return table


def point_cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows) of every point of a sweep, those of the Pareto set marked; for the terminal and the page.

    KL and the share of equal likeliest tokens stand there where any point has them: older folders' have none.
    """
    best, near = set(results["pareto"]), any("kl" in p for p in results["points"])
    heads = ["bytes", "bits/weight", "BPB", "rise", *(["KL", "same top"] if near else []), "pack s", "Pareto"]
    rows = []
    for p in results["points"]:
        if "refused" in p:
            rows.append([p["series"], p["label"], "refused", *[""] * (len(heads) - 1)])
            continue
        figures = [f"{p['bytes']:,}", f"{p['bits_per_weight']:.3f}", f"{p['bpb']:.5f}", f"{p['rise']:+.5f}"]
        figures += ([f"{p['kl']:.5f}", f"{p['same_top']:.2%}"] if "kl" in p else ["", ""]) if near else []
        rows.append([p["series"], p["label"], *figures, f"{p['pack_seconds']:.1f}", "yes" if p["key"] in best else ""])
    return ["method", "setting", *heads], rows


def comparison_cells(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): bytes at equal BPB and rise at equal bytes against each point of the baseline; ~ is extrapolated."""
    rows = [
        [
            r["series"],
            r["baseline"],
            f"{r['baseline_bytes']:,}",
            f"{r['baseline_rise']:+.5f}",
            _estimate(r["bytes_at_equal_bpb"], r["bytes_ratio"], r["bytes_extrapolated"], ",.0f"),
            _estimate(r["rise_at_equal_bytes"], r["rise_ratio"], r["bpb_extrapolated"], "+.5f"),
        ]
        for r in results["comparison"]
    ]
    against = f"against {results['baseline']}"
    return ["method", against, "its bytes", "its rise", "bytes at equal BPB", "rise at equal bytes"], rows


def _estimate(value: float | None, ratio: float | None, extrapolated: bool, style: str) -> str:
    if value is None:
        return "out of range"
    times = f" ({ratio:.2f}x)" if ratio is not None else ""
    return f"{'~' if extrapolated else ''}{value:{style}}{times}"


def cells_table(cells: tuple[list[str], list[list[str]]]) -> Table:
    """Cells as a table for the terminal: two columns of names, the rest figures."""
    table = _compact()
    heads, rows = cells
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i < 2 else "right", overflow="fold", no_wrap=i >= 2)
    for row in rows:
        table.add_row(*row)
    return table


def sweep_summary(results: Mapping[str, Any]) -> list[str]:
    """The closing lines of `pgolf sweep`."""
    before = results["before"]
    lines = [
        f"before             {before['bpb']:.5f} BPB on {before['tokens']:,} tokens, {before['weights']:,} weights"
    ]
    lines += [
        f"refused            {p['series']} at {p['label']}: {p['refused']}" for p in results["points"] if "refused" in p
    ]
    if any(r["bytes_extrapolated"] or r["bpb_extrapolated"] for r in results["comparison"]):
        lines.append("~ is extrapolated beyond the measured points: measure there before you rely on it")
    return lines


def seeds_table(results: Mapping[str, Any]) -> Table:
    """The table of `pgolf sweep --seeds`: means and spreads, and whether the gain is proven."""
    table = _compact()
    table.add_column("method", overflow="fold")
    table.add_column(f"against {results['baseline']}")
    for name in ("gain, nats/token", "spread", "p (gain > 0.005)", "passes"):
        table.add_column(name, justify="right", no_wrap=True)
    for g in results["gains"]:
        p = "" if g["p"] is None else f"{g['p']:.2g}"
        spread = "" if g["spread"] is None else f"{g['spread']:.5f}"
        table.add_row(g["series"], g["baseline"], f"{g['mean']:+.5f}", spread, p, "yes" if g["passes"] else "no")
    return table


def progress_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What a running sweep shows: a line for each series, a dot for each point, its latest figures."""
    table = _compact()
    table.add_column("method", overflow="fold")
    table.add_column("points")
    table.add_column("latest", no_wrap=True)
    for series in dict.fromkeys(r["series"] for r in rows):
        mine = [r for r in rows if r["series"] == series]
        dots = "".join("●" if "bpb" in r else "×" if "refused" in r else "○" for r in mine)
        scored = [r for r in mine if "bpb" in r]
        latest = f"{scored[-1]['bytes']:,} B  {scored[-1]['bpb']:.5f} BPB" if scored else ""
        table.add_row(series, dots, latest)
    return table
