"""Token shares of sources as a schedule of rows: which source each row of a corpus comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from prismlab.errors import DataError

_NEAR, _NEAR_SHARE = 1e-9, 1e-12
"""Rounding of sums up to millions of rows; far below the room that the bound leaves, 1/(2 n - 2) rows."""
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

    Every prefix is fair. Where all rows hold equally many tokens, each source's count of rows lies within
    1 - 1/(2 n - 2) rows (n sources) of its ideal share of the rows so far: of the sources whose count would not run
    ahead by more, the one that would first fall behind by more is taken (Tijdeman, "The chairman assignment problem",
    Discrete Mathematics 32, 1980).

    Where rows differ in tokens (``sizes``), shares are of tokens, padding apart. The ideal is then the flow in which
    all sources run side by side, each giving its share of every token: after tau tokens source s stands at the row,
    counted in parts, at which its own rows reach ``share * tau`` tokens. These ideals sum to the number of rows, and
    each grows with it, so they are the running sums of a time-varying chairman problem: the theorem, which is stated
    for those, gives the same bound in rows at every prefix.

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
    slack = 1.0 - 1.0 / (2 * len(shares) - 2)
    time = _equal_time if sizes is None else _Flow(shares, sizes)
    sources = [_Due(share, slack, size) for share, size in zip(shares, sizes or [None] * len(shares), strict=True)]
    waiting = [(source.from_, at) for at, source in enumerate(sources)]
    heapify(waiting)
    ready: list[tuple[float, int]] = []
    chosen = np.empty(rows, dtype=np.int32)
    for row in range(rows):
        now = time(row + 1)
        now += now * _NEAR_SHARE + _NEAR
        while waiting and waiting[0][0] <= now:
            at = heappop(waiting)[1]
            heappush(ready, (sources[at].until, at))
        # Never empty: before each row the ideals are ahead of the counts by 1 in sum, so one by 1/n at least, and
        # 1/n >= 1/(2 n - 2) = 1 - slack is what makes a source ready.
        at = heappop(ready)[1]
        chosen[row] = at
        sources[at].take()
        heappush(waiting, (sources[at].from_, at))
    return chosen


def row_counts(chosen: NDArray[np.int32], sources: int) -> NDArray[np.int64]:
    """Rows of each source in a schedule, int64 [sources]."""
    return np.bincount(chosen, minlength=sources).astype(np.int64)


def _equal_time(rows: int) -> float:
    return float(rows)


class _Due:
    """When one source's next row may be taken and when it must be, in rows or in tokens of all sources."""

    __slots__ = ("_before", "_count", "_share", "_size", "_slack", "from_", "until")

    def __init__(self, share: float, slack: float, size: SizeOf | None) -> None:
        self._share, self._slack, self._size = share, slack, size
        self._count, self._before = 0, 0.0
        self._look()

    def _look(self) -> None:
        size = 1.0 if self._size is None or not self._share else self._size(self._count)
        self.from_ = _over(self._before + (1.0 - self._slack) * size, self._share)
        self.until = _over(self._before + self._slack * size, self._share)

    def take(self) -> None:
        """The row is given: look at the next one."""
        self._before += 1.0 if self._size is None else self._size(self._count)
        self._count += 1
        self._look()


def _over(tokens: float, share: float) -> float:
    return tokens / share if share else float("inf")


class _Flow:
    """All sources side by side: after how many tokens in all their rows, counted in parts, sum to a number."""

    def __init__(self, shares: Sequence[float], sizes: Sequence[SizeOf]) -> None:
        self._shares, self._sizes = shares, sizes
        self._row = [0] * len(shares)
        self._full = [size(0) if share else 1.0 for share, size in zip(shares, sizes, strict=True)]
        self._ends = [(_over(full, share), at) for at, (full, share) in enumerate(zip(self._full, shares, strict=True))]
        self._current = list(self._full)
        heapify(self._ends)
        self._rate = self._rows_a_token()
        self._tokens = self._rows = 0.0

    def _rows_a_token(self) -> float:
        return sum(share / size for share, size in zip(self._shares, self._current, strict=True))

    def __call__(self, rows: int) -> float:
        """Tokens of the flow when ``rows`` rows are through; ``rows`` must not go down."""
        while True:
            end, at = self._ends[0]
            more = self._rate * (end - self._tokens)
            if self._rows + more >= rows:
                self._tokens += (rows - self._rows) / self._rate
                self._rows = float(rows)
                return self._tokens
            self._rows, self._tokens = self._rows + more, end
            heappop(self._ends)
            self._row[at] += 1
            self._current[at] = self._sizes[at](self._row[at])
            self._full[at] += self._current[at]
            heappush(self._ends, (_over(self._full[at], self._shares[at]), at))
            # Summed anew, not corrected: rounding must not pile up over millions of rows.
            self._rate = self._rows_a_token()
