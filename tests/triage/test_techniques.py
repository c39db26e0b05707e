"""A technique is seen where code has it, not where prose names it; one that is switched off is told apart."""

import re

import pytest

from pgolf.triage.script import code_of, commanded, defaults, is_off, logged
from pgolf.triage.techniques import seen, table
from tests.triage.made import SCRIPT


def found(source, **settings):
    code = code_of(source)
    return {
        name: how for names in seen(code.text, defaults(code.text) | settings).values() for name, how in names.items()
    }


def test_code_counts_and_comments_docstrings_and_sentences_do_not():
    assert found(SCRIPT) == {
        "Muon": "on", "zlib": "on", "XSA": "on", "relu²": "on", "sp1024": "on", "any": "ttt_enabled=0",
    }  # fmt: skip


def test_what_a_run_was_told_stands_above_the_defaults():
    told = found(SCRIPT, ttt_enabled="1", vocab_size="8192", xsa_last_n="0")
    assert (told["any"], told["sp1024"], told["sp8192"], told["XSA"]) == ("on", "vocab_size=8192", "on", "xsa_last_n=0")


def test_every_line_of_the_table_can_be_read_and_is_the_only_one_of_its_name():
    names = [(line.group, line.name) for line in table()]
    assert len(set(names)) == len(names) >= 50
    for line in table():
        re.compile(line.pattern)
        assert seen("", {}) == {}, line


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("x = F.leaky_relu(self.fc(x), negative_slope=0.5).square()", "LeakyReLU²"),
        ("x = torch.relu(self.fc(x))\nx = x.square()", "relu²"),
        ("q = quantize_int6_per_row(w)", "int6"),
        ("opt = torch.optim.AdamW if wd else None", "AdamW"),
        ("raw = brotli.compress(raw)", "brotli"),
        ("from flash_attn_interface import flash_attn_func", "FlashAttention"),
        ("H = collect_hessians(model)", "GPTQ"),
        ("parser.add_argument('--swa_every', type=int, default=50)", "SWA"),
        ("class BatchedTTTLoRA(nn.Module):\n    pass", "LoRA"),
    ],
)
def test_a_technique_by_its_usual_names(code, name):
    assert found(code)[name] == "on"


@pytest.mark.parametrize(
    "code", ["x = x.to(torch.int64)", "u = np.uint16(3)", "y = x.to(torch.uint8)", "s = 'a sum of int6 codes'"]
)
def test_dtypes_and_sentences_are_no_quantizer(code):
    assert found(code) == {}


@pytest.mark.parametrize(
    ("code", "switch"),
    [
        ("swa_enabled = False", "swa_enabled=False"),
        ("swa_enabled: bool = False", "swa_enabled=False"),
        ("_A = '0'\nswa_enabled = bool(int(os.environ.get('SWA_ENABLED', _A)))", "swa_enabled=0"),
        ("swa_start_frac = _e('SWA_START_FRAC', 0.0, float)", "swa_start_frac=0.0"),
        ("parser.add_argument('--swa-enabled', action='store_true')", "swa_enabled=False"),
        ("parser.add_argument('--swa_every', type=int, default=0)", "swa_every=0"),
    ],
)
def test_ways_to_say_that_something_is_off(code, switch):
    assert found(code + "\nswa_state = None")["SWA"] == switch


def test_of_switches_in_brackets_all_must_be_off():
    late = "qat_enabled = False\nlate_qat_threshold = {}\nw = fake_quant(w)"
    assert found(late.format(0.15))["QAT"] == "on"
    assert found(late.format(0.0))["QAT"] == "qat_enabled=False"


def test_a_choice_and_an_equality_switch_too():
    coders = "compressor = 'brotli'\nraw = brotli.compress(raw) if args.compressor == 'brotli' else lzma.compress(raw)"
    assert (found(coders)["brotli"], found(coders)["lzma"]) == ("on", "compressor=brotli")
    assert found("num_heads = 8\nnum_kv_heads = 8")["GQA"] == "num_kv_heads=8"
    assert found("num_heads = 8\nnum_kv_heads = 4")["GQA"] == "on"


def test_code_keeps_its_meaning_and_nothing_else():
    code = code_of("def f(a , b):  # why\n  '''Doc.'''\n  return a+b ; x = 'fp8'\n'alone'\n")
    assert code.text == 'def f(a,b):\n return a+b\n x="fp8"'
    assert code.tokens.count('""') == 1
    assert code.whole


@pytest.mark.parametrize("cut", ["def f(:\n  x = (1,\n", "x = '''no end\n", "if x:\n    y\n  z\n", "x = 1\n\x00\n"])
def test_a_script_that_is_cut_off_is_read_as_far_as_it_goes(cut):
    code = code_of("swa_state = 1\n" + cut)
    assert "swa_state=1" in code.text
    assert not code.whole


def test_settings_of_commands_and_logs():
    text = 'TTT_ENABLED=0 SEED=$SEED TTT_ENABLED=1 torchrun train_gpt.py\nexport VOCAB_SIZE="${VOCAB_SIZE:-4096}"\n'
    assert commanded(text) == {"ttt_enabled": "1", "vocab_size": "4096"}
    known = dict.fromkeys(("ttt_enabled", "compressor", "rank"), "")
    log = "ttt_enabled: True\n  compressor: brotli\nrank: int\nother: 3\nttt_enabled: False\nx = ttt_enabled: 0\n"
    assert logged(log, known) == {"ttt_enabled": "True", "compressor": "brotli"}


def test_what_is_off():
    assert all(map(is_off, ["0", "0.0", "", "False", "none", "0e0"]))
    assert not any(map(is_off, ["1", "0.1", "True", "brotli", "-1"]))
