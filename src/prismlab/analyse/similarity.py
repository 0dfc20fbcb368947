"""Linear CKA from Gram matrices: the plain estimator, the debiased one, and their spread over resamples.

K = X X^T is kept, [n, n]: a resample of the inputs is then an index, at no cost in the width of the network. The plain
estimator (Kornblith et al. 2019, eq. 4 with linear kernels) is biased upward where inputs are few and states wide; the
debiased one puts the unbiased HSIC (Song et al. 2012, eq. 5) in the same ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST = 4
"""The unbiased HSIC divides by n - 3."""


def gram(states: NDArray[np.floating]) -> Floats:
    """Linear Gram matrix [n, n] of states [n, width], of the states' deviations from their mean over inputs.

    Neither estimator changes when a constant is added to all states; taking it off first keeps the digits.
    """
    x = states.astype(np.float64)
    largest = float(np.abs(x).max(initial=0.0))
    x = x - x.mean(axis=0)
    # Equal inputs leave rounding errors behind, which must not pass for variation.
    if float(np.abs(x).max(initial=0.0)) <= 1e-12 * largest:
        return np.zeros((len(x), len(x)))
    return x @ x.T


def _centred(k: Floats) -> Floats:
    rows = k.mean(axis=0)
    return k - rows[None, :] - rows[:, None] + rows.mean()


def _ratio(kl: float, kk: float, ll: float) -> float | None:
    if not (kk > 0 and ll > 0):
        return None
    value = kl / (math.sqrt(kk) * math.sqrt(ll))
    return value if math.isfinite(value) else None


def cka(k: Floats, m: Floats) -> float | None:
    """Linear CKA of two Gram matrices [n, n] over the same inputs, 0 to 1; None where the states do not vary."""
    a, b = _centred(k), _centred(m)
    floor = np.finfo(np.float64).eps ** 2
    kk, mm = float((a * a).sum()), float((b * b).sum())
    # A resample may hold one input alone: what is left of it after centring is rounding.
    if kk <= floor * float((k * k).sum()) * len(k) ** 2 or mm <= floor * float((m * m).sum()) * len(m) ** 2:
        return None
    value = _ratio(float((a * b).sum()), kk, mm)
    return None if value is None else min(1.0, max(0.0, value))


def unbiased_hsic(k: Floats, m: Floats) -> float:
    """Unbiased HSIC of two Gram matrices [n, n] (Song et al. 2012, eq. 5); n must be 4 or more."""
    n = len(k)
    if n < FEWEST:
        raise ValueError(f"the unbiased HSIC needs at least {FEWEST} inputs, not {n}")
    a, b = k.copy(), m.copy()
    np.fill_diagonal(a, 0.0)
    np.fill_diagonal(b, 0.0)
    rows_a, rows_b = a.sum(axis=0), b.sum(axis=0)
    trace = float((a * b).sum())
    whole = float(rows_a.sum() * rows_b.sum()) / ((n - 1) * (n - 2))
    return (trace + whole - 2.0 / (n - 2) * float(rows_a @ rows_b)) / (n * (n - 3))


def debiased_cka(k: Floats, m: Floats) -> float | None:
    """CKA with unbiased HSIC; near 0 for independent states, and below 0 by chance.

    None where a state's own unbiased HSIC is not above 0.
    """
    return _ratio(unbiased_hsic(k, m), unbiased_hsic(k, k), unbiased_hsic(m, m))


@dataclass(frozen=True)
class LayerSimilarity:
    """Similarity of one layer's states in two checkpoints."""

    cka: float | None
    """Plain estimate over all inputs."""
    std: float | None
    """Standard deviation of the plain estimate over resamples with replacement."""
    debiased: float | None
    """Debiased estimate over all inputs."""
    debiased_std: float | None
    """Standard deviation of the debiased estimate over subsamples without replacement."""


def _spread(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) >= 2 else None


def resample_indices(n: int, resamples: int, size: int, seed: int) -> tuple[list[NDArray[np.int64]], ...]:
    """Inputs of each resample: with replacement, ``size`` of n; without, ``size`` but at most half of n.

    An input drawn twice correlates with itself, which the debiased estimator does not expect: hence the second kind. A
    subsample of all inputs would show no spread: hence the half. Below 8 inputs there are no subsamples.
    """
    rng = np.random.default_rng(seed)
    with_replacement = [rng.integers(0, n, size) for _ in range(resamples)]
    part = min(size, n // 2)
    without = [rng.permutation(n)[:part] for _ in range(resamples)] if part >= FEWEST else []
    return with_replacement, without


def similarity(k: Floats, m: Floats, draws: tuple[list[NDArray[np.int64]], ...]) -> LayerSimilarity:
    """Both estimates of one layer and their spread.

    Args:
        k: Gram matrix [n, n] in one checkpoint.
        m: Gram matrix [n, n] of the same inputs in the other.
        draws: of ``resample_indices``.
    """
    if k.shape != m.shape:
        raise ValueError(f"Gram matrices of different inputs: {k.shape} and {m.shape}")
    plain = [cka(k[np.ix_(i, i)], m[np.ix_(i, i)]) for i in draws[0]]
    debiased = [debiased_cka(k[np.ix_(i, i)], m[np.ix_(i, i)]) for i in draws[1]]
    return LayerSimilarity(cka(k, m), _spread(plain), debiased_cka(k, m), _spread(debiased))
