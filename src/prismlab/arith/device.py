"""The passes of ``kernels`` by torch, for checkpoints compared on a GPU; imported only when a device is asked for.

The arithmetic is that of the other passes, float64 on the exact values and integers for distances in steps, so the
counts are the same. Arrays come from the host a chunk at a time: large ones (``CHUNK``), so that transfer is the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from prismlab.arith.sums import Overlap, Sums, Updates

CHUNK = 1 << 24
"""Elements at a time: 64 MB of bfloat16 pairs, and about 1 GB of float64 on the device."""


def load(stored: Any, device: str) -> torch.Tensor:
    """Stored elements (see ``kernels.Stored``) as a tensor on ``device``."""
    if stored.dtype == np.uint16:
        return torch.from_numpy(stored.view(np.int16)).to(device).view(torch.bfloat16)
    return torch.from_numpy(stored).to(device)


def _line(tensor: torch.Tensor) -> torch.Tensor:
    """Place of each number in the row of all numbers of its format, int64; both zeros are at 0."""
    whole = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]).long()
    lowest = -(1 << (8 * tensor.element_size() - 1))
    return torch.where(whole < 0, lowest - whole, whole)


def _count(mask: torch.Tensor) -> torch.Tensor:
    return mask.sum(dtype=torch.int64)


def _steps(old: torch.Tensor, new: torch.Tensor) -> list[torch.Tensor]:
    """Counts of the distances 0, 1, 2, 3 to 4; of float64 the places are compared on each side of zero apart."""
    a, b = _line(old), _line(new)
    # Places of float64 span 2^64: their difference may wrap around, which only numbers on both sides of zero can do.
    far = ((a < 0) != (b < 0)) & ((a.abs() > 4) | (b.abs() > 4))
    apart = torch.where(far, torch.full_like(a, 5), (b - a).abs())
    return [*(_count(apart == n) for n in range(3)), _count((apart == 3) | (apart == 4))]


def divergence(old: Any, new: Any, thresholds: Sequence[float], device: str) -> Sums:
    """``kernels.divergence`` of two arrays [n] on ``device`` (``cuda``, ``cuda:1``, ``cpu``)."""
    first, second = load(old, device), load(new, device)
    sound = torch.isfinite(first) & torch.isfinite(second)
    kept = int(_count(sound))
    if kept < len(first):
        first, second = first[sound], second[sound]
    x, y = first.double(), second.double()
    distance, size = (y - x).abs(), x.abs()
    squares = torch.stack([(distance * distance).sum(), (size * size).sum()])
    zeros = x == 0
    tallies = [_count(distance > t * size) for t in thresholds]
    tallies += [_count(x == y), _count(zeros), _count(zeros & (y != 0)), _count(x.sign() * y.sign() < 0)]
    same_type = first.dtype == second.dtype
    if same_type:
        tallies += _steps(first, second)
    counts = torch.stack(tallies).tolist()
    difference2, old2 = squares.tolist()
    k = len(thresholds)
    out = Sums(tuple(thresholds), kept, len(sound) - kept, difference2, old2, counts[:k], counts[k])
    out.zeros_old, out.zeros_changed, out.sign_flips = counts[k + 1 : k + 4]
    if same_type:
        near = counts[k + 4 :]
        out.ulp, out.ulp_elements = [*near, kept - sum(near)], kept
    return out


def updates(base: Any, others: Sequence[Any], device: str) -> Updates:
    """``kernels.updates`` on ``device``."""
    start, rows = load(base, device), [load(other, device) for other in others]
    sound = torch.isfinite(start)
    for row in rows:
        sound &= torch.isfinite(row)
    kept = int(_count(sound))
    if kept < len(start):
        start, rows = start[sound], [row[sound] for row in rows]
    x = start.double()
    moved = torch.stack([*(row.double() - x for row in rows), x])
    return Updates((moved @ moved.T).cpu().numpy(), kept, len(sound) - kept)


def overlap(start: Any, before: Any, now: Any, threshold: float, device: str) -> tuple[Overlap, Overlap]:
    """``kernels.overlap`` on ``device``."""
    x = load(start, device).double()
    sets: list[tuple[torch.Tensor, torch.Tensor]] = []
    for side in (before, now):
        y = load(side, device).double()
        sound = torch.isfinite(x) & torch.isfinite(y)
        sets.append((sound & ((y - x).abs() > threshold * x.abs()), sound & (y != x)))
    found = torch.stack(
        [_count(f(a, b)) for a, b in zip(*sets, strict=True) for f in (torch.logical_and, torch.logical_or)]
    )
    both, either, both_moved, either_moved = found.tolist()
    return Overlap(both, either), Overlap(both_moved, either_moved)
