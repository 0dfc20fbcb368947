"""One pass over equally shaped arrays that gathers everything the weight analyses need.

Arrays are as they are stored: float16, float32, float64, and of bfloat16, which numpy lacks, the bits as uint16. All
implementations have the same results: numpy, numba (the extra ``kernels``), which does everything while a block is in
the cache, and torch for other devices. Comparisons are those of float64 on the exact values, so that counts agree to
the last element; sums agree to rounding. Which one ran is recorded, since nothing else would tell.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.arith import bounds
from prismlab.arith.sums import Floats, Overlap, Sums, Updates
from prismlab.errors import MissingExtra, SpecError

Stored = NDArray[Any]
"""Elements as they lie in the file: uint16 (the bits of bfloat16), float16, float32 or float64."""

COMPILED_FROM = 20_000_000
"""Elements from which the compiled pass pays for being loaded (half a second where numba has to be there, against 10 ns
an element)."""


def has_numba() -> bool:
    """Whether the compiled passes can be had."""
    return importlib.util.find_spec("numba") is not None


def choose(elements: int, device: str = "cpu") -> str:
    """Which pass to take: ``numpy``, ``numba`` for work that is worth loading it, or ``torch:`` and another device.

    Args:
        elements: to compare.
        device: ``cpu``, or a device of torch such as ``cuda``.

    Raises:
        MissingExtra: another device is asked for and torch is not installed.
        SpecError: torch does not find the device.
    """
    if device == "cpu":
        return "numba" if elements >= COMPILED_FROM and has_numba() else "numpy"
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra("torch", "train", f"--device {device}")
    import torch

    if device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        raise SpecError(f"device {device!r}: torch finds no GPU here; take 'cpu'")
    return f"torch:{device}"


def chunk_size(kernel: str) -> int:
    """Elements that ``kernel`` takes best at a time."""
    if kernel.startswith("torch:"):
        from prismlab.arith.device import CHUNK

        return CHUNK
    return 1 << 19  # 1 MB of bfloat16 a checkpoint: it stays in the cache, and calls from Python do not show


@functools.cache
def _compiled() -> Any:
    """The compiled passes; compiled once a machine, since numba keeps them on disk."""
    from prismlab.arith import compiled

    return compiled


@functools.cache
def _lanes() -> Any:
    """The pass over bfloat16 as machine code, which does without numba once it is made."""
    from prismlab.arith import bounds, machine

    return machine.load(bounds.DIVERGENCE)


@functools.cache
def _device() -> Any:
    from prismlab.arith import device

    return device


@functools.cache
def _bounds(levels: tuple[float, ...]) -> tuple[list[bool], list[Any]] | None:
    """For the pass in 16-bit lanes: at which thresholds every change counts, and bounds for as many others as one pass
    takes, an array each; None if a threshold has none."""
    every = [bounds.any_change(t) for t in levels]
    others = [t for t, all_count in zip(levels, every, strict=True) if not all_count]
    groups = [others[k : k + bounds.SLOTS] for k in range(0, len(others), bounds.SLOTS)] or [[]]
    found = [bounds.bounds(group) for group in groups]
    return None if any(one is None for one in found) else (every, found)


def widen(stored: Stored) -> NDArray[np.floating[Any]]:
    """The numbers of stored elements: float32 (exact), of float64 float64."""
    if stored.dtype == np.uint16:
        bits = stored.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    return stored if stored.dtype == np.float64 else stored.astype(np.float32, copy=False)


def finite(stored: Stored) -> NDArray[np.bool_]:
    """Which elements are neither NaN nor infinite."""
    if stored.dtype == np.uint16:
        return (stored & np.uint16(0x7FFF)) < np.uint16(0x7F80)
    return np.isfinite(stored)


def _bits(stored: Stored) -> tuple[Stored, Any]:
    """The elements' bits as unsigned integers, and the sign bit."""
    kind = np.dtype(f"u{stored.itemsize}")
    return stored.view(kind), kind.type(1 << (8 * stored.itemsize - 1))


def _dot(a: Floats, b: Floats) -> float:
    """Sum of products by numpy's pairwise sum: its error and its order do not depend on how many threads BLAS takes."""
    return float(np.multiply(a, b).sum())


def _steps_numpy(old: Stored, new: Stored) -> list[int]:
    """Counts by ``ULP_CLASSES`` of two arrays of one type."""
    x, sign = _bits(old)
    y, _ = _bits(new)
    size_x, size_y = x & ~sign, y & ~sign
    same_side = ((x ^ y) & sign) == 0
    apart = np.where(same_side, np.maximum(size_x, size_y) - np.minimum(size_x, size_y), size_x + size_y)
    exact = [int(np.count_nonzero(apart == n)) for n in range(3)]
    four = int(np.count_nonzero((apart == 3) | (apart == 4)))
    return [*exact, four, old.size - sum(exact) - four]


def _numpy_pass(old: Stored, new: Stored, levels: tuple[float, ...]) -> Sums:
    x, y = widen(old).astype(np.float64), widen(new).astype(np.float64)
    size, zeros = np.abs(x), x == 0
    with np.errstate(over="ignore"):  # beyond float64: the l2 says so
        difference = y - x
        squares = _dot(difference, difference), _dot(x, x)
        flips = int(np.count_nonzero(np.sign(x) * np.sign(y) < 0))
        np.abs(difference, out=difference)
        changed = [int(np.count_nonzero(difference > t * size)) for t in levels]
    woken = int(np.count_nonzero(zeros & (y != 0)))
    out = Sums(levels, old.size, 0, squares[0], squares[1], changed, int(np.count_nonzero(x == y)))
    out.zeros_old, out.zeros_changed, out.sign_flips = int(np.count_nonzero(zeros)), woken, flips
    return out


def _lane_pass(
    old: Stored, new: Stored, levels: tuple[float, ...], every: list[bool], groups: list[Any]
) -> Sums | None:
    """Of bfloat16 bits; None if something is not finite."""
    run = _lanes()
    old, new = np.ascontiguousarray(old), np.ascontiguousarray(new)
    room = np.empty((2, bounds.BLOCK), np.uint16)
    found: list[int] = []
    squares, counts = np.zeros(2), np.zeros(bounds.COUNTS, np.int64)
    for bound in groups:
        squares[:], counts[:] = 0, 0
        first, second, *rest = (array.ctypes.data for array in (old, new, bound, squares, counts, room))
        if run(first, second, old.size, *rest) >= bounds.INFINITE:
            return None
        found += counts[: bounds.SLOTS].tolist()
    none, one, two, four, flips, zeros = counts[bounds.SLOTS :].tolist()
    others = iter(found)
    changed = [old.size - none if all_count else next(others) for all_count in every]
    out = Sums(levels, old.size, 0, float(squares[0]), float(squares[1]), changed, none)
    out.ulp = [none, one, two, four - none - one - two, old.size - four]
    # Equal to an old zero is the same as zero; what is left of the old zeros has woken.
    both_zero = int(np.count_nonzero(((old | new) & np.uint16(0x7FFF)) == 0)) if zeros else 0
    out.zeros_old, out.zeros_changed, out.sign_flips, out.ulp_elements = zeros, zeros - both_zero, flips, old.size
    return out


def _compiled_pass(old: Stored, new: Stored, levels: tuple[float, ...]) -> Sums:
    squares, counts = _compiled().divergence(widen(old), widen(new), np.array(levels, np.float64))
    zeros, woken, flips = counts[len(levels) :].tolist()
    out = Sums(levels, old.size, 0, float(squares[0]), float(squares[1]), counts[: len(levels)].tolist())
    out.zeros_old, out.zeros_changed, out.sign_flips = zeros, woken, flips
    return out


def _with_steps(out: Sums, old: Stored, new: Stored, kernel: str) -> Sums:
    """``out`` with what follows from the elements' bits, where both sides have one type."""
    if old.dtype == new.dtype:
        if kernel == "numba":
            (x, sign), (y, _) = _bits(old), _bits(new)
            out.ulp = _compiled().steps(x, y, sign).tolist()
        else:
            out.ulp = _steps_numpy(old, new)
        out.ulp_elements, out.equal = old.size, out.ulp[0]
    elif kernel == "numba":
        out.equal = int(np.count_nonzero(widen(old) == widen(new)))
    return out


def divergence(old: Stored, new: Stored, thresholds: Sequence[float], kernel: str = "numpy") -> Sums:
    """Everything that the divergence of two arrays needs, in one pass.

    Args:
        old: [n], as stored.
        new: [n], as stored; its type may differ, then the numbers are compared and no distance in steps is known.
        thresholds: relative changes t; an element counts as changed if |new - old| > t |old|, so an old zero counts
            as changed if the new value is not zero.
        kernel: ``numpy``, ``numba`` or ``torch:`` and a device.

    Elements that are NaN or infinite on either side are left out of everything and counted.
    """
    if old.shape != new.shape:
        raise ValueError(f"shapes differ: {old.shape} and {new.shape}")
    levels = tuple(float(t) for t in thresholds)
    if old.size == 0:
        return Sums(levels)
    if kernel.startswith("torch:"):
        return _device().divergence(old, new, levels, kernel.removeprefix("torch:"))
    if kernel == "numba" and old.dtype == new.dtype == np.uint16:
        known = _bounds(levels)
        found = None if known is None else _lane_pass(old, new, levels, *known)
        if found is not None:
            return found
    sound = finite(old) & finite(new)
    left_out = int(old.size - np.count_nonzero(sound))
    if left_out:
        rest = divergence(old[sound], new[sound], levels, kernel)
        rest.nonfinite = left_out
        return rest
    out = _compiled_pass(old, new, levels) if kernel == "numba" else _numpy_pass(old, new, levels)
    return _with_steps(out, old, new, kernel)


def updates(base: Stored, others: Sequence[Stored], kernel: str = "numpy") -> Updates:
    """Sums of products of the updates ``other - base``.

    Args:
        base: [n], as stored.
        others: k arrays [n], as stored.
        kernel: ``numpy``, ``numba`` or ``torch:`` and a device.
    """
    if any(other.shape != base.shape for other in others):
        raise ValueError(f"shapes differ: {[array.shape for array in (base, *others)]}")
    if base.size == 0:
        return Updates.zero(len(others))
    if kernel.startswith("torch:"):
        return _device().updates(base, others, kernel.removeprefix("torch:"))
    sound = finite(base)
    for other in others:
        sound &= finite(other)
    kept = int(np.count_nonzero(sound))
    if kept < base.size:
        rest = updates(base[sound], [other[sound] for other in others], kernel)
        rest.nonfinite = base.size - kept
        return rest
    start = widen(base)
    wide = [widen(other) for other in others]
    if kernel == "numba":
        # One type for all rows of the matrix; float64 holds every number of the others.
        half = _compiled().products(start, np.stack([row.astype(np.result_type(*wide), copy=False) for row in wide]))
    else:
        from_start = start.astype(np.float64)
        rows = [row.astype(np.float64) - from_start for row in wide] + [from_start]
        half = np.zeros((len(rows), len(rows)))
        for a, left in enumerate(rows):
            half[a, : a + 1] = [_dot(left, right) for right in rows[: a + 1]]
    return Updates(half + np.tril(half, -1).T, base.size)


def overlap(
    start: Stored, before: Stored, now: Stored, threshold: float, kernel: str = "numpy"
) -> tuple[Overlap, Overlap]:
    """Overlap of the active sets of two checkpoints: elements beyond ``threshold`` from ``start``, and moved at all.

    What is not finite at the start or in a checkpoint is in no set of that checkpoint.
    """
    if kernel.startswith("torch:"):
        return _device().overlap(start, before, now, threshold, kernel.removeprefix("torch:"))
    with np.errstate(invalid="ignore", over="ignore"):  # widening a signalling NaN warns; infinity minus infinity, too
        x, y, z = widen(start), widen(before), widen(now)
        if kernel == "numba":
            both, either, both_moved, either_moved = _compiled().overlap(x, y, z, float(threshold))
            return Overlap(int(both), int(either)), Overlap(int(both_moved), int(either_moved))
        x = x.astype(np.float64)
        sets: list[list[NDArray[np.bool_]]] = []
        for side in (y.astype(np.float64), z.astype(np.float64)):
            sound = np.isfinite(x) & np.isfinite(side)
            sets.append([sound & (np.abs(side - x) > threshold * np.abs(x)), sound & (side != x)])
    counted = [Overlap(int(np.count_nonzero(a & b)), int(np.count_nonzero(a | b))) for a, b in zip(*sets, strict=True)]
    return counted[0], counted[1]
