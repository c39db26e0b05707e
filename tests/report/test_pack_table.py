"""The pack table in terminals of any width: nothing is cut off, every byte is in it, what is said twice is said once."""

import math
import random
import re
import string
from itertools import pairwise

import pytest

from pgolf.report import Report, TensorRow, pack_table
from pgolf.report.names import all_shortened, common_front, pattern, shortened, skeleton


def row(name, shape, bits=3.0, method="auto trellis=8", kept="", error=0.1, rise=1e-4):
    weights = math.prod(shape)
    damage = (None, None) if kept else (error, rise)
    return TensorRow(name, list(shape), "float32", method, kept, weights, weights * bits / 8, *damage)


def gain(name, size=64):
    return row(name, [size], 32, "kept as float32", "a vector")


def three():
    return [row("up.weight", [64, 32]), row("down.weight", [32, 64], 4.0, "gptq int6 k=9"), gain("gain")]


def deep(layers=200):
    parts = {"q": [512, 512], "k": [128, 512], "v": [128, 512], "o": [512, 512], "up": [2048, 512], "down": [512, 2048]}
    rows = [row("tok_emb.weight", [4096, 512], 4.0, rise=0.5, error=0.25)]
    for i in range(layers):
        rows += [
            row(f"model.layers.{i}.attn.{k}_proj.weight", s, 2 + i / layers, error=i / layers) for k, s in parts.items()
        ]
        rows += [gain(f"model.layers.{i}.{k}.weight", 512) for k in ("norm1", "norm2", "scale", "mix")]
    return rows


def strangers(count=2000):
    """Names that follow no pattern, of any length."""
    letters = random.Random(0)
    names = [
        ".".join("".join(letters.choices(string.ascii_lowercase, k=9)) for _ in range(1 + i % 9)) for i in range(count)
    ]
    return [row(name, [64, 8 + i]) for i, name in enumerate(names)]


def long_names():
    return [
        row(f"model.decoder.{'very_long_module.' * 6}layers.{i}.{'projection_of_' * 4}queries", [64, 64])
        for i in range(9)
    ]


def shown(rows, width=None):
    return pack_table(Report(rows, b"").to_json(), width)


def head_of(lines):
    return next(i for i, line in enumerate(lines) if line.startswith(" ") and " bytes" in line)


def bytes_in(lines):
    """The sum of the column "bytes"; what stands before it in a line is no number with a decimal comma."""
    head = lines[head_of(lines)]
    end = head.index("bytes") + 5
    cells = [
        re.search(r"[\d,]+$", line[:end])
        for line in lines
        if len(line) >= end and line.startswith("  ") and line is not head
    ]
    return sum(int(cell.group().replace(",", "")) for cell in cells if cell)


MODELS = {"three": three, "deep": deep, "strangers": strangers, "long": long_names}


@pytest.mark.parametrize("width", [60, 80, 200, None])
@pytest.mark.parametrize("model", MODELS)
def test_rows_fit_and_hold_every_byte(model, width):
    rows = MODELS[model]()
    lines = shown(rows, width)
    table = lines[head_of(lines) :]
    assert width is None or max(map(len, table)) <= width
    assert len(lines) < 64
    assert bytes_in(table) == pytest.approx(sum(r.num_bytes for r in rows), abs=len(table))


def test_what_is_equal_is_said_once():
    for width in (80, None):
        lines = shown(three(), width)
        for how in ("gptq int6 k=9", "auto trellis=8", "kept as float32 (a vector)"):
            assert lines.count(how) == 1
        assert re.search(r"^  up\.weight +64×32 +3\.00 +768 +0\.1000 +1\.00e-04$", "\n".join(lines), re.M)
        assert re.search(r"^  gain +64 +32\.00 +256$", "\n".join(lines), re.M)


def test_the_treatment_of_most_bytes_comes_first():
    heads = [line for line in shown(three()) if not line.startswith(" ")]
    assert heads == ["gptq int6 k=9", "auto trellis=8", "kept as float32 (a vector)"]


def test_layers_fold_into_one_row_with_their_means_and_sums():
    text = "\n".join(shown(deep()))
    assert re.search(
        r"model\.layers\.\*\.attn\.q_proj\.weight +×200 +512×512 +2\.50 +[\d,]+ +0\.9950 +2\.00e-02$", text, re.M
    )
    assert re.search(r"^  tok_emb\.weight +4096×512 +4\.00 +1,048,576 +0\.2500 +5\.00e-01$", text, re.M)
    assert "largest error" in text
    few = "\n".join(shown(deep(2)))
    assert "model.layers.1.attn.q_proj.weight" in few
    assert "largest error" not in few


def test_equal_names_of_another_shape_or_treatment_are_rows_of_their_own():
    rows = [*deep(), row("model.layers.200.attn.q_proj.weight", [512, 256])]
    rows += [row("model.layers.201.attn.q_proj.weight", [512, 512], 6.0, "gptq int6 k=9")]
    text = "\n".join(shown(rows))
    assert re.search(r"^  model\.layers\.200\.attn\.q_proj\.weight +512×256", text, re.M)
    assert re.search(r"^gptq int6 k=9\n  model\.layers\.201\.attn\.q_proj\.weight +512×512", text, re.M)


def test_numbers_inside_words_fold_only_where_rows_are_too_many():
    rows = [row(f"w{i}.v", [8, 8]) for i in range(30)]
    assert sum("w7.v" in line for line in shown(rows)) == 1
    rows = [row(f"w{i}.v", [8, 8]) for i in range(300)]
    assert any(re.match(r"  w\*\.v +×300 +8×8", line) for line in shown(rows))


def test_what_has_no_pattern_is_told_by_size_and_the_rest_together():
    rows = strangers()
    lines = shown(rows, 80)
    assert any(re.match(r"  1,952 more, see --json +[\d,]+$", line) for line in lines)
    largest = max(rows, key=lambda r: r.num_bytes).name
    assert any(largest[:5] in line for line in lines)


def test_layers_stand_in_their_order():
    rows = [row(f"h.{i}.w", [8, 8 + i]) for i in (10, 9, 2)]
    found = [line for line in shown(rows) if ".w" in line]
    assert [line.split()[0] for line in found] == ["h.2.w", "h.9.w", "h.10.w"]


def test_names_that_would_look_alike_are_written_out():
    """Even where they differ in the middle only, and only there."""
    rows = [row(f"{'a' * 40}{c}{'z' * 40}", [8, 8]) for c in "xy"]
    lines = shown(rows, 60)
    for each in rows:
        assert f"  {each.name}" in lines


def test_no_two_rows_of_one_treatment_bear_the_same_short_name():
    rows = [row(f"self_attention_{k}_projection_of_heads.weight", [64, 64]) for k in ("q", "k", "v", "o")]
    names = [line.split()[0] for line in shown(rows, 60) if "…" in line]
    assert len(set(names)) == 4


def test_control_characters_and_scalars_and_nothing():
    lines = shown([row("a\x1b[2J\nb", [8, 8]), row("count", [], 64, "kept as int64", "not floating point")], 80)
    assert all(line.isprintable() for line in lines)
    assert any("\\x1b[2J\\nb" in line for line in lines)
    assert any(re.match(r"  count +scalar +64\.00 +8$", line) for line in lines)
    assert shown([], 80) == [""]


def test_tied_names_are_one_section():
    rows = [
        row("head", [8, 8]),
        row("tied", [8, 8], 0, "shared with head", "x"),
        row("too", [8, 8], 0, "shared with head", "x"),
    ]
    assert shown(rows).count("one tensor with another") == 1


def test_columns_go_where_there_is_no_room_but_bytes_never():
    wide, narrow = ("\n".join(shown(deep(), width)) for width in (200, 52))
    assert "shape" in wide
    assert "shape" not in narrow
    assert " bytes" in narrow


@pytest.mark.parametrize(
    ("name", "dotted", "loose"),
    [
        ("blocks.3.attn.w1", "blocks.*.attn.w1", "blocks.*.attn.w*"),
        ("3", "*", "*"),
        ("a.10.2.b", "a.*.*.b", "a.*.*.b"),
        ("w", "w", "w"),
    ],
)
def test_skeletons(name, dotted, loose):
    assert skeleton(name) == dotted
    assert skeleton(name, anywhere=True) == loose


def test_patterns_star_only_what_differs():
    assert pattern(["a.0.w1", "a.1.w1"]) == "a.*.w1"
    assert pattern(["a.0.w1"]) == "a.0.w1"
    assert pattern(["a.10.w", "a.9.w"]) == "a.*.w"


def test_shortening_and_fronts():
    assert shortened("abcdefghij", 10) == "abcdefghij"
    assert all(len(shortened("abcdefghij" * 5, width)) == width for width in range(3, 50))
    short = all_shortened([f"same_{c}_and_a_long_tail_of_all" for c in "abc"], 12)
    assert len(set(short.values())) == 3
    assert common_front(["a.b.c", "a.b.d"]) == "a.b."
    assert common_front(["ab.c", "ad.c"]) == ""
    assert common_front(["a.b"]) == ""


def test_every_width_is_kept_to():
    for width, _ in pairwise(range(52, 120)):
        lines = shown(deep(), width)
        assert max(len(line) for line in lines if line.startswith(" ")) <= width
