import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest

from pgolf.report import frontier
from pgolf.report.curves import apart, curves, log_ticks, round_ticks, show_bytes
from pgolf.report.rendering import environment
from pgolf.report.svg import frontier_svg
from pgolf.report.terminal import point_cells
from tests.report import facts
from tests.report.facts import NASTY

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None)


@pytest.fixture
def results():
    return facts.sweep()


def test_all_three_are_drawn_the_same_twice(results, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        frontier.write(results, tmp_path / name)
    for name in ("frontier.png", "frontier.svg", "frontier.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "frontier.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_kl_has_a_picture_and_columns_of_its_own(results, tmp_path):
    for point in results["points"][:-1]:
        point |= {"kl": 0.01 * 1e6 / point["bytes"], "same_top": 0.95}
    del results["points"][0]["kl"]  # a point of an older folder
    assert [path.name for path in frontier.write(results, tmp_path)][-2:] == ["kl.png", "kl.svg"]
    root = ET.fromstring((tmp_path / "kl.svg").read_text())
    marks = [p for p in root.iter("{http://www.w3.org/2000/svg}path") if "mark" in (p.get("class") or "")]
    assert len(marks) == 5
    assert any("KL 0.00667" in p.get("aria-label") for p in marks)
    assert (tmp_path / "frontier.html").read_text().count("<svg") == 2
    heads, rows = point_cells(results)
    assert {len(row) for row in rows} == {len(heads)}
    assert [row[heads.index("KL")] for row in rows] == ["", "0.00833", "0.00625", "0.00833", "0.00667", "0.01000", ""]


def test_the_headline_says_what_was_gained(results):
    assert frontier.headline(results) == ("auto needs 0.67 times the bytes of contest (k=20) at equal bits per byte")
    assert "3,000,000 weights" in frontier.headline(results | {"comparison": []})


def test_the_svg_is_well_formed_and_names_every_point(results):
    root = ET.fromstring(frontier_svg(results, "t"))
    space = "{http://www.w3.org/2000/svg}"
    series = [g for g in root.iter(f"{space}g") if g.get("class") == "series"]
    assert [g.get("data-series") for g in series] == ["auto", "contest", NASTY]
    marks = [p for p in root.iter(f"{space}path") if "mark" in (p.get("class") or "")]
    assert len(marks) == 6
    assert any("1,200,000 bytes, 1.50400 bits per byte" in p.get("aria-label") for p in marks)


def test_a_sweep_without_figures_still_draws(results, tmp_path):
    nothing = results | {"points": results["points"][-1:], "comparison": []}
    frontier.write(nothing, tmp_path)
    ET.fromstring((tmp_path / "frontier.svg").read_text())


def test_the_page_needs_nothing_from_elsewhere(results, tmp_path):
    frontier.write(results, tmp_path)
    html = (tmp_path / "frontier.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|fetch\(|https?://(?!www\.w3\.org/2000/svg)""", html)
    assert html.count("</script>") == 2
    assert html.count(NASTY) == 0
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1]
    assert json.loads(data)["points"][f"{NASTY}-1000000"]["rise"] == 0.05


def test_json_in_a_page_cannot_end_its_element():
    shown = environment().from_string("{{ value|tojson }}").render(value={"a": "</script>&"})
    assert shown == '{"a": "\\u003c/script\\u003e\\u0026"}'


def test_ticks_are_round_and_names_stand_apart(results):
    assert round_ticks(0.9, 3.1, 4) == pytest.approx([1, 2, 3])
    assert log_ticks(0.002, 0.06) == pytest.approx([0.002, 0.005, 0.01, 0.02, 0.05])
    assert apart([5, 0, 6], 4) == [5, 0, 9]
    assert show_bytes(1_420_595) == "1.421 MB"
    assert show_bytes(500_000) == "500 kB"
    assert len({c.index for c in curves(results)}) == 3


PROBE = """
<script>
const found = {}, seen = e => getComputedStyle(e).display !== "none", tell = document.getElementById("tip");
const mark = document.querySelector(".mark"), button = document.querySelector("#toggles button");
found.marks = [...document.querySelectorAll(".mark")].filter(m => m.getBoundingClientRect().width > 4).length;
mark.dispatchEvent(new PointerEvent("pointerenter"));
found.tip = tell.textContent; found.tipShown = seen(tell);
mark.dispatchEvent(new PointerEvent("pointerleave"));
found.tipGone = !seen(tell);
mark.dispatchEvent(new FocusEvent("focus")); found.focus = seen(tell); mark.dispatchEvent(new FocusEvent("blur"));
button.click(); found.hidden = !seen(document.querySelector("g.series")); found.pressed = button.getAttribute("aria-pressed");
button.click(); found.back = seen(document.querySelector("g.series"));
const paper = () => getComputedStyle(document.body).backgroundColor;
found.before = paper(); document.getElementById("theme").click(); found.after = paper();
document.body.dataset.found = JSON.stringify(found);
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: hover and toggles of the page are not tried")
def test_hover_toggles_and_themes_work_in_a_browser(results, tmp_path):
    frontier.write(results, tmp_path)
    page = tmp_path / "probe.html"
    page.write_text((tmp_path / "frontier.html").read_text().replace("</body>", f"{PROBE}</body>"))
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command = [CHROMIUM, "--headless", "--disable-gpu", *root, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    shown = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(re.search(r'data-found="([^"]*)"', shown)[1].replace("&quot;", '"'))
    assert found.pop("marks") == 6
    assert "800,000 bytes" in found["tip"]
    assert "1.52000 bits per byte" in found.pop("tip")
    assert found.pop("pressed") == "false"
    assert found.pop("before") != found.pop("after")
    assert found == dict.fromkeys(("tipShown", "tipGone", "focus", "hidden", "back"), True)
