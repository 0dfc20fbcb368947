from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismlab.data.mixture import normalised, row_counts, schedule
from prismlab.errors import DataError

WEIGHT = st.one_of(st.floats(0.01, 100), st.floats(1e-12, 1e12), st.sampled_from([1.0, 1e-300, 3.0]))


def named(weights: list[float]) -> dict[str, float]:
    return {f"s{at}": weight for at, weight in enumerate(weights)}


@given(st.lists(WEIGHT, min_size=1, max_size=40), st.integers(1, 600))
@settings(max_examples=150, deadline=None)
def test_every_prefix_is_within_a_row_of_its_share(weights: list[float], rows: int) -> None:
    chosen = schedule(named(weights), rows)
    total = sum(map(Fraction, weights))
    shares = np.array([float(Fraction(weight) / total) for weight in weights])
    counts = np.cumsum(chosen[:, None] == np.arange(len(weights)), axis=0)
    ideal = np.arange(1, rows + 1)[:, None] * shares
    bound = 1 - 1 / (2 * len(weights) - 2) if len(weights) > 1 else 0
    assert np.abs(counts - ideal).max() <= bound + 1e-6


def test_where_taking_whoever_is_furthest_behind_breaks_the_bound_this_does_not() -> None:
    weights = [20.0] * 3 + [1.0] * 16
    shares, counts = np.array(weights) / sum(weights), np.zeros(19)
    worst = 0.0
    for row in range(1, 300):
        counts[int(np.argmax(shares * row - counts))] += 1
        worst = max(worst, float(np.abs(counts - shares * row).max()))
    assert worst > 1.3
    chosen = schedule(named(weights), 300)
    ours = np.cumsum(chosen[:, None] == np.arange(19), axis=0) - np.arange(1, 301)[:, None] * shares
    assert np.abs(ours).max() <= 1 - 1 / 36 + 1e-6


def test_known_schedules() -> None:
    assert schedule({"a": 1, "b": 1}, 6).tolist() in ([0, 1] * 3, [1, 0] * 3)
    assert row_counts(schedule({"a": 3, "b": 1}, 400), 2).tolist() == [300, 100]
    assert schedule({"only": 5}, 4).tolist() == [0] * 4
    assert np.array_equal(schedule({"a": 2, "b": 5}, 99), schedule({"a": 0.4, "b": 1.0}, 99))


def test_a_long_schedule_keeps_the_bound_to_its_end() -> None:
    weights = np.random.default_rng(3).lognormal(sigma=2, size=20).tolist()
    chosen = schedule(named(weights), 300_000)
    shares = np.array(weights) / sum(weights)
    counts = np.zeros(20, np.int64)
    for start in range(0, 300_000, 50_000):
        counts += row_counts(chosen[start : start + 50_000], 20)
        assert np.abs(counts - (start + 50_000) * shares).max() <= 1 - 1 / 38 + 1e-5


def astray(chosen: np.ndarray, weights: list[int], sizes: list[list[int]]) -> list[tuple[int, int]]:
    """At each prefix, of each source, its lead over its share and the bound of it, times the sum of weights: integers.

    The bounds are those of the docstring: ahead by (1 - w) times its last row, behind by (1 - w) times its next row
    and w times the largest row of another source.
    """
    total, largest = sum(weights), [max(size) for size in sizes]
    others = [max(largest[:at] + largest[at + 1 :]) for at in range(len(weights))]
    given, count, found, whole = [0] * len(weights), [0] * len(weights), list[tuple[int, int]](), 0
    for source in chosen.tolist():
        row = sizes[source][count[source]]
        whole, given[source], count[source] = whole + row, given[source] + row, count[source] + 1
        for at, weight in enumerate(weights):
            lead = total * given[at] - weight * whole
            ahead = (total - weight) * sizes[at][count[at] - 1]
            behind = (total - weight) * sizes[at][count[at]] + weight * others[at]
            found.append((lead, ahead if lead > 0 else behind))
    return found


@given(st.data(), st.integers(2, 9), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_rows_of_unequal_size_are_within_the_proven_bound_of_their_shares(
    data: st.DataObject, sources: int, rows: int
) -> None:
    """In integers, and never more than one full row of 64 tokens."""
    weights = data.draw(st.lists(st.integers(1, 1000) | st.just(1), min_size=sources, max_size=sources))
    fill = st.integers(1, 64) | st.just(64) | st.integers(1, 3)
    cycles = data.draw(st.lists(st.lists(fill, min_size=1, max_size=6), min_size=sources, max_size=sources))
    sizes = [(cycle * (rows + 1))[: rows + 1] for cycle in cycles]
    ways = [lambda row, size=size: float(size[row]) for size in sizes]
    chosen = schedule(named([float(weight) for weight in weights]), rows, ways)
    for lead, bound in astray(chosen, weights, sizes):
        assert abs(lead) <= bound + 1e-6 * sum(weights)
        assert bound <= 64 * sum(weights)


def test_neither_half_of_the_rule_does_without_the_other() -> None:
    """Whoever is furthest behind, and whoever is due first, ahead or not: both leave the row that ours keeps to."""
    weights, sizes = [20, 20, 20, *[1] * 16], [[64] * 400] * 19
    shares = np.array(weights) / sum(weights)
    behind, due = list[int](), list[int]()
    for chosen, pick in (
        (behind, lambda given: int(np.argmin(given - shares * given.sum()))),
        (due, lambda given: int(np.argmin((given + 64) / shares))),
    ):
        given = np.zeros(len(weights))
        for _ in range(300):
            chosen.append(pick(given))
            given[chosen[-1]] += 64
    ours = schedule(named([float(weight) for weight in weights]), 300, [lambda row: 64.0] * len(weights))
    worst = [
        max(abs(lead) for lead, _ in astray(np.array(one), weights, sizes)) / (64 * sum(weights))
        for one in (behind, due, ours)
    ]
    assert min(worst[:2]) > 1.3
    assert worst[2] <= 1


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 300), st.booleans())
@settings(max_examples=80, deadline=None)
def test_shares_of_random_mixtures_are_kept_at_every_row(seed: int, sources: int, rows: int, padded: bool) -> None:
    """Within a row of 64 tokens, whether rows are full or padded at random."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(sources, 0.5)) + 1e-6
    shares /= shares.sum()
    least = rng.integers(1, 65, sources) if padded else np.full(sources, 64)
    sizes = [rng.integers(low, 65, rows + 1) for low in least]
    ways = [lambda row, size=size: float(size[row % len(size)]) for size in sizes]
    chosen = schedule(named(shares.tolist()), rows, ways)
    assert np.abs(leads(chosen, shares, sizes)).max() <= 64 + 1e-6


def leads(chosen: np.ndarray, shares: np.ndarray, sizes: list[np.ndarray]) -> np.ndarray:
    """Tokens of each source beyond its share of those so far, at each prefix [rows, sources]."""
    fill = np.empty(len(chosen))
    for at in range(len(shares)):
        mine = np.flatnonzero(chosen == at)
        fill[mine] = sizes[at][: len(mine)]
    tokens = np.cumsum(np.where(chosen[:, None] == np.arange(len(shares)), fill[:, None], 0.0), axis=0)
    return tokens - shares * tokens.sum(axis=1, keepdims=True)


def test_a_long_schedule_of_padded_rows_keeps_the_row_to_its_end() -> None:
    rng = np.random.default_rng(5)
    shares = rng.dirichlet(np.full(14, 0.7))
    sizes = [rng.integers(rng.integers(1, 8192), 8193, 60_000) for _ in shares]
    ways = [lambda row, size=size: float(size[row]) for size in sizes]
    chosen = schedule(named(shares.tolist()), 60_000, ways)
    assert np.abs(leads(chosen, shares, sizes)).max() <= 8192


@pytest.mark.parametrize("seed", range(3))
def test_a_corpus_of_some_thousand_rows_has_its_shares_within_a_thousandth(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(14, 0.7))
    sizes = [rng.integers(rng.integers(1, 64), 65, 4000) for _ in shares]
    chosen = schedule(named(shares.tolist()), 4000, [lambda row, size=size: float(size[row]) for size in sizes])
    tokens = np.array([sizes[at][: (chosen == at).sum()].sum() for at in range(14)])
    assert np.abs(tokens / tokens.sum() - shares).max() < 0.001


def test_shares_are_of_tokens_where_rows_differ() -> None:
    """A source whose rows are half empty is given twice the rows."""
    sizes = [lambda row: 100.0, lambda row: 50.0, lambda row: 100.0 - row % 3]
    chosen = schedule({"full": 2, "half": 1, "near": 1}, 5000, sizes)
    tokens = np.array([sum(sizes[at](row) for row in range((chosen == at).sum())) for at in range(3)])
    assert np.abs(tokens / tokens.sum() - [0.5, 0.25, 0.25]).max() < 0.001
    assert (chosen == 1).sum() == pytest.approx((chosen == 0).sum(), abs=2)


def test_weights_that_are_no_weights_are_refused() -> None:
    for weights in ({}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}, {"a": float("inf")}):
        with pytest.raises(DataError, match="positive"):
            normalised(weights)
