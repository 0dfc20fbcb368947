"""Both passes against plain float64 and integer references, on every type, on random and on hostile numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prismlab.arith import bounds, kernels
from prismlab.arith.sums import ULP_CLASSES, Overlap, Sums, Updates

numba = pytest.importorskip("numba")

PAPER = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
KERNELS = ("numpy", "numba")
Array = NDArray[Any]


def stored(tensor: torch.Tensor) -> Array:
    """A tensor's elements as they lie in a file."""
    return tensor.view(torch.int16).numpy().view(np.uint16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def bits_of(kind: str) -> int:
    return {"bf16": 16, "fp16": 16, "fp32": 32, "fp64": 64}[kind]


def from_bits(values: Array, kind: str) -> torch.Tensor:
    signed = values.astype(f"u{bits_of(kind) // 8}").view(f"i{bits_of(kind) // 8}")
    return torch.from_numpy(signed.copy()).view(KINDS[kind])


def line(tensor: torch.Tensor) -> list[int]:
    """Where each number stands in the row of all numbers of its format; both zeros stand at 0."""
    width = tensor.element_size() * 8
    whole = tensor.view({16: torch.int16, 32: torch.int32, 64: torch.int64}[width]).tolist()
    return [bits if bits >= 0 else -(bits + 2 ** (width - 1)) for bits in whole]


def reference(old: torch.Tensor, new: torch.Tensor, thresholds: Sequence[float]) -> Sums:
    """By the definitions, an element at a time where it is not obvious; sums by ``math.fsum``."""
    keep = torch.isfinite(old) & torch.isfinite(new)
    old, new = old[keep], new[keep]
    x, y = old.double().numpy(), new.double().numpy()
    out = Sums(tuple(thresholds), len(x), int((~keep).sum()))
    with np.errstate(over="ignore"):
        distance = np.abs(y - x)
        out.changed = [int((distance > t * np.abs(x)).sum()) for t in thresholds]
        out.difference2 = total(distance * distance)
        out.old2 = total(x * x)
    out.equal = int((x == y).sum())
    out.zeros_old, out.zeros_changed = int((x == 0).sum()), int(((x == 0) & (y != 0)).sum())
    out.sign_flips = sum(1 for a, b in zip(x.tolist(), y.tolist(), strict=True) if (a < 0 < b) or (b < 0 < a))
    if old.dtype == new.dtype:
        apart = [abs(a - b) for a, b in zip(line(old), line(new), strict=True)]
        out.ulp = [apart.count(0), apart.count(1), apart.count(2), apart.count(3) + apart.count(4), 0]
        out.ulp[4] = len(apart) - sum(out.ulp)
        out.ulp_elements = len(apart)
    return out


def total(values: Array) -> float:
    try:
        return math.fsum(values.tolist())
    except OverflowError:
        return math.inf


def agree(found: Sums, wanted: Sums, rel: float = 1e-6) -> None:
    assert found.difference2 == pytest.approx(wanted.difference2, rel=rel, abs=0)
    assert found.old2 == pytest.approx(wanted.old2, rel=rel, abs=0)
    for name in ("thresholds", "elements", "nonfinite", "changed", "equal", "zeros_old", "zeros_changed"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert (found.sign_flips, found.ulp, found.ulp_elements) == (wanted.sign_flips, wanted.ulp, wanted.ulp_elements)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-4, 0.01, 1.0])
def test_random_weights(kind: str, scale: float, kernel: str) -> None:
    generator = torch.Generator().manual_seed(3)
    old = torch.randn(10_001, generator=generator, dtype=torch.float64) * 0.02
    new = old * (1 + scale * torch.randn(10_001, generator=generator, dtype=torch.float64))
    new[::3] = old[::3]
    old[:7], new[5:9] = 0.0, 0.0
    new[3] = -0.0
    a, b = old.to(KINDS[kind]), new.to(KINDS[kind])
    agree(kernels.divergence(stored(a), stored(b), PAPER, kernel), reference(a, b, PAPER))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_bits(kind: str, data: st.DataObject) -> None:
    """Subnormal numbers, both zeros, the largest ones, NaN and infinity, near one another and far apart."""
    top = 2 ** bits_of(kind) - 1
    edges = [0, 1, 2, top // 2, top // 2 + 1, top // 2 + 2, top]
    element = st.one_of(st.integers(0, top), st.sampled_from(edges))
    old = data.draw(st.lists(element, min_size=1, max_size=40))
    near = st.integers(-300, 300)
    new = [data.draw(st.one_of(element, near.map(lambda d, a=a: (a + d) & top))) for a in old]
    a, b = (from_bits(np.array(values, np.uint64), kind) for values in (old, new))
    wanted = reference(a, b, PAPER)
    for kernel in KERNELS:
        agree(kernels.divergence(stored(a), stored(b), PAPER, kernel), wanted)


def test_every_pair_of_near_bfloat16() -> None:
    """All 65,536 numbers against the 600 neighbours on both sides of each: every count is exact."""
    whole = np.arange(65536, dtype=np.int64)
    for first in range(-300, 301, 60):
        shifts = np.arange(first, min(first + 60, 301))
        old = np.repeat(whole, len(shifts)).astype(np.uint16)
        new = ((whole[:, None] + shifts[None, :]) & 0xFFFF).astype(np.uint16).reshape(-1)
        keep = kernels.finite(old) & kernels.finite(new)
        old, new = old[keep], new[keep]
        x, y = kernels.widen(old).astype(np.float64), kernels.widen(new).astype(np.float64)
        wanted = [int(np.count_nonzero(np.abs(y - x) > t * np.abs(x))) for t in PAPER]
        assert kernels.divergence(old, new, PAPER, "numba").changed == wanted


@pytest.mark.parametrize("t", [*PAPER, 0.003, 0.0078125, 0.00390625, 0.125, 0.25, 1e-6])
def test_bounds_of_thresholds(t: float) -> None:
    """The integer test is float64's for every significand and distance, ties and all, and else there is none."""
    found = bounds.bounds([t])
    assert found is not None
    m = int(found[0])
    for s in range(256):
        for apart in range(512):
            assert (apart > (s * m) >> 16) == (apart / 2 > t * float(s))
    assert bounds.any_change(t) == all((s * m) >> 16 == 0 for s in range(256))


def test_the_thresholds_of_the_reference_study_take_the_fast_pass() -> None:
    assert [bounds.any_change(t) for t in PAPER] == [True] + [False] * 5
    assert bounds.bounds(PAPER[1:]) is not None
    assert not bounds.any_change(0.5)
    assert bounds.bounds([0.5]) is None  # by the pass in float64
    with pytest.raises(ValueError, match="at most 5"):
        bounds.bounds([0.01] * 6)


def normal_bits(n: int, seed: int) -> Array:
    """Bits of normal bfloat16 numbers of any size and sign."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0x0080, 0x7F80, n) | (rng.integers(0, 2, n) << 15)).astype(np.uint16)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 4095, 4096, 4097, 20_000])
@pytest.mark.parametrize("odd", [None, 0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x807F, 0x7F80, 0xFFFF])
def test_blocks_of_normal_numbers_and_blocks_with_others(n: int, odd: int | None) -> None:
    """A number that is not normal sends its block another way, wherever it stands; the lanes behind the last element
    of a tensor count nowhere."""
    old, new = normal_bits(n, n), normal_bits(n, n + 1)
    near = np.random.default_rng(n).random(n) < 0.7
    new[near] = np.clip(old[near].astype(np.int64) + np.random.default_rng(n).integers(-6, 7, near.sum()), 0, 65535)
    if odd is not None:
        for at, side in ((0, old), (n // 2, new), (n - 1, old), (n // 3, old), (n // 3, new)):
            side[at] = odd
    found = kernels.divergence(old, new, PAPER, "numba")
    agree(found, kernels.divergence(old, new, PAPER, "numpy"))
    agree(found, reference(from_bits(old, "bf16"), from_bits(new, "bf16"), PAPER))


def test_every_pair_of_binades_signs_and_mantissas_of_note() -> None:
    """Normal numbers alone, each against each: three neighbouring binades, the ends of the range, both signs."""
    exponents, mantissas = (1, 2, 3, 126, 127, 128, 253, 254), (0, 1, 2, 3, 4, 62, 63, 64, 65, 125, 126, 127)
    bits = [sign << 15 | e << 7 | m for sign in (0, 1) for e in exponents for m in mantissas]
    pairs = np.array([(a, b) for a in bits for b in bits], np.uint16)
    old, new = (np.ascontiguousarray(pairs[:, k]) for k in (0, 1))
    x, y = kernels.widen(old).astype(np.float64), kernels.widen(new).astype(np.float64)
    for thresholds in (PAPER, (0.002, 0.003, 0.25, 0.3, 0.49, 0.4999)):
        found = kernels.divergence(old, new, thresholds, "numba")
        assert found.changed == [int(np.count_nonzero(np.abs(y - x) > t * np.abs(x))) for t in thresholds]
        for k in range(0, len(old), 997):  # each pair also by itself
            one = kernels.divergence(old[k : k + 1], new[k : k + 1], thresholds, "numba")
            assert one.changed == [int(abs(y[k] - x[k]) > t * abs(x[k])) for t in thresholds]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("thresholds", [(), (0.01,), (0.7,), (0.9, 0.001), tuple(k / 1000 for k in range(1, 16))])
def test_any_number_of_thresholds(thresholds: tuple[float, ...], kernel: str) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(5000, generator=generator).bfloat16()
    new = (old.double() * (1 + 0.01 * torch.randn(5000, generator=generator, dtype=torch.float64))).bfloat16()
    agree(kernels.divergence(stored(old), stored(new), thresholds, kernel), reference(old, new, thresholds))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("exponent", [-133, -126, -75, -60, 0, 50, 70, 126])
def test_squares_beyond_float32(exponent: int, kernel: str) -> None:
    """Sums keep their digits where a square leaves the range of float32, in a block of its own or among others."""
    generator = torch.Generator().manual_seed(1)
    old = torch.randn(20_000, generator=generator, dtype=torch.float64)
    old[:5000] *= 2.0**exponent
    new = old.clone()
    new[:5000] *= 1 + 0.1 * torch.randn(5000, generator=generator, dtype=torch.float64)
    for a, b in ((old, new), (old[:5000], new[:5000])):
        x, y = a.bfloat16(), b.bfloat16()
        agree(kernels.divergence(stored(x), stored(y), PAPER, kernel), reference(x, y, PAPER))


@pytest.mark.parametrize("kernel", KERNELS)
def test_different_types_are_compared_as_numbers(kernel: str) -> None:
    old = torch.tensor([1.0, 2.0, 0.0, -3.0, float("nan"), 1e-45]).float()
    new = torch.tensor([1.0, 2.5, 1.0, 3.0, 1.0, 0.0]).bfloat16()
    found = kernels.divergence(stored(old), stored(new), (0.1,), kernel)
    agree(found, reference(old, new, (0.1,)))
    assert (found.equal, found.nonfinite, found.sign_flips, found.ulp_elements) == (1, 1, 1, 0)


def test_zeros_and_signs_by_hand() -> None:
    old = torch.tensor([0.0, -0.0, 0.0, 1.0, -1.0, 2.0]).bfloat16()
    new = torch.tensor([0.0, 0.0, -1e-30, -1.0, -1.0, 2.015625]).bfloat16()
    for kernel in KERNELS:
        found = kernels.divergence(stored(old), stored(new), (0.005, 0.01), kernel)
        assert (found.equal, found.zeros_old, found.zeros_changed, found.sign_flips) == (3, 3, 1, 1)
        assert found.changed == [3, 2]
        assert dict(zip(ULP_CLASSES, found.ulp, strict=True)) == {"0": 3, "1": 1, "2": 0, "3-4": 0, ">4": 2}


def test_read_only_and_strided_arrays() -> None:
    old = np.arange(1000, dtype=np.uint16)
    frozen = np.frombuffer(old.tobytes(), np.uint16)
    both = kernels.divergence(frozen, old, PAPER, "numba"), kernels.divergence(old[::2], old[1::2], PAPER, "numba")
    assert both[0].equal == 1000
    assert both[1].elements == 500


def test_sums_of_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    old, new = (rng.integers(0x3C00, 0x3D00, 9000).astype(np.uint16) for _ in range(2))
    whole = kernels.divergence(old, new, PAPER)
    parts = Sums(PAPER)
    for start in range(0, 9000, 700):
        parts.add(kernels.divergence(old[start : start + 700], new[start : start + 700], PAPER, "numba"))
    agree(parts, whole)
    with pytest.raises(ValueError, match="thresholds differ"):
        parts.add(Sums((0.5,)))
    with pytest.raises(ValueError, match="shapes differ"):
        kernels.divergence(old, new[:5], PAPER)
    assert kernels.divergence(old[:0], new[:0], PAPER).l2 is None


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kinds", [("bf16", "bf16", "bf16"), ("fp32", "bf16", "fp64"), ("fp16", "fp16", "fp16")])
def test_updates(kinds: tuple[str, str, str], kernel: str) -> None:
    generator = torch.Generator().manual_seed(2)
    base, a, b = (torch.randn(3001, generator=generator).to(KINDS[kind]) for kind in kinds)
    a[5], b[7], base[9] = float("nan"), float("inf"), float("-inf")
    found = kernels.updates(stored(base), [stored(a), stored(b)], kernel)
    keep = torch.isfinite(base.double()) & torch.isfinite(a.double()) & torch.isfinite(b.double())
    x = base[keep].double()
    to_a, to_b = a[keep].double() - x, b[keep].double() - x
    assert (found.elements, found.nonfinite) == (2998, 3)
    assert found.cosine(0, 1) == pytest.approx(float(to_a @ to_b / to_a.norm() / to_b.norm()), rel=1e-10)
    assert found.cosine(1, 0) == found.cosine(0, 1)
    assert found.cosine(0, 0) == 1.0
    assert found.length(1) == pytest.approx(float(to_b.norm() / x.norm()), rel=1e-12)
    assert found.base2 == pytest.approx(float(x @ x), rel=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_update_of_nothing_has_no_direction(kernel: str) -> None:
    base = stored(torch.randn(100).bfloat16())
    found = kernels.updates(base, [base.copy(), base + np.uint16(1)], kernel)
    assert found.cosine(0, 1) is None
    assert found.cosine(0, 0) is None
    assert found.length(0) == 0.0
    subnormal = np.ones(8, np.uint16)
    tiny = kernels.updates(np.zeros(8, np.uint16), [subnormal, subnormal], kernel)
    assert tiny.cosine(0, 1) == pytest.approx(1.0)
    assert tiny.length(0) is None
    assert kernels.updates(base[:0], [base[:0]], kernel).elements == 0


def test_updates_add_up() -> None:
    rng = np.random.default_rng(4)
    base, a, b, c = (rng.standard_normal(5000).astype(np.float32) for _ in range(4))
    whole = kernels.updates(base, [a, b, c])
    parts = Updates.zero(3)
    for start in range(0, 5000, 900):
        parts.add(
            kernels.updates(
                *(x[start : start + 900] for x in (base,)), [x[start : start + 900] for x in (a, b, c)], "numba"
            )
        )
    np.testing.assert_allclose(parts.matrix[:3, :3], whole.matrix[:3, :3], rtol=1e-12)
    d = np.stack([a, b, c]).astype(np.float64) - base
    np.testing.assert_allclose(whole.matrix[:3, :3], d @ d.T, rtol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_overlap(kernel: str) -> None:
    start = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, float("nan"), 1.0])
    before = torch.tensor([1.0, 1.1, 1.1, 1.001, 1.0, 1.0, 1.0])
    now = torch.tensor([1.0, 1.1, 1.0, 1.001, 1.0, 2.0, float("inf")])
    far, moved = kernels.overlap(stored(start), stored(before), stored(now), 0.01, kernel)
    assert (far.both, far.either) == (2, 3)
    assert (moved.both, moved.either) == (3, 4)
    assert Overlap().jaccard is None
    assert far.jaccard == pytest.approx(2 / 3)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("signalling", [0x7FA0_0000, 0xFF80_0001])
def test_signalling_nan_raises_no_warning(signalling: int, kernel: str) -> None:
    start = np.array([0x3F80_0000, signalling, 0x3F80_0000], np.uint32).view(np.float32)
    now = np.array([0x4000_0000, 0x4000_0000, signalling], np.uint32).view(np.float32)
    far, moved = kernels.overlap(start, now, now, 0.01, kernel)
    assert (far.both, far.either, moved.both, moved.either) == (1, 1, 1, 1)
