"""Weighted sums and their rounding with numpy: the reference, and what runs where numba is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def round_bf16(values: Floats) -> NDArray[np.uint16]:
    """bfloat16 bits of float64 values, rounded once, to nearest and ties to even, as IEEE 754 has it.

    Going by way of float32 would round twice: a value just above the middle of two bfloat16 numbers can become the
    middle. Here float32 is cut off toward zero and its last bit is set if anything was lost ("round to odd"), which
    keeps every later comparison with a middle right (Boldo and Melquiond 2008). NaN becomes the one quiet NaN 0x7FC0.
    """
    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype(np.float32)
    bits = narrow.view(np.uint32)
    wide = narrow.astype(np.float64)
    away = np.abs(wide) > np.abs(values)
    # One unit less in the integer is the next number toward zero, also from infinity to the largest finite one.
    bits = np.where(away, bits - np.uint32(1), bits)
    bits |= ((wide != values) & ~np.isnan(values)).astype(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def weighted_sum(arrays: Sequence[NDArray[np.floating[Any]]], weights: Sequence[float]) -> Floats:
    """``w[0] a[0] + w[1] a[1] + ...`` in float64, in this order, each product rounded; NaN is the one quiet NaN."""
    with np.errstate(all="ignore"):  # the sum of infinities is a result here, and counted
        total = weights[0] * arrays[0].astype(np.float64)
        for array, weight in zip(arrays[1:], weights[1:], strict=True):
            total += weight * array.astype(np.float64)
    total[np.isnan(total)] = np.nan
    return total


def encode(values: Floats, dtype: str) -> tuple[NDArray[Any], int]:
    """``values`` in the format's type ``dtype``, rounded once, and how many of the results are NaN or infinite.

    Args:
        values: float64.
        dtype: ``BF16``, ``F16``, ``F32`` or ``F64``.
    """
    if dtype == "BF16":
        bits = round_bf16(values).astype("<u2")
        return bits, int(((bits & 0x7F80) == 0x7F80).sum())
    with np.errstate(over="ignore", under="ignore"):
        out = values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype])
    return out, int(out.size - np.isfinite(out).sum())
