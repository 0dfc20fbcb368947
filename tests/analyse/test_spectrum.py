"""Singular values of updates against numpy's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from prismlab.analyse import spectrum
from prismlab.analyse.spectrum import HELD, TOP, Matrix
from prismlab.model.tensors import read_safetensors

RNG = np.random.default_rng(0)


def matrix(update: NDArray[np.float64], folder: Path, before: int = 0) -> Matrix:
    """An update of a random matrix that begins ``before`` elements into its tensor."""
    folder.mkdir(exist_ok=True)
    old = np.random.default_rng(5).normal(size=update.shape)
    flat = {"old": old, "new": old + update}
    file = folder / "a.safetensors"
    save_file({name: np.concatenate([np.full(before, np.nan), x.ravel()]) for name, x in flat.items()}, file)
    views, _ = read_safetensors(file)
    return Matrix((views["old"], views["new"]), before, *update.shape)


def orthogonal(n: int, k: int) -> NDArray[np.float64]:
    return np.linalg.qr(RNG.normal(size=(n, k)))[0]


UPDATES = {
    # name: (update, relative error of the largest value, of the others)
    "noise": (RNG.normal(size=(400, 300)), 5e-3, 2e-2),
    "tall noise": (RNG.normal(size=(3000, 70)), 5e-3, 2e-2),
    "sparse": (RNG.normal(size=(500, 400)) * (RNG.random((500, 400)) < 0.02), 5e-3, 2e-2),
    "decaying": ((orthogonal(300, 200) * 0.8 ** np.arange(200)) @ orthogonal(200, 200).T, 1e-9, 1e-6),
    "slowly decaying": ((orthogonal(300, 200) / (1 + np.arange(200.0))) @ orthogonal(200, 200).T, 1e-6, 1e-3),
    "equal values": (orthogonal(60, 40), 1e-9, 1e-9),
    "narrow": (RNG.normal(size=(500, 6)), 1e-12, 1e-12),
    "row": (RNG.normal(size=(1, 90)), 1e-12, 1e-12),
    "column": (RNG.normal(size=(90, 1)), 1e-12, 1e-12),
    "one number": (np.array([[3.0]]), 1e-12, 1e-12),
}


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("name", UPDATES)
def test_values_are_those_of_numpy(name: str, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update, first, rest = UPDATES[name]
    if not held:
        monkeypatch.setattr(spectrum, "HELD", 0)
        monkeypatch.setattr(spectrum, "BLOCK", 1000)
    found = spectrum.spectrum(matrix(update, tmp_path, before=3), seed=1)
    exact = np.linalg.svd(update, compute_uv=False)
    k = min(TOP, *update.shape)
    assert len(found.singular) == k
    np.testing.assert_allclose(found.singular[0], exact[0], rtol=first)
    np.testing.assert_allclose(found.singular, exact[:k], rtol=rest)
    # From below, but for rounding.
    assert (np.array(found.singular) <= exact[:k] * (1 + 1e-9)).all()
    assert found.frobenius == pytest.approx(np.linalg.norm(update), rel=1e-9)
    assert found.stable_rank == pytest.approx((np.linalg.norm(update) / exact[0]) ** 2, rel=2.1 * first)


def test_low_rank_is_exact_after_one_iteration(tmp_path: Path) -> None:
    update = RNG.normal(size=(200, 3)) @ RNG.normal(size=(3, 150))
    found = spectrum.spectrum(matrix(update, tmp_path), seed=0)
    exact = np.linalg.svd(update, compute_uv=False)
    np.testing.assert_allclose(found.singular[:3], exact[:3], rtol=1e-9)
    np.testing.assert_allclose(found.singular[3:], 0, atol=1e-9 * exact[0])
    assert (found.iterations, found.settled) == (1, True)


def test_stable_rank_of_what_is_known(tmp_path: Path) -> None:
    assert spectrum.spectrum(matrix(np.eye(40), tmp_path / "a"), 0).stable_rank == pytest.approx(40)
    one = np.outer(RNG.normal(size=30), RNG.normal(size=20))
    assert spectrum.spectrum(matrix(one, tmp_path / "b"), 0).stable_rank == pytest.approx(1)


def test_an_update_of_nothing_has_no_spectrum(tmp_path: Path) -> None:
    found = spectrum.spectrum(matrix(np.zeros((5, 4)), tmp_path), 0)
    assert (found.stable_rank, found.singular, found.frobenius) == (None, (), 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float, tmp_path: Path) -> None:
    update = np.ones((5, 4))
    update[2, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        spectrum.spectrum(matrix(update, tmp_path), 0)


def test_the_seed_decides(tmp_path: Path) -> None:
    it = matrix(RNG.normal(size=(100, 90)), tmp_path)
    a, b, c = (spectrum.spectrum(it, seed).singular for seed in (1, 1, 2))
    assert a == b != c
    np.testing.assert_allclose(a, c, rtol=3e-2)


def test_large_updates_are_not_held(tmp_path: Path) -> None:
    it = matrix(np.ones((4, 4)), tmp_path)
    assert spectrum._Update(it)._held is not None
    big = Matrix(it.views, 0, HELD // 4 + 1, 4)
    assert spectrum._Update(big)._held is None
