"""CKA against the textbook's feature form, brute-force HSIC and resampled features."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prismlab.analyse import similarity
from prismlab.analyse.similarity import (
    cka,
    cosines,
    cross,
    debiased_cka,
    debiased_vector,
    draw,
    estimates,
    gram,
    of_pair,
    plain_vector,
    unbiased_hsic,
)

SMALL = settings(max_examples=30, deadline=None)


def feature_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019: ||Y'X||^2 / (||X'X|| ||Y'Y||) of centred features."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def tuple_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Unbiased HSIC as the mean of its kernel over all ordered 4-tuples of different inputs (Song et al. 2012)."""
    n = len(k)
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(n), 4)]
    return float(np.mean(terms))


def pair(seed: int, n: int, width: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) + 5
    return x, x @ rng.normal(size=(width, width + 3)) + noise * rng.normal(size=(n, width + 3))


@pytest.mark.parametrize(("n", "width"), [(10, 3), (40, 7), (20, 64), (60, 300)])
def test_gram_form_is_the_feature_form(n: int, width: int) -> None:
    x, y = pair(n, n, width, 2.0)
    expected = feature_cka(x, y)
    assert cka(gram(x), gram(y)) == pytest.approx(expected, abs=1e-10)
    single = cka(gram(x.astype(np.float32)), gram(y.astype(np.float32)))
    assert single == pytest.approx(expected, abs=1e-6)
    assert expected < 0.999


def test_unbiased_hsic_is_the_u_statistic() -> None:
    x, y = pair(1, 7, 3, 1.0)
    assert unbiased_hsic(gram(x), gram(y)) == pytest.approx(tuple_hsic(x @ x.T, y @ y.T), rel=1e-9)
    expected = tuple_hsic(x @ x.T, y @ y.T) / np.sqrt(tuple_hsic(x @ x.T, x @ x.T) * tuple_hsic(y @ y.T, y @ y.T))
    assert debiased_cka(gram(x), gram(y)) == pytest.approx(expected, rel=1e-9)
    for function in (unbiased_hsic, debiased_cka):
        with pytest.raises(ValueError, match="at least 4"):
            function(np.eye(3), np.eye(3))


@SMALL
@given(st.integers(0, 10**6), st.integers(6, 25), st.integers(1, 12), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_rotation_scale_and_shift_change_nothing(seed: int, n: int, width: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, width)), rng.normal(size=(n, width + 2))
    moved = scale * x @ np.linalg.qr(rng.normal(size=(width, width)))[0] + shift
    for estimate in (cka, debiased_cka):
        assert estimate(gram(x), gram(moved)) == pytest.approx(1.0, abs=1e-6)
        assert estimate(gram(moved), gram(y)) == pytest.approx(estimate(gram(x), gram(y)), abs=1e-6)
        order = rng.permutation(n)
        assert estimate(gram(x[order]), gram(y[order])) == pytest.approx(estimate(gram(x), gram(y)), abs=1e-9)
        assert estimate(gram(y), gram(x)) == pytest.approx(estimate(gram(x), gram(y)), abs=1e-12)


def test_other_linear_maps_do_change_it() -> None:
    x = np.random.default_rng(2).normal(size=(30, 12))
    assert cka(gram(x), gram(x * np.geomspace(1, 50, 12))) < 0.9  # type: ignore[operator]


@SMALL
@given(st.integers(0, 10**6), st.integers(4, 20), st.integers(1, 30), st.integers(1, 30))
def test_any_states_stay_in_range(seed: int, n: int, width: int, other: int) -> None:
    rng = np.random.default_rng(seed)
    k, m = gram(rng.normal(size=(n, width))), gram(rng.standard_cauchy(size=(n, other)))
    assert 0 <= cka(k, m) <= 1  # type: ignore[operator]
    value = debiased_cka(k, m)
    assert value is None or -1 <= value <= 1
    assert cka(k, m) == pytest.approx(float(cross(k[None], m[None])[0, 0]), abs=1e-12)


def test_independent_noise_is_near_zero_only_when_debiased() -> None:
    rng = np.random.default_rng(3)
    plain, debiased = [], []
    for _ in range(40):
        k, m = gram(rng.normal(size=(50, 400))), gram(rng.normal(size=(50, 400)))
        plain.append(cka(k, m))
        debiased.append(debiased_cka(k, m))
    # With width far above the number of inputs the plain estimate tends to 1 whatever the states are.
    assert np.mean(plain) > 0.8
    assert abs(np.mean(debiased)) < 4 * np.std(debiased) / np.sqrt(40)
    assert np.std(debiased) < 0.1


def test_states_that_do_not_vary_have_no_cka() -> None:
    x = np.full((10, 5), 0.1, dtype=np.float32)
    y = np.random.default_rng(4).normal(size=(10, 5))
    assert cka(gram(x), gram(y)) is None
    assert debiased_cka(gram(x), gram(y)) is None
    one = np.zeros(6, dtype=int)
    assert cka(gram(y)[np.ix_(one, one)], gram(y)[np.ix_(one, one)]) is None
    assert plain_vector(gram(y)[:1, :1], np.array([9])) is None
    # Varies as a whole, but not within the first half.
    half = np.concatenate([np.tile(y[:1], (5, 1)), y[:5]])
    assert plain_vector(gram(half)) is not None
    assert plain_vector(gram(half)[:5, :5]) is None
    assert debiased_vector(gram(half)[:5, :5]) is None
    found = of_pair(estimates([gram(x), gram(y)], draw(10, 3, 8, 0)), 0, 1)
    assert set(vars(found).values()) == {None}


def test_resamples_are_those_of_the_features() -> None:
    n, size = 30, 12
    x, y = pair(5, n, 6, 3.0)
    z = np.random.default_rng(6).normal(size=(n, 4))
    draws = draw(n, 20, size, seed=1)
    found = estimates([gram(x), gram(y), gram(z)], draws)
    picked = [np.repeat(np.arange(n), counts) for counts in draws.counts]
    assert all(len(one) == size for one in picked)
    assert any(len(set(one.tolist())) < size for one in picked)
    assert len(picked) == len(draws.parts) == 20
    features = (x, y, z)
    for i, j in itertools.combinations(range(3), 2):
        drawn = [feature_cka(features[i][one], features[j][one]) for one in picked]
        np.testing.assert_allclose(found.drawn[:, i, j], drawn, atol=1e-10)
        part = [debiased_cka(gram(features[i][one]), gram(features[j][one])) for one in draws.parts]
        np.testing.assert_allclose(found.parts[:, i, j], part, atol=1e-10)
        summary = of_pair(found, i, j)
        assert summary.cka == pytest.approx(feature_cka(features[i], features[j]), abs=1e-12)
        assert (summary.mean, summary.std) == pytest.approx((np.mean(drawn), np.std(drawn, ddof=1)), rel=1e-8)
        assert summary.debiased_std == pytest.approx(np.std(np.array(part), ddof=1), rel=1e-8)


def test_draws() -> None:
    draws = draw(30, 400, 12, seed=1)
    assert all(len(set(part.tolist())) == 12 for part in draws.parts)
    # Each input is drawn 12 / 30 times on average: binomial, 6 standard errors.
    assert np.abs(draws.counts.mean(axis=0) - 0.4).max() < 6 * np.sqrt(12 / 30 * 29 / 30 / 400)
    assert np.abs(np.bincount(np.concatenate(draws.parts), minlength=30) / 400 - 0.4).max() < 6 * np.sqrt(0.24 / 400)
    assert (draw(30, 4, 12, 1).counts == draws.counts[:4]).all()
    assert [len(part) for part in draw(30, 2, 100, 0).parts] == [15, 15]
    assert draw(30, 2, 10**9, 0).counts.sum() == 2 * 10**9
    assert draw(7, 5, 100, 0).parts == ()
    assert draw(30, 0, 100, 0).counts.shape == (0, 30)


def test_without_resamples_there_is_no_spread() -> None:
    x, y = pair(7, 12, 4, 1.0)
    found = of_pair(estimates([gram(x), gram(y)], draw(12, 0, 6, 0)), 0, 1)
    assert (found.mean, found.std, found.debiased_std) == (None, None, None)
    assert found.cka == pytest.approx(feature_cka(x, y))
    assert of_pair(estimates([gram(x), gram(y)], draw(12, 1, 6, 0)), 0, 1).std is None


def test_gram_matrices_of_other_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="different inputs"):
        estimates([np.eye(5), np.eye(6)], draw(5, 1, 4, 0))
    with pytest.raises(ValueError, match="different inputs"):
        cross(np.ones((2, 5, 5)), np.ones((2, 6, 6)))
    with pytest.raises(ValueError, match="at least 4"):
        cross(np.ones((2, 3, 3)), np.ones((2, 3, 3)), unbiased=True)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_cross_is_every_layer_against_every_layer(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    shared = rng.normal(size=(14, 5))
    a = np.stack([gram(shared @ rng.normal(size=(5, w)) + rng.normal(size=(14, w))) for w in (3, 9, 5)])
    b = np.stack([*(gram(shared @ rng.normal(size=(5, w))) for w in (8, 4)), np.zeros((14, 14))])[[0, 2, 1]]
    monkeypatch.setattr(similarity, "CROSS_BYTES", 8 * 14 * 6 * rows)
    for unbiased, estimate in ((False, cka), (True, debiased_cka)):
        found = cross(a, b[[0, 1, 2, 0]], unbiased)
        assert found.shape == (3, 4)
        for i, j in itertools.product(range(3), (0, 2)):
            assert found[i, j] == pytest.approx(estimate(a[i], b[j]), abs=1e-12)
        assert np.isnan(found[:, 1]).all()
        np.testing.assert_array_equal(found[:, 3], found[:, 0])


def test_cosines_leave_out_what_is_missing() -> None:
    found = cosines([np.array([1.0, 0.0]), None, np.array([0.6, 0.8])])
    np.testing.assert_allclose(found[0], [1.0, np.nan, 0.6])
    assert np.isnan(found[1]).all()
    assert np.isnan(cosines([None, None])).all()
