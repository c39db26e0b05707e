"""The pages say what they said when they were written by hand, before there were templates: tests/report/golden holds those."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pgolf.report.anatomy_page import page_of
from pgolf.report.frontier import headline
from pgolf.report.page import frontier_page
from pgolf.report.svg import frontier_svg
from tests.report import facts

GOLDEN = Path(__file__).parent / "golden"


class Content(HTMLParser):
    """Elements with their attributes, texts and data, in order. White space between words is one, in CSS and scripts nothing."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.found, self._text, self._element = [], "", ""
        self.feed(page)
        self._end_text()

    def handle_starttag(self, tag, attrs):
        self._end_text()
        self._element = tag
        self.found.append((tag, {name: " ".join((value or "").split()) for name, value in attrs}))

    def handle_endtag(self, tag):
        self._end_text()
        self._element = ""
        self.found.append(f"/{tag}")

    def handle_data(self, data):
        self._text += data

    def _end_text(self):
        between = "" if self._element in {"style", "script"} else " "
        if text := between.join(self._text.split()):
            is_data = self._element == "script" and text.startswith("{")
            self.found.append(json.loads(self._text) if is_data else text)
        self._text = ""


@pytest.mark.parametrize("name", ["frontier.html", "frontier.svg", "artifact.html"])
def test_pages_hold_what_they_held(name):
    sweep = facts.sweep()
    drawn = {
        "frontier.html": lambda: frontier_page(sweep, headline(sweep)),
        "frontier.svg": lambda: frontier_svg(sweep, headline(sweep)),
        "artifact.html": lambda: page_of(facts.artifact(), f"{facts.NASTY}.pgolf"),
    }
    assert Content(drawn[name]()).found == Content((GOLDEN / name).read_text(encoding="utf-8")).found


def test_the_page_of_an_artifact_needs_nothing_from_elsewhere_and_no_name_is_markup():
    page = page_of(facts.artifact(), f"{facts.NASTY}.pgolf")
    assert facts.NASTY not in page
    assert page.count("</script>") == 2
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_page_of_nothing_is_drawn():
    """An artifact without tensors has no bars."""
    empty = {"bytes": 60, "shared_bytes": 60.0, "weights": 0, "layers": [], "tensors": []}
    assert 'viewBox="0 0 880 0"' in page_of(empty, "empty.pgolf")
