"""Every command and Python block of README.md and docs/ is executed, on a toy trainer's folder.

A block is left out only where an HTML comment before it says why: `<!-- not run: reason -->`.
"""

import ast
import json
import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pgolf
from pgolf.cli import COMMANDS, main
from pgolf.data.shards import read_shard
from tests import folders
from tests.helpers import TOY_MODEL

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(<!-- not run: (?P<why>[^>]+) -->\n)?(?P<indent> *)```(?P<kind>sh|python)\n(?P<text>.*?)\n *```", re.S
)
VOCAB = 320
TRAINER = TOY_MODEL.replace("Embedding(64", f"Embedding({VOCAB}").replace("class Toy", "class GPT")


def blocks(page):
    """(kind, text, why it is not run) of every fenced block of a page, indentation removed."""
    found = BLOCK.finditer((ROOT / page).read_text())
    return [(m["kind"], re.sub(rf"(?m)^{m['indent']}", "", m["text"]), m["why"]) for m in found]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A folder as the pages speak of: ckpt.pt and two more seeds, train.py, tokens.bin, val.bin, t.model; beside them the
    folder my-llama, notes.txt and more.jsonl."""
    folder = tmp_path_factory.mktemp("trainer")
    folders.folder(folder / "my-llama", "llama")
    (folder / "notes.txt").write_text(folders.text(), encoding="utf-8")
    (folder / "more.jsonl").write_text(json.dumps({"text": folders.text(40)}))
    text = "\n".join(f"{i} squared is {i * i}, said the {i % 17}th clerk." for i in range(1500))
    (folder / "text.txt").write_text(text)
    tokenize = ("tokenize", folder / "text.txt", "-o", folder / "data", "--vocab-size", VOCAB)
    result = CliRunner().invoke(main, [str(word) for word in tokenize])
    assert result.exit_code == 0, result.output
    (folder / "data" / "tokenizer.model").rename(folder / "t.model")
    (folder / "data" / "train_000000.bin").rename(folder / "tokens.bin")
    (folder / "data" / "val_000000.bin").rename(folder / "val.bin")
    (folder / "train.py").write_text(TRAINER)
    for seed, name in enumerate(("ckpt.pt", "ckpt-b.pt", "ckpt-c.pt")):
        torch.save(state(seed), folder / name)
    return folder


def state(seed):
    g = torch.Generator().manual_seed(seed)
    shapes = {"tok_emb.weight": (VOCAB, 48), "up.weight": (96, 48), "down.weight": (48, 96), "gain": (48,)}
    return {name: torch.randn(shape, generator=g) * 0.1 for name, shape in shapes.items()}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page, trainer, monkeypatch):
    monkeypatch.chdir(trainer)
    monkeypatch.setattr("pgolf.commands.sweep.MOST_JOBS", 1)  # processes would import torch for each sweep
    names = {"model": module(), "batches": [torch.from_numpy(np.array(read_shard("tokens.bin")[:512], np.int64))[None]]}
    for kind, text, why in blocks(page):
        if why is not None:
            continue
        if kind == "python":
            exec(compile(text, page, "exec"), names)
        else:
            for line in text.splitlines():
                run_line(line, page)
    for made in [p for p in trainer.iterdir() if p.suffix in {".pgolf", ".safetensors", ".html"}]:
        made.unlink()


def run_line(line, page):
    words = shlex.split(line, comments=True)
    if not words:
        return
    assert words[0] == "pgolf", f"{page}: a block with {words[0]!r} needs a `not run` comment that says why"
    result = CliRunner().invoke(main, words[1:])
    assert result.exit_code == 0, (page, line, result.output, result.stderr, result.exception)


def module():
    names = {}
    exec(compile(TRAINER, "train.py", "exec"), names)
    model = names["GPT"]()
    model.load_state_dict(state(0))
    return model


def test_every_command_is_documented():
    text = "".join((ROOT / page).read_text() for page in ("README.md", "docs/COMMANDS.md", "docs/SWEEP.md"))
    missing = [name for name in COMMANDS if f"pgolf {name}" not in text]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


@cache
def templates():
    """Every string of the source, what is filled in as …, with spaces and backquotes evened out."""
    found = []
    for file in (ROOT / "pgolf").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                found.append(plain("".join(map(str, parts))))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(plain(node.value))
    return found


def plain(text):
    return re.sub(r"…+", "…", " ".join(text.replace("`", "").split()))


QUOTED = re.findall(r"\*\*`(.+?)`\*\*", (ROOT / "docs" / "TROUBLESHOOTING.md").read_text())


def said(message, template):
    """Whether a quoted message is (the beginning or end of) what a template makes; … on either side is anything."""
    loose = ".*".join(re.escape(part) for part in plain(message).strip("…").split("…"))
    return re.search(loose, template) is not None


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_can_still_be_said(message):
    assert len(re.sub(r"\W", "", message)) > 10, "too little to recognise"
    assert any(said(message, t) for t in templates()), message


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_made(shell):
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)(main, {}, "pgolf", "_PGOLF_COMPLETE").source()
    assert "_PGOLF_COMPLETE" in script


def test_no_color_is_obeyed(trainer, monkeypatch):
    import io

    from rich.console import Console

    from pgolf.report import terminal

    monkeypatch.chdir(trainer)
    pgolf.pack(state(0), "plain.pgolf", method="rtn")
    table = terminal.inspect_table(pgolf.inspect("plain.pgolf"))
    shown = {}
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        out = io.StringIO()
        Console(file=out, force_terminal=True, width=160).print(table)
        shown[value] = out.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", shown["1"])
    Path("plain.pgolf").unlink()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_report_facts_have_json(command):
    result = CliRunner().invoke(main, [command, "--help"])
    assert "--json" in result.stdout
