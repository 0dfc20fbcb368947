"""Numbers as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from prismlab.stats import Interval

NONE = "–"
"""What stands where there is no value: never a zero."""


def short(value: float | None, digits: int = 3) -> str:
    """A number to ``digits`` significant digits, thousands parted, without a needless exponent."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if not -5 <= size < 9:
        return minus(f"{value:.{digits - 1}e}")
    return minus(f"{value:,.{max(0, digits - 1 - size)}f}")


def minus(text: str) -> str:
    """A number with a minus sign in front where ``text`` has a hyphen; exponents keep theirs."""
    return f"−{text[1:]}" if text.startswith("-") else text


def percent(share: float | None) -> str:
    """A share of 0 to 1 as percent."""
    return NONE if share is None else f"{100 * share:.1f}%"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def span(interval: Interval, digits: int) -> str:
    """``[lo, hi]``; empty without bounds."""
    if interval.lo is None or interval.hi is None:
        return ""
    return f"[{minus(f'{interval.lo:.{digits}f}')}, {minus(f'{interval.hi:.{digits}f}')}]"


def with_interval(interval: Interval, digits: int, best: bool, make: Callable[..., Any]) -> Any:
    """A table cell ``make(text, small, best)`` of a value with its interval beneath."""
    if interval.value is None:
        return make(NONE)
    return make(minus(f"{interval.value:.{digits}f}"), span(interval, digits), best)


def p_value(p: float | None) -> str:
    """A p-value with its sign: ``= 0.012`` or ``< 0.0001``."""
    if p is None:
        return NONE
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"
