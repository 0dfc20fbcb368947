"""The passes by torch give the counts of the others; here on the CPU, and on a GPU where there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prismlab.arith import kernels
from prismlab.errors import SpecError

DEVICES = [
    "torch:cpu",
    pytest.param("torch:cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
LEVELS = (0.001, 0.01, 0.1, 0.7)


def any_bits(seed: int, kind: str, n: int = 60_000) -> np.ndarray:
    """Random bits, so every kind of number; half of them small steps from the other half."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(0, np.iinfo(kind).max, n, dtype=kind, endpoint=True)
    whole[:6] = [0, np.iinfo(kind).max // 2 + 1, 1, np.iinfo(kind).max // 2 + 2, 3, np.iinfo(kind).max // 2 + 4]
    return whole


@pytest.mark.parametrize("kernel", DEVICES)
@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32", "fp64"])
def test_divergence(kind: str, kernel: str) -> None:
    unsigned = {"bf16": "u2", "fp16": "u2", "fp32": "u4", "fp64": "u8"}[kind]
    as_type = {"bf16": "u2", "fp16": "f2", "fp32": "f4", "fp64": "f8"}[kind]
    old = any_bits(0, unsigned)
    new = old + np.random.default_rng(1).integers(0, 7, len(old)).astype(unsigned) - np.array(3, unsigned)
    new[::5] = any_bits(2, unsigned)[::5]
    new[:6] = old[[1, 0, 3, 2, 5, 4]]
    a, b = old.view(as_type), new.view(as_type)
    wanted, found = kernels.divergence(a, b, LEVELS), kernels.divergence(a, b, LEVELS, kernel)
    for name in ("elements", "nonfinite", "changed", "equal", "zeros_old", "zeros_changed", "sign_flips", "ulp"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert found.nonfinite > 0
    assert found.ulp_elements == wanted.ulp_elements == found.elements
    assert found.old2 == pytest.approx(wanted.old2, rel=1e-12)
    assert found.difference2 == pytest.approx(wanted.difference2, rel=1e-12)


@pytest.mark.parametrize("kernel", DEVICES)
def test_updates_and_overlap(kernel: str) -> None:
    rng = np.random.default_rng(0)
    base, a, b = (rng.standard_normal(5000).astype(np.float32) for _ in range(3))
    a[:3000], b[1], a[2] = base[:3000], np.nan, np.inf
    wanted, found = kernels.updates(base, [a, b]), kernels.updates(base, [a, b], kernel)
    assert (found.elements, found.nonfinite) == (wanted.elements, wanted.nonfinite) == (4998, 2)
    np.testing.assert_allclose(found.matrix[:2, :2], wanted.matrix[:2, :2], rtol=1e-12)
    assert found.base2 == pytest.approx(wanted.base2, rel=1e-12)
    assert kernels.overlap(base, a, b, 0.01, kernel) == kernels.overlap(base, a, b, 0.01)


def test_different_types() -> None:
    old, new = np.array([1.0, -2.0, 0.0], np.float32), np.array([0x3F80, 0x4000, 0], np.uint16)
    found = kernels.divergence(old, new, LEVELS, "torch:cpu")
    assert (found.equal, found.sign_flips, found.ulp_elements) == (2, 1, 0)


def test_choice() -> None:
    assert kernels.choose(1000) == "numpy"
    assert kernels.choose(10**9) == ("numba" if kernels.has_numba() else "numpy")
    if not torch.cuda.is_available():
        with pytest.raises(SpecError, match="finds no GPU"):
            kernels.choose(1, "cuda")
    assert kernels.chunk_size("torch:cuda") > kernels.chunk_size("numba")
