"""The compiled pass of a merge: decode, weigh, add and round while a block is in the cache. Needs numba, an extra.

Bit for bit what ``rounding`` computes: float64 sums in the given order, no product fused with a sum, rounded once. The
rounding works on the bits of the float64 number: half of the last kept place less one, plus the last kept bit, is
added, which is ties to even; a block with a result outside the normal range of the target takes a slower way.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from prismlab.merge.blend import BLOCK

_SIZES = (2, 2, 4, 8)

# Unsigned constants throughout: numba turns a sum of a signed and an unsigned 64-bit integer into a float.
_ONE = np.uint64(1)
_MAGNITUDE = np.uint64(0x7FFF_FFFF_FFFF_FFFF)
_INFINITY = np.uint64(0x7FF0_0000_0000_0000)
_HIDDEN = np.uint64(1 << 52)
_MANTISSA = np.uint64((1 << 52) - 1)
_U52 = np.uint64(52)
_U54 = np.uint64(54)
_U63 = np.uint64(63)
_U15 = np.uint64(15)
_SCALE = np.float32(2.0**112)
"""From a float16's bits put into a float32, whose exponent has another bias, to its value."""


@numba.njit(inline="always")
def _nearest(magnitude: Any, keep: Any, bias: Any, infinite: Any) -> Any:  # pragma: no cover - runs compiled
    """Bits without sign of the number with ``keep`` mantissa bits nearest to a float64 of these bits, ties to even."""
    if magnitude > _INFINITY:
        return infinite | (_ONE << (keep - _ONE))
    exponent = magnitude >> _U52
    drop = _U52 - keep
    if exponent > bias:
        rounded = (magnitude + (_ONE << (drop - _ONE)) - _ONE + ((magnitude >> drop) & _ONE)) >> drop
        return min(rounded - (bias << keep), infinite)
    significand = magnitude & _MANTISSA
    if exponent > 0:
        significand |= _HIDDEN
    drop += bias + _ONE - max(exponent, _ONE)
    if drop > _U54:  # less than half of the smallest number
        return np.uint64(0)
    return (significand + (_ONE << (drop - _ONE)) - _ONE + ((significand >> drop) & _ONE)) >> drop


@numba.njit(inline="always")
def _narrow(total: Any, n: Any, out: Any, keep: Any, bias: Any, infinite: Any) -> Any:  # pragma: no cover - compiled
    """Round a block to 16 bits; the number of results that are not finite."""
    bits = total.view(np.uint64)
    drop = _U52 - keep
    half = (_ONE << (drop - _ONE)) - _ONE
    least = (bias + _ONE) << _U52
    shifted = bias << keep
    odd = np.uint64(0)
    for i in range(n):
        magnitude = bits[i] & _MAGNITUDE
        rounded = ((magnitude + half + ((magnitude >> drop) & _ONE)) >> drop) - shifted
        zero = np.uint64(magnitude == 0)
        odd |= np.uint64((magnitude < least) | (rounded >= infinite)) & (zero ^ _ONE)
        out[i] = np.uint16(((bits[i] >> _U63) << _U15) | (rounded * (zero ^ _ONE)))
    if odd == 0:
        return 0
    strange = 0
    for i in range(n):
        found = _nearest(bits[i] & _MAGNITUDE, keep, bias, infinite)
        strange += found >= infinite
        sign = np.uint64(0) if found > infinite else (bits[i] >> _U63) << _U15
        out[i] = np.uint16(sign | found)
    return strange


@numba.njit(inline="always")
def _widen(stored: Any, kind: Any, n: Any, bits: Any, values: Any) -> None:  # pragma: no cover - runs compiled
    """``n`` elements of up to 32 bits as float32 in ``values``, whose memory ``bits`` shares."""
    if kind == 0:
        upper = stored.view(np.uint16)
        for i in range(n):
            bits[i] = np.uint32(upper[i]) << np.uint32(16)
    elif kind == 1:
        halves = stored.view(np.uint16)
        for i in range(n):
            bits[i] = (np.uint32(halves[i]) & np.uint32(0x7FFF)) << np.uint32(13)
        for i in range(n):
            values[i] *= _SCALE
        for i in range(n):
            huge = np.uint32((halves[i] & 0x7C00) == 0x7C00) * np.uint32(0x7F80_0000)
            bits[i] |= huge | ((np.uint32(halves[i]) & np.uint32(0x8000)) << np.uint32(16))
    else:
        words = stored.view(np.uint32)
        for i in range(n):
            bits[i] = words[i]


@numba.njit(inline="always")
def _accumulate(total: Any, values: Any, n: Any, weight: Any, first: Any) -> None:  # pragma: no cover - runs compiled
    # The first product is not added to zero: that would lose the sign of a negative zero.
    if first:
        for i in range(n):
            total[i] = weight * np.float64(values[i])
    else:
        for i in range(n):
            total[i] += weight * np.float64(values[i])


@numba.njit(inline="always")
def _copy(total: Any, n: Any, out: Any) -> Any:  # pragma: no cover - runs compiled
    """Round a block to the float type of ``out``; the number of results that are not finite."""
    strange = 0
    for i in range(n):
        out[i] = total[i] if total[i] == total[i] else np.nan
        strange += not np.isfinite(out[i])
    return strange


@numba.njit(inline="always")
def _store(total: Any, n: Any, out: Any, kind: Any) -> Any:  # pragma: no cover - runs compiled
    if kind == 0:
        return _narrow(total, n, out.view(np.uint16), np.uint64(7), np.uint64(896), np.uint64(0x7F80))
    if kind == 1:
        return _narrow(total, n, out.view(np.uint16), np.uint64(10), np.uint64(1008), np.uint64(0x7C00))
    if kind == 2:
        return _copy(total, n, out.view(np.float32))
    return _copy(total, n, out.view(np.float64))


@numba.njit(nogil=True, error_model="numpy")
def blend(
    raw: Any, starts: Any, kinds: Any, weights: Any, count: Any, out: Any, kind: Any, total: Any, bits: Any
) -> Any:  # pragma: no cover - runs compiled
    """Weighted sum of ``count`` elements of k tensors, rounded once; returns how many results are not finite.

    Args:
        raw: their stored bytes [b] (uint8).
        starts: where each begins in ``raw``, multiples of 8 [k] (int64).
        kinds: type of each, a value of ``KINDS`` [k] (int64).
        weights: [k] (float64).
        count: elements of each.
        out: room for the result's bytes (uint8).
        kind: type of the result, a value of ``KINDS``.
        total: [BLOCK] (float64), for nothing but this.
        bits: [BLOCK] (uint32), likewise.
    """
    values = bits.view(np.float32)
    strange = 0
    for begin in range(0, count, BLOCK):
        n = min(BLOCK, count - begin)
        for j in range(len(starts)):
            size = _SIZES[kinds[j]]
            stored = raw[starts[j] + size * begin : starts[j] + size * (begin + n)]
            if kinds[j] == 3:
                _accumulate(total, stored.view(np.float64), n, weights[j], j == 0)
            else:
                _widen(stored, kinds[j], n, bits, values)
                _accumulate(total, values, n, weights[j], j == 0)
        size = _SIZES[kind]
        strange += _store(total, n, out[size * begin : size * (begin + n)], kind)
    return strange


def compiled_blend() -> Any:
    """``blend`` for ``arith.machine``: addresses of the arrays, each of no known length with its length behind it."""
    byte, whole, real = types.CPointer(types.uint8), types.int64, types.CPointer(types.float64)
    wholes = types.CPointer(whole)
    tables = (wholes, wholes, real, whole)
    kind = whole(byte, whole, *tables, whole, byte, whole, whole, real, types.CPointer(types.uint32))

    def entry(
        raw: Any,
        size: Any,
        starts: Any,
        kinds: Any,
        weights: Any,
        k: Any,
        count: Any,
        out: Any,
        room: Any,
        kind: Any,
        total: Any,
        bits: Any,
    ) -> Any:  # pragma: no cover - runs compiled
        a, b, c = numba.carray(starts, k), numba.carray(kinds, k), numba.carray(weights, k)
        held = numba.carray(total, BLOCK), numba.carray(bits, BLOCK)
        return blend(numba.carray(raw, size), a, b, c, count, numba.carray(out, room), kind, held[0], held[1])

    return numba.njit(kind, error_model="numpy")(entry)
