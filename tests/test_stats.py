"""Statistics against closed forms, scipy and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from prismlab.stats import (
    Interval,
    bootstrap_ratio,
    bootstrap_statistic,
    cluster_bootstrap,
    clustered_proportion,
    detectable_difference_items,
    detectable_difference_t,
    equivalence,
    holm,
    items_to_decide,
    mean_pass_at_k,
    mean_t,
    non_inferiority,
    p_value_t,
    paired_difference,
    paired_items,
    pass_at_k,
    power_items,
    power_t,
    variance_of_item,
    wilson,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 200), (1, 3), (7, 10), (200, 200), (123, 4567)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_scipys(successes: int, n: int, confidence: float) -> None:
    ours = wilson(successes, n, confidence)
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert (ours.value, ours.n) == (successes / n, n)
    assert ours.lo == pytest.approx(theirs.low, abs=1e-12)
    assert ours.hi == pytest.approx(theirs.high, abs=1e-12)


@settings(database=None, deadline=None)
@given(st.integers(0, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_value_and_never_collapses(case: tuple[int, int]) -> None:
    successes, n = case
    found = wilson(successes, n)
    if n == 0:
        assert found.value is found.lo is found.hi is None
        assert found.reason
    else:
        assert found.value is not None
        assert found.lo is not None
        assert found.hi is not None
        assert 0 <= found.lo <= found.value <= found.hi <= 1
        assert found.hi > found.lo


def test_wilson_refuses_the_impossible() -> None:
    with pytest.raises(ValueError, match="5 successes of 4"):
        wilson(5, 4)
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 4, 95)


def test_mean_t_is_scipys() -> None:
    x = np.random.default_rng(0).normal(3, 2, 7)
    ours = mean_t(x, 0.9)
    lo, hi = scipy.stats.t.interval(0.9, 6, loc=x.mean(), scale=scipy.stats.sem(x))
    assert (ours.value, ours.lo, ours.hi) == pytest.approx((x.mean(), lo, hi), rel=1e-12)
    assert ours.n == 7


def test_one_seed_has_no_interval() -> None:
    one = mean_t([4.0])
    assert (one.value, one.lo, one.hi, one.n) == (4.0, None, None, 1)
    assert one.reason is not None
    assert "2 seeds" in one.reason
    assert mean_t([]).value is None


def test_equal_seeds_say_that_they_are_equal() -> None:
    same = mean_t([0.1, 0.1, 0.1])
    assert (same.value, same.lo, same.hi) == (0.1, 0.1, 0.1)
    assert same.reason == "all 3 values are equal"


def test_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        mean_t([1.0, math.nan])


def test_paired_difference_ignores_what_pairs_share() -> None:
    rng = np.random.default_rng(1)
    level, gain = rng.normal(0, 100, 6), rng.normal(1, 0.1, 6)
    found = paired_difference(level + gain, level)
    expected = mean_t(gain)
    assert (found.value, found.lo, found.hi) == pytest.approx((expected.value, expected.lo, expected.hi), rel=1e-9)
    assert found.lo is not None
    assert found.lo > 0
    with pytest.raises(ValueError, match="2 and 3"):
        paired_difference([1, 2], [1, 2, 3])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(n: int) -> None:
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
        assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), rel=1e-12)
    with pytest.raises(ValueError):
        pass_at_k(n, 0, n + 1)


def test_pass_at_k_of_many_samples_stays_exact() -> None:
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5, rel=1e-12)


def test_cluster_bootstrap_width_is_that_of_the_cluster_means() -> None:
    rng = np.random.default_rng(2)
    means = rng.normal(0, 1, 200)
    values = np.repeat(means, 5) + rng.normal(0, 0.01, 1000)
    clusters = [f"item-{i}" for i in np.repeat(np.arange(200), 5)]
    found = cluster_bootstrap(values, clusters, resamples=4000)
    assert found.lo is not None
    assert found.hi is not None
    standard_error = np.std(means) / math.sqrt(200)
    assert found.hi - found.lo == pytest.approx(2 * 1.96 * standard_error, rel=0.06)
    assert (found.n, found.value) == (200, pytest.approx(values.mean()))
    loose = cluster_bootstrap(values, range(1000), resamples=4000)
    assert loose.hi is not None
    assert loose.lo is not None
    assert (loose.hi - loose.lo) * 2 < found.hi - found.lo


def test_fast_mean_and_given_statistic_agree() -> None:
    rng = np.random.default_rng(3)
    values, clusters = rng.normal(size=60), rng.integers(0, 20, 60)
    fast = cluster_bootstrap(values, clusters, seed=5)
    slow = cluster_bootstrap(values, clusters, seed=5, statistic=lambda x: float(np.mean(x)))
    assert (fast.value, fast.lo, fast.hi) == pytest.approx((slow.value, slow.lo, slow.hi), rel=1e-12)


def test_cluster_bootstrap_covers_as_promised() -> None:
    rng, hits = np.random.default_rng(4), 0
    for trial in range(300):
        items = rng.beta(2, 2, 40)
        values = rng.random((40, 4)) < items[:, None]
        found = cluster_bootstrap(values.ravel(), np.repeat(np.arange(40), 4), resamples=300, seed=trial)
        assert found.lo is not None
        assert found.hi is not None
        hits += found.lo <= 0.5 <= found.hi
    assert 0.90 <= hits / 300 <= 0.98


def test_nothing_correct_is_no_certainty() -> None:
    found = cluster_bootstrap([0.0] * 40, np.repeat(np.arange(10), 4))
    edge = wilson(0, 10)
    assert (found.lo, found.hi, found.n, found.method) == (0.0, edge.hi, 10, "wilson over clusters")
    found = cluster_bootstrap([1.0] * 3, [0, 1, 2])
    assert found.lo == wilson(3, 3).lo
    assert cluster_bootstrap([48.0, 48.0], ["a", "b"]).reason == "all 2 values are equal"


def test_one_cluster_and_none() -> None:
    assert cluster_bootstrap([0, 1, 1], ["a"] * 3).lo is None
    assert cluster_bootstrap([], []).value is None
    with pytest.raises(ValueError, match="3 values need 3"):
        cluster_bootstrap([0, 1, 1], ["a"])


def test_bootstrap_ratio_is_a_ratio_of_sums() -> None:
    rng = np.random.default_rng(6)
    size = rng.integers(10, 1000, 300).astype(float)
    bits = size * 2 + rng.normal(0, 1, 300) * np.sqrt(size)
    found = bootstrap_ratio(bits, size, resamples=4000)
    ratio = bits.sum() / size.sum()
    # Delta method for a ratio of means.
    spread = np.std(bits - ratio * size, ddof=1) / math.sqrt(300) / size.mean()
    assert found.value == pytest.approx(ratio)
    assert found.hi is not None
    assert found.lo is not None
    assert found.hi - found.lo == pytest.approx(2 * 1.96 * spread, rel=0.08)
    one_each = bootstrap_ratio(bits, size, clusters=list(range(300)), resamples=4000)
    assert one_each == found
    assert bootstrap_ratio([3], [2]).lo is None
    with pytest.raises(ValueError, match="denominators"):
        bootstrap_ratio([1, 1], [0, 0])


def test_bootstrap_of_a_difference_of_means() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.normal(1, 1, 400), rng.normal(0, 2, 100)
    found = bootstrap_statistic(lambda x, y: float(x.mean() - y.mean()), a, b, resamples=3000)
    standard_error = math.sqrt(a.var() / 400 + b.var() / 100)
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert found.hi is not None
    assert found.lo is not None
    assert found.hi - found.lo == pytest.approx(2 * 1.96 * standard_error, rel=0.08)
    assert found.n == 100
    assert bootstrap_statistic(lambda x: float(x.mean()), [1.0]).lo is None


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"),
    [(-0.04, 1, "retained"), (-0.06, 1, "undecided"), (-1, -0.06, "regressed"), (-1, -0.04, "undecided")],
)
def test_non_inferiority(lo: float, hi: float, verdict: str) -> None:
    assert non_inferiority(Interval((lo + hi) / 2, lo, hi, 3, "t"), 0.05) == verdict
    assert non_inferiority(Interval(0.0, None, None, 1, "t", "one seed"), 0.05) == "undecided"
    with pytest.raises(ValueError, match="margin"):
        non_inferiority(Interval(0.0, lo, hi, 3, "t"), 0.0)


def test_scaled_turns_an_interval_round() -> None:
    assert Interval(1.0, 0.5, 2.0, 3, "t").scaled(-100) == Interval(-100.0, -200.0, -50.0, 3, "t")


def test_holm_by_hand_and_bounds() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError):
        holm([1.2])


@settings(database=None, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_raw_and_bonferroni(pvalues: list[float]) -> None:
    for raw, adjusted in zip(pvalues, holm(pvalues), strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(pvalues)) + 1e-15


@pytest.mark.parametrize(("side", "alternative"), [("two", "two-sided"), ("greater", "greater"), ("less", "less")])
def test_p_values_are_scipys(side: str, alternative: str) -> None:
    x = [0.3, 0.9, -0.1, 0.5]
    expected = scipy.stats.ttest_1samp(x, 0.2, alternative=alternative).pvalue
    assert p_value_t(x, 0.2, side) == pytest.approx(expected, rel=1e-10)  # type: ignore[arg-type]
    assert p_value_t([1.0], 0.0) is None
    assert p_value_t([1.0, 1.0], 0.0) is None


def test_power_of_a_published_case() -> None:
    # Cohen's d = 0.5 needs 34 values for a power of 80%; G*Power 3.1 gives 0.8077775 for them.
    assert power_t(0.5, 1.0, 34) == pytest.approx(0.8077775, abs=1e-6)
    assert power_t(0.0, 2.0, 5, 0.9) == pytest.approx(0.1, abs=1e-12)
    assert power_t(1.0, 1.0, 1) is None


@pytest.mark.parametrize(("effect", "sd", "n"), [(1.0, 1.0, 3), (2.0, 0.7, 3), (-0.5, 1.0, 12)])
def test_power_is_what_simulation_finds(effect: float, sd: float, n: int) -> None:
    x = np.random.default_rng(8).normal(effect, sd, (40_000, n))
    t = x.mean(axis=1) / (x.std(axis=1, ddof=1) / math.sqrt(n))
    found = np.mean(np.abs(t) > scipy.stats.t.ppf(0.975, n - 1))
    assert power_t(effect, sd, n) == pytest.approx(found, abs=0.01)


@pytest.mark.parametrize(("shift", "n"), [(1.0, 3), (3.0, 5), (0.5, 40), (2.0, 400), (4.0, 3)])
def test_power_is_scipys_where_that_is_sound(shift: float, n: int) -> None:
    c = scipy.stats.t.ppf(0.975, n - 1)
    expected = scipy.stats.nct.sf(c, n - 1, shift) + scipy.stats.nct.cdf(-c, n - 1, shift)
    assert power_t(shift / math.sqrt(n), 1.0, n) == pytest.approx(expected, abs=1e-9)


def test_power_at_one_degree_of_freedom_is_the_closed_form() -> None:
    # Without noncentrality the ratio is Cauchy, and far out nearly every trial is beyond the critical value.
    for confidence in (0.9, 0.95, 0.99):
        assert power_t(0.0, 1.0, 2, confidence) == pytest.approx(1 - confidence, abs=1e-12)
    # P(|Z + d| > cS), S half-normal: where d is large the probability tends to P(S < d/c) = 2 Phi(d/c) - 1.
    c = scipy.stats.t.ppf(0.975, 1)
    assert power_t(20 * c / math.sqrt(2), 10.0, 2) == pytest.approx(2 * scipy.stats.norm.cdf(2) - 1, abs=1e-2)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_detectable_difference_inverts_the_power(n: int, power: float) -> None:
    found = detectable_difference_t(0.3, n, power=power)
    assert found is not None
    assert power_t(found, 0.3, n) == pytest.approx(power, abs=1e-8)


def test_detectable_difference_without_a_test() -> None:
    assert detectable_difference_t(1.0, 1) is None
    with pytest.raises(ValueError, match="power"):
        detectable_difference_t(1.0, 3, power=0.01)


def test_equivalence_is_two_one_sided_tests() -> None:
    x = np.random.default_rng(9).normal(0.1, 0.5, 12)
    found = equivalence(x, -0.6, 0.6)
    sides = [
        scipy.stats.ttest_1samp(x, -0.6, alternative="greater").pvalue,
        scipy.stats.ttest_1samp(x, 0.6, alternative="less").pvalue,
    ]
    assert found.p == pytest.approx(max(sides))
    assert found.verdict == "equivalent"
    for low, high in [(-0.05, 0.05), (-0.3, 0.2), (-2, 2), (-0.25, 0.5)]:
        found = equivalence(x, low, high)
        assert found.p is not None
        assert (found.verdict == "equivalent") == (found.p <= 0.05)
    assert equivalence(x, 2.0, 3.0).verdict == "different"
    assert equivalence([0.0], -1, 1).verdict == "undecided"
    assert equivalence(Interval(0.5, 0.2, 0.8, 5, "t"), 0, 1).verdict == "equivalent"


def test_clustered_proportion_is_wilsons_at_both_ends() -> None:
    """One sample an item, or samples that all agree: the items are the trials. Independent samples: the samples are."""
    right = np.repeat([1.0, 0.0], [13, 27])
    expected = wilson(13, 40)
    for samples in (1, 6):
        found = clustered_proportion(np.repeat(right, samples), np.repeat(np.arange(40), samples))
        assert (found.lo, found.hi, found.n) == (pytest.approx(expected.lo), pytest.approx(expected.hi), 40)
    rng = np.random.default_rng(0)
    found = clustered_proportion((rng.random(4000 * 4) < 0.5).astype(float), np.repeat(np.arange(4000), 4))
    many = wilson(8000, 16_000)
    assert found.hi is not None
    assert found.lo is not None
    assert many.hi is not None
    assert many.lo is not None
    assert found.hi - found.lo == pytest.approx(many.hi - many.lo, rel=0.03)


def test_one_right_sample_of_many_is_no_certainty() -> None:
    """A single right sample of 1,920 says nothing of its item's others: the bound stays near that of 30 items."""
    values = np.zeros(30 * 64)
    values[5] = 1.0
    found = clustered_proportion(values, np.repeat(np.arange(30), 64))
    assert found.hi is not None
    assert found.hi > 0.05
    nothing = clustered_proportion(np.zeros(1920), np.repeat(np.arange(30), 64))
    assert (nothing.lo, nothing.hi) == (0.0, pytest.approx(wilson(0, 30).hi))


def test_clustered_proportion_refuses() -> None:
    with pytest.raises(ValueError, match="not from 0 to 1"):
        clustered_proportion([0.0, 2.0], [0, 1])
    assert clustered_proportion([1.0, 0.0], ["a", "a"]).lo is None
    assert clustered_proportion([], []).value is None


def test_paired_items_is_bonett_and_prices_formula() -> None:
    new, old = [1.0] * 50 + [0.0] * 50, [1.0] * 44 + [0.0] * 6 + [1.0] * 2 + [0.0] * 48
    found = paired_items(new, old, range(100))
    p, q = 7 / 102, 3 / 102
    error = math.sqrt((p + q - (p - q) ** 2) / 102)
    z = scipy.stats.norm.ppf(0.975)
    assert found.interval.value == pytest.approx(0.04)
    assert (found.interval.lo, found.interval.hi) == pytest.approx((p - q - z * error, p - q + z * error))
    assert (found.better, found.worse, found.items, found.pairs) == (6, 2, 100, 100)
    assert found.bounds(0.95) == pytest.approx((found.interval.lo, found.interval.hi))
    assert found.p_above(-0.02) == pytest.approx(scipy.stats.norm.sf((p - q + 0.02) / error))
    assert found.p_above(0.1) + found.p_below(0.1) == pytest.approx(1.0)
    # The bound is where the one-sided test turns.
    assert found.p_above(found.bounds(0.95)[0]) == pytest.approx(0.025)


@pytest.mark.parametrize(("n", "m", "moved"), [(30, 8, 0.2), (200, 1, 0.02), (200, 8, 0.2)])
def test_paired_items_covers(n: int, m: int, moved: float) -> None:
    rng, trials, labels, hits = np.random.default_rng(12), 1000, np.repeat(np.arange(n), m), 0
    for _ in range(trials):
        rate = rng.beta(1, 1, n)
        old = rng.random((n, m)) < rate[:, None]
        new = np.where(rng.random(n)[:, None] < moved, rng.random((n, m)) < rate[:, None], old)
        found = paired_items(new.ravel(), old.ravel(), labels).interval
        assert found.lo is not None
        assert found.hi is not None
        hits += found.lo <= 0.0 <= found.hi
    assert hits / trials >= 0.93 - 3 * math.sqrt(0.05 * 0.95 / trials)


def test_paired_items_refuses() -> None:
    with pytest.raises(ValueError, match="at least 2 items"):
        paired_items([1.0, 0.0], [1.0, 0.0], ["a", "a"])
    with pytest.raises(ValueError, match="outside 0 to 1"):
        paired_items([1.0, 2.0], [1.0, 0.0], [0, 1])
    with pytest.raises(ValueError, match="2 and 1"):
        paired_items([1.0, 0.0], [1.0], [0, 1])


def test_mean_pass_at_k_is_the_mean_and_covers() -> None:
    found = mean_pass_at_k([0, 2, 4], [4, 4, 4], 2)
    assert found.value == pytest.approx((0 + 5 / 6 + 1) / 3)
    assert mean_pass_at_k([3, 1, 0, 1], [3, 1, 1, 2], 1).value == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    rng, hits = np.random.default_rng(13), 0
    for _ in range(600):
        rate = rng.beta(0.5, 1.5, 100)
        one = mean_pass_at_k(rng.binomial(8, rate), [8] * 100, 4)
        assert one.lo is not None
        assert one.hi is not None
        # E[1 - (1 - rate)^4] of Beta(0.5, 1.5) in closed form.
        truth = 1 - math.exp(scipy.special.betaln(0.5, 5.5) - scipy.special.betaln(0.5, 1.5))
        hits += one.lo <= truth <= one.hi
    assert hits / 600 >= 0.93 - 3 * math.sqrt(0.05 * 0.95 / 600)
    with pytest.raises(ValueError, match="pass@3"):
        mean_pass_at_k([1], [2], 3)


def test_bootstrap_draws_the_same_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """More places than a chunk holds: the chunks are one stream, so their size changes nothing."""
    values = np.random.default_rng(14).random(500)
    whole = cluster_bootstrap(values, range(500), resamples=1000, seed=3)
    monkeypatch.setattr("prismlab.stats.resample.CHUNK", 7000)
    assert cluster_bootstrap(values, range(500), resamples=1000, seed=3) == whole


def test_variance_of_an_item_is_that_of_simulated_scores() -> None:
    rng = np.random.default_rng(15)
    p, spread, m = 0.3, 0.4, 5
    k = 1 / spread - 1
    rate = rng.beta(p * k, (1 - p) * k, 200_000)
    first, second = rng.binomial(m, rate) / m, rng.binomial(m, rate) / m
    assert variance_of_item(p, m, spread) == pytest.approx(first.var(), rel=0.02)
    assert variance_of_item(p, m, spread, shared=1.0) == pytest.approx((first - second).var(), rel=0.02)
    assert variance_of_item(p, 1, 0.9) == pytest.approx(p * (1 - p))


def test_planning_inverts_itself() -> None:
    variance = variance_of_item(0.4, 64, 0.6, shared=0.8)
    seen = detectable_difference_items(30, variance)
    # Two sides at 95%, power 80%: (1.959964 + 0.841621) standard errors.
    assert seen == pytest.approx(2.801585 * math.sqrt(variance / 30), rel=1e-6)
    assert items_to_decide(seen, variance) in (30, 31)
    assert power_items(seen, 30, variance) == pytest.approx(0.8)
    assert power_items(0.0, 30, variance) == pytest.approx(0.025)
    assert items_to_decide(0.0, variance) is None
    with pytest.raises(ValueError, match=r"rate 1\.2"):
        variance_of_item(1.2)
    with pytest.raises(ValueError, match="1 items"):
        detectable_difference_items(1, variance)
