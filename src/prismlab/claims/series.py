"""One number a seed, with what it rests on: the unit that every decision rule computes with."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


def _unique(items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


@dataclass(frozen=True)
class Series:
    """Values by seed. A seed without a value is absent, and ``missing`` says why: missing is never zero."""

    values: Mapping[int, float] = field(default_factory=dict[int, float])
    """Seed to value."""
    missing: tuple[str, ...] = ()
    """Why values are absent, one reason each, in the order found."""
    evidence: frozenset[str] = frozenset()
    """Keys of the input artifacts that the values come from."""

    def __add__(self, other: Series) -> Series:
        return combine(operator.add, self, other)

    def __sub__(self, other: Series) -> Series:
        return combine(operator.sub, self, other)

    def __neg__(self) -> Series:
        return self.scaled(-1.0)

    def scaled(self, factor: float) -> Series:
        """The same series in another unit, for example 100 for percent."""
        return Series({seed: value * factor for seed, value in self.values.items()}, self.missing, self.evidence)

    def over(self, other: Series, what: str) -> Series:
        """Ratio per seed; a seed whose denominator is 0 has none, and ``what`` names the denominator in the reason."""
        zero = [seed for seed, value in sorted(other.values.items()) if value == 0.0]
        reasons = tuple(f"seed {seed}: {what} is 0, so there is no ratio" for seed in zero)
        kept = {seed: value for seed, value in other.values.items() if seed not in zero}
        return combine(_ratio, self, Series(kept, other.missing + reasons, other.evidence))


def combine(function: Callable[..., float], *series: Series) -> Series:
    """``function`` of several series, seed by seed, over the seeds that all of them have (pairing by seed)."""
    seeds = set(series[0].values).intersection(*(s.values for s in series[1:]))
    missing = _unique(tuple(reason for s in series for reason in s.missing))
    evidence = frozenset[str]().union(*(s.evidence for s in series))
    return Series({seed: function(*(s.values[seed] for s in series)) for seed in sorted(seeds)}, missing, evidence)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator


def _least(*values: float) -> float:
    return min(values)


def _mean(*values: float) -> float:
    return sum(values) / len(values)


def mean_of(*series: Series) -> Series:
    """Mean of several series, seed by seed."""
    return combine(_mean, *series)


def lowest(*series: Series) -> Series:
    """Minimum of several series, seed by seed."""
    return combine(_least, *series)


def absent(reason: str) -> Series:
    """A series without any value."""
    return Series(missing=(reason,))
