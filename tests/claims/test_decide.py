"""The few tests that all rules are made of, against scipy and by hand."""

from __future__ import annotations

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from prismlab.claims.decide import (
    Part,
    above,
    below,
    conjunction,
    conjunction_p,
    power_statement,
    shown,
    weakest,
    within,
)
from prismlab.claims.series import Series, absent

VALUES = [1.0, 2.5, 1.7, 2.2]


def series(values: list[float]) -> Series:
    return Series(dict(enumerate(values)))


def test_above_agrees_with_scipys_t_test() -> None:
    part = above("x", series(VALUES), 0.5, "points", 0.95)
    result = scipy.stats.ttest_1samp(VALUES, 0.5, alternative="greater")
    interval = scipy.stats.ttest_1samp(VALUES, 0.5).confidence_interval(0.95)
    assert part.p == pytest.approx(result.pvalue)
    assert part.p_against == pytest.approx(1 - result.pvalue)
    assert (part.interval.lo, part.interval.hi) == pytest.approx((interval.low, interval.high))


@settings(database=None, deadline=None)
@given(
    st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=2, max_size=6).filter(lambda v: len(set(v)) > 1),
    st.floats(-3, 3).map(lambda x: round(x, 3)),
    st.sampled_from([0.8, 0.95, 0.99]),
)
def test_verdict_and_p_value_agree(values: list[float], threshold: float, confidence: float) -> None:
    """A bound beyond the threshold and a one-sided p below (1 - confidence) / 2 are the same statement."""
    level = (1 - confidence) / 2
    part = above("x", series(values), threshold, "points", confidence)
    assert part.p is not None
    assert part.p_against is not None
    near = any(abs(p - level) < 1e-9 for p in (part.p, part.p_against))
    if not near:
        expected = "supported" if part.p < level else "contradicted" if part.p_against < level else "inconclusive"
        assert part.verdict == expected
    mirrored = below("x", -series(values), -threshold, "points", confidence)
    assert mirrored.verdict == part.verdict
    assert mirrored.p == pytest.approx(part.p)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.0, 0.1, -0.1], "supported"),
        ([1.7, 1.9, 1.8], "inconclusive"),
        ([5.0, 5.1, 4.9], "contradicted"),
        ([-5.0, -5.1, -4.9], "contradicted"),
        ([-9.0, 9.0, 0.0], "inconclusive"),
    ],
)
def test_equivalence(values: list[float], verdict: str) -> None:
    part = within("x", series(values), -1.8, 1.8, "points", 0.95)
    assert part.verdict == verdict
    low = scipy.stats.ttest_1samp(values, -1.8, alternative="greater").pvalue
    high = scipy.stats.ttest_1samp(values, 1.8, alternative="less").pvalue
    assert part.p == pytest.approx(max(low, high))


def test_one_seed_shows_its_effect_and_decides_nothing() -> None:
    part = above("x", series([50.0]), 0.0, "points", 0.95)
    assert (part.verdict, part.interval.value, part.interval.lo, part.p) == ("inconclusive", 50.0, None, None)
    assert part.note == "1 seed gives no interval"
    statement = power_statement(part)
    assert statement is not None
    assert "1 seed gives no interval" in statement


def test_equal_values_decide_nothing() -> None:
    """A floor of 0, 0, 0 or three copies of one run has no spread to put an interval on."""
    for values in ([0.0, 0.0, 0.0], [7.0, 7.0, 7.0]):
        part = above("x", series(values), 0.0, "points", 0.95)
        assert part.verdict == "inconclusive"
        assert part.interval.lo is None
        assert "one and the same value" in str(part.note)


def test_equal_differences_of_scores_are_equal_whatever_their_last_bits() -> None:
    """The share of 59 in 200 correct answers twice, from floats: rounding is no spread."""
    values = [100.0 * (197 / 200) - 100.0 * (138 / 200), 100.0 * (171 / 200) - 100.0 * (112 / 200)]
    assert values[0] != values[1]
    part = above("x", Series(dict(enumerate(values))), 0.0, "points", 0.95)
    assert (part.verdict, part.p, part.interval.lo, part.detectable) == ("inconclusive", None, None, None)
    assert part.note is not None


def test_no_value_is_not_tested() -> None:
    part = above("x", absent("the study has no arm y"), 0.0, "points", 0.95)
    assert (part.verdict, part.interval.value) == ("not_tested", None)
    assert conjunction([part]) == "not_tested"


def parts(*kinds: str) -> list[Part]:
    made = {
        "supported": above("s", series([5.0, 5.1, 4.9]), 0.0, "points", 0.95),
        "contradicted": above("c", series([-5.0, -5.1, -4.9]), 0.0, "points", 0.95),
        "inconclusive": above("i", series([-5.0, 6.0, 0.0]), 0.0, "points", 0.95),
        "not_tested": above("n", absent("gone"), 0.0, "points", 0.95),
        "shown": shown("x", series([-5.0, -5.1, -4.9]), "points", 0.95),
    }
    return [made[kind] for kind in kinds]


@pytest.mark.parametrize(
    ("kinds", "verdict"),
    [
        (("supported", "supported"), "supported"),
        (("supported", "shown"), "supported"),
        (("supported", "inconclusive"), "inconclusive"),
        (("supported", "not_tested", "inconclusive"), "not_tested"),
        (("supported", "not_tested", "contradicted", "inconclusive"), "contradicted"),
    ],
)
def test_conjunction(kinds: tuple[str, ...], verdict: str) -> None:
    assert conjunction(parts(*kinds)) == verdict


def test_conjunction_p_is_the_largest_and_bonferroni_against() -> None:
    one, two = parts("supported", "inconclusive")
    p, against = conjunction_p([one, two, *parts("shown")])
    assert p == two.p
    assert two.p_against is not None
    assert against == pytest.approx(min(1.0, 2 * two.p_against))
    assert conjunction_p([one, *parts("not_tested")]) == (None, None)


def test_the_weakest_part_is_the_one_the_verdict_hangs_on() -> None:
    def label(*kinds: str) -> str | None:
        part = weakest(parts(*kinds))
        return None if part is None else part.label

    assert label("supported", "inconclusive", "contradicted") == "c"
    assert label("supported", "inconclusive", "not_tested") == "i"
    assert label("not_tested", "shown") is None


def test_power_statement_names_the_detectable_difference() -> None:
    """The stated distance, put back into scipy's noncentral t, has power 80%."""
    part = above("x", series(VALUES), 0.0, "points", 0.95)
    assert part.detectable is not None
    sd, n = scipy.stats.tstd(VALUES), len(VALUES)
    shift, critical = part.detectable / sd * n**0.5, scipy.stats.t.ppf(0.975, n - 1)
    power = scipy.stats.nct.sf(critical, n - 1, shift) + scipy.stats.nct.cdf(-critical, n - 1, shift)
    assert power == pytest.approx(0.8, abs=1e-6)
    assert f"{part.detectable:.3g} points" in str(power_statement(part))
