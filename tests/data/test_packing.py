from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismlab.data.packing import EpochStream, pack
from prismlab.errors import DataError


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=20), min_size=1, max_size=60),
    st.integers(1, 16),
    st.integers(1, 5),
)
@settings(max_examples=150, deadline=None)
def test_rows_are_the_concatenation(documents: list[list[int]], seq_len: int, block: int) -> None:
    flat = np.concatenate([np.array(document, np.uint16) for document in documents])
    rows = len(flat) // seq_len
    arrays = (np.array(document, np.uint16) for document in documents)
    blocks = list(pack(arrays, rows, seq_len, block))
    assert all(part.shape[0] <= block and part.shape[1] == seq_len for part in blocks)
    joined = np.concatenate([part.ravel() for part in blocks]) if blocks else np.zeros(0)
    assert np.array_equal(joined, flat[: rows * seq_len])


def test_too_few_tokens_are_named() -> None:
    with pytest.raises(DataError, match="end after 10 tokens, 12 are needed"):
        list(pack((np.arange(5) for _ in range(2)), 3, 4))


def stream(needed: int, max_epochs: float, keep: bool = True) -> EpochStream:
    def read(epoch: int) -> Iterator[np.ndarray]:
        return (np.full(3, 10 * epoch + at, np.uint16) for at in range(4))

    def order(epoch: int, n: int) -> list[int]:
        return [(at + epoch) % n for at in range(n)]

    return EpochStream("web", read, order, needed, max_epochs, keep)


def test_each_pass_has_every_document_in_its_own_order() -> None:
    found = [int(tokens[0]) for tokens in islice(stream(36, 3), 12)]
    assert found == [0, 1, 2, 3, 1, 2, 3, 0, 2, 3, 0, 1]
    anew = [int(tokens[0]) for tokens in islice(stream(36, 3, keep=False), 12)]
    assert anew == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]


def test_counts() -> None:
    source = stream(20, 5)
    rows = list(pack(source, 5, 4))
    assert sum(map(len, rows)) == 5
    assert (source.stats.documents, source.stats.epoch_tokens, source.stats.tokens_drawn) == (4, 12, 21)
    part = stream(6, 5)
    list(pack(part, 1, 5))
    assert (part.stats.documents, part.stats.epoch_tokens, part.stats.tokens_drawn) == (2, None, 6)


def test_too_many_passes_are_refused_as_soon_as_the_size_is_known() -> None:
    source = stream(37, 3)
    with pytest.raises(DataError, match=r"'web' has 12 tokens to train on, 37 are needed: 3.1 epochs"):
        list(source)
    assert source.stats.tokens_drawn == 12, "refused after one pass, not after three"


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(DataError, match="'web' has no document to train on"):
        list(EpochStream("web", lambda epoch: iter(()), lambda epoch, n: [], 5, 10))
