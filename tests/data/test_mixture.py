from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismlab.data.mixture import normalised, row_counts, schedule
from prismlab.errors import DataError


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12), st.integers(1, 600))
@settings(max_examples=150, deadline=None)
def test_every_prefix_is_within_a_row_of_its_share(weights: list[float], rows: int) -> None:
    named = {f"s{at}": weight for at, weight in enumerate(weights)}
    chosen = schedule(named, rows)
    shares = np.array(weights) / sum(weights)
    counts = np.cumsum(chosen[:, None] == np.arange(len(weights)), axis=0)
    ideal = np.arange(1, rows + 1)[:, None] * shares
    assert np.abs(counts - ideal).max() < 1.0


def test_known_schedules() -> None:
    assert schedule({"a": 1, "b": 1}, 6).tolist() in ([0, 1] * 3, [1, 0] * 3)
    assert row_counts(schedule({"a": 3, "b": 1}, 400), 2).tolist() == [300, 100]
    assert schedule({"only": 5}, 4).tolist() == [0] * 4
    assert np.array_equal(schedule({"a": 2, "b": 5}, 99), schedule({"a": 0.4, "b": 1.0}, 99))


def test_weights_that_are_no_weights_are_refused() -> None:
    for weights in ({}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}, {"a": float("inf")}):
        with pytest.raises(DataError, match="positive"):
            normalised(weights)
