"""The compiled pass against the numpy reference, bit by bit, and both against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prismlab.merge.rounding import encode, weighted_sum
from prismlab.model.tensors import ITEM_BYTES, STORED

KINDS = ("BF16", "F16", "F32", "F64")
COUNT = 5000
"""Two whole blocks and a part of one."""


def numbers(stored: NDArray[Any], kind: str) -> NDArray[Any]:
    return (stored.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else stored


def compiled(arrays: list[NDArray[Any]], kinds: list[str], weights: list[float], kind: str) -> tuple[NDArray[Any], int]:
    pytest.importorskip("numba")
    from prismlab.merge.blend import Blend

    count = len(arrays[0])
    raw, starts = bytearray(), []
    for array in arrays:
        starts.append(len(raw))
        raw += array.tobytes() + b"\0" * (-array.nbytes % 64)
    out = np.zeros(count * ITEM_BYTES[kind], np.uint8)
    strange = Blend(starts, kinds, weights, kind)(np.frombuffer(raw, np.uint8).copy(), count, out)
    return out.view(STORED[kind]), strange


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "kinds", [["BF16", "BF16"], ["F16", "F16", "F16"], ["F32", "BF16"], ["F64", "F16", "BF16"], ["BF16"]]
)
def test_every_bit_pattern_gives_the_bits_of_the_reference(kinds: list[str], kind: str) -> None:
    # Random bits are every sort of number: NaN with any payload, infinities, subnormal numbers, both zeros.
    rng = np.random.default_rng(len(kinds) + KINDS.index(kind))
    arrays = [np.frombuffer(rng.bytes(COUNT * ITEM_BYTES[one]), STORED[one]).copy() for one in kinds]
    for array in arrays:
        array[:300] = 0
        array[300:320] = array.dtype.type(-0.0) if array.dtype.kind == "f" else 0x8000
    weights = [0.15, 0.85, -1.5][: len(kinds)]
    with np.errstate(all="ignore"):
        expected, strange = encode(
            weighted_sum([numbers(a, k) for a, k in zip(arrays, kinds, strict=True)], weights), kind
        )
    got, found = compiled(arrays, kinds, weights, kind)
    assert got.tobytes() == expected.tobytes()
    assert found == strange > 0


def near_middles(keep: int, low: int, high: int) -> NDArray[np.float64]:
    """Float64 numbers at, just above and just below the middles between numbers of ``keep`` mantissa bits."""
    rng = np.random.default_rng(keep)
    significand = rng.integers(1 << keep, 2 << keep, 400) + 0.5
    middle = np.ldexp(significand, rng.integers(low, high, 400) - keep)
    return np.concatenate([middle, np.nextafter(middle, np.inf), np.nextafter(middle, 0), -middle])


@pytest.mark.parametrize(("kind", "keep", "low", "high"), [("BF16", 7, -140, 127), ("F16", 10, -26, 16)])
def test_middles_are_rounded_as_rational_arithmetic_says(kind: str, keep: int, low: int, high: int) -> None:
    values = near_middles(keep, low, high)
    smallest = Fraction(2) ** (-133 if kind == "BF16" else -24)
    least_normal = Fraction(2) ** (-126 if kind == "BF16" else -14)
    for bits, _ in (compiled([values], ["F64"], [1.0], kind), encode(values, kind)):
        found = numbers(bits, kind).astype(np.float64)
        for value, got in zip(values, found, strict=True):
            exact = abs(Fraction(float(value)))
            size = Fraction(2) ** (int(np.floor(np.log2(abs(value)))) - keep) if exact >= least_normal else smallest
            whole, rest = divmod(exact, size)
            up = rest * 2 > size or (rest * 2 == size and whole % 2 == 1)
            assert abs(Fraction(float(got))) == (whole + up) * size
            assert np.signbit(got) == np.signbit(value)


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
    st.lists(st.floats(-10, 10), min_size=5, max_size=5),
    st.sampled_from(KINDS),
)
def test_any_sum_is_the_same_by_both(values: list[float], weights: list[float], kind: str) -> None:
    arrays = [np.array([value], np.float32) for value in values]
    weights = weights[: len(arrays)]
    expected, strange = encode(weighted_sum(arrays, weights), kind)
    got, found = compiled(list(arrays), ["F32"] * len(arrays), weights, kind)
    assert (got.tobytes(), found) == (expected.tobytes(), strange)
    # The sum itself: Python's float is IEEE double, and this is its order.
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total += weight * value
    if kind == "F64" and not np.isnan(total):
        assert got[0] == total


def test_negative_zero_stays_negative() -> None:
    arrays = [np.full(3, -0.0, np.float32)] * 2
    for bits, _ in (compiled(arrays, ["F32"] * 2, [0.5, 0.5], "F32"), encode(weighted_sum(arrays, [0.5, 0.5]), "F32")):
        assert np.signbit(bits).all()
