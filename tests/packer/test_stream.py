from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import ArtifactError
from pgolf.packer.backends import rans_numba
from pgolf.packer.coder import classes, families, stream, tables
from pgolf.packer.coder.classes import entropy_bits
from pgolf.packer.coder.codec import MAX_CODES
from pgolf.packer.coder.families import SLOTS
from pgolf.packer.coder.layout import ON_TRELLIS, TABLE
from pgolf.packer.coder.stream import Layout
from pgolf.packer.coder.strips import class_sums
from pgolf.packer.coder.trellis import STRIP, next_states
from pgolf.packer.plane import SPREAD_STEPS, Spread


def flat(rows, cols, spread_class=4):
    return Spread(np.full(rows, spread_class, np.int32), np.zeros(cols, np.int32))


def scalar(rows, cols, sigma, seed=0):
    codes = np.rint(np.random.default_rng(seed).normal(0, sigma, (rows, cols))).astype(np.int32)
    return codes, Layout(flat(rows, cols, round(SPREAD_STEPS * np.log2(sigma))))


def walked(rows, cols, states, seed=0, frozen_below=-8):
    """Codes made by walking the state machine at random; where the class is low the state is frozen and codes even."""
    rng = np.random.default_rng(seed)
    successors = next_states(states)
    spread = Spread(rng.integers(-9, 30, rows).astype(np.int32), rng.integers(-3, 4, cols).astype(np.int32))
    sums = spread.rows[:, None] + spread.cols
    values = np.rint(rng.normal(0, 1, (rows, cols)) * np.exp2(sums / SPREAD_STEPS - 1)).astype(np.int64)
    codes = 2 * values
    for j in range(cols):
        state = 0
        for i in range(rows):
            state = 0 if i % STRIP == 0 else state
            if sums[i, j] >= frozen_below:
                codes[i, j] += state & 1
                state = int(successors[state, values[i, j] & 1])
    return codes.astype(np.int32), Layout(spread, states, frozen_below)


def decoded(coded, layouts, loops=rans_numba, device=None):
    known = [Layout(y.spread, y.trellis, y.trellis_from, f) for y, f in zip(layouts, coded.families, strict=True)]
    return stream.decode(coded.sections, "x", known, loops, device)


def assert_round_trip(codes, layouts, lane_bytes=stream.LANE_BYTES, loops=rans_numba):
    coded = stream.encode(codes, layouts, "x", lane_bytes, loops)
    for out, code in zip(decoded(coded, layouts, loops), codes, strict=True):
        assert out.shape == code.shape
        assert (out == code).all()
    return coded


@pytest.mark.parametrize("loops", [None, rans_numba])
def test_mixed_matrices_round_trip(loops):
    cases = [scalar(70, 30, 2.0), scalar(0, 5, 1.0), scalar(1500, 3, 300.0), walked(1100, 4, 8), scalar(5, 0, 1.0)]
    assert_round_trip(*zip(*cases, strict=True), lane_bytes=200, loops=loops)


@pytest.mark.parametrize("states", [4, 8, 32, 256])
@pytest.mark.parametrize("frozen_below", [-100, 5, 100])
def test_trellis_round_trip(states, frozen_below):
    codes, layout = walked(300, 5, states, states, frozen_below)
    assert_round_trip([codes], [layout])


def test_both_paths_write_the_same_bytes():
    cases = [scalar(300, 40, 2.0), walked(1100, 4, 8), scalar(100, 10, 1000.0)]
    coded = [stream.encode(*zip(*cases, strict=True), "x", 300, loops) for loops in (None, rans_numba)]
    assert coded[0] == coded[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 12), st.integers(-30, 130), st.integers(0, 2**32), st.data())
def test_any_codes_under_any_classes(rows, cols, spread_class, seed, data):
    """The classes may be wrong: that costs bytes, never a code."""
    rng = np.random.default_rng(seed)
    top = 2 ** data.draw(st.integers(0, 31))
    codes = rng.integers(-top, top, (rows, cols)).astype(np.int32)
    spread = Spread(
        rng.integers(-5, 6, rows).astype(np.int32) + spread_class, rng.integers(-5, 6, cols).astype(np.int32)
    )
    assert_round_trip([codes], [Layout(spread)])


def test_extreme_values():
    codes = np.array([[-(2**31), 2**31 - 1, 0, -1, 1, 127, 128, -126, -127, -128, -(2**15), 2**15]], np.int32)
    for spread_class in (-20, 0, 17, 40, 124):
        assert_round_trip([codes], [Layout(flat(*codes.shape, spread_class))])


def test_the_lowest_symbol_of_wide_codes_keeps_its_bits():
    """Of a class with three bits put aside; a table that holds all 254 values holds the lowest, -126."""
    codes = np.random.default_rng(0).integers(-126 * 8, 128 * 8, (200, 100)).astype(np.int32)
    layout = Layout(flat(200, 100, classes.WIDEST + 3 * SPREAD_STEPS))
    coded = assert_round_trip([codes], [layout])
    assert len(coded.sections["x.aside"]) == 3 * codes.size // 8
    assert "x.escapes" not in coded.sections


@pytest.mark.parametrize("at", [0, 1, -1])
def test_a_value_that_its_table_does_not_hold_is_an_escape(at):
    codes, layout = scalar(60, 5, 1.0)
    codes.T.flat[at] = 100
    coded = assert_round_trip([codes], [layout])
    assert coded.sections["x.escapes"] == np.int32(100).tobytes()


def test_one_symbol_costs_next_to_nothing():
    codes = np.full((2000, 100), 7, np.int32)
    coded = assert_round_trip([codes], [Layout(flat(2000, 100, 11))])
    assert sum(map(len, coded.sections.values())) < 100


def test_size_is_close_to_the_entropy():
    codes, layout = scalar(2000, 200, 2.0)
    coded = stream.encode([codes], [layout], "x")
    counts = np.unique(codes, return_counts=True)[1]
    ideal = entropy_bits(counts[None])
    assert coded.ideal_bits == pytest.approx(ideal)
    size = 8 * sum(map(len, coded.sections.values()))
    assert ideal < size < 1.0015 * ideal + 1000
    assert coded.bits == pytest.approx([ideal], rel=1e-3)


def test_bits_put_aside_count():
    codes, layout = scalar(500, 40, 500.0)
    coded = stream.encode([codes], [layout], "x")
    assert 8 * len(coded.sections["x.aside"]) > 2 * codes.size
    assert coded.ideal_bits == pytest.approx(sum(coded.bits), rel=5e-3)
    assert sum(coded.bits) == pytest.approx(8 * sum(map(len, coded.sections.values())), rel=5e-3)


def test_a_codes_parity_is_free_on_a_trellis():
    """A trellis code of 2·value + parity takes the bits of its value."""
    codes, layout = walked(1024, 50, 8, frozen_below=-100)
    coded = stream.encode([codes], [layout], "x")
    sums = layout.spread.rows[:, None] + layout.spread.cols
    gauss = np.log2(np.sqrt(2 * np.pi * np.e) * np.exp2(sums / SPREAD_STEPS - 1))[sums >= 8].sum()
    assert coded.bits[0] < 1.02 * gauss + 1.5 * (sums < 8).sum()


def test_codes_off_the_trellis_are_a_bug():
    codes, layout = walked(40, 3, 8, frozen_below=-100)
    codes[20, 1] ^= 1
    with pytest.raises(ValueError, match="trellis"):
        stream.encode([codes], [layout], "x")


def test_two_trellises_are_a_bug():
    a, b = walked(10, 2, 8), walked(10, 2, 16)
    with pytest.raises(ValueError, match="different trellises"):
        stream.encode([a[0], b[0]], [a[1], b[1]], "x")


def test_a_matrix_of_another_kind_gets_its_own_tables():
    gaussian, comb = scalar(500, 200, 4.0), scalar(500, 200, 4.0, seed=1)
    comb = (comb[0] // 2 * 2, comb[1])
    plain = scalar(500, 200, 4.0, seed=2)
    coded = assert_round_trip(*zip(gaussian, comb, plain, strict=True))
    assert len(set(coded.families)) > 1
    assert coded.families[0] == coded.families[2] or coded.families[1] >= 2


def test_directory_literal_and_round_trip():
    used = np.zeros((2, SLOTS), bool)
    used[0, [0, 9]], used[1, 74:76] = True, True
    assert families.dump(used).hex() == "0102" + "00" * 8 + "00" * 9 + "0c"
    assert (families.parse(families.dump(used)) == used).all()
    numbers = families.table_numbers(used)
    assert numbers[0, [0, 9]].tolist() == [0, 1]
    assert numbers[1, 74:76].tolist() == [2, 3]
    assert families.parities(used) == [0, 1, 0, 1]


def test_codes_of_tables_literal():
    """Families 0 (scalar) and 1 (trellis): symbol 131 is the value 3."""
    used = np.zeros((2, SLOTS), bool)
    used[0, 0], used[1, 4:6] = True, True
    codes = families.table_codes(used).reshape(3, 256)
    assert codes[:, 131].tolist() == [3, 6, 7]
    assert codes[:, 126].tolist() == [-2, -4, -3]
    assert (codes[:, :2] == tables.ESCAPED).all()


@pytest.mark.parametrize("data", [bytes(10) + b"\x01" + bytes(9), b"\xff" * 40])
def test_malformed_directories(data):
    with pytest.raises(ArtifactError, match="directory"):
        families.parse(data)


PARTS = ("tables", "lanes", "words", "aside", "escapes")


@pytest.fixture
def good():
    cases = [scalar(100, 20, 2.0), scalar(50, 8, 500.0), walked(60, 3, 8)]
    cases[0][0][3, 3] = 100_000  # one escape
    coded = stream.encode(*zip(*cases, strict=True), "x", 300)
    assert all(f"x.{part}" in coded.sections for part in PARTS)
    return coded, [layout for _, layout in cases]


@pytest.mark.parametrize("part", ["tables", "lanes", "words", "aside", "escapes"])
@pytest.mark.parametrize("how", ["gone", "cut", "longer"])
def test_sections_cut_or_grown_are_refused(good, part, how):
    coded, layouts = good
    old = coded.sections[f"x.{part}"]
    coded.sections[f"x.{part}"] = {"gone": b"", "cut": old[:-1], "longer": old + b"\0"}[how]
    with pytest.raises((ArtifactError, ValueError, IndexError)):
        decoded(coded, layouts)


@pytest.mark.parametrize(
    ("sections", "most"), [({}, 0), ({"x.lanes": bytes(8)}, 1 << 17), ({"x.lanes": bytes(64)}, 8 << 17)]
)
def test_implausible_sizes_are_refused(sections, most):
    stream.check_plausible(sections, "x", most)
    with pytest.raises(ArtifactError, match="cannot be in"):
        stream.check_plausible(sections, "x", most + 1)


@pytest.mark.parametrize("change", [{"family": 1}, {"family": -2}, {"family": 256}, {"trellis": 8}])
def test_a_family_of_the_wrong_kind_is_refused(good, change):
    coded, layouts = good
    coded.families[0] = change.get("family", 0)
    with pytest.raises(ArtifactError, match="family"):
        decoded(coded, [replace(layouts[0], trellis=change.get("trellis", 0)), *layouts[1:]])


def test_unknown_trellises_are_refused(good):
    coded, layouts = good
    with pytest.raises(ArtifactError, match="trellis"):
        decoded(coded, [*layouts[:2], replace(layouts[2], trellis=12)])
    with pytest.raises(ArtifactError, match="no single known trellis"):
        stream.check_layouts([replace(layouts[2], family=1), replace(layouts[2], trellis=16, family=1)])


@pytest.mark.parametrize(("at", "family"), [(0, -2), (2, -1), (0, 256), (2, 257), (0, 1), (2, 0)])
def test_families_beyond_what_the_format_has_are_refused(good, at, family):
    _, layouts = good
    with pytest.raises(ArtifactError, match="family"):
        stream.check_layouts([replace(layouts[at], family=family)])


def test_a_state_below_its_range_is_refused(good):
    coded, layouts = good
    raw = np.frombuffer(coded.sections["x.lanes"], np.uint8).copy()
    raw[2:4] = 0  # the two high bytes of the first lane's state
    coded.sections["x.lanes"] = raw.tobytes()
    with pytest.raises(ArtifactError, match="state"):
        decoded(coded, layouts)


def test_a_class_without_a_table_is_refused(good):
    coded, (first, *others) = good
    with pytest.raises(ArtifactError, match="no probability table"):
        decoded(coded, [replace(first, spread=flat(100, 20, 11)), *others])


def test_escapes_left_over_are_refused(good):
    coded, layouts = good
    coded.sections["x.escapes"] += bytes(4)
    with pytest.raises(ArtifactError, match="left over"):
        decoded(coded, layouts)


def test_only_sums_that_occur_need_a_table():
    sums = class_sums(Spread(np.array([0, 2], np.int32), np.array([0, 4], np.int32)))  # 0, 2, 4, 6
    stream.check_tables(np.array([1, 0, 1, 0, 1, 0, 1], bool), sums)
    for missing in (0, 2, 4, 6):
        with pytest.raises(ArtifactError, match="no probability table"):
            stream.check_tables(np.arange(7) != missing, sums)


def test_nothing_takes_no_bytes():
    assert stream.encode([], [], "x").sections == {}
    assert stream.decode({}, "x", []) == []


def test_the_most_codes_fit_the_most_lanes():
    assert stream.MAX_LANES * stream.MAX_LANE_SYMBOLS == MAX_CODES
    assert stream._lane_count(0.0, MAX_CODES, 6000) == stream.MAX_LANES


def test_lanes_have_their_bytes_and_not_too_many_symbols():
    counts = [
        stream._lane_count(8.0 * coded, symbols, 6000)
        for coded, symbols in [(0, 0), (0, 1), (0, 1 << 16), (0, (1 << 16) + 1), (17_999, 20_000), (18_000, 20_000)]
    ]
    assert counts == [0, 1, 1, 2, 2, 3]


def test_limits_of_sections_literal():
    assert stream.section_limits(3, 2) == {
        "tables": 2 * 10 + 255 * 512,
        "lanes": 24,
        "words": 6,
        "aside": 9,
        "escapes": 12,
    }
    assert stream.section_limits(1 << 20, 0)["lanes"] == 8 << 16
    assert [stream.section_limits(n, 0)["aside"] for n in (0, 1)] == [0, 3]


def test_contexts_fit_their_bits():
    assert families.MAX_TABLES <= TABLE < ON_TRELLIS
    assert SLOTS <= 256
