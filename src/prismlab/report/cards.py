"""The claims as cards: verdict, effect drawn against its threshold, rule, the paper's figure, evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prismlab.report.text import NONE, p_value, short

WIDTH, HEIGHT, EDGE = 320.0, 30.0, 8.0
"""Pixels of the small plot, and its margin at each side."""
PURE = ("ratio", "share", "cosine", "CKA")
DIFFERENCES = ("points", "tokens", "bits per byte", "nats per token")
"""Units of changes, shown with their sign."""
WORDS = {
    "supported": "supported",
    "contradicted": "contradicted",
    "inconclusive": "inconclusive",
    "not_tested": "not tested",
    "shown": "shown",
}


@dataclass(frozen=True)
class Plot:
    """Geometry of one interval against its threshold, in pixels."""

    value: float | None
    lo: float | None
    hi: float | None
    seeds: tuple[float, ...]
    bounds: tuple[float, ...]
    """Where the thresholds stand."""
    zero: float | None
    """Where 0 stands, if it lies in the picture and is no threshold."""
    region: tuple[float, float] | None
    """From, width: where the whole interval must lie for the part to be supported."""
    left: str
    right: str
    """Values at the edges."""


@dataclass(frozen=True)
class PartView:
    """One measured part of a claim."""

    label: str
    verdict: str
    word: str
    test: str
    effect: str
    interval: str
    decides: bool
    plot: Plot | None
    note: str | None


@dataclass(frozen=True)
class Card:
    """One claim."""

    id: str
    title: str
    verdict: str
    word: str
    effect: str
    interval: str
    about: str
    """What the effect is: label and test."""
    parts: Sequence[PartView]
    rule: str
    rules_version: int
    paper: Mapping[str, Any]
    p: str
    p_holm: str
    against: str
    against_holm: str
    tested: bool
    power: str | None
    missing: Sequence[str]
    notes: Sequence[str]
    evidence: Sequence[Mapping[str, str]]


def amount(value: float | None, unit: str, signed: bool = False) -> str:
    """A number with its unit; pure numbers stand alone."""
    if value is None:
        return NONE
    if unit == "CKA" and 0 < 1 - value < 1e-5:
        return f"1 − {1 - value:.1e}"
    digits = 5 if unit == "CKA" else 3
    sign = "+" if signed and value > 0 else ""
    text = sign + short(value, digits)
    return text if unit in PURE else f"{text} {unit}"


def _span(effect: Mapping[str, Any]) -> str:
    lo, hi, n = effect["lo"], effect["hi"], effect["n"]
    unit = effect["unit"] if effect["unit"] in PURE else PURE[0]
    seeds = "1 seed" if n == 1 else f"{n} seeds"
    return f"no interval ({seeds})" if lo is None else f"[{amount(lo, unit)}, {amount(hi, unit)}], {seeds}"


def plot(part: Mapping[str, Any]) -> Plot | None:
    """Where everything stands; None without a value."""
    effect, bounds = part["effect"], [b for b in part["bounds"] if b is not None]
    if effect["value"] is None:
        return None
    seeds = [float(v) for v in part["seeds"].values()]
    marks = [x for x in (effect["value"], effect["lo"], effect["hi"], *bounds, *seeds) if x is not None]
    low, high = min(marks), max(marks)
    pad = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - pad, high + pad

    def at(x: float | None) -> float | None:
        return None if x is None else round(EDGE + (x - low) / (high - low) * (WIDTH - 2 * EDGE), 2)

    region = None
    if bounds:
        start, end = (
            at(b) if b is not None else edge for b, edge in zip(part["bounds"], (EDGE, WIDTH - EDGE), strict=True)
        )
        region = (float(start or 0.0), round(float(end or 0.0) - float(start or 0.0), 2))
    return Plot(
        value=at(effect["value"]),
        lo=at(effect["lo"]),
        hi=at(effect["hi"]),
        seeds=tuple(float(at(v) or 0.0) for v in seeds),
        bounds=tuple(float(at(b) or 0.0) for b in bounds),
        zero=at(0.0) if low < 0 < high and 0.0 not in bounds else None,
        region=region,
        left=short(low),
        right=short(high),
    )


def _part(part: Mapping[str, Any]) -> PartView:
    effect = part["effect"]
    return PartView(
        label=part["label"],
        verdict=part["verdict"],
        word=WORDS[part["verdict"]],
        test=part["test"],
        effect=amount(effect["value"], effect["unit"]),
        interval=_span(effect) if effect["value"] is not None else "",
        decides=part["decides"],
        plot=plot(part),
        note=part["note"],
    )


def card(claim: Mapping[str, Any]) -> Card:
    """The card of one claim of the ledger."""
    effect = claim["effect"]
    return Card(
        id=claim["id"],
        title=claim["title"],
        verdict=claim["verdict"],
        word=WORDS[claim["verdict"]],
        effect=NONE if effect is None else amount(effect["value"], effect["unit"], effect["unit"] in DIFFERENCES),
        interval="" if effect is None else _span(effect),
        about="" if effect is None else f"{effect['label']}, must be {claim['test']}",
        parts=[_part(part) for part in claim["parts"]],
        rule=claim["rule"],
        rules_version=claim["rules_version"],
        paper=claim["paper"],
        p=p_value(claim["p"]),
        p_holm=p_value(claim["p_holm"]),
        against=p_value(claim["p_against"]),
        against_holm=p_value(claim["p_against_holm"]),
        tested=claim["p"] is not None,
        power=claim["power"],
        missing=claim["missing"],
        notes=claim["notes"],
        evidence=claim["evidence"],
    )
