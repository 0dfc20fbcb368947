"""Series: pairing by seed, and reasons that survive arithmetic."""

from __future__ import annotations

from prismlab.claims.series import Series, absent, lowest, mean_of


def test_arithmetic_pairs_seeds_and_keeps_reasons_and_evidence() -> None:
    a = Series({0: 5.0, 1: 7.0}, ("seed 2: a ended",), frozenset({"x"}))
    b = Series({1: 2.0, 2: 9.0}, ("seed 0: b ended",), frozenset({"y"}))
    difference = a - b
    assert difference.values == {1: 5.0}
    assert difference.missing == ("seed 2: a ended", "seed 0: b ended")
    assert difference.evidence == {"x", "y"}
    assert (-difference).values == {1: -5.0}


def test_missing_is_never_zero() -> None:
    assert (Series({0: 3.0}) - absent("gone")).values == {}
    assert mean_of(Series({0: 3.0}), absent("gone")).values == {}
    assert mean_of(Series({0: 3.0}), Series({0: 5.0})).values == {0: 4.0}
    assert lowest(Series({0: 3.0, 1: 1.0}), Series({0: 2.0, 1: 8.0})).values == {0: 2.0, 1: 1.0}


def test_a_ratio_over_zero_is_absent_with_its_reason() -> None:
    ratio = Series({0: 1.0, 1: 1.0}).over(Series({0: 0.0, 1: 4.0}), "L2 of RL")
    assert ratio.values == {1: 0.25}
    assert ratio.missing == ("seed 0: L2 of RL is 0, so there is no ratio",)
