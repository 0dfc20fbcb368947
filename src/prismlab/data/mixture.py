"""Token shares of sources as a schedule of rows: which source each row of a corpus comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from prismlab.errors import DataError

_NEAR, _NEAR_SHARE = 1e-9, 1e-12
"""Rounding of sums up to millions of rows, in rows or tokens: far below one of them."""
SizeOf = Callable[[int], float]
"""Tokens of a source's row of this number (from 0), more than none; asked for in order, one row ahead."""


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights as shares that sum to 1, in the given order.

    Raises:
        DataError: there is none, or one is not a positive, finite number.
    """
    total = float(sum(weights.values()))
    if not weights or not np.isfinite(total) or any(not weight > 0 for weight in weights.values()):
        raise DataError(f"mixture weights must be positive numbers of a finite sum: {dict(weights)}")
    return {name: float(weight) / total for name, weight in weights.items()}


def schedule(weights: Mapping[str, float], rows: int, sizes: Sequence[SizeOf] | None = None) -> NDArray[np.int32]:
    """The source of each row: index into ``weights``, int32 [rows].

    Every prefix is fair: at no row is a source further than one row from its share of what was given so far.

    Where all rows hold equally many tokens, each source's count of rows lies within 1 - 1/(2 n - 2) rows (n sources)
    of its share of the rows so far: of the sources whose count would not run ahead by more, the one that would first
    fall behind by more is taken (Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980).

    Where rows differ in tokens (``sizes``), shares are of tokens, padding apart. Of the sources that are not ahead of
    their share the one is taken whose share first reaches the end of its next row. A source of share w whose next row
    has a tokens is then at most (1 - w) a' tokens ahead, a' those of its last row, and at most (1 - w) a + w b behind,
    b those of the largest row of another source: never more than one full row. This is the packet scheduler WF2Q, whose
    packets are rows, on a line that is never idle (Bennett and Zhang, INFOCOM 1996); docs/data.md has the proof.

    Args:
        weights: of each source.
        rows: how many rows.
        sizes: per source its rows' tokens; None where all rows hold equally many.

    Raises:
        DataError: weights are not positive.
    """
    shares = list(normalised(weights).values())
    if len(shares) == 1:
        return np.zeros(rows, dtype=np.int32)
    slack = 1.0 - 1.0 / (2 * len(shares) - 2) if sizes is None else 1.0
    sources = [_Due(share, slack, size) for share, size in zip(shares, sizes or [None] * len(shares), strict=True)]
    waiting = [(source.from_, at) for at, source in enumerate(sources)]
    heapify(waiting)
    ready: list[tuple[float, int]] = []
    chosen = np.empty(rows, dtype=np.int32)
    given = 0.0
    for row in range(rows):
        now = given + 1.0 if sizes is None else given
        now += now * _NEAR_SHARE + _NEAR
        while waiting and waiting[0][0] <= now:
            at = heappop(waiting)[1]
            heappush(ready, (sources[at].until, at))
        # Never empty. Leads sum to 0, so one source at least is not ahead. Of equal rows: with the row to come the
        # shares are ahead of the counts by 1 in sum, so one by 1/n at least, and 1/n >= 1/(2 n - 2) = 1 - slack.
        at = heappop(ready)[1]
        chosen[row] = at
        given += sources[at].take()
        heappush(waiting, (sources[at].from_, at))
    return chosen


def row_counts(chosen: NDArray[np.int32], sources: int) -> NDArray[np.int64]:
    """Rows of each source in a schedule, int64 [sources]."""
    return np.bincount(chosen, minlength=sources).astype(np.int64)


class _Due:
    """From when on one source's next row may be taken, and until when it is due, in rows or tokens of all sources."""

    __slots__ = ("_before", "_count", "_next", "_share", "_size", "_slack", "from_", "until")

    def __init__(self, share: float, slack: float, size: SizeOf | None) -> None:
        self._share, self._slack, self._size = share, slack, size
        self._count, self._before = 0, 0.0
        self._look()

    def _look(self) -> None:
        self._next = 1.0 if self._size is None or not self._share else self._size(self._count)
        self.from_ = _over(self._before + (1.0 - self._slack) * self._next, self._share)
        self.until = _over(self._before + self._slack * self._next, self._share)

    def take(self) -> float:
        """The row is given: its size, and look at the next one."""
        taken = self._next
        self._before += taken
        self._count += 1
        self._look()
        return taken


def _over(tokens: float, share: float) -> float:
    return tokens / share if share else float("inf")
