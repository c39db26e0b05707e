import logging
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pgolf.common.registry import Registry
from pgolf.errors import PluginError, UsageError


def number(name: str, part: object) -> int:
    if not isinstance(part, int):
        raise TypeError(f"it is {part!r}")
    return part


def offer(folder: Path, package: str, points: str, module: str = "") -> None:
    """What pip would leave of a package in `folder`: a module of its name, and its metadata."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pgolf.numbers]\n{points}\n")
    (folder / f"{package}.py").write_text(module)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def numbers() -> Registry[int]:
    return Registry("number", "pgolf.numbers", {"one": 1}, number)


def test_a_part_of_another_package_is_imported_when_it_is_asked_for(site: Path) -> None:
    offer(site, "elsewhere", "seven = elsewhere:VALUE", "VALUE = 7")
    known = numbers()
    assert list(known) == ["one", "seven"]
    assert len(known) == 2
    assert "seven" in known
    assert "eight" not in known
    assert "elsewhere" not in sys.modules
    assert known["seven"] == 7
    assert known.get("eight") is None
    with pytest.raises(KeyError):
        known["eight"]


def test_nothing_is_read_before_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgolf.common.registry.entry_points", lambda group: pytest.fail("read"))
    numbers()


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("VALUE = 'x'", "TypeError: it is 'x'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("", "AttributeError: "),
    ],
)
def test_a_broken_package_is_one_line_when_it_is_asked_for_and_none_before(site: Path, module: str, why: str) -> None:
    name = f"broken{abs(hash(module))}"
    offer(site, name, f"bad = {name}:VALUE", module)
    known = numbers()
    assert known["one"] == 1
    assert "bad" in list(known)
    with pytest.raises(PluginError, match=rf"the package {name}: its number 'bad' cannot be loaded \({why}"):
        known["bad"]


def test_pgolfs_own_parts_win_and_a_line_says_so_once(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    offer(site, "greedy", "one = greedy:VALUE", "VALUE = 5")
    known = numbers()
    with caplog.at_level(logging.ERROR):
        assert [known["one"], known["one"], *known] == [1, 1, "one"]
    assert [r.getMessage() for r in caplog.records] == [
        "the package greedy offers a number 'one', which pgolf has: pgolf's own is used, theirs needs another name"
    ]
    with pytest.raises(UsageError, match="number 'one' is pgolf's own: give yours another name"):
        known.register("one", 5)


def test_two_packages_with_one_name_are_told_apart(site: Path) -> None:
    offer(site, "left", "both = left:VALUE", "VALUE = 1")
    offer(site, "right", "both = right:VALUE", "VALUE = 2")
    with pytest.raises(PluginError, match="offered by the package left and the package right: uninstall all but one"):
        numbers()["both"]


def test_registered_parts_are_checked_replaced_and_win_over_packages(site: Path) -> None:
    offer(site, "elsewhere2", "seven = elsewhere2:VALUE", "VALUE = 7")
    known = numbers()
    known.register("seven", 77)
    known.register("seven", 78)
    assert known["seven"] == 78
    with pytest.raises(UsageError, match="number 'eight': it is 'x'"):
        known.register("eight", "x")
    for name in ("a,b", "", "a:b", "a.b", "7"):
        with pytest.raises(UsageError, match="a name is a letter"):
            known.register(name, 1)


def test_a_name_that_no_option_could_spell_is_refused(site: Path) -> None:
    offer(site, "odd", "a.b = odd:VALUE", "VALUE = 1")
    assert metadata.distribution("odd").version == "1.0"
    with pytest.raises(PluginError, match=r"'a\.b' is no name"):
        numbers()["a.b"]
