"""Token shares of sources as a schedule of rows: which source each row of a corpus comes from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from prismlab.errors import DataError


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights as shares that sum to 1, in the given order.

    Raises:
        DataError: there is none, or one is not a positive, finite number.
    """
    total = float(sum(weights.values()))
    if not weights or not np.isfinite(total) or any(not weight > 0 for weight in weights.values()):
        raise DataError(f"mixture weights must be positive numbers: {dict(weights)}")
    return {name: float(weight) / total for name, weight in weights.items()}


def schedule(weights: Mapping[str, float], rows: int) -> NDArray[np.int32]:
    """The source of each row: index into ``weights``, int32 [rows].

    Rows hold equally many tokens, so shares of rows are shares of tokens. After each row every source's count lies
    within one row of its ideal share of the rows so far: of the sources whose count would not run ahead by a row (quota
    of the chairman assignment problem), the one whose next row is due first is taken (Tijdeman, "The chairman
    assignment problem", Discrete Mathematics 32, 1980).

    Raises:
        DataError: weights are not positive.
    """
    shares = np.array(list(normalised(weights).values()))
    sources = len(shares)
    slack = 1.0 - 1.0 / (2 * sources - 2) if sources > 1 else 1.0
    counts = np.zeros(sources)
    chosen = np.empty(rows, dtype=np.int32)
    for row in range(rows):
        # A source may take this row once its ideal share, looked at from the row's end, has come within the slack.
        eligible = shares * (row + 1) - counts >= 1.0 - slack - 1e-9
        deadline = np.where(eligible, (counts + slack) / shares, np.inf)
        pick = int(np.argmin(deadline))
        chosen[row] = pick
        counts[pick] += 1
    return chosen


def row_counts(chosen: NDArray[np.int32], sources: int) -> NDArray[np.int64]:
    """Rows of each source in a schedule, int64 [sources]."""
    return np.bincount(chosen, minlength=sources).astype(np.int64)
