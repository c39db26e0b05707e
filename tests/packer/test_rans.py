"""The oracle is a coder of one lane that follows the definition with Python integers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import ArtifactError
from pgolf.packer.backends import rans_numba
from pgolf.packer.coder import rans, spread, tables
from pgolf.packer.coder.layout import LOW, ON_TRELLIS, TABLE
from pgolf.packer.coder.strips import Sums, class_sums, lane_bounds, strip_starts
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
    sums = Sums(np.arange(kinds), table_by_row.astype(np.uint16), np.zeros(cols, np.uint16))
    return sums, np.arange(kinds, dtype=np.uint16)


def codes_of(num_tables, parities=None):
    """What the symbols of tables mean: their values, or a trellis' points where parities are given."""
    values = np.arange(256) - OFFSET
    codes = np.stack([values if p is None else 2 * values + p for p in parities or [None] * num_tables])
    codes[:, :ESCAPES] = ESCAPED
    return codes.astype(np.int16).ravel()


def decoded(lanes, sums, lookup, freqs, codes, after=NO_TRELLIS):
    shape = sums.rows.size, sums.cols.size
    table = np.stack([lanes.states, lanes.counts]).astype(np.uint32)
    return rans.decode(table, lanes.words, [sums], [lookup], strip_starts([shape]), freqs, codes, after)


@pytest.fixture(params=["compiled", "numpy"])
def either(request, monkeypatch):
    monkeypatch.setenv("PGOLF_COMPILED", "1" if request.param == "compiled" else "0")


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("n", [1, 2, 500])
def test_encode_is_the_naive_coder(n):
    symbols, table, freqs = a_sequence(n, n)
    bounds = np.array([0, n // 3, n])
    lanes = rans.encode(symbols, table, bounds, freqs)
    plain = [[int(f) for f in freqs[t]] for t in table]
    expected = [naive_encode(symbols[a:b].tolist(), plain[a:b]) for a, b in ((0, n // 3), (n // 3, n))]
    assert lanes.states.tolist() == [state for state, _ in expected]
    assert lanes.counts.tolist() == [len(words) for _, words in expected]
    assert lanes.words.tolist() == [w for _, words in expected for w in words]
    assert naive_decode(*expected[1], plain[n // 3 :]) == symbols[n // 3 :].tolist()


@pytest.mark.usefixtures("either")
def test_literal_words():
    freqs = np.zeros((1, 256), np.uint16)
    freqs[0, [0, 1, 127, 128]] = [1, 1, 16383, 16383]
    lanes = rans.encode(np.array([128, 127, 128, 0], np.uint8), np.zeros(4, np.uint16), np.array([0, 4]), freqs)
    assert (lanes.states.tolist(), lanes.counts.tolist(), lanes.words.tolist()) == ([344085], [1], [0])


@pytest.mark.usefixtures("either")
def test_a_state_that_is_just_full_gives_a_word():
    freqs = np.zeros((1, 256), np.int64)
    freqs[0, [0, 1, 127, 128]] = [1, 1, 1 << 14, (1 << 14) - 2]
    symbols = np.array([127, 0], np.uint8)  # the escape takes LOW to 2^31, where a frequency of 2^14 is full
    lanes = rans.encode(symbols, np.zeros(2, np.uint8), np.array([0, 2]), freqs)
    state, words = naive_encode(symbols.tolist(), [freqs[0].tolist()] * 2)
    assert (lanes.states.tolist(), lanes.words.tolist()) == ([state], words)
    assert words == [0]
    assert decoded(lanes, *rows_of(np.zeros(2, int), 1), freqs, codes_of(1)).tolist() == [-1, ESCAPED]


@pytest.mark.usefixtures("either")
def test_decode_inverts_encode_over_strips_and_lanes():
    rng = np.random.default_rng(5)
    rows, cols = 1500, 7
    sums, lookup = rows_of(rng.integers(0, 3, rows), cols)
    table = lookup[sums.where()]
    symbols = np.clip(np.rint(rng.normal(0, 2.0, rows * cols) * 2.0**table), -126, 127).astype(int) + OFFSET
    symbols = symbols.astype(np.uint8)
    freqs = np.stack([tables.normalise_counts(np.bincount(symbols[table == t], minlength=256)) for t in range(3)])
    lanes = rans.encode(symbols, table, lane_bounds(strip_starts([(rows, cols)]), 5), freqs)
    assert (decoded(lanes, sums, lookup, freqs, codes_of(3)) == symbols.astype(int) - OFFSET).all()


@pytest.mark.usefixtures("either")
def test_escapes_decode_to_the_mark():
    symbols = np.array([0, 128, 1, 130], np.uint8)
    freqs = tables.normalise_counts(np.bincount(symbols, minlength=256))[None]
    lanes = rans.encode(symbols, np.zeros(4, np.uint16), np.array([0, 4]), freqs)
    for parities, last in ((None, 2), ([0], 4), ([1], 5)):
        codes = decoded(lanes, *rows_of(np.zeros(4, int), 1), freqs, codes_of(1, parities))
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


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("states", [4, 8, 256])
def test_trellis_decodes_by_its_own_state(states):
    codes, symbols, table, sums, lookup, freqs, meant = trellis_case(states, 1100, 3, states)
    lanes = rans.encode(symbols, table, lane_bounds(strip_starts([(1100, 3)]), 4), freqs)
    assert decoded(lanes, sums, lookup, freqs, meant, transitions(states)).tolist() == codes


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 9), st.integers(1, 12))
def test_both_paths_agree(seed, rows, cols, lanes):
    codes, symbols, table, sums, lookup, freqs, meant = trellis_case(seed, rows, cols, 8)
    starts = strip_starts([(rows, cols)])
    bounds = lane_bounds(starts, lanes)
    freq = freqs.astype(np.uint32)
    cum = np.cumsum(freq, axis=1, dtype=np.uint32) - freq
    ours, theirs = (loop.encode(symbols, table, bounds, freq, cum) for loop in (_Numpy, rans_numba))
    for a, b in zip(ours, theirs, strict=True):
        assert a.tolist() == b.tolist()
    first = np.cumsum([0, *ours[1]])[:-1]
    for loop in (_Numpy, rans_numba):
        given_states = ours[0].copy(), first.copy()
        out, states, ends = loop.decode(*given_states, ours[2], [sums], [lookup], starts, freqs, meant, transitions(8))
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
    freqs = tables.normalise_counts(np.zeros(256, np.int64))[None]
    lanes = rans.encode(np.zeros(1, np.uint8), np.zeros(1, np.uint8), np.array([0, 1]), freqs)
    assert decoded(lanes, *rows_of(np.zeros(1, int), 1), freqs, codes_of(1)).tolist() == [ESCAPED]
    assert spread.count(np.full(3, 1, np.uint8), np.full(3, 7, np.uint8), 2)[1, 7] == 3
    assert used == (["encode", "decode", "count"] if wanted == "1" else [])


class _Numpy:
    encode = staticmethod(rans._encode)
    decode = staticmethod(rans._decode)


@pytest.mark.usefixtures("either")
def test_size_is_the_entropy():
    symbols, table, freqs = a_sequence(3, 60_000)
    bounds = np.array([0, 30_000, 60_000])
    lanes = rans.encode(symbols, table, bounds, freqs)
    ideal = sum(
        tables.code_bits(np.bincount(symbols[table == t], minlength=256), f) - 20 * (symbols[table == t] < 2).sum()
        for t, f in enumerate(freqs)
    )
    assert abs(16 * len(lanes.words) - ideal) < 0.0005 * ideal + 64


@pytest.mark.usefixtures("either")
def test_damage_is_noticed():
    symbols, table, freqs = a_sequence(7, 2000, num_tables=1)
    sums, lookup = rows_of(np.zeros(2000, int), 1)
    starts, codes = strip_starts([(2000, 1)]), codes_of(1)
    good = rans.encode(symbols, table, lane_bounds(starts, 1), freqs)

    def decode(state, words):
        lanes = np.array([[state], good.counts], np.uint32)
        return rans.decode(lanes, words, [sums], [lookup], starts, freqs, codes, NO_TRELLIS)

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


@pytest.mark.usefixtures("either")
def test_a_lane_that_wants_more_words_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr(rans_numba, "workers", lambda: 1)  # so that several lanes are decoded together
    symbols, table, freqs = a_sequence(8, 3000, num_tables=1)
    sums, lookup = rows_of(np.zeros(3, int), 1000)
    good = rans.encode(symbols, table, lane_bounds(strip_starts([(3, 1000)]), 12), freqs)
    short = replace(good, counts=good.counts - (np.arange(12) == 11), words=good.words[:-1])
    with pytest.raises(ArtifactError, match="do not end where they must"):
        decoded(short, sums, lookup, freqs, codes_of(1))


@pytest.mark.parametrize(
    ("states", "read"), [([LOW, LOW + 1], [3, 5]), ([LOW + 1, LOW], [3, 5]), ([LOW, LOW], [3, 4]), ([LOW, LOW], [4, 5])]
)
def test_lanes_end_where_they_must(states, read):
    ends = np.array([3, 5])
    rans.check_ends(np.array([LOW, LOW]), ends, ends)
    with pytest.raises(ArtifactError, match="do not end where they must"):
        rans.check_ends(np.array(states), np.array(read), ends)


@pytest.mark.usefixtures("either")
def test_nothing_at_all():
    none = np.zeros((0, 256), np.int64)
    lanes = rans.encode(np.zeros(0, np.uint8), np.zeros(0, np.uint16), np.array([0]), none)
    nothing = np.zeros((2, 0), np.uint32), lanes.words, [], [], strip_starts([]), none, np.zeros(0, np.int16)
    assert lanes.words.tolist() == []
    assert rans.decode(*nothing, NO_TRELLIS).tolist() == []
