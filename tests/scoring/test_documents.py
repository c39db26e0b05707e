"""Per-document sums add up to the whole, whatever the stream begins with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.data.shards import document_starts
from pgolf.scoring.documents import per_document

BOS = 1


def test_by_hand():
    """Targets belong to the document that they follow from: the start of the next one is a document's last target."""
    tokens = np.array([5, BOS, 7, 8, BOS, 9, 9])
    found = per_document(np.arange(6) / 4, np.array([9, 0, 2, 3, 0, 4, 5]), document_starts(tokens, BOS))
    assert found.tokens.tolist() == [1, 3, 2]
    assert found.bytes.tolist() == [0, 5, 9]
    assert found.nats.tolist() == [0, 0.25 + 0.5 + 0.75, 1 + 1.25]
    assert found.to_json() == {"tokens": [1, 3, 2], "bytes": [0, 5, 9], "nats": [0, 1.5, 2.25]}


@given(tokens=st.lists(st.integers(0, 4), min_size=2, max_size=40))
def test_documents_sum_to_the_whole(tokens: list[int]):
    stream = np.array(tokens)
    nats, counts = np.linspace(0, 1, len(tokens) - 1, dtype=np.float32), stream + 1
    found = per_document(nats, counts, document_starts(stream, BOS))
    assert found.tokens.sum() == len(nats)
    assert found.bytes.sum() == counts[1:].sum()
    assert found.nats.sum() == pytest.approx(nats.sum(dtype=np.float64))
    assert (found.tokens > 0).all()


def test_no_document_start():
    assert len(per_document(np.ones(3), np.ones(4), document_starts(np.array([2, 3]), BOS))) == 1
