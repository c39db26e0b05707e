"""`pgolf audit` finds what was put into a folder, where it was put, and nothing in an honest one."""

import ast
import json
import shutil

import pytest

from pgolf.code import payload, script
from pgolf.errors import UsageError
from pgolf.submission import claims
from pgolf.submission.audit import audit
from pgolf.submission.findings import KINDS
from pgolf.submission.suspicions import suspicions
from tests.helpers import sweep_inputs
from tests.submission.test_export import run

CLEAN = '''
"""Trains, packs, scores, learns at test time from what it scored."""
import os, glob, subprocess
import numpy as np, torch, torch.nn.functional as F
import model

class Hyperparameters:
    data_path = os.environ.get("DATA_PATH", "./data/datasets/fineweb10B_sp1024")
    train_files = os.path.join(data_path, "fineweb_train_*.bin")
    val_files = os.path.join(data_path, "fineweb_val_*.bin")
    tokenizer_path = "./data/tokenizers/fineweb_1024_bpe.model"

def load_tokens(pattern):
    return torch.from_numpy(np.fromfile(sorted(glob.glob(pattern))[0], dtype="<u2"))

def train(net, args):
    train_tokens = load_tokens(args.train_files)
    val_tokens = load_tokens(args.val_files)
    optimizer = torch.optim.AdamW(net.parameters())
    train_losses = []
    for step in range(100):
        x, y = train_tokens[step : step + 64], train_tokens[step + 1 : step + 65]
        loss = net(x, y)
        loss.backward()
        optimizer.step()
        train_losses.append(loss.item())
        if step % 10 == 0:
            val_loss, val_bpb = eval_val(net, val_tokens)
            print(f"step:{step} val_loss:{val_loss:.4f} val_bpb:{val_bpb:.4f}")
    print(subprocess.run(["nvidia-smi"], capture_output=True).stdout)

def eval_val(net, val_tokens):
    loss_sum = torch.zeros(())
    with torch.inference_mode():
        for i in range(0, val_tokens.numel() - 65, 64):
            logits = net.logits(val_tokens[i : i + 64])
            loss_sum += F.cross_entropy(logits, val_tokens[i + 1 : i + 65])
    return loss_sum.item(), 1.0

def eval_val_ttt(net, val_tokens, optimizer):
    nll_sum = 0.0
    for i in range(0, val_tokens.numel() - 65, 64):
        x, y = val_tokens[i : i + 64], val_tokens[i + 1 : i + 65]
        with torch.no_grad():
            nll_sum += net(x, y).item()
        adapt(net, x, y, optimizer)
    return nll_sum

def adapt(net, chunk, answers, optimizer):
    loss = net(chunk, answers)
    loss.backward()
    optimizer.step()

if __name__ == "__main__":
    hidden = torch.zeros(4, 8)
    hidden[torch.arange(4), torch.tensor([1, 2, 3, 4])] = 1.0
    with open("log.txt", "w") as log:
        log.write(open(__file__).read())
    train(model.Net(), Hyperparameters())
'''
MODEL = "import torch\nclass BigramHashEmbedding(torch.nn.Module):\n    pass\nclass Net(torch.nn.Module):\n    pass\n"
LOG = """step:100/100 val_loss:2.0800 val_bpb:1.2300
Total submission size int8+zlib: 15863489 bytes
final_roundtrip_exact val_loss:2.07269931 val_bpb:{bpb}
"""


def folder_of(tmp_path, source=CLEAN, **claimed):
    """A submission folder; claimed: what submission.json says beside the truth."""
    (tmp_path / "train_gpt.py").write_text(source)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "prepare.py").write_text("import requests\nrequests.get('https://example.org/train.bin')\n")
    (tmp_path / "train_seed1.log").write_text(LOG.format(bpb=1.2243657))
    (tmp_path / "train_seed2.log").write_text(LOG.format(bpb=1.2263657))
    (tmp_path / "requirements.txt").write_text(
        "torch==2.9.1\n--extra-index-url https://download.pytorch.org/whl/cu128\n"
    )
    facts = {
        "author": "a", "val_loss": 2.07269931, "val_bpb": 1.2254, "bytes_total": 15863489,
        "bytes_code": len(source.encode()),
    }  # fmt: skip
    (tmp_path / "submission.json").write_text(json.dumps(facts | claimed, indent=2))
    return tmp_path


def told(folder, **options):
    return [(f.kind, f.file, f.line) for f in audit(folder, run=False, **options).findings]


def line_of(source, words):
    return next(number for number, line in enumerate(source.splitlines(), 1) if words in line)


def test_nothing_is_found_in_an_honest_folder(tmp_path):
    assert told(folder_of(tmp_path)) == []
    packed = script.self_extracting(CLEAN.encode())
    (tmp_path / "train_gpt.py").unlink()
    (tmp_path / "train.py").write_bytes(packed)
    assert told(tmp_path) == []
    (tmp_path / "train_.py").write_bytes(payload.inner(packed))  # as it is after a run
    assert told(tmp_path) == []


VIOLATIONS = {
    "training": ('"fineweb_train_*.bin")', '"fineweb_val_*.bin")'),
    "order": (
        "        with torch.no_grad():\n            nll",
        "        net(x, y).backward()\n        if True:\n            nll",
    ),
    "probability": (
        "            loss_sum +=",
        "            y = val_tokens[i + 1]\n            logits[:, y] += 3\n            loss_sum +=",
    ),
    "ngram": ("    nll_sum = 0.0", "    nll_sum, ngram_cache = 0.0, {}"),
    "network": ("    hidden =", "    os.system('wget https://example.org/weights.bin')\n    hidden ="),
    "outside": ("    hidden =", "    hidden = torch.load('/root/weights.bin')\n    hidden ="),
}
PLACES = {
    "training": "fineweb_val_*.bin\")", "order": "net(x, y).backward()", "probability": "logits[:, y] += 3",
    "ngram": "ngram_cache", "network": "wget", "outside": "/root/weights.bin",
}  # fmt: skip


@pytest.mark.parametrize("kind", VIOLATIONS)
def test_one_violation_is_found_where_it_is(tmp_path, kind):
    assert kind in KINDS
    assert CLEAN.count(VIOLATIONS[kind][0]) == 1
    source = CLEAN.replace(*VIOLATIONS[kind])
    found = told(folder_of(tmp_path, source))
    assert found == [(kind, "train_gpt.py", line_of(source, PLACES[kind]))]


@pytest.mark.parametrize(
    ("claimed", "kind", "key"),
    [
        ({"val_bpb": 1.2154}, "claim", "val_bpb"),
        ({"val_loss": 1.9}, "claim", "val_loss"),
        ({"bytes_total": 15800000}, "claim", "bytes_total"),
        ({"bytes_code": 100}, "claim", "bytes_code"),
        ({"seeds": {"1": {"artifact_bytes": 16000001}}}, "size", "artifact_bytes"),
    ],
)
def test_a_claim_that_does_not_hold_is_found(tmp_path, claimed, kind, key):
    folder = folder_of(tmp_path, **claimed)
    line = line_of((folder / "submission.json").read_text(), f'"{key}"')
    assert told(folder) == [(kind, "submission.json", line)]


@pytest.mark.parametrize(
    "claimed",
    [
        {"val_bpb": 1.2244},
        {"val_bpb": 1.22436},
        {"val_bpb": 1.225366},
        {"val_bpb": None, "val_loss": None},
        {"val_loss": 2.07},
    ],
)
def test_a_claim_may_be_rounded_cut_or_a_mean(tmp_path, claimed):
    assert told(folder_of(tmp_path, **claimed)) == []


def test_sizes_requirements_and_missing_parts_are_found(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "final_model.int8.ptz").write_bytes(bytes(90_000))
    size = sum((folder / name).stat().st_size for name in ("train_gpt.py", "model.py", "final_model.int8.ptz"))
    assert told(folder, limit=size) == [("claim", "submission.json", 5), ("size", "submission.json", 5)][1:]
    assert ("size", "final_model.int8.ptz", 0) in told(folder, limit=size - 1)
    (folder / "requirements.txt").write_text("torch\nhelp @ git+https://example.org/help.git\n")
    assert told(folder) == [("outside", "requirements.txt", 2)]
    (folder / "submission.json").write_text("[")
    assert ("claim", "submission.json", 0) in told(folder)
    (folder / "submission.json").unlink()
    assert ("claim", "submission.json", 0) in told(folder)
    (folder / "model.py").write_text("def (")
    assert ("start", "model.py", 1) in told(folder)
    for log in folder.glob("*.log"):
        log.unlink()
    folder_of(folder)
    for log in folder.glob("*.log"):
        log.unlink()
    assert [kind for kind, *_ in told(folder)] == ["claim", "claim"]


def test_the_command_starts_the_script_and_exits_with_4(tmp_path):
    folder = folder_of(tmp_path)
    said = run("audit", folder).stdout
    assert "note: train_gpt.py: imported under a guard to the end" in said
    assert "nothing to look at was found" in said
    (folder / "model.py").write_text(MODEL + "import urllib.request as u\nu.urlopen('http://192.0.2.1/')\n")
    failed = run("audit", folder, "--json", code=4)
    found = json.loads(failed.stdout)
    assert found["verdict"] == "FAIL"
    assert [(f["kind"], f["file"], f["line"]) for f in found["findings"]] == [
        ("network", "model.py", 7), ("network", "train_gpt.py", 0),
    ]  # fmt: skip
    assert "2 findings to look at: network" in failed.stderr
    assert "go together" in run("audit", folder, "--data", "x.bin", code=2).stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="no script of Python"):
        audit(empty)


@pytest.mark.parametrize(
    ("source", "kinds"),
    [
        ("calibration_tokens = val_tokens[:100]", ["training"]),
        ("H = collect_hessians(model, val_loader, 64)", ["training"]),
        ("hessians = collect_hessians(model, train_loader, 64)", []),
        ("train_step(model, batch=args.val_tokens)", ["training"]),
        ("val_train_gap = val_loss - train_loss", []),
        ("train_files = [f for f in files if 'val' not in f]", []),
        ("from huggingface_hub import hf_hub_download as get\nget('a', 'b')", ["network"]),
        ("import subprocess\nsubprocess.run(['git', 'rev-parse', 'HEAD'])", []),
        ("import subprocess\nsubprocess.check_call([x, '-m', 'pip install brotli'])", ["network"]),
        ("logits.scatter_add_(1, targets[:, None], bonus)", ["probability"]),
        ("logits = logits + 5 * F.one_hot(y, 64)", ["probability"]),
        ("picked = logits.gather(1, targets)", []),
        ("smooth.scatter_(1, targets, 0.9)", []),
        ("print('val_bpb', squared_error(a, b))", ["probability"]),
        ("print('val_bpb', F.cross_entropy(a, b))", []),
        ("class NgramMixer: pass", ["ngram"]),
        ("bigram_hash_probs = 1", []),
        ("open('README.md').read()", ["outside"]),
        ("open('README.md', 'w').write('x')", []),
        ("np.load('../../elsewhere/w.npy')", ["outside"]),
        ("open('/proc/cpuinfo')", []),
        ("import pkgutil\npkgutil.get_data('torch', 'w.bin')", ["outside"]),
        ("def tune(val_tokens):\n    loss = net(val_tokens)\n    loss.backward()", ["order"]),
        ("def main():\n    for x in train:\n        net(x).backward()\n    for x in val_tokens:\n        net(x)", []),
        ("def main():\n    for e in epochs:\n        net(x).backward()\n        x = val_tokens", ["order"]),
        ("def ttt(chunk):\n    losses.append(net(chunk))\n    net(chunk).backward()", []),
        ("def main():\n    n = len(val_tokens)\n    loss = net(train[n])\n    loss.backward()", []),
    ],
)
def test_rules_tell_a_sign_from_its_like(source, kinds):
    assert [f.kind for f in suspicions("a.py", ast.parse(source))] == kinds


def test_numbers_of_logs_agree_to_the_coarser_decimals():
    logs = claims.read_logs({"a.log": "x val_bpb=1.12\n", "b.log": "x val_bpb: 1.1400\n"})
    assert logs.scores["val_bpb"]["x"] == ["1.12", "1.1400"]
    for value, holds in ((1.1234, True), (1.13, True), (1.1397, False), (1.14, True), (1.3, False)):
        found = claims.check_claims(json.dumps({"val_bpb": value}).encode(), logs, 0, "a.py", 10)
        assert (not found) is holds, value


def test_where_model_and_data_are_at_hand_the_score_is_made_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep_inputs(tmp_path)
    run("pack", "ckpt.pt", "--calib", "none", "--budget", "12kB", "-o", "m.pgolf", "--method", "rtn")
    (tmp_path / "score.py").write_text(
        "import torch, pgolf\nprint('val_bpb', torch.softmax(pgolf.load('m.pgolf')['gain'], 0))\n"
    )
    run("export", "m.pgolf", "--script", "score.py", "-o", "out", "--no-run")
    scored = ("--model", "toy.py:Toy", "--data", "val.bin", "--bytes", "bytes.bin", "--seq-len", "64")
    bpb = json.loads(run("eval", "m.pgolf", *scored, "--count", "contest", "--json").stdout)["bpb"]
    said = run("audit", "out", "--no-run", *scored).stdout
    assert f"m.pgolf: scored {bpb:.5f} bits per byte" in said
    facts = json.loads((tmp_path / "out" / "submission.json").read_text())
    (tmp_path / "out" / "train.log").write_text(f"val_bpb: {bpb + 0.01:.6f}\n")
    (tmp_path / "out" / "submission.json").write_text(json.dumps(facts | {"val_bpb": round(bpb + 0.01, 4)}))
    found = json.loads(run("audit", "out", "--no-run", *scored, "--json", code=4).stdout)["findings"]
    assert [(f["kind"], f["file"]) for f in found] == [("score", "submission.json")]
    assert "is claimed, and" in found[0]["text"]
    shutil.copy("m.pgolf", "out/n.pgolf")
    assert "name the one to score with --artifact" in run("audit", "out", "--no-run", *scored, code=2).stderr
