"""Planning: how many seeds, items or samples decide, against simulation and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from prismlab.stats import items_to_decide, power_t, samples_to_decide, seeds_to_decide, variance_parts


@pytest.mark.parametrize(("distance", "sd"), [(1.0, 1.0), (-1.0, 1.0), (0.3, 1.0), (5.0, 0.4), (2.0, 3.0)])
def test_seeds_to_decide_is_the_first_number_with_that_power(distance: float, sd: float) -> None:
    n = seeds_to_decide(distance, sd)
    assert n is not None
    assert (power_t(distance, sd, n) or 0) >= 0.8
    assert n == 2 or (power_t(distance, sd, n - 1) or 0) < 0.8
    # The normal distribution asks for fewer, by about two.
    normal = ((scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)) * sd / distance) ** 2
    assert math.floor(normal) <= n <= normal + 4


def test_seeds_to_decide_is_what_simulation_finds() -> None:
    n = seeds_to_decide(1.0, 1.5)
    assert n is not None
    x = np.random.default_rng(0).normal(1.0, 1.5, (20_000, n))
    t = x.mean(axis=1) / (x.std(axis=1, ddof=1) / math.sqrt(n))
    share = (np.abs(t) > scipy.stats.t.ppf(0.975, n - 1)).mean()
    assert 0.79 < share < 0.84


def test_what_no_number_of_seeds_decides() -> None:
    assert seeds_to_decide(0.0, 1.0) is None
    assert seeds_to_decide(1e-4, 1.0) is None


def drawn(rng: np.random.Generator, n: int, m: int, between: float, within: float) -> np.ndarray:
    return rng.normal(0, math.sqrt(between), (n, 1)) + rng.normal(0, math.sqrt(within), (n, m))


def test_variance_parts_are_those_of_the_simulation_and_of_the_balanced_formula() -> None:
    x = drawn(np.random.default_rng(1), 4000, 5, 0.04, 0.16)
    found = variance_parts(x.ravel(), np.repeat(np.arange(4000), 5))
    assert found is not None
    assert found == pytest.approx((0.04, 0.16), rel=0.06)
    within = float(x.var(axis=1, ddof=1).mean())
    assert found[1] == pytest.approx(within)
    assert found[0] == pytest.approx(float(x.mean(axis=1).var(ddof=1)) - within / 5)


def test_variance_parts_of_unequal_items_are_unbiased() -> None:
    rng, sizes = np.random.default_rng(2), np.tile([1, 2, 9], 30)
    labels, parts = np.repeat(np.arange(90), sizes), []
    for _ in range(400):
        x = rng.normal(0, 1.0, 90)[labels] + rng.normal(0, 2.0, len(labels))
        parts.append(variance_parts(x, labels))
    assert np.mean([part[0] for part in parts if part]) == pytest.approx(1.0, abs=0.12)
    assert np.mean([part[1] for part in parts if part]) == pytest.approx(4.0, abs=0.1)


def test_variance_parts_need_more_than_one_value_an_item() -> None:
    assert variance_parts([0.0, 1.0, 1.0], [0, 1, 2]) is None
    assert variance_parts([0.0, 1.0], ["a", "a"]) is None


def test_samples_to_decide_agrees_with_items_to_decide() -> None:
    """With the samples that it names, just these items decide; with one sample fewer they do not."""
    between, within, items, distance = 0.01, 0.2, 400, 0.025
    m = samples_to_decide(distance, between, within, items)
    assert m is not None
    assert m > 1
    needed = items_to_decide(distance, between + within / m)
    assert needed is not None
    assert needed <= items
    fewer = items_to_decide(distance, between + within / (m - 1))
    assert fewer is not None
    assert fewer > items


def test_no_samples_help_against_what_lies_between_items() -> None:
    assert samples_to_decide(0.001, 0.01, 0.2, 400) is None
    assert samples_to_decide(0.0, 0.01, 0.2, 400) is None
    assert samples_to_decide(0.5, 0.01, 0.2, 400) == 1
    with pytest.raises(ValueError, match="at least 2 items"):
        samples_to_decide(0.5, 0.01, 0.2, 1)
