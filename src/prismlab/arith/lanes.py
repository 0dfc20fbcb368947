"""Compiled pass over two bfloat16 tensors, in 16-bit lanes; imported where it has to be compiled (see ``machine``).

A relative change of bfloat16 numbers can be counted exactly in small integers. Write old = s 2^e with an 8-bit
significand s. If new is of the same sign and its exponent differs by at most one, then |new - old| is a whole number D
of half steps 2^(e-1), D < 2^11; else the change is above one half. |new - old| > t |old| is then D > floor(2 t s), and
floor(2 t s) = (s m) >> 16 for a multiplier m that ``bounds`` finds and proves by trying every s. So thirty-two elements
fit a 512-bit register all the way, and no count is ever rounded.

Two ways lead to D. Where a block holds normal numbers alone, as nearly all do, let q be the bits of new less those of
the beginning of old's binade: new in half steps is then 256 plus the largest of q, 2 q and 4 q - 256, a line through
three binades that bends upwards where one ends. Zeros and subnormal numbers, whose binades have other widths, take the
longer way.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from prismlab.arith.bounds import BLOCK, COUNTS, FOUR, INFINITE, NONE, SLOTS, ZEROS
from prismlab.arith.vectors import (
    WIDTH,
    above,
    add,
    add_held,
    all_lanes,
    any_of,
    ashr,
    at_most,
    both,
    choose,
    equal,
    high,
    largest,
    load,
    negative_than,
    shl,
    shr,
    smax,
    smin,
    splat,
    sub,
    sub_held,
    umax,
    umin,
    xor,
)

ADDED = 256
"""Elements summed in float32 before the sum is widened: at most 64 additions a lane, so about 1e-7 relative."""
LEAST = 2.0**-90
"""Smallest sum of squares that float32 gives to many digits; below it a block is summed in float64."""
WARY = 3
"""Blocks that go the longer way at once after one that had to: numbers that are not normal come in crowds."""


def _wide(typingctx: Any, bits: Any) -> Any:
    """The float32 of bfloat16 bits: they are its upper half."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = builder.shl(builder.zext(args[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(whole, ir.FloatType())

    return types.float32(types.uint16), generate


wide: Any = intrinsic(_wide)
_PADDING = np.uint16(0x3F80)
_ANY_ORDER = {"reassoc", "contract", "nsz"}
"""Only the order of sums may be changed by the compiler: NaN and infinity keep their meaning."""


@numba.njit(inline="always")
def _lines(x: Any, y: Any, smallest: Any, magnitude: Any, sign: Any) -> Any:  # pragma: no cover - runs compiled
    """(how far a number of two is from normal, steps from x to y if both are normal) of bits in lanes."""
    size_x, size_y = both(x, magnitude), both(y, magnitude)
    # Zeros and subnormals run below zero, that is, above everything.
    strange = umax(sub(size_x, smallest), sub(size_y, smallest))
    # With the sign of x taken from both, numbers stand in their order; one of the other side is far below.
    return strange, sub_held(xor(y, both(x, sign)), size_x)


@numba.njit(nogil=True, error_model="numpy")
def _count_normal(old: Any, new: Any, bound: Any, out: Any) -> Any:  # pragma: no cover - runs compiled
    """Add the counts of one block to ``out``; whether it could be done: False, and nothing added, unless all is normal.

    Args:
        old: [n] (uint16), n a multiple of ``WIDTH``.
        new: [n].
        bound: see ``bounds.bounds``.
        out: [COUNTS].
    """
    m0, m1, m2, m3, m4 = splat(bound[0]), splat(bound[1]), splat(bound[2]), splat(bound[3]), splat(bound[4])
    zero, first, second, fourth = all_lanes(0), all_lanes(1), all_lanes(2), all_lanes(4)
    sign, magnitude, mantissa = all_lanes(0x8000), all_lanes(0x7FFF), all_lanes(127)
    hidden, binade, strange = all_lanes(128), all_lanes(256), all_lanes(0)
    c0 = c1 = c2 = c3 = c4 = none = one = two = four = flips = 0
    for i in range(0, len(old), WIDTH):
        x, y = load(old, i), load(new, i)
        odd, steps = _lines(x, y, hidden, magnitude, sign)
        strange = umax(strange, odd)
        low = both(x, mantissa)
        q = add_held(steps, low)
        doubled = add_held(q, q)
        there = smax(smax(q, doubled), sub_held(add_held(doubled, doubled), binade))
        apart = sub_held(there, add(low, low))
        apart, steps = smax(apart, sub(zero, apart)), smax(steps, sub(zero, steps))
        none, one, two = none + equal(steps, zero), one + equal(steps, first), two + equal(steps, second)
        four, flips = four + at_most(steps, fourth), flips + negative_than(xor(x, y), zero)
        s = any_of(low, hidden)
        c0, c1 = c0 + above(apart, high(s, m0)), c1 + above(apart, high(s, m1))
        c2, c3 = c2 + above(apart, high(s, m2)), c3 + above(apart, high(s, m3))
        c4 += above(apart, high(s, m4))
    if largest(strange) >= INFINITE - 128:
        return False
    for k, n in enumerate((c0, c1, c2, c3, c4, none, one, two, four, flips)):
        out[k] += n
    return True


@numba.njit(nogil=True, error_model="numpy")
def _count_any(old: Any, new: Any, bound: Any, out: Any) -> Any:  # pragma: no cover - runs compiled
    """The same of any finite numbers; returns the largest magnitude bits."""
    m0, m1, m2, m3, m4 = splat(bound[0]), splat(bound[1]), splat(bound[2]), splat(bound[3]), splat(bound[4])
    zero, first, second, third, fourth = all_lanes(0), all_lanes(1), all_lanes(2), all_lanes(3), all_lanes(4)
    magnitude, hidden, far = all_lanes(0x7FFF), all_lanes(128), all_lanes(0xFFFF)
    seven, fifteen, top = all_lanes(7), all_lanes(15), all_lanes(0)
    c0 = c1 = c2 = c3 = c4 = none = one = two = four = flips = zeros = 0
    for i in range(0, len(old), WIDTH):
        x, y = load(old, i), load(new, i)
        size_x, size_y = both(x, magnitude), both(y, magnitude)
        top = umax(top, umax(size_x, size_y))
        # Sign and magnitude to a line of integers on which neighbours differ by 1 and both zeros are 0.
        sign_x, sign_y = ashr(x, fifteen), ashr(y, fifteen)
        at_x, at_y = sub(xor(size_x, sign_x), sign_x), sub(xor(size_y, sign_y), sign_y)
        steps = sub(smax(at_x, at_y), smin(at_x, at_y))
        none, one, two = none + equal(steps, zero), one + equal(steps, first), two + equal(steps, second)
        four, zeros = four + at_most(steps, fourth), zeros + equal(size_x, zero)
        opposite = ashr(xor(x, y), fifteen)
        flips += above(choose(umin(size_x, size_y), zero, opposite, zero), zero)
        # A subnormal has the exponent of the smallest normal number and no hidden bit.
        e_x, e_y = umax(shr(size_x, seven), first), umax(shr(size_y, seven), first)
        s, s_y = add(sub(size_x, shl(e_x, seven)), hidden), add(sub(size_y, shl(e_y, seven)), hidden)
        up = add(sub(e_y, e_x), first)
        aligned, doubled = shl(s_y, both(up, third)), add(s, s)
        apart = any_of(sub(umax(aligned, doubled), umin(aligned, doubled)), opposite)
        apart = choose(steps, zero, choose(up, second, far, apart), zero)
        c0, c1 = c0 + above(apart, high(s, m0)), c1 + above(apart, high(s, m1))
        c2, c3 = c2 + above(apart, high(s, m2)), c3 + above(apart, high(s, m3))
        c4 += above(apart, high(s, m4))
    for k, n in enumerate((c0, c1, c2, c3, c4, none, one, two, four, flips, zeros)):
        out[k] += n
    return largest(top)


@numba.njit(nogil=True, error_model="numpy")
def _padded(bits: Any, room: Any) -> Any:  # pragma: no cover - runs compiled
    """``bits`` with ones behind them up to a multiple of ``WIDTH``, in ``room``."""
    whole = len(bits) + -len(bits) % WIDTH
    for i in range(whole):  # an assignment of slices would look for overlaps, allocate and raise
        room[i] = bits[i] if i < len(bits) else _PADDING
    return room[:whole]


@numba.njit(nogil=True, error_model="numpy", fastmath=_ANY_ORDER)
def _squares(old: Any, new: Any) -> Any:  # pragma: no cover - runs compiled
    """Sums of (new - old)^2 and old^2 in float32."""
    difference2, old2 = np.float32(0.0), np.float32(0.0)
    for i in range(len(old)):
        x = wide(old[i])
        d = wide(new[i]) - x
        difference2 += d * d
        old2 += x * x
    return difference2, old2


@numba.njit(nogil=True, error_model="numpy", fastmath=_ANY_ORDER)
def _squares64(old: Any, new: Any) -> Any:  # pragma: no cover - runs compiled
    """The same in float64, for numbers whose squares float32 cannot hold."""
    difference2 = old2 = 0.0
    for i in range(len(old)):
        x = np.float64(wide(old[i]))
        d = np.float64(wide(new[i])) - x
        difference2 += d * d
        old2 += x * x
    return difference2, old2


@numba.njit(nogil=True, error_model="numpy")
def _held(total: Any, trivial: Any) -> Any:  # pragma: no cover - runs compiled
    """Whether float32 sums of one block can be trusted: in range, or of nothing but zeros."""
    return trivial or (total >= LEAST and total < np.inf)


@numba.njit(nogil=True, error_model="numpy")
def divergence(
    old: Any, new: Any, bound: Any, sums: Any, counts: Any, room: Any
) -> Any:  # pragma: no cover - runs compiled
    """Measure bfloat16 bits; returns the largest magnitude bits of blocks with numbers that are not normal.

    Where these reach ``INFINITE``, the sums and counts mean nothing: take what is not finite out first.

    Args:
        old: [n] (uint16).
        new: [n].
        bound: see ``bounds.bounds``.
        sums: [2] (float64), to which the squares of the difference and of old are added.
        counts: [COUNTS] (int64), likewise: of thresholds, then as ``bounds.NONE`` and so on have it.
        room: [2, BLOCK] (uint16), for nothing but this.
    """
    top = wary = 0
    for begin in range(0, len(old), BLOCK):
        x, y = old[begin : begin + BLOCK], new[begin : begin + BLOCK]
        a, b = x, y
        if len(x) % WIDTH:
            a, b = _padded(x, room[0]), _padded(y, room[1])
        same, zeros = counts[NONE], counts[ZEROS]
        if wary > 0 or not _count_normal(a, b, bound, counts):
            top = max(top, _count_any(a, b, bound, counts))
            wary = wary - 1 if wary > 0 else WARY
        counts[NONE] -= len(a) - len(x)
        counts[FOUR] -= len(a) - len(x)
        difference2 = old2 = 0.0
        for start in range(0, len(x), ADDED):
            p, q = _squares(x[start : start + ADDED], y[start : start + ADDED])
            difference2 += p
            old2 += q
        if not (_held(difference2, counts[NONE] - same == len(x)) and _held(old2, counts[ZEROS] - zeros == len(x))):
            difference2, old2 = _squares64(x, y)
        sums[0] += difference2
        sums[1] += old2
    return top


def compiled_divergence() -> Any:
    """``divergence`` for ``machine``: addresses of the arrays, n behind the first two."""
    bits, whole = types.CPointer(types.uint16), types.int64
    kind = whole(bits, bits, whole, bits, types.CPointer(types.float64), types.CPointer(whole), bits)

    def entry(old: Any, new: Any, n: Any, bound: Any, sums: Any, counts: Any, room: Any) -> Any:  # pragma: no cover
        arrays = numba.carray(old, n), numba.carray(new, n), numba.carray(bound, SLOTS)
        results = numba.carray(sums, 2), numba.carray(counts, COUNTS), numba.carray(room, (2, BLOCK))
        return divergence(arrays[0], arrays[1], arrays[2], results[0], results[1], results[2])

    return numba.njit(kind, error_model="numpy")(entry)
