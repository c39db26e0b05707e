"""The oracle is a coder of one lane that follows the definition with Python integers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import ArtifactError
from pgolf.packer import arrays
from pgolf.packer.backends import rans_numba
from pgolf.packer.coder import rans, tables
from pgolf.packer.coder.layout import LOW, ON_TRELLIS, TABLE, CodedLanes
from pgolf.packer.coder.strips import ClassSums, class_sums, lane_bounds, strip_starts
from pgolf.packer.coder.tables import ESCAPED, ESCAPES, OFFSET, TOTAL
from pgolf.packer.coder.trellis import next_states, transitions
from pgolf.packer.plane import Spread

NO_TRELLIS = transitions(0)


def naive_encode(symbols, frequencies):
    """(final state, words in the order the decoder reads them) of one lane."""
    x, words = LOW, []
    for symbol, freqs in zip(reversed(symbols), reversed(frequencies), strict=True):
        f, start = freqs[symbol], sum(freqs[:symbol])
        if x >= (LOW * 2**16 * f) // TOTAL:
            words.append(x % 2**16)
            x //= 2**16
        x = x // f * TOTAL + start + x % f
        assert LOW <= x < LOW * 2**16
    return x, words[::-1]


def naive_decode(x, words, frequencies):
    symbols, words = [], list(words)
    for freqs in frequencies:
        slot, symbol, start = x % TOTAL, 0, 0
        while start + freqs[symbol] <= slot:
            start += freqs[symbol]
            symbol += 1
        symbols.append(symbol)
        x = freqs[symbol] * (x // TOTAL) + slot - start
        if x < LOW:
            x = x * 2**16 + words.pop(0)
    assert x == LOW
    assert not words
    return symbols


def a_sequence(seed, n, num_tables=3, sigma=2.0):
    """(symbols, table of each, freqs): Gaussian codes of several widths, escapes among them."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0, num_tables, n).astype(np.uint16)
    symbols = np.clip(np.rint(rng.normal(0, 1, n) * sigma * 2.0**table), -126, 127).astype(int) + OFFSET
    symbols = np.where(rng.random(n) < 0.02, rng.integers(0, ESCAPES, n), symbols).astype(np.uint8)
    counts = [np.bincount(symbols[table == t], minlength=256) for t in range(num_tables)]
    return symbols, table, np.stack([tables.normalise_counts(c) for c in counts])


def rows_of(table_by_row, cols):
    """Sums and lookup of one matrix whose rows have the given tables."""
    kinds = int(table_by_row.max(initial=0)) + 1
    sums = ClassSums(np.arange(kinds), table_by_row.astype(np.uint16), np.zeros(cols, np.uint16))
    return sums, np.arange(kinds, dtype=np.uint16)


def codes_of(num_tables, parities=None):
    """What the symbols of tables mean: their values, or a trellis' points where parities are given."""
    values = np.arange(256) - OFFSET
    codes = np.stack([values if p is None else 2 * values + p for p in parities or [None] * num_tables])
    codes[:, :ESCAPES] = ESCAPED
    return codes.astype(np.int16).ravel()


def of_one_matrix(lanes, sums, lookup, freqs, codes, transitions=NO_TRELLIS):
    starts = strip_starts([(sums.rows.size, sums.cols.size)])
    counts = lanes.counts.astype(np.uint32)
    bounds = lane_bounds(starts, len(counts))
    return CodedLanes(lanes.states, counts, lanes.words, [sums], [lookup], starts, freqs, codes, transitions, bounds)


@pytest.fixture(params=[rans_numba, None], ids=["compiled", "numpy"])
def loops(request):
    return request.param


@pytest.mark.parametrize("n", [1, 2, 500])
def test_encode_is_the_naive_coder(loops, n):
    symbols, table, freqs = a_sequence(n, n)
    bounds = np.array([0, n // 3, n])
    lanes = rans.encode(symbols, table, bounds, freqs, loops)
    plain = [[int(f) for f in freqs[t]] for t in table]
    expected = [naive_encode(symbols[a:b].tolist(), plain[a:b]) for a, b in ((0, n // 3), (n // 3, n))]
    assert lanes.states.tolist() == [state for state, _ in expected]
    assert lanes.counts.tolist() == [len(words) for _, words in expected]
    assert lanes.words.tolist() == [w for _, words in expected for w in words]
    assert naive_decode(*expected[1], plain[n // 3 :]) == symbols[n // 3 :].tolist()


def test_literal_words(loops):
    freqs = np.zeros((1, 256), np.uint16)
    freqs[0, [0, 1, 127, 128]] = [1, 1, 16383, 16383]
    lanes = rans.encode(np.array([128, 127, 128, 0], np.uint8), np.zeros(4, np.uint16), np.array([0, 4]), freqs, loops)
    assert (lanes.states.tolist(), lanes.counts.tolist(), lanes.words.tolist()) == ([344085], [1], [0])


def test_a_state_that_is_just_full_gives_a_word(loops):
    freqs = np.zeros((1, 256), np.int64)
    freqs[0, [0, 1, 127, 128]] = [1, 1, 1 << 14, (1 << 14) - 2]
    symbols = np.array([127, 0], np.uint8)  # the escape takes LOW to 2^31, where a frequency of 2^14 is full
    lanes = rans.encode(symbols, np.zeros(2, np.uint8), np.array([0, 2]), freqs, loops)
    state, words = naive_encode(symbols.tolist(), [freqs[0].tolist()] * 2)
    assert (lanes.states.tolist(), lanes.words.tolist()) == ([state], words)
    assert words == [0]
    assert rans.decode(of_one_matrix(lanes, *rows_of(np.zeros(2, int), 1), freqs, codes_of(1)), loops).tolist() == [
        -1,
        ESCAPED,
    ]


def test_decode_inverts_encode_over_strips_and_lanes(loops):
    rng = np.random.default_rng(5)
    rows, cols = 1500, 7
    sums, lookup = rows_of(rng.integers(0, 3, rows), cols)
    table = lookup[sums.where()]
    symbols = np.clip(np.rint(rng.normal(0, 2.0, rows * cols) * 2.0**table), -126, 127).astype(int) + OFFSET
    symbols = symbols.astype(np.uint8)
    freqs = np.stack([tables.normalise_counts(np.bincount(symbols[table == t], minlength=256)) for t in range(3)])
    lanes = rans.encode(symbols, table, lane_bounds(strip_starts([(rows, cols)]), 5), freqs, loops)
    assert (
        rans.decode(of_one_matrix(lanes, sums, lookup, freqs, codes_of(3)), loops) == symbols.astype(int) - OFFSET
    ).all()


def test_escapes_decode_to_the_mark(loops):
    symbols = np.array([0, 128, 1, 130], np.uint8)
    freqs = tables.normalise_counts(np.bincount(symbols, minlength=256))[None]
    lanes = rans.encode(symbols, np.zeros(4, np.uint16), np.array([0, 4]), freqs, loops)
    for parities, last in ((None, 2), ([0], 4), ([1], 5)):
        codes = rans.decode(of_one_matrix(lanes, *rows_of(np.zeros(4, int), 1), freqs, codes_of(1, parities)), loops)
        assert codes.tolist() == [ESCAPED, 1 if parities == [1] else 0, ESCAPED, last]


def trellis_case(seed, rows, cols, states):
    """Codes made by walking the state machine at random, entries with a low sum frozen; as symbols and contexts."""
    rng = np.random.default_rng(seed)
    successors = next_states(states)
    spread = Spread(rng.integers(0, 4, rows).astype(np.int32), rng.integers(0, 3, cols).astype(np.int32))
    sums = class_sums(spread)
    lookup = (2 * np.arange(len(sums.values)) | ON_TRELLIS * (sums.values >= 2)).astype(np.uint16)
    starts = set(strip_starts([(rows, cols)]).tolist())
    codes, symbols, table, state = [], [], [], 0
    for i, context in enumerate(lookup[sums.where()].tolist()):
        state = 0 if i in starts else state
        value = int(np.rint(rng.normal(0, 2)))
        on = bool(context & ON_TRELLIS)
        parity = state & 1 if on else 0
        codes.append(2 * value + parity)
        symbols.append(value + OFFSET)
        table.append((context & TABLE) + parity)
        state = int(successors[state, value & 1]) if on else state
    count = np.zeros((2 * len(sums.values), 256), np.int64)
    np.add.at(count, (table, symbols), 1)
    freqs = np.stack([tables.normalise_counts(c) for c in count])
    meant = codes_of(len(freqs), [0, 1] * len(sums.values))
    return codes, np.array(symbols, np.uint8), np.array(table, np.uint16), sums, lookup, freqs, meant


@pytest.mark.parametrize("states", [4, 8, 256])
def test_trellis_decodes_by_its_own_state(loops, states):
    codes, symbols, table, sums, lookup, freqs, meant = trellis_case(states, 1100, 3, states)
    lanes = rans.encode(symbols, table, lane_bounds(strip_starts([(1100, 3)]), 4), freqs, loops)
    coded = of_one_matrix(lanes, sums, lookup, freqs, meant, transitions(states))
    assert rans.decode(coded, loops).tolist() == codes


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 9), st.integers(1, 12))
def test_both_paths_agree(seed, rows, cols, lanes):
    codes, symbols, table, sums, lookup, freqs, meant = trellis_case(seed, rows, cols, 8)
    starts = strip_starts([(rows, cols)])
    bounds = lane_bounds(starts, lanes)
    ours, theirs = (encode(symbols, table, bounds, freqs) for encode in (rans.encode_lanes, rans_numba.encode))
    for a, b in zip(ours, theirs, strict=True):
        assert a.tolist() == b.tolist()
    coded = of_one_matrix(rans.Lanes(*ours), sums, lookup, freqs, meant, transitions(8))
    for decode in (rans.decode_lanes, rans_numba.decode):
        out, states, ends = decode(coded)
        assert out.tolist() == codes
        assert (states == LOW).all()
        assert ends.tolist() == np.cumsum(ours[1]).tolist()


@pytest.mark.parametrize("wanted", ["0", "1"])
def test_compiled_loops_are_used_where_they_are_wanted(monkeypatch, wanted):
    monkeypatch.setenv("PGOLF_COMPILED", wanted)
    used = []
    for name in ("encode", "decode", "count"):
        honest = getattr(rans_numba, name)
        monkeypatch.setattr(rans_numba, name, lambda *a, f=honest, n=name: used.append(n) or f(*a))
    codes = {"w": np.arange(60, dtype=np.int32).reshape(20, 3)}
    made = arrays.encode(codes)
    counted, encoded = used.count("count"), used.count("encode")
    assert (arrays.decode(made)["w"] == codes["w"]).all()
    # four modes and what is coded are counted; the codes make one stream, the side information another
    assert (counted, encoded, used.count("decode")) == ((5, 2, 2) if wanted == "1" else (0, 0, 0))


def test_size_is_the_entropy(loops):
    symbols, table, freqs = a_sequence(3, 60_000)
    bounds = np.array([0, 30_000, 60_000])
    lanes = rans.encode(symbols, table, bounds, freqs, loops)
    ideal = sum(
        tables.code_bits(np.bincount(symbols[table == t], minlength=256), f) - 20 * (symbols[table == t] < 2).sum()
        for t, f in enumerate(freqs)
    )
    assert abs(16 * len(lanes.words) - ideal) < 0.0005 * ideal + 64


def test_damage_is_noticed(loops):
    symbols, table, freqs = a_sequence(7, 2000, num_tables=1)
    sums, lookup = rows_of(np.zeros(2000, int), 1)
    starts, codes = strip_starts([(2000, 1)]), codes_of(1)
    good = rans.encode(symbols, table, lane_bounds(starts, 1), freqs, loops)

    def decode(state, words):
        lanes = replace(good, states=np.array([state], np.uint32), words=words)
        return rans.decode(of_one_matrix(lanes, sums, lookup, freqs, codes), loops)

    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(good.words), 6):
        words = good.words.copy()
        words[at] ^= 1 << rng.integers(16)
        with pytest.raises(ArtifactError, match="do not end where they must"):
            decode(good.states[0], words)
    with pytest.raises(ArtifactError, match="missing or left over"):
        decode(good.states[0], good.words[:-1])
    with pytest.raises(ArtifactError, match="state is out of range"):
        decode(LOW - 1, good.words)


@pytest.mark.parametrize(("cores", "lanes", "pieces"), [(2, 0, 0), (1, 3, 3), (2, 100, 8), (16, 100, 64), (16, 7, 7)])
def test_lanes_are_shared_out_to_all_cores(monkeypatch, cores, lanes, pieces):
    monkeypatch.setattr(rans_numba, "workers", lambda: cores)
    first, last = rans_numba._shares(lanes)
    assert len(first) == len(last) == pieces
    assert [lane for a, b in zip(first, last, strict=True) for lane in range(a, b)] == list(range(lanes))


def test_a_lane_that_wants_more_words_than_there_are_is_refused(loops, monkeypatch):
    monkeypatch.setattr(rans_numba, "workers", lambda: 1)  # so that several lanes are decoded together
    symbols, table, freqs = a_sequence(8, 3000, num_tables=1)
    sums, lookup = rows_of(np.zeros(3, int), 1000)
    good = rans.encode(symbols, table, lane_bounds(strip_starts([(3, 1000)]), 12), freqs, loops)
    short = replace(good, counts=good.counts - (np.arange(12) == 11), words=good.words[:-1])
    with pytest.raises(ArtifactError, match="do not end where they must"):
        rans.decode(of_one_matrix(short, sums, lookup, freqs, codes_of(1)), loops)


@pytest.mark.parametrize(
    ("states", "read"), [([LOW, LOW + 1], [3, 5]), ([LOW + 1, LOW], [3, 5]), ([LOW, LOW], [3, 4]), ([LOW, LOW], [4, 5])]
)
def test_lanes_end_where_they_must(states, read):
    lanes = rans.Lanes(np.array([LOW, LOW]), np.array([3, 2]), np.zeros(5, np.uint16))
    coded = of_one_matrix(lanes, *rows_of(np.zeros(1, int), 1), np.zeros((0, 256), np.int64), codes_of(1))
    rans.check_ends(coded, np.array([LOW, LOW]), np.array([3, 5]))
    with pytest.raises(ArtifactError, match="do not end where they must"):
        rans.check_ends(coded, np.array(states), np.array(read))


def test_nothing_at_all(loops):
    none = np.zeros((0, 256), np.int64)
    lanes = rans.encode(np.zeros(0, np.uint8), np.zeros(0, np.uint16), np.array([0]), none, loops)
    assert lanes.words.tolist() == []
    counts = lanes.counts.astype(np.uint32)
    codes = np.zeros(0, np.int16)
    starts = strip_starts([])
    bounds = lane_bounds(starts, 0)
    nothing = CodedLanes(lanes.states, counts, lanes.words, [], [], starts, none, codes, NO_TRELLIS, bounds)
    assert rans.decode(nothing, loops).tolist() == []
