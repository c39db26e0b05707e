"""Standard errors over documents, against a bootstrap and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pgolf.errors import UsageError
from pgolf.scoring.documents import Documents
from pgolf.scoring.paired import difference, interval


def some(count: int, seed: int = 0) -> tuple[Documents, Documents]:
    """Two models on documents of very different lengths; the second is worse by about 1%."""
    random = np.random.default_rng(seed)
    num_bytes = random.lognormal(7, 1, count).astype(np.int64) + 10
    hardness = random.normal(1.0, 0.2, count)
    nats = num_bytes * hardness
    worse = nats * random.normal(1.01, 0.005, count)
    tokens = num_bytes // 3
    return Documents(tokens, num_bytes, nats), Documents(tokens, num_bytes, worse)


def bootstrap(statistic, count: int, draws: int = 2000) -> float:
    random = np.random.default_rng(1)
    return float(np.std([statistic(random.integers(0, count, count)) for _ in range(draws)]))


def ratio(documents: Documents, chosen: np.ndarray) -> float:
    return float(documents.nats[chosen].sum() / documents.bytes[chosen].sum() / math.log(2))


def test_standard_errors_are_those_of_a_bootstrap():
    first, second = some(300)
    score, change = interval(first), difference(first, second)
    assert score.standard_error == pytest.approx(bootstrap(lambda i: ratio(first, i), 300), rel=0.1)
    paired = bootstrap(lambda i: ratio(second, i) - ratio(first, i), 300)
    assert change.standard_error == pytest.approx(paired, rel=0.1)
    assert change.standard_error < score.standard_error / 10


def test_two_documents_by_hand():
    """R = (2 + 6) / (1 + 3) = 2 bits; e = (2 - 2, 6 - 6) = 0 and, for the second model, R = 9/4, e = ±(3/4) / 4."""
    ones = np.ones(2, np.int64)
    first = Documents(ones, np.array([1, 3]), np.array([2.0, 6.0]) * math.log(2))
    second = Documents(ones, np.array([1, 3]), np.array([3.0, 6.0]) * math.log(2))
    assert interval(first).standard_error == pytest.approx(0, abs=1e-12)
    change = difference(first, second)
    assert change.value == pytest.approx(0.25)
    assert change.standard_error == pytest.approx(math.sqrt(2 * 2 * (3 / 16) ** 2))
    t = change.value / change.standard_error
    assert change.p == pytest.approx(2 * (0.5 - math.atan(t) / math.pi))  # Student's t with 1 degree is Cauchy
    assert change.high - change.value == pytest.approx(12.7062 * change.standard_error, rel=1e-4)


def test_the_interval_covers():
    """95% intervals of 40 documents hold the value of all documents about 95 times of 100."""
    pool, _ = some(20_000)
    random, hits = np.random.default_rng(2), 0
    for _ in range(400):
        i = random.integers(0, len(pool), 40)
        found = interval(Documents(pool.tokens[i], pool.bytes[i], pool.nats[i]))
        hits += found.low < pool.bpb < found.high
    assert 0.89 < hits / 400 < 0.98


def test_a_model_does_not_differ_from_itself():
    first, _ = some(20)
    change = difference(first, first)
    assert (change.value, change.standard_error, change.p) == (0, 0, 1)


def test_p_is_small_for_a_real_difference_and_not_for_noise():
    first, second = some(100)
    assert difference(first, second).p < 1e-10
    random = np.random.default_rng(3)
    noisy = Documents(first.tokens, first.bytes, first.nats * random.normal(1, 0.01, 100))
    assert difference(first, noisy).p > 0.01


def test_one_document_has_no_standard_error():
    one = Documents(np.array([5]), np.array([7]), np.array([3.0]))
    assert interval(one).value == pytest.approx(3 / 7 / math.log(2))
    assert interval(one).standard_error is interval(one).low is difference(one, one).p is None


def test_other_documents_are_refused():
    first, _ = some(20)
    with pytest.raises(UsageError, match="20 and 19 documents"):
        difference(first, Documents(first.tokens[1:], first.bytes[1:], first.nats[1:]))
    with pytest.raises(UsageError, match="different documents"):
        difference(first, Documents(first.tokens + 1, first.bytes + 1, first.nats))


def test_another_tokenizer_of_the_same_text_can_be_compared():
    first, second = some(20)
    assert difference(first, Documents(second.tokens * 2, second.bytes, second.nats)).documents == 20
