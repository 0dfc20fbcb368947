"""Figures of the page on a corpus: shares, lengths, how full rows are, what was dropped and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismlab.report import figures
from prismlab.report.figures import DOMAIN_COLOURS, SPARE_COLOURS, Bars, Line, Panel, colour
from prismlab.report.sections import Drawing
from prismlab.stats import Interval

FOUND = {"exact": "#d9534f", "near-duplicate": "#d98f00", "answer-key": "#8b74e0", "aside": "#8a909c"}
"""What is found of evaluation items, and its colour."""


def _value(value: float) -> Interval:
    return Interval(value, None, None, 1, "one")


TINTS = (
    *("#3b7dd8", "#d98f00", "#2f8f5b", "#c2459a", "#7a6aa8", "#b8606a", "#5aa9c7", "#9a9a3f", "#8a5a2b", "#555b66"),
    *SPARE_COLOURS,
)
"""Colours that can be told apart, for as many sources or reasons as there are as a rule."""


def _tints(names: Sequence[str]) -> dict[str, str]:
    return {name: TINTS[at % len(TINTS)] for at, name in enumerate(names)}


def shares(sources: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Asked and realised shares, by source: ``weight`` and ``share`` of each."""
    bars = [
        Bars(name=label, colour=tint, values={name: _value(100 * one[key]) for name, one in sources.items()})
        for label, key, tint in (("asked", "weight", "#8a909c"), ("in the corpus", "share", "#3b7dd8"))
    ]
    figure = figures.draw([Panel(title="share of tokens", y="percent", bars=bars)], columns=1, height=280)
    return Drawing("shares", figure, "Shares of tokens, padding apart.", "Shares asked and realised")


def prefixes(path: Mapping[str, Any]) -> Drawing:
    """How far sources are from what was asked, on the way; ``path`` as of ``data.inspect.ahead``."""
    lines = [
        Line(name=f"furthest {side}", colour=tint, seeds={0: [(float(rows), lead) for rows, lead in path[side]]})
        for side, tint in (("ahead", "#3b7dd8"), ("behind", "#d98f00"))
    ]
    panel = Panel(title="rows from the share asked", x="rows so far", y="rows", lines=lines)
    how = (
        "Of all sources the one that has given most above its share of the tokens so far, and the one most below, at "
        "the worst row of each stretch. The schedule allows one full row: a training that stops early had the "
        "mixture that was asked."
    )
    return Drawing("prefixes", figures.draw([panel], columns=1, height=260), how, "Shares on the way")


def lengths(measured: Mapping[str, Any], domains: Mapping[str, str]) -> Drawing:
    """Tokens of documents and of parts of them, by source; ``measured`` as of ``data.inspect.measure``."""
    panels: list[Panel] = []
    by_domain: dict[str, list[Line]] = {}
    tints = _tints(list(measured["pieces"]))
    for name, held in measured["pieces"].items():
        whole = sum(held.values())
        points = [(float(size), 100 * n / whole) for size, n in held.items()]
        line = Line(name=name, colour=tints[name], seeds={0: points}, markers=True)
        by_domain.setdefault(domains[name], []).append(line)
    for domain, lines in by_domain.items():
        panels.append(Panel(title=domain, x="tokens", y="percent of documents", lines=lines, log_x=True))
    how = "Documents, or parts of them, as they stand in rows: how many have so many tokens, up to double that."
    return Drawing("lengths", figures.draw(panels), how, "Lengths")


def fill(measured: Mapping[str, Any], domains: Mapping[str, str]) -> Drawing:
    """How full rows are and how many documents share one, by source."""
    panels = [
        Panel(title="row filled", y="percent", y_range=(0, 100), bars=_by_domain(measured["fill"], domains, 100.0)),
        Panel(title="documents a row", y="count", bars=_by_domain(measured["per_row"], domains, 1.0)),
    ]
    how = "What is not filled is padding. A document that goes on from an earlier row counts in both."
    return Drawing("fill", figures.draw(panels, columns=2, height=280), how, "Packing")


def _by_domain(values: Mapping[str, float], domains: Mapping[str, str], scale: float) -> list[Bars]:
    found: dict[str, dict[str, Interval]] = {}
    for name, value in values.items():
        found.setdefault(domains[name], {})[name] = _value(scale * value)
    return [Bars(name=domain, colour=colour(domain, DOMAIN_COLOURS), values=held) for domain, held in found.items()]


def dropped(counts: Mapping[str, Mapping[str, int]]) -> Drawing:
    """Rows that were not kept: {source: {reason: count}}."""
    reasons = list(dict.fromkeys(reason for held in counts.values() for reason in held))
    figure = figures.stacked(counts, _tints(reasons), "rows")
    return Drawing("dropped", figure, "Rows that did not become documents, by reason.", "What was dropped")


def contamination(counts: Mapping[str, Mapping[str, int]]) -> Drawing:
    """Documents by what was found in them of evaluation items: {source: {kind: count}}."""
    kept = {name: {kind: held[kind] for kind in FOUND if held.get(kind)} for name, held in counts.items()}
    figure = figures.stacked(kept, FOUND, "documents")
    how = "Documents with something of an evaluation item. What is put aside is short, or a phrase of many items."
    return Drawing("contamination", figure, how, "Evaluation items found")
