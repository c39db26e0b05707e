import hashlib
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgolf.errors import ArtifactError
from pgolf.packer.coder import tables
from pgolf.packer.coder.tables import ESCAPES, OFFSET, TOTAL

BYTE = st.integers(0, 255)
COUNTS = st.dictionaries(st.integers(ESCAPES, 255), st.integers(1, 10**7), max_size=256)


def counts_of(sparse: dict[int, int]) -> np.ndarray:
    counts = np.zeros(256, np.int64)
    for symbol, count in sparse.items():
        counts[symbol] = count
    return counts


def gauss_counts(sigma: float, size: int = 100_000, seed: int = 0) -> np.ndarray:
    values = np.rint(np.random.default_rng(seed).normal(0, sigma, size)).astype(int)
    return np.bincount(np.clip(values + OFFSET, 0, 255), minlength=256)


def entropy(counts: np.ndarray) -> float:
    n = counts[counts > 0].astype(float)
    return float((n * np.log2(n.sum() / n)).sum())


def assert_table(freqs: np.ndarray) -> None:
    assert freqs.dtype == np.int64
    assert freqs.astype(int).sum() == TOTAL
    assert freqs[0] >= 1
    assert freqs[1] >= 1


@settings(max_examples=300, deadline=None)
@given(BYTE, BYTE, BYTE, st.integers(0, 1))
def test_every_parameter_gives_a_table(linear, quadratic, zero, parity):
    assert_table(tables.parametric(linear, quadratic, zero, parity))


@pytest.mark.parametrize("corner", [(a, b, c) for a in (0, 254, 255) for b in (0, 255) for c in (0, 128, 255)])
def test_extreme_parameters_give_tables(corner):
    assert_table(tables.parametric(*corner, 0))
    assert_table(tables.parametric(*corner, 1))


def test_parametric_is_bit_exact():
    """Literal: a change here changes what old artifacts decode to."""
    even = tables.parametric(255, 80, 128, 0)
    assert even[OFFSET - 3 : OFFSET + 4].tolist() == [0, 84, 5432, 21734, 5432, 84, 0]
    odd = tables.parametric(90, 254, 128, 1)
    assert odd[OFFSET - 4 : OFFSET + 4].tolist() == [1531, 2413, 3802, 6009, 5993, 3802, 2413, 1531]


def test_the_mark_of_an_escape_is_no_symbol_of_the_widest_lattice():
    assert np.int16(tables.ESCAPED) == np.iinfo(np.int16).min


def test_parametric_shares_exactly_what_there_is():
    """Tables that would be others if the sum of all weights were greater by two."""
    assert tables.parametric(22, 66, 0, 0)[OFFSET - 1 : OFFSET + 2].tolist() == [127, 32512, 127]
    assert tables.parametric(0, 0, 16, 1)[OFFSET - 1 : OFFSET + 1].tolist() == [32512, 254]


def test_a_sample_of_all_parametric_tables_is_bit_exact():
    digest = hashlib.sha256()
    for parameters in product(range(0, 256, 17), range(0, 256, 17), range(0, 256, 51), range(2)):
        digest.update(tables.parametric(*parameters).astype("<u2").tobytes())
    assert digest.hexdigest() == "b8d797edbdcf6997552599a85349c9977092ded6f10ba5cfc6938c9e0817f152"


def test_parametric_follows_the_density():
    linear, quadratic = 100, 120
    rate_a, rate_b = 2.0 ** (4 - linear / 16), 2.0 ** (4 - quadratic / 16)
    a = np.abs(2.0 * np.arange(-OFFSET, OFFSET))
    density = np.exp2(-(rate_a * a + rate_b * a * a))
    density[:ESCAPES] = 0
    expected = density / density.sum() * (TOTAL - ESCAPES)
    freqs = tables.parametric(linear, quadratic, 128, 0).astype(float)
    assert np.abs(freqs - expected)[expected > 1].max() < 0.02 * expected.max()


def test_zero_byte_scales_the_zero_alone():
    plain, boosted = tables.parametric(255, 120, 128, 0), tables.parametric(255, 120, 144, 0)
    odds = [t[OFFSET] / t[OFFSET + 3] for t in (plain.astype(float), boosted.astype(float))]
    assert odds[1] / odds[0] == pytest.approx(2.0, rel=0.01)


@settings(max_examples=200, deadline=None)
@given(COUNTS)
def test_normalised_counts_hold_what_was_seen(sparse):
    counts = counts_of(sparse)
    freqs = tables.normalise_counts(counts)
    assert_table(freqs)
    assert ((freqs[ESCAPES:] > 0) == (counts[ESCAPES:] > 0)).all()


def test_escapes_share_their_slots_evenly():
    """Whatever their counts: a table in the file does not tell them apart. 701 of 1001 are theirs."""
    freqs = tables.normalise_counts(counts_of({0: 700, 1: 1, OFFSET: 300}))
    assert freqs[[0, 1]].tolist() == [11474, 11473]


def test_normalised_counts_cost_almost_the_entropy():
    counts = gauss_counts(3.0)
    assert tables.code_bits(counts, tables.normalise_counts(counts)) < 1.0003 * entropy(counts)


def test_no_slot_is_better_elsewhere():
    counts = counts_of({s: 1000 + 37 * s for s in range(OFFSET - 5, OFFSET + 5)})
    freqs, used = tables.normalise_counts(counts), counts > 0
    f, n = freqs[used].astype(float), counts[used]
    assert (n * np.log2((f + 1) / f)).max() <= (n * np.log2(f / (f - 1))).min()


def test_what_codes_cost_literal():
    """Four of a quarter each take 2 bits; the escapes and what has no slot 20 bits more."""
    freqs = np.zeros(256, np.int64)
    freqs[[0, 1, ESCAPES, 255]] = TOTAL // 4
    assert tables.code_bits(counts_of({ESCAPES: 3, 255: 1}), freqs) == 8
    assert tables.code_bits(counts_of({0: 1, 1: 1, 77: 1}), freqs) == 3 * 22


def test_a_table_of_nothing_is_all_escapes():
    freqs = tables.normalise_counts(np.zeros(256, np.int64))
    assert freqs[:3].tolist() == [TOTAL // 2, TOTAL // 2, 0]


def test_normalise_literal():
    counts = counts_of({OFFSET: 3, OFFSET + 1: 1})
    freqs = tables.normalise_counts(counts)
    assert freqs[[0, 1, OFFSET, OFFSET + 1]].tolist() == [1, 1, 24574, 8192]


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0, 19.0])
@pytest.mark.parametrize("parity", [0, 1])
def test_fit_is_close_to_the_histogram(sigma, parity):
    rng = np.random.default_rng(1)
    values = np.rint(rng.normal(0, sigma, 50_000) - parity / 2).astype(int)
    counts = np.bincount(np.clip(values + OFFSET, ESCAPES, 255), minlength=256)
    bits = tables.code_bits(counts, tables.parametric(*tables.fit_parametric(counts, parity), parity))
    assert bits < 1.004 * entropy(counts) + 100


@pytest.mark.parametrize("parameters", [(100, 120, 90), (255, 130, 160)])
def test_fit_finds_the_density_again(parameters):
    counts = 1000 * tables.parametric(*parameters, 0)
    counts[:ESCAPES] = 0
    assert tables.fit_parametric(counts, 0) == parameters


def test_fit_knows_laplace():
    values = np.rint(np.random.default_rng(2).laplace(0, 3, 50_000)).astype(int)
    counts = np.bincount(np.clip(values + OFFSET, ESCAPES, 255), minlength=256)
    linear, quadratic, zero = tables.fit_parametric(counts, 0)
    assert linear != 255
    assert tables.code_bits(counts, tables.parametric(linear, quadratic, zero, 0)) < 1.003 * entropy(counts)


@settings(max_examples=20, deadline=None)
@given(COUNTS, st.integers(0, 1))
@example({OFFSET: 1}, 0)  # no rate is steep enough
@example(dict.fromkeys(range(ESCAPES, 256), 1), 0)  # none is flat enough
@example({OFFSET - 1: 1, OFFSET + 1: 1}, 0)  # zero never
@example({OFFSET: 10**7} | {s: 3000 - 20 * abs(s - OFFSET) for s in range(ESCAPES, 256) if s != OFFSET}, 0)
def test_what_is_fitted_fits_bytes(sparse, parity):
    found = (*tables.fit_parametric(counts_of(sparse), parity), parity)
    assert len(tables.dump_tables([found])) == 4
    assert found[2] == 128 or not parity  # odd values know no zero


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize(
    ("density", "gain"),
    [
        (lambda a: 1 / (1 + (a / 6) ** 4), 0.99),  # tails wider than Laplace's: only the first rate is positive
        (lambda a: np.exp(-((a / 20) ** 3)), 1.0),  # narrower than Gauss': only the second one
        (lambda a: np.exp(-np.sqrt(a)), 0.94),  # the first one and the zero
        (lambda a: np.exp(-((a / 20) ** 2)) * (a > 0), 0.985),  # the second one and the zero
    ],
)
def test_no_density_of_one_rate_is_better(density, gain, parity):
    """gain: what the zero's own parameter is good for, where there is a zero."""
    counts = np.zeros(256, np.int64)
    a = np.abs(2.0 * np.arange(ESCAPES - OFFSET, OFFSET) + parity)
    counts[ESCAPES:] = np.rint(1e5 * density(a) / density(a).sum())
    of_one = [(rate, 255, 128) for rate in range(256)] + [(255, rate, 128) for rate in range(256)]
    best = min(tables.code_bits(counts, tables.parametric(*p, parity)) for p in of_one)
    bits = tables.code_bits(counts, tables.parametric(*tables.fit_parametric(counts, parity), parity))
    assert bits < (1.006 if parity else gain + 1e-3) * best


def test_few_symbols_take_parameters_and_many_take_frequencies():
    assert isinstance(tables.cheapest(gauss_counts(2.0, 200), 0), tuple)
    skewed = counts_of({OFFSET: 10**5, OFFSET + 40: 10**5, OFFSET - 7: 10**4})
    assert not isinstance(tables.cheapest(skewed, 0), tuple)
    many = gauss_counts(2.0, tables.PARAMETRIC_UP_TO + 1)
    assert (tables.cheapest(many, 0) == tables.normalise_counts(many)).all()


def test_the_largest_table_has_its_limit():
    counts = counts_of(dict.fromkeys(range(ESCAPES, 256), 1))
    assert len(tables.dump_tables([tables.normalise_counts(counts)])) == tables.MAX_BYTES == 512


def test_dump_literal():
    explicit = tables.normalise_counts(counts_of({OFFSET: 3, OFFSET + 1: 1}))
    data = tables.dump_tables([(255, 80, 128, 0), explicit])
    assert data.hex(" ") == "00 ff 50 80 02 80 02 00 fe 00 5f 20"
    first, second = tables.parse_tables(data, 2)
    assert (first == tables.parametric(255, 80, 128, 0)).all()
    assert (second == explicit).all()
    assert tables.dump_tables([tables.normalise_counts(counts_of({}))]) == bytes([2, 2, 0, 0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.tuples(BYTE, BYTE, BYTE, st.integers(0, 1)), COUNTS), max_size=5))
def test_dump_round_trip(mixed):
    entries = [t if isinstance(t, tuple) else tables.normalise_counts(counts_of(t)) for t in mixed]
    parsed = tables.parse_tables(tables.dump_tables(entries), len(entries))
    assert [p.tolist() for p in parsed] == [tables.frequencies(t).tolist() for t in entries]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 4))
def test_any_bytes_are_refused_or_give_tables(data, count):
    try:
        parsed = tables.parse_tables(data, count)
    except (ArtifactError, ValueError):
        return
    assert len(parsed) == count
    for freqs in parsed:
        assert_table(freqs)


@pytest.mark.parametrize(
    "data",
    [
        b"\x03\x00\x00\x00",  # unknown tag
        b"\x00\xff\x50",  # cut short
        b"\x00\xff\x50\x80\x00",  # left over
        b"\x02\x80\x05\x00\x01\x01",  # one frequency instead of five
        b"\x02\x80\x02\x00\x01\x01",  # or of two
        b"\x02\x01\x01\x00\x05\x00",  # speaks of an escape
        b"\x02\xff\x02\x00\x01\x01\x00\x00",  # reaches past 255
        b"\x02\x80\x01\x00\xff\x7f",  # leaves one slot for two escapes
        b"\x02\x80\x02\x00\x00\x80\x80\x00",  # more than 2^15
        b"\x02\x80\x01\x01\x00\x01",  # the fourth byte is not zero
    ],
)
def test_malformed_tables(data):
    with pytest.raises((ArtifactError, ValueError)):
        tables.parse_tables(data, 1)


def test_fit_gives_a_large_pile_of_zeros_all_it_can():
    counts = counts_of({OFFSET: 10**7} | dict.fromkeys(range(OFFSET + 1, 256), 20))
    assert tables.fit_parametric(counts, 0)[2] == 255


def test_fit_makes_a_single_value_as_steep_as_it_can():
    assert tables.fit_parametric(counts_of({OFFSET: 1}), 0) == (0, 255, 128)


def test_fit_knows_a_pile_of_zeros():
    """Half of all values zero, the others Gaussian: without its own parameter for zero a density would miss by far."""
    counts = np.zeros(256, np.int64)
    counts[ESCAPES:] = np.rint(20_000 * np.exp(-0.5 * (np.arange(ESCAPES - OFFSET, OFFSET) / 9.0) ** 2))
    counts[OFFSET] = counts.sum()
    ideal = float((counts[counts > 0] * np.log2(counts.sum() / counts[counts > 0])).sum())
    assert tables.code_bits(counts, tables.parametric(*tables.fit_parametric(counts, 0), 0)) < 1.005 * ideal
