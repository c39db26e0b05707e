"""One self-contained HTML page: no network, no fonts or scripts from elsewhere, both themes.

What will surprise you:
* The picture is drawn by `svg.py` and stands in the page as it is; the script only hides, shows and explains what is
  already there. Without scripts the page still shows everything.
* Data stand in a JSON block in which `<`, `>` and `&` are escaped: no tensor or method name can close it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from string import Template
from typing import Any

from pgolf.report.svg import DARK_THEME, FONT, LIGHT_THEME, STYLE, drawing
from pgolf.report.terminal import comparison_cells, point_cells

_SHELL = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>$title</title>
<style>
:root{$light color-scheme:light dark}
@media(prefers-color-scheme:dark){:root:not([data-theme=light]){$dark}}
:root[data-theme=dark]{$dark}
:root[data-theme=light]{color-scheme:light}
:root[data-theme=dark]{color-scheme:dark}
body{$font;color:var(--ink);background:var(--paper);max-width:960px;margin:24px auto;padding:0 16px;line-height:1.45}
h1{font-size:1.25rem;margin:0 0 8px}
h2{font-size:1.05rem;margin:24px 0 4px}
.bar{display:flex;flex-wrap:wrap;gap:8px;align-items:center;margin:12px 0}
button{font:inherit;font-size:.9rem;color:inherit;background:none;border:1px solid var(--grid);border-radius:6px;
padding:3px 10px;cursor:pointer}
button[aria-pressed=false]{opacity:.45;text-decoration:line-through}
button:focus-visible,.mark:focus-visible{outline:2px solid var(--ink);outline-offset:1px}
.swatch{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin-right:.45em}
#theme{margin-left:auto}
.picture{overflow-x:auto}
svg.frontier{width:100%;min-width:560px;height:auto;display:block}
.mark{cursor:pointer}
#tip{position:absolute;display:none;pointer-events:none;background:var(--paper);border:1px solid var(--ink);
border-radius:6px;padding:6px 10px;font-size:.85rem;max-width:320px}
#tip b{display:block}
table{border-collapse:collapse;font-size:.88rem;width:100%}
.wide{overflow-x:auto}
th,td{text-align:right;padding:3px 8px;border-bottom:1px solid var(--grid);font-variant-numeric:tabular-nums}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
p.note{font-size:.85rem;opacity:.8}
</style>
</head>
<body>
$body
<script type="application/json" id="data">$data</script>
<script>
$script
</script>
</body>
</html>
""")


def page(title: str, body: str, data: Any, script: str) -> str:
    """A whole page. body: HTML; data: JSON-able, for the script, as #data."""
    return _SHELL.substitute(
        title=escape(title),
        light=LIGHT_THEME,
        dark=DARK_THEME,
        font=FONT,
        body=body,
        data=safe_json(data),
        script=script.strip(),
    ).replace("</style>", f"{STYLE}\n</style>", 1)


def safe_json(value: Any) -> str:
    """JSON that may stand in a <script> element: no character in it can end the element."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table(heads: list[str], rows: list[list[str]]) -> str:
    """An HTML table of plain text."""
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def frontier_page(results: Mapping[str, Any], title: str) -> str:
    """The page of a sweep."""
    before = results["before"]
    body = f"""<h1>{escape(title)}</h1>
<p>{before["weights"]:,} weights, {before["bpb"]:.5f} bits per byte before quantization, scored on
{before["tokens"]:,} tokens. Lower and further left is better.</p>
<div class="bar" id="toggles"></div>
<div class="picture">{drawing(results, title)}</div>
<div id="tip" role="status"></div>
{_comparison(results)}
<h2>Every point</h2>
{table(*point_cells(results))}
<p class="note">Sizes are whole artifacts. Rise: bits per byte above the unquantized model on the same text. Pareto: no other
point has both fewer bytes and fewer bits per byte.</p>"""
    shown = ("key", "series", "label", "bytes", "bits_per_weight", "bpb", "rise", "pack_seconds", "rise_spread")
    points = {p["key"]: {k: p[k] for k in shown if k in p} for p in results["points"] if "bpb" in p}
    return page(title, body, {"points": points}, THEME_SCRIPT + FRONTIER_SCRIPT)


def _comparison(results: Mapping[str, Any]) -> str:
    if not results["comparison"]:
        return ""
    note = '<p class="note">~ is extrapolated beyond the measured points.</p>'
    return f"<h2>Against {escape(results['baseline'])}</h2>{table(*comparison_cells(results))}{note}"


THEME_SCRIPT = """
const root = document.documentElement, bar = document.getElementById("toggles");
const theme = document.createElement("button");
theme.id = "theme";
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const nameTheme = () => { theme.textContent = dark() ? "Light" : "Dark"; };
theme.onclick = () => { root.dataset.theme = dark() ? "light" : "dark"; nameTheme(); };
nameTheme();
bar.append(theme);
"""

FRONTIER_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
for (const group of document.querySelectorAll("g.series")) {
  const button = document.createElement("button"), swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = group.querySelector(".name").style.fill;
  button.append(swatch, group.dataset.series);
  button.setAttribute("aria-pressed", "true");
  button.onclick = () => {
    const shown = group.style.display === "none";
    group.style.display = shown ? "" : "none";
    button.setAttribute("aria-pressed", String(shown));
  };
  bar.insertBefore(button, theme);
}
const tip = document.getElementById("tip");
const say = (tag, text) => { const e = document.createElement(tag); e.textContent = text; tip.append(e); };
function show(mark) {
  const p = data.points[mark.dataset.key], at = mark.getBoundingClientRect();
  tip.replaceChildren();
  say("b", p.series + ", " + p.label);
  say("div", p.bytes.toLocaleString("en") + " bytes, " + p.bits_per_weight.toFixed(3) + " bits a weight");
  say("div", p.bpb.toFixed(5) + " bits per byte, rise " + p.rise.toFixed(5));
  if (p.rise_spread !== undefined) say("div", "spread over seeds " + p.rise_spread.toFixed(5));
  tip.style.display = "block";
  const width = tip.offsetWidth, left = at.right + scrollX + 10;
  tip.style.left = Math.max(4, left + width > root.clientWidth ? at.left + scrollX - width - 10 : left) + "px";
  tip.style.top = Math.max(scrollY + 4, at.top + scrollY - tip.offsetHeight - 6) + "px";
}
const hide = () => { tip.style.display = "none"; };
for (const mark of document.querySelectorAll(".mark")) {
  mark.addEventListener("pointerenter", () => show(mark));
  mark.addEventListener("focus", () => show(mark));
  mark.addEventListener("pointerleave", hide);
  mark.addEventListener("blur", hide);
}
"""
