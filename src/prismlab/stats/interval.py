"""An estimate with its bounds, and what every module of this package needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]


def special() -> Any:
    """``scipy.special``, imported late (a tenth of a second) and untyped (it ships no stubs)."""
    import scipy.special  # pyright: ignore[reportMissingTypeStubs]

    return scipy.special  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence bounds."""

    value: float | None
    """The point estimate; None where there is nothing to estimate from."""
    lo: float | None
    """Lower bound; None where there is none, see ``reason``."""
    hi: float | None
    """Upper bound; None where there is none, see ``reason``."""
    n: int
    """Units of inference: seeds, items or trials."""
    method: str
    """How the bounds were made."""
    reason: str | None = None
    """Why a bound is missing or has no width."""

    def scaled(self, factor: float) -> Interval:
        """The same interval in another unit, for example 100 for percent; a negative factor swaps the bounds."""
        value, lo, hi = (None if x is None else x * factor for x in (self.value, self.lo, self.hi))
        if factor < 0:
            lo, hi = hi, lo
        return Interval(value, lo, hi, self.n, self.method, self.reason)

    def to_json(self) -> dict[str, Any]:
        """``value``, ``lo``, ``hi``, ``n``, ``method``, and ``reason`` where there is one."""
        out: dict[str, Any] = {
            "value": self.value,
            "lo": self.lo,
            "hi": self.hi,
            "n": self.n,
            "method": self.method,
        }
        return out if self.reason is None else {**out, "reason": self.reason}


def vector(values: ArrayLike, what: str) -> Floats:
    """A list of finite numbers as float64, [n]; ``ValueError`` for anything else."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{what} must be a list of numbers, not of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} holds a value that is not finite; leave such values out and count them")
    return array


def check_level(confidence: float) -> None:
    """``ValueError`` unless 0 < confidence < 1."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
