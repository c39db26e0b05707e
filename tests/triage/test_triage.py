"""`pgolf triage` over folders as strangers send them: each has its row, whatever lies in it."""

import base64
import gzip
import json
import lzma
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from pgolf.cli import main
from tests.triage.made import SCRIPT, log, submission

THIRD = SCRIPT.replace("zlib", "lzma").replace("relu", "gelu")


def run(*words, code=0):
    result = CliRunner().invoke(main, ["triage", *map(str, words)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def facts(*words):
    return json.loads(run(*words, "--json").stdout)


def only(place):
    (folder,) = facts(place)["folders"]
    return folder


def test_an_honest_folder_has_nothing_to_look_at(tmp_path):
    folder = only(submission(tmp_path / "mine"))
    assert folder["look"] == []
    assert folder["folder"] == "mine"
    assert folder["scores"]["claimed"] == folder["scores"]["readme"] == 1.25
    assert folder["scores"]["recomputed"] == pytest.approx(1.25)
    assert (folder["scores"]["runs"], folder["scores"]["seeds"], folder["scores"]["kind"]) == (2, [1, 2], "quantized")
    assert (folder["total_bytes"], folder["code_bytes"]) == (15_000_000, len(SCRIPT))
    assert folder["model_bytes"] == 15_000_000 - len(SCRIPT)


def test_a_tree_has_a_row_for_each_and_says_which_are_alike(tmp_path):
    for name, bpb, script in (
        ("b/one", 1.25, SCRIPT),
        ("a/two", 1.3, SCRIPT + "# more\n"),
        ("c", 1.2, "import os\n" * 50),
    ):
        submission(tmp_path / name, bpb=bpb, script=script)
    told = facts(tmp_path)
    assert [folder["folder"] for folder in told["folders"]] == ["a/two", "b/one", "c"]
    assert told["alike"] == [["a/two", "b/one"]]
    assert told["techniques"]["optimizer"]["Muon"] == {"on": 2, "off": 0}
    assert told["techniques"]["test-time training"]["any"] == {"on": 0, "off": 2}
    (why,) = told["folders"][0]["look"]
    assert why == "has 100% of the code of b/one, and its score is 0.050 away"
    assert [folder["folder"] for folder in facts(tmp_path, "--by", "score")["folders"]] == ["c", "b/one", "a/two"]
    assert facts(tmp_path, tmp_path / "c")["folders"] == told["folders"]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("submission.json", '{"val_bpb": 1.2}', "claims 1.20000, and the mean of 2 runs in its logs is 1.25000"),
        ("train_seed1.log", log(1.25, size=17_000_000), "17,000,000 B are over the limit of 16,000,000 B"),
        ("submission.json", "{", "audit: claim: submission.json: no JSON"),
        ("submission.json", "[" * 10**5, "was not audited"),
        ("train_gpt.py", SCRIPT + "import requests\nrequests.get(x)\n", "audit: network"),
        ("train_gpt.py", SCRIPT + "def (", "train_gpt.py was read up to statement"),
        ("train_gpt.py", "x=" + "(" * 10**5, "train_gpt.py was read up to statement 0 only"),
        ("train_gpt.py", f"exec(mine({'x' * 5000!r}))", "train_gpt.py is packed in a way"),
        ("train_other.py", THIRD, "train_gpt.py is taken for the main script; train_other.py"),
        ("train_seed1.log", log(1.25).replace("val_bpb:1.2400", "val_bpb:1.6"), "evaluation does more than measure"),
    ],
)
def test_what_is_to_be_looked_at(tmp_path, name, text, why):
    place = submission(tmp_path / "mine")
    (place / name).write_text(text)
    assert any(why in reason for reason in only(place)["look"]), only(place)["look"]


def test_what_is_missing_is_said(tmp_path):
    place = submission(tmp_path / "mine")
    for path in place.glob("*.log"):
        path.unlink()
    assert "no log is here that shows a score after packing" in only(place)["look"]
    (place / "train_gpt.py").unlink()
    assert "has no script of Python to read" in only(place)["look"]


def test_a_packed_script_is_read_by_unpacking_it(tmp_path):
    inside = base64.b85encode(lzma.compress(SCRIPT.encode()))
    packed = f"import lzma,base64\nexec(lzma.decompress(base64.b85decode({inside!r})))\n"
    folder = only(submission(tmp_path / "mine", script=packed))
    assert folder["techniques"]["optimizer"] == {"Muon": "on"}
    assert folder["code_bytes"] == len(packed)
    assert folder["look"] == []


def test_logs_may_be_compressed_and_their_settings_count(tmp_path):
    place = submission(tmp_path / "mine", seeds=())
    text = "Hyperparameters:\n  ttt_enabled: True\n" + log(1.25)
    for name, raw in (("a.log.gz", gzip.compress(text.encode())), ("b.log.xz", lzma.compress(log(1.25, 2).encode()))):
        (place / name).write_bytes(raw)
    (place / "cut.log.gz").write_bytes(gzip.compress(text.encode())[:-30])
    folder = only(place)
    assert folder["scores"]["seeds"] == [2, 1337]
    assert any("cut.log.gz" in note for note in folder["notes"])
    (place / "c.log").write_text(text)
    assert only(place)["techniques"]["test-time training"]["any"] == "on"


@pytest.mark.skipif(os.name == "nt", reason="neither links nor pipes are made like this there")
def test_links_pipes_and_giants_are_named_and_passed_over(tmp_path):
    secret = tmp_path / "secret.log"
    secret.write_text(log(1.0))
    place = submission(tmp_path / "mine")
    (place / "away.log").symlink_to(secret)
    (place / "up").symlink_to(tmp_path)
    os.mkfifo(place / "pipe.log")
    with (place / "giant.log").open("wb") as file:
        file.truncate(100 << 20)
    (place / "latin.py").write_bytes(b"name = '\xff\xfe'\n")
    folder = only(place)
    assert folder["scores"]["runs"] == 2
    for words in ("away.log is a symbolic link", "up is a link", "pipe.log is a pipe", "giant.log was not read"):
        assert any(words in note for note in folder["notes"]), words


def test_nothing_of_a_folder_is_run_and_torch_is_not_imported(tmp_path):
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    submission(tmp_path / "mine", script=trap + SCRIPT)
    for name in ("sitecustomize.py", "setup.py", "torch.py"):
        (tmp_path / "mine" / name).write_text(trap)
    program = (
        "import sys\nsys.modules['torch'] = None\nfrom pgolf.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    )
    command = [sys.executable, "-c", program, "triage", str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path / "mine", env={**os.environ, "PYTHONSAFEPATH": "1"})
    assert not (tmp_path / "ran").exists()


def test_the_table_is_eighty_columns_wide_and_says_what_json_says(tmp_path):
    submission(tmp_path / ("a" * 90), bpb=1.25)
    submission(tmp_path / "weird \x1b[31m\nname", bpb=1.3, seeds=())
    printed = run(tmp_path).stdout.splitlines()
    assert all(len(line) <= 80 or " " not in line.strip() for line in printed)
    assert "\x1b" not in "".join(printed)
    assert any(line.split()[-5:-1] == ["1.2500", "1.2500", "15,000,000", "5"] for line in printed)
    assert any("Muon 2" in line for line in printed)


def test_the_page_needs_nothing_from_elsewhere_and_no_name_is_markup(tmp_path):
    submission(tmp_path / "<b>bold<b>")
    submission(tmp_path / "other", bpb=1.3)
    run(tmp_path, "--page", tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["gone"], 2, "there is no such folder"),
        (["file"], 2, "not a folder"),
        (["empty"], 3, "holds no submission"),
        (["empty", "--limit", "x"], 2, "x"),
        (["empty", "--page", "gone/out.html"], 2, "does not exist"),
    ],
)
def test_what_is_no_folder_of_submissions_is_one_line(tmp_path, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    result = run(*words, code=code)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
