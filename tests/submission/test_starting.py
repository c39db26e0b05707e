"""An exported folder is started before it is written; what would not run there is refused, and what it needs is listed."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

import pgolf
from pgolf.errors import DataError
from pgolf.submission import check, export, proof, requirements
from tests.helpers import toy_state
from tests.submission.test_export import run

HEAD = "import pgolf\n"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A folder with m.pgolf."""
    monkeypatch.chdir(tmp_path)
    pgolf.pack(toy_state(), tmp_path / "m.pgolf", method="rtn")
    return tmp_path


def test_requirements_are_distributions_with_versions():
    lines, unknown = requirements.requirements(["yaml", "PIL.Image", "torch", "numpy", "no_such_package.part"])
    assert f"PyYAML=={version('PyYAML')}" in lines
    assert f"torch=={version('torch').partition('+')[0]}" in lines
    assert [line.partition("==")[0] for line in lines] == ["numpy", "pillow", "PyYAML", "torch"]
    assert unknown == ["no_such_package"]


def test_what_is_opened_by_name_is_listed_and_copied_if_asked(made):
    (made / "data").mkdir()
    (made / "data" / "t.model").write_bytes(bytes(500))
    (made / "train.py").write_text(
        HEAD + "import flash_attn_9\nPATH = 'data/t.model'\npgolf.load('m.pgolf')\nOUT = 'log.txt'\n"
    )
    how = export.How(prove=False)
    found = export.export(Path("m.pgolf"), [Path("train.py")], Path("out"), how=how)
    assert found.notes == [
        "requirements.txt lacks flash_attn_9 (train.py line 2): it is not installed here, and its distribution unknown",
        "not in the folder: train.py line 3 names data/t.model (500 B); "
        "if it is not given there, --with-data copies and counts it",
    ]
    copied = export.export(Path("m.pgolf"), [Path("train.py")], Path("b"), how=export.How(with_data=True, prove=False))
    assert copied.total == found.total + 500
    assert (made / "b" / "data" / "t.model").read_bytes() == bytes(500)
    assert json.loads((made / "b" / "submission.json").read_text())["bytes_total"] == copied.total


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (None, None, "imported to the end"),
        (
            "RuntimeError: CUDA is required",
            "RuntimeError: CUDA is required",
            "as far as the original: RuntimeError: CUDA",
        ),
        ("UnboundLocalError: 'value'", "UnboundLocalError: 'A'", "as far as the original"),
        (proof.RUNNING, None, "without an end"),
    ],
)
def test_a_start_like_the_originals_is_told(before, after, says):
    assert says in proof.compare("a.py", before, after)


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, "ValueError: infer_schema"), ("KeyError: 1", None), ("KeyError: 'a'", "KeyError: 'b'")],
)
def test_another_start_is_refused(before, after):
    with pytest.raises(DataError, match=r"a\.py: exported, its import ends with .*before, with "):
        proof.compare("a.py", before, after)


def test_a_folder_that_ends_otherwise_is_not_written(made):
    """What the original reads beside itself while it is imported is not in the folder."""
    (made / "table.json").write_text("[1]")
    (made / "train.py").write_text(HEAD + "from pathlib import Path\nt = Path('table' + '.json').read_text()\n")
    refused = run("export", "m.pgolf", "--script", "train.py", "-o", "out", code=3).stderr
    assert "import ends with FileNotFoundError" in refused
    assert "give it by --script or --with-data" in refused
    assert not (made / "out").exists()


def test_a_trial_neither_writes_elsewhere_nor_reaches_out(made):
    (made / "evil.py").write_text(
        "import socket, subprocess\nfrom pathlib import Path\nfound = []\n"
        "for job in (lambda: socket.create_connection(('192.0.2.1', 80), 1), lambda: socket.getaddrinfo('a.example', 80),\n"
        f"            lambda: Path({str(made / 'harm')!r}).write_text('x'), lambda: subprocess.run(['curl', 'x']),\n"
        "            lambda: __import__('pgolf'), lambda: Path('mine').write_text('x')):\n"
        "    try:\n        job(); found.append('done')\n"
        "    except Exception as error:\n        found.append(type(error).__name__)\n"
        "raise SystemExit(' '.join(found))\n"
    )
    with proof.scratch({"evil.py": (made / "evil.py").read_bytes()}) as folder:
        ends = proof.imports(folder, ["evil.py"], None, hides=True).ends
    refusals = " ".join(["PermissionError"] * 4)
    assert ends == {"evil.py": f"SystemExit: {refusals} ModuleNotFoundError done"}
    assert not (made / "harm").exists()


def test_check_starts_a_folder_of_somebody_elses(made):
    folder = made / "theirs"
    folder.mkdir()
    (folder / "helper.py").write_text("x = 1\n")
    (folder / "train_gpt.py").write_text("import sys, helper, no_such_package\n")
    ends = "train_gpt.py: its import ends here with ModuleNotFoundError: No module named 'no_such_package'"
    assert check.checked(folder).proof == ["2 scripts: compiled", ends]
    (folder / "train_gpt.py").write_text("import sys\nprint(sys.argv)\nsys.exit(sys.argv[1:] == ['--bad', 'a b'])\n")
    words = ("export", "--check", "theirs", "--smoke")
    assert "tried: python train_gpt.py --good: ran to the end" in run(*words, "--good").stdout
    assert "ended with exit code 1: it said nothing" in run(*words, "--bad 'a b'", code=3).stderr
    assert "No closing quotation" in run(*words, "'", code=2).stderr
    assert "no such script, only helper.py, train_gpt.py" in run(*words[:3], "--script", "x.py", code=2).stderr
    (folder / "helper.py").write_text("def (")
    assert "helper.py: not a Python script" in run(*words[:3], code=3).stderr
    assert sorted(path.name for path in folder.iterdir()) == ["helper.py", "train_gpt.py"]


def test_the_main_script_is_found_or_asked_for():
    assert check.main_script(["a.py"]) == "a.py"
    assert check.main_script(["a.py", "train_gpt.py", "train_b.py"]) == "train_gpt.py"
    assert check.main_script(["a.py", "train_v5.py", "lib/train.py"]) == "train_v5.py"
    with pytest.raises(check.UsageError, match=r"name it with --script: a\.py, b\.py"):
        check.main_script(["a.py", "b.py"])
