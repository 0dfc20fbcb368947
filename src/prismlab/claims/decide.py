"""From values by seed to a verdict: the few tests that all rules are made of.

Every test is one-sided at level (1 - confidence) / 2, which is what comparing a bound of the two-sided Student-t
interval over seeds with a threshold amounts to; so intervals, verdicts and p-values agree.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prismlab import stats
from prismlab.claims.series import Series
from prismlab.stats import Interval

Verdict = Literal["supported", "contradicted", "inconclusive", "not_tested"]
Side = Literal["greater", "less"]
PURE = ("ratio", "share", "cosine", "CKA")
"""Units that are pure numbers."""
POWER = 0.8
"""Probability at which the detectable difference is stated."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One measured statement of a claim."""

    label: str
    """What was measured."""
    unit: str
    """Unit of the values."""
    test: str
    """The condition, for example ``> 0``; empty if the part is only shown."""
    bounds: tuple[float | None, float | None]
    """Open region that the interval must lie in: lower and upper threshold, None for none."""
    series: Series
    """The values by seed."""
    interval: Interval
    """Mean over seeds with its t interval."""
    verdict: Verdict
    """This part's own verdict."""
    decides: bool
    """False for a part that is shown and takes no part in the verdict."""
    p: float | None
    """One-sided p-value against the part's null hypothesis; None without a test."""
    p_against: float | None
    """One-sided p-value of the opposite statement."""
    detectable: float | None
    """Distance from the threshold that this number of seeds and spread shows with probability ``POWER``."""
    note: str | None
    """Why there is no verdict, or what to know of it."""

    def to_json(self) -> dict[str, Any]:
        """The part as it stands in the ledger."""
        return {
            "label": self.label,
            "verdict": self.verdict if self.decides else "shown",
            "effect": effect_json(self),
            "test": self.test,
            "bounds": list(self.bounds),
            "decides": self.decides,
            "seeds": {str(seed): value for seed, value in self.series.values.items()},
            "p": self.p,
            "p_against": self.p_against,
            "detectable": self.detectable,
            "note": self.note,
            "missing": list(self.series.missing),
        }


def effect_json(part: Part) -> dict[str, Any]:
    """``{label, value, lo, hi, n, unit}`` of a part."""
    i = part.interval
    return {"label": part.label, "value": i.value, "lo": i.lo, "hi": i.hi, "n": i.n, "unit": part.unit}


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


ROUNDING = 1e-9
"""Values that differ by less, or by less than this share of the largest, differ by the rounding of floats alone."""


def _equal(values: Sequence[float]) -> bool:
    """Whether all values are one and the same: 29.5 and 29.499999999999993 are one difference of two scores."""
    return max(values) - min(values) <= ROUNDING * max(1.0, *map(abs, values))


def _no_interval(values: Sequence[float]) -> str | None:
    """Why these values cannot decide anything; None if they can."""
    if len(values) == 1:
        return "1 seed gives no interval"
    if _equal(values):
        # Equal values come from a floor, a ceiling or seeds that are not independent; none of these shows the spread.
        return f"{_seeds(len(values))} give one and the same value: without spread there is no interval"
    return None


def _judge(interval: Interval, low: float | None, high: float | None) -> Verdict:
    if interval.lo is None or interval.hi is None:
        return "inconclusive"
    if (low is not None and interval.hi < low) or (high is not None and interval.lo > high):
        return "contradicted"
    inside = (low is None or interval.lo > low) and (high is None or interval.hi < high)
    return "supported" if inside else "inconclusive"


def _p_values(values: Sequence[float], low: float | None, high: float | None) -> tuple[float | None, float | None]:
    """For and against ``low < mean < high``: the larger of the one-sided tests (two one-sided tests), the smaller."""
    pairs: list[tuple[float | None, Side, Side]] = [(low, "greater", "less"), (high, "less", "greater")]
    inside = [stats.p_value_t(values, bound, side) for bound, side, _ in pairs if bound is not None]
    outside = [stats.p_value_t(values, bound, side) for bound, _, side in pairs if bound is not None]
    known_in, known_out = [p for p in inside if p is not None], [p for p in outside if p is not None]
    return (max(known_in) if known_in else None), (min(known_out) if known_out else None)


def _detectable(values: Sequence[float], confidence: float) -> float | None:
    if len(values) < 2 or _equal(values):
        return None
    return stats.detectable_difference_t(statistics.stdev(values), len(values), confidence, POWER)


def _part(
    label: str,
    series: Series,
    unit: str,
    confidence: float,
    test: str,
    bounds: tuple[float | None, float | None],
) -> Part:
    values = [series.values[seed] for seed in sorted(series.values)]
    decides = bool(test)
    interval = stats.mean_t(values, confidence)
    note = None if not values else _no_interval(values)
    if note is not None and len(values) > 1:
        interval = Interval(interval.value, None, None, interval.n, interval.method, note)
    p, against = _p_values(values, *bounds) if decides and values and note is None else (None, None)
    verdict: Verdict = _judge(interval, *bounds) if values else "not_tested"
    return Part(
        label=label, unit=unit, test=test, bounds=bounds, series=series, interval=interval, verdict=verdict,
        decides=decides, p=p, p_against=against, detectable=_detectable(values, confidence), note=note,
    )  # fmt: skip


def above(label: str, series: Series, threshold: float, unit: str, confidence: float) -> Part:
    """Supported if the lower bound lies above ``threshold``, contradicted if the upper bound lies below it."""
    return _part(label, series, unit, confidence, f"> {threshold:g}", (threshold, None))


def below(label: str, series: Series, threshold: float, unit: str, confidence: float) -> Part:
    """Supported if the upper bound lies below ``threshold``, contradicted if the lower bound lies above it."""
    return _part(label, series, unit, confidence, f"< {threshold:g}", (None, threshold))


def within(label: str, series: Series, low: float, high: float, unit: str, confidence: float) -> Part:
    """Equivalence: supported if the whole interval lies within, contradicted if it lies wholly outside on one side.

    Two one-sided tests (Schuirmann 1987), each at level (1 - confidence) / 2.
    """
    return _part(label, series, unit, confidence, f"within {low:.4g} to {high:.4g}", (low, high))


def shown(label: str, series: Series, unit: str, confidence: float) -> Part:
    """A figure to read beside the verdict, which it does not touch."""
    return _part(label, series, unit, confidence, "", (None, None))


def conjunction(parts: Sequence[Part]) -> Verdict:
    """Verdict of "all parts hold" (intersection-union, Berger 1982): each part at the full level.

    One contradicted part contradicts the whole, also where another part could not be tested.
    """
    verdicts = {part.verdict for part in parts if part.decides}
    order: tuple[Verdict, ...] = ("contradicted", "not_tested", "inconclusive")
    for verdict in order:
        if verdict in verdicts:
            return verdict
    return "supported"


def conjunction_p(parts: Sequence[Part]) -> tuple[float | None, float | None]:
    """p-values for and against "all parts hold": the largest; and the smallest, times their number (Bonferroni).

    None if a deciding part has no test.
    """
    deciding = [part for part in parts if part.decides]
    given = [part.p for part in deciding if part.p is not None]
    against = [part.p_against for part in deciding if part.p_against is not None]
    if not deciding or len(given) < len(deciding):
        return None, None
    return max(given), min(1.0, len(against) * min(against))


def weakest(parts: Sequence[Part]) -> Part | None:
    """The deciding part that the verdict hangs on: contradicted first, then inconclusive, then the largest p."""
    rank: dict[Verdict, int] = {"contradicted": 0, "inconclusive": 1, "supported": 2, "not_tested": 3}
    deciding = [part for part in parts if part.decides and part.interval.value is not None]
    return min(deciding, key=lambda part: (rank[part.verdict], -(part.p if part.p is not None else 1.0)), default=None)


def quantity(value: float, unit: str) -> str:
    """A number with its unit; pure numbers (ratio, share, cosine, CKA) stand alone."""
    return f"{value:.3g}" if unit in PURE else f"{value:.3g} {unit}"


def power_statement(part: Part | None) -> str | None:
    """What this number of seeds could have shown, in one sentence; None without any value."""
    if part is None:
        return None
    n, unit = part.interval.n, part.unit
    if part.detectable is None:
        return f"{part.note}, so nothing could have been decided; at least 2 seeds that differ are needed."
    sd = statistics.stdev(part.series.values.values())
    spread = f"With {_seeds(n)} and this spread (standard deviation {quantity(sd, unit)})"
    if None not in part.bounds:
        half = ((part.interval.hi or 0.0) - (part.interval.lo or 0.0)) / 2
        width = ((part.bounds[1] or 0.0) - (part.bounds[0] or 0.0)) / 2
        return f"{spread}, the interval is {quantity(half, unit)} to each side; the bounds allow {width:.3g}."
    far = f"a true distance of {quantity(part.detectable, unit)} from the threshold"
    return f"{spread}, {far} is seen with probability {POWER:.0%}."
