"""Compiled pass over two bfloat16 tensors, in 16-bit lanes; imported only where numba is installed and work is large.

A relative change of bfloat16 numbers can be counted exactly in small integers. Write old = s 2^e with an 8-bit
significand s. If new is of the same sign and its exponent differs by at most one, then |new - old| is a whole number D
of half steps 2^(e-1), D < 2^11; else the change is above one half. |new - old| > t |old| is then D > floor(2 t s), and
floor(2 t s) = (s m) >> k for a multiplier m that ``bounds`` finds and proves by trying every s. So thirty-two elements
fit a 512-bit register all the way, no count is ever rounded, and the compiler vectorises the loop on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

SLOTS = 6
"""Thresholds of one pass: the number that the reference study uses."""
BLOCK = 4096
"""Elements at a time: 16 KB of both sides stay in the first-level cache, and 16-bit counters cannot overflow."""
ADDED = 256
"""Elements summed in float32 before the sum is widened: at most 64 additions a lane, so about 1e-7 relative."""
LEAST = 2.0**-90
"""Smallest sum of squares that float32 gives to many digits; below it a block is summed in float64."""
INFINITE = 0x7F80
"""Magnitude bits from which on a bfloat16 is infinite or NaN."""


def bounds(thresholds: Sequence[float]) -> np.ndarray | None:
    """Multipliers and shifts [2 x SLOTS] (uint16) for at most ``SLOTS`` thresholds; None where there are none.

    They reproduce, for every significand s from 0 to 255, which D satisfy ``D / 2 > t * s`` as float64 computes it: the
    definition that the counts follow, rounding of t included. Scaling by a power of two changes neither side.
    """
    out = np.zeros(2 * SLOTS, np.uint16)
    if len(thresholds) > SLOTS:
        raise ValueError(f"{len(thresholds)} thresholds, at most {SLOTS} a pass")
    values = np.arange(256)
    halves = np.arange(512) * 0.5
    for slot, t in enumerate(thresholds):
        if not 0.0 < t < 0.5:
            return None
        wanted = (halves[None, :] <= t * values[:, None].astype(np.float64)).sum(axis=1) - 1
        found = _multiplier(t, values, wanted)
        if found is None:
            return None
        out[slot], out[SLOTS + slot] = found
    return out


def _multiplier(t: float, values: np.ndarray, wanted: np.ndarray) -> tuple[int, int] | None:
    for shift in range(15, -1, -1):
        for m in (int(np.ceil(2 * t * 2**shift)), int(np.floor(2 * t * 2**shift))):
            if m * 255 < 65536 and ((values * m) >> shift == wanted).all():
                return m, shift
    return None


# numba widens every 16-bit operation to 64 bits, and the compiler does not always see that it may narrow it again: so
# the operations are given to it as what they are.
_16 = ir.IntType(16)
_PLAIN = {"add": "add", "sub": "sub", "mul": "mul", "shl": "shl", "shr": "lshr", "ashr": "ashr"}
_LOGIC = {"both": "and_", "any_of": "or_", "xor": "xor"}
_PICKED = {"umax": (">", False), "umin": ("<", False), "smax": (">", True), "smin": ("<", True)}
_TESTS = {"above": ">", "equal": "==", "at_most": "<=", "differ": "!="}


def _compare(builder: Any, symbol: str, signed: bool, args: Any) -> Any:
    return (builder.icmp_signed if signed else builder.icmp_unsigned)(symbol, *args)


def _operation(name: str) -> Any:
    """A function of two uint16, as one instruction (a test gives 0 or 1)."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if name in _PICKED:
            symbol, signed = _PICKED[name]
            return builder.select(_compare(builder, symbol, signed, args), *args)
        if name in _TESTS:
            return builder.zext(_compare(builder, _TESTS[name], False, args), _16)
        return getattr(builder, (_PLAIN | _LOGIC)[name])(*args)

    def typed(typingctx: Any, a: Any, b: Any) -> Any:
        return types.uint16(types.uint16, types.uint16), generate

    return intrinsic(typed)


add, sub, mul, shl, shr, ashr = (_operation(name) for name in _PLAIN)
both, any_of, xor = (_operation(name) for name in _LOGIC)
umax, umin, smax, smin = (_operation(name) for name in _PICKED)
above, equal, at_most, differ = (_operation(name) for name in _TESTS)


def _choose(typingctx: Any, condition: Any, yes: Any, no: Any) -> Any:
    """``yes`` where ``condition`` is not 0, else ``no``; all uint16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.icmp_unsigned("!=", args[0], ir.Constant(_16, 0)), args[1], args[2])

    return types.uint16(types.uint16, types.uint16, types.uint16), generate


def _wide(typingctx: Any, bits: Any) -> Any:
    """The float32 of bfloat16 bits: they are its upper half."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = builder.shl(builder.zext(args[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(whole, ir.FloatType())

    return types.float32(types.uint16), generate


choose: Any = intrinsic(_choose)
wide: Any = intrinsic(_wide)

_0, _1, _2, _3, _4 = (np.uint16(n) for n in range(5))
_SIGN, _MANTISSA, _HIDDEN, _FAR = np.uint16(15), np.uint16(7), np.uint16(128), np.uint16(0xFFFF)
_MAGNITUDE = np.uint16(0x7FFF)
_ANY_ORDER = {"reassoc", "contract", "nsz"}
"""Only the order of sums may be changed by the compiler: NaN and infinity keep their meaning."""


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _count(old: Any, new: Any, bound: Any, out: Any) -> Any:  # pragma: no cover - runs compiled
    """Add the counts of one block to ``out`` [12]; return the largest magnitude bits.

    ``out``: changed [6]; distance 0, 1, 2, at most 4 steps; sign flips; old zeros.
    """
    m0, m1, m2, m3, m4, m5, k0, k1, k2, k3, k4, k5 = bound
    c0 = c1 = c2 = c3 = c4 = c5 = _0
    none = one = two = four = flips = zeros = largest = _0
    for i in range(len(old)):
        x, y = old[i], new[i]
        size_x, size_y = both(x, _MAGNITUDE), both(y, _MAGNITUDE)
        largest = umax(largest, umax(size_x, size_y))
        # Sign and magnitude to a line of integers on which neighbours differ by 1 and both zeros are 0.
        sign_x, sign_y = ashr(x, _SIGN), ashr(y, _SIGN)
        at_x, at_y = sub(xor(size_x, sign_x), sign_x), sub(xor(size_y, sign_y), sign_y)
        steps = sub(smax(at_x, at_y), smin(at_x, at_y))
        same = equal(steps, _0)
        none, one, two = add(none, same), add(one, equal(steps, _1)), add(two, equal(steps, _2))
        four = add(four, at_most(steps, _4))
        zero = equal(size_x, _0)
        zeros = add(zeros, zero)
        opposite = shr(xor(x, y), _SIGN)
        flips = add(flips, both(opposite, both(xor(zero, _1), differ(size_y, _0))))
        # A subnormal has the exponent of the smallest normal number and no hidden bit.
        e_x, e_y = umax(shr(size_x, _MANTISSA), _1), umax(shr(size_y, _MANTISSA), _1)
        s_x = add(sub(size_x, shl(e_x, _MANTISSA)), _HIDDEN)
        s_y = add(sub(size_y, shl(e_y, _MANTISSA)), _HIDDEN)
        up = add(sub(e_y, e_x), _1)
        aligned, doubled = shl(s_y, both(up, _3)), add(s_x, s_x)
        apart = sub(umax(aligned, doubled), umin(aligned, doubled))
        far = any_of(above(up, _2), opposite)
        apart = choose(same, _0, choose(far, _FAR, apart))
        c0 = add(c0, above(apart, shr(mul(s_x, m0), k0)))
        c1 = add(c1, above(apart, shr(mul(s_x, m1), k1)))
        c2 = add(c2, above(apart, shr(mul(s_x, m2), k2)))
        c3 = add(c3, above(apart, shr(mul(s_x, m3), k3)))
        c4 = add(c4, above(apart, shr(mul(s_x, m4), k4)))
        c5 = add(c5, above(apart, shr(mul(s_x, m5), k5)))
    for k, n in enumerate((c0, c1, c2, c3, c4, c5, none, one, two, four, flips, zeros)):
        out[k] += n
    return largest


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=_ANY_ORDER)
def _squares(old: Any, new: Any) -> Any:  # pragma: no cover - runs compiled
    """Sums of (new - old)^2 and old^2 in float32."""
    difference2, old2 = np.float32(0.0), np.float32(0.0)
    for i in range(len(old)):
        x = wide(old[i])
        d = wide(new[i]) - x
        difference2 += d * d
        old2 += x * x
    return difference2, old2


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=_ANY_ORDER)
def _squares64(old: Any, new: Any) -> Any:  # pragma: no cover - runs compiled
    """The same in float64, for numbers whose squares float32 cannot hold."""
    difference2 = old2 = 0.0
    for i in range(len(old)):
        x = np.float64(wide(old[i]))
        d = np.float64(wide(new[i])) - x
        difference2 += d * d
        old2 += x * x
    return difference2, old2


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _held(total: Any, trivial: Any) -> Any:  # pragma: no cover - runs compiled
    """Whether float32 sums of one block can be trusted: in range, or of nothing but zeros."""
    return trivial or (total >= LEAST and total < np.inf)


@numba.njit("Tuple((float64[::1], int64[::1], int64))(uint16[::1], uint16[::1], uint16[::1])", cache=True, nogil=True)
def divergence(old: Any, new: Any, bound: Any) -> Any:  # pragma: no cover - runs compiled
    """(sums [2]: difference and old squared; counts [12] of ``_count``; largest magnitude bits) of bfloat16 bits [n].

    Where the largest bits reach ``INFINITE``, the sums and counts mean nothing: take what is not finite out first.
    """
    sums, counts = np.zeros(2), np.zeros(12, np.int64)
    largest = 0
    for begin in range(0, len(old), BLOCK):
        x, y = old[begin : begin + BLOCK], new[begin : begin + BLOCK]
        same, zeros = counts[6], counts[11]
        largest = max(largest, np.int64(_count(x, y, bound, counts)))
        difference2 = old2 = 0.0
        for start in range(0, len(x), ADDED):
            a, b = _squares(x[start : start + ADDED], y[start : start + ADDED])
            difference2 += a
            old2 += b
        if not (_held(difference2, counts[6] - same == len(x)) and _held(old2, counts[11] - zeros == len(x))):
            difference2, old2 = _squares64(x, y)
        sums[0] += difference2
        sums[1] += old2
    return sums, counts, largest
