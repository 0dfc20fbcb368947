"""Linear CKA from Gram matrices: the plain estimator, the debiased one, and their spread over resamples.

K = X X^T is kept, [n, n]: a resample of the inputs is then an index, at no cost in the width of the network. Both
estimators are cosines between matrices centred in their own way, so that all pairs of k checkpoints are one product of
k vectors. The plain one (Kornblith et al. 2019, eq. 4 with linear kernels) is biased upward where inputs are few and
states wide; the debiased one puts the unbiased HSIC (Song et al. 2012, eq. 5) in the same ratio, written as the product
of U-centred matrices (Székely and Rizzo 2014, eq. 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

FEWEST = 4
"""The unbiased HSIC divides by n - 3."""
CROSS_BYTES = 1 << 26
"""Most memory for the centred rows of all layers at a time."""
_EPS = float(np.finfo(np.float64).eps)


def gram(states: NDArray[np.floating]) -> Floats:
    """Linear Gram matrix [n, n] of states [n, width], of the states' deviations from their mean over inputs.

    Neither estimator changes when a constant is added to all states; taking it off first keeps the digits.
    """
    x = states.astype(np.float64)
    mean = x.mean(axis=0)
    x -= mean
    found = x @ x.T
    # Equal inputs leave rounding errors behind, which must not pass for variation: 1e-12 of the states' size.
    if np.trace(found) <= 1e-24 * len(x) * float(mean @ mean):
        return np.zeros_like(found)
    return found


def _unit(centred: Floats, size: float) -> Floats | None:
    """``centred`` as a vector of length 1; None where it is nothing but the rounding of a matrix of norm ``size``.

    A resample may hold one input alone, many times: what is left of it after centring is rounding.
    """
    length = float(np.linalg.norm(centred))
    if length <= _EPS * len(centred) * size:
        return None
    centred /= length
    return centred.ravel()


def plain_vector(k: Floats, counts: Indices | None = None) -> Floats | None:
    """Centred Gram matrix of length 1, [n * n]; cosines of such vectors are plain CKA. None if nothing varies.

    Args:
        k: Gram matrix [n, n].
        counts: how often each input counts, [n], none of them 0; None for once each. The result is then the centred
            Gram matrix of the repeated inputs with equal entries folded into one, so that all products stay the same.
    """
    shares = np.full(len(k), 1.0 / len(k)) if counts is None else counts / counts.sum()
    rows = k @ shares
    centred = k - rows
    centred += (shares @ rows - rows)[:, None]
    root = np.sqrt(shares)
    centred *= np.multiply.outer(root, root)
    # With shares that sum to 1, no Gram matrix has a norm above its largest diagonal element.
    return _unit(centred, float(np.diagonal(k).max()))


def _u_centred(k: Floats) -> tuple[Floats, float]:
    """The U-centred matrix [n, n], and the norm of ``k`` without its diagonal."""
    n = len(k)
    if n < FEWEST:
        raise ValueError(f"the unbiased HSIC needs at least {FEWEST} inputs, not {n}")
    centred = k.copy()
    np.fill_diagonal(centred, 0.0)
    size = float(np.linalg.norm(centred))
    rows = centred.sum(axis=0) / (n - 2)
    centred -= rows
    centred += (rows.sum() / (n - 1) - rows)[:, None]
    np.fill_diagonal(centred, 0.0)
    return centred, size


def debiased_vector(k: Floats) -> Floats | None:
    """U-centred Gram matrix of length 1, [n * n]; cosines of such vectors are debiased CKA. None if nothing varies.

    Raises:
        ValueError: fewer than 4 inputs.
    """
    return _unit(*_u_centred(k))


def unbiased_hsic(k: Floats, m: Floats) -> float:
    """Unbiased HSIC of two Gram matrices [n, n] (Song et al. 2012, eq. 5).

    Raises:
        ValueError: fewer than 4 inputs.
    """
    n = len(k)
    return float(np.vdot(_u_centred(k)[0], _u_centred(m)[0])) / (n * (n - 3))


def cosines(vectors: Sequence[Floats | None]) -> Floats:
    """Products [k, k] of vectors of length 1; NaN in the rows and columns of those that are None."""
    out = np.full((len(vectors), len(vectors)), np.nan)
    known = [at for at, vector in enumerate(vectors) if vector is not None]
    if known:
        stack = np.stack([vector for vector in vectors if vector is not None])
        out[np.ix_(known, known)] = np.clip(stack @ stack.T, -1.0, 1.0)
    return out


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def cka(k: Floats, m: Floats) -> float | None:
    """Linear CKA of two Gram matrices [n, n] over the same inputs, 0 to 1; None where the states do not vary."""
    # Not Python's max, which would make 0 of NaN.
    return _number(np.maximum(0.0, cosines([plain_vector(k), plain_vector(m)])[0, 1]))


def debiased_cka(k: Floats, m: Floats) -> float | None:
    """CKA with unbiased HSIC; near 0 for independent states, and below 0 by chance; None as in ``cka``.

    Raises:
        ValueError: fewer than 4 inputs.
    """
    return _number(cosines([debiased_vector(k), debiased_vector(m)])[0, 1])


@dataclass(frozen=True)
class Draws:
    """Inputs of every resample: the same for all layers and checkpoints, so that they can be compared."""

    counts: Indices
    """How often each input was drawn with replacement, [resamples, n]: the bootstrap of the paper."""
    parts: tuple[Indices, ...]
    """Inputs of each subsample without replacement, [half of n at most]."""


def draw(n: int, resamples: int, size: int, seed: int) -> Draws:
    """Resamples of n inputs: with replacement, ``size`` of n; without, ``size`` but at most half of n.

    An input drawn twice correlates with itself, which the debiased estimator does not expect: hence the second kind. A
    subsample of all inputs would show no spread: hence the half. (By the delete-d jackknife, estimates from exactly
    half of the inputs spread like the estimate from all of them.) Below 8 inputs there are no subsamples.
    """
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(size, np.full(n, 1.0 / n), size=resamples)
    part = min(size, n // 2)
    parts = [np.sort(rng.permutation(n)[:part]) for _ in range(resamples)] if part >= FEWEST else []
    return Draws(counts.astype(np.int64), tuple(parts))


@dataclass(frozen=True)
class Estimates:
    """Similarity of one layer between every two of k checkpoints; NaN where states do not vary."""

    plain: Floats
    """Plain estimate over all inputs, [k, k]."""
    drawn: Floats
    """Plain estimate over each resample with replacement, [resamples, k, k]."""
    debiased: Floats
    """Debiased estimate over all inputs, [k, k]."""
    parts: Floats
    """Debiased estimate over each subsample without replacement, [subsamples, k, k]."""


def estimates(grams: Sequence[Floats], draws: Draws) -> Estimates:
    """All estimates of one layer between every two checkpoints.

    Args:
        grams: Gram matrix [n, n] of the layer in each checkpoint, over the same inputs.
        draws: of ``draw``.

    Raises:
        ValueError: Gram matrices of different numbers of inputs, or of fewer than 4.
    """
    if len({k.shape for k in grams}) > 1:
        raise ValueError(f"Gram matrices of different inputs: {', '.join(str(k.shape) for k in grams)}")
    size = (0, len(grams), len(grams))
    drawn, parts = [np.empty(size)], [np.empty(size)]
    for counts in draws.counts:
        met = np.flatnonzero(counts)
        at, counted = np.ix_(met, met), counts[met]
        drawn.append(cosines([plain_vector(k[at], counted) for k in grams])[None])
    for part in draws.parts:
        at = np.ix_(part, part)
        parts.append(cosines([debiased_vector(k[at]) for k in grams])[None])
    return Estimates(
        plain=np.maximum(0.0, cosines([plain_vector(k) for k in grams])),
        drawn=np.maximum(0.0, np.concatenate(drawn)),
        debiased=cosines([debiased_vector(k) for k in grams]),
        parts=np.concatenate(parts),
    )


@dataclass(frozen=True)
class LayerSimilarity:
    """Similarity of one layer's states in two checkpoints; null where states do not vary."""

    cka: float | None
    """Plain estimate over all inputs."""
    mean: float | None
    """Mean of the plain estimate over resamples with replacement, as the paper reports it."""
    std: float | None
    """Standard deviation of the same."""
    debiased: float | None
    """Debiased estimate over all inputs."""
    debiased_std: float | None
    """Standard deviation of the debiased estimate over subsamples without replacement."""


def _spread(values: Floats) -> tuple[float | None, float | None]:
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if len(known) else None
    return mean, float(known.std(ddof=1)) if len(known) >= 2 else None


def of_pair(found: Estimates, i: int, j: int) -> LayerSimilarity:
    """Both estimates of checkpoints ``i`` and ``j`` with their spread."""
    mean, std = _spread(found.drawn[:, i, j])
    _, debiased_std = _spread(found.parts[:, i, j])
    return LayerSimilarity(_number(found.plain[i, j]), mean, std, _number(found.debiased[i, j]), debiased_std)


def _block(stack: Floats, rows: slice, unbiased: bool, means: Floats, wholes: Floats) -> tuple[Floats, Floats]:
    """Centred rows of every layer's Gram matrix as vectors [layers, rows * n], and the same rows as given."""
    given = stack[:, rows].copy()
    at = np.arange(rows.start, rows.stop)
    if unbiased:
        given[:, at - rows.start, at] = 0.0
    centred = given - means[:, None, :] - means[:, rows, None] + wholes[:, None, None]
    if unbiased:
        centred[:, at - rows.start, at] = 0.0
    return centred.reshape(len(stack), -1), given.reshape(len(stack), -1)


def _means(stack: Floats, unbiased: bool) -> tuple[Floats, Floats]:
    """What centring takes off: [layers, n] by row and column, and what it gives back, [layers]."""
    n = stack.shape[1]
    sums = stack.sum(axis=1)
    if not unbiased:
        return sums / n, sums.sum(axis=1) / n**2
    sums -= np.diagonal(stack, axis1=1, axis2=2)
    return sums / (n - 2), sums.sum(axis=1) / ((n - 1) * (n - 2))


def cross(a: Floats, b: Floats, unbiased: bool = False) -> Floats:
    """CKA of every layer of one checkpoint with every layer of another, [layers of a, layers of b]; NaN as above.

    Args:
        a: Gram matrices [layers of a, n, n].
        b: Gram matrices [layers of b, n, n] of the same inputs.
        unbiased: the debiased estimator.

    Raises:
        ValueError: different numbers of inputs, or fewer than 4 for the debiased estimator.
    """
    n = a.shape[1]
    if n != b.shape[1]:
        raise ValueError(f"Gram matrices of different inputs: {a.shape[1:]} and {b.shape[1:]}")
    if unbiased and n < FEWEST:
        raise ValueError(f"the unbiased HSIC needs at least {FEWEST} inputs, not {n}")
    sides = [(stack, *_means(stack, unbiased)) for stack in (a, b)]
    products = np.zeros((len(a), len(b)))
    squares, raw = ([np.zeros(len(a)), np.zeros(len(b))] for _ in range(2))
    step = max(1, CROSS_BYTES // (8 * n * (len(a) + len(b))))
    for start in range(0, n, step):
        rows = slice(start, min(n, start + step))
        blocks = [_block(stack, rows, unbiased, means, wholes) for stack, means, wholes in sides]
        products += blocks[0][0] @ blocks[1][0].T
        for side, (centred, given) in enumerate(blocks):
            squares[side] += np.einsum("lp,lp->l", centred, centred)
            raw[side] += np.einsum("lp,lp->l", given, given)
    varies = [np.sqrt(s) > _EPS * n * np.sqrt(r) for s, r in zip(squares, raw, strict=True)]
    lengths = [np.sqrt(np.where(v, s, 1.0)) for s, v in zip(squares, varies, strict=True)]
    found = np.clip(products / np.multiply.outer(*lengths), -1.0 if unbiased else 0.0, 1.0)
    return np.where(np.logical_and.outer(*varies), found, np.nan)
