"""The rules of the ledger applied to the paper's own tables: ``prism claims --reference``.

The unit of a rule is the seed, and the paper trained every model once. So its tables hold one value where a rule asks
for an interval, and the rule's verdict is inconclusive whatever the value, unless a figure is missing. What can be said
besides: on which side of the threshold each value lies, and what the rule would say over models, which differ in more
than the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prismlab.claims.decide import Part, Verdict, above, within
from prismlab.claims.reference import REFERENCE
from prismlab.claims.reference_study import DOMAINS, GRANITE, MODELS, arm_scores, row_scores, table_of
from prismlab.claims.reference_tables import SCORES
from prismlab.claims.rule import Claim, Decision, all_of
from prismlab.claims.rules import CLAIMS, RULES_VERSION
from prismlab.claims.series import Series

CONFIDENCE = 0.95
SAMPLES = 64
"""Samples a problem of the math benchmarks (the paper's settings)."""
PROBLEMS = 30
"""Problems of an AIME year."""
ONE = "the paper trained each model once: one value gives no interval, so the rule cannot decide"


def _series(value: float) -> Series:
    return Series({0: value})


def _average(table: str, row: str, log: dict[str, None]) -> float:
    scores = row_scores(table, row)
    assert scores is not None, f"{table} has every benchmark of {row}"
    value = sum(scores[domain] for domain in DOMAINS) / len(DOMAINS)
    log[f"{table}, {row}: AVG = ({' + '.join(f'{scores[d]:.2f}' for d in DOMAINS)})/3 = {value:.2f}"] = None
    return value


def _cell(table: str, row: str, column: str, log: dict[str, None]) -> float:
    value = SCORES[table].get(row, column)
    assert value is not None, f"{table} has {column} of {row}"
    log[f"{table}, {row}: {column} = {value:g}"] = None
    return value


def _c16(log: dict[str, None]) -> Decision:
    rows = ("Base", "Mid (Math+Code)", "Merge + LC (full)")
    base, mid, repaired = (_cell("table 7", row, "RULER 128k", log) for row in rows)
    half = (repaired - mid) - (base - mid) / 2
    return all_of(
        [
            above("damage: base minus mid[MC]", _series(base - mid), 0.0, "points", CONFIDENCE),
            above("repair minus half of the damage", _series(half), 0.0, "points", CONFIDENCE),
        ]
    )


def _c17(log: dict[str, None]) -> Decision:
    at = {row: _average("table 8", row, log) for row in ("8k", "16k", "32k")}
    budget = {row: _average("table 20", row, log) for row in ("15.73B", "26.21B")}
    late = _series(budget["26.21B"] - budget["15.73B"])
    return all_of(
        [
            above("16k minus 8k", _series(at["16k"] - at["8k"]), 0.0, "points", CONFIDENCE),
            above("16k minus 32k", _series(at["16k"] - at["32k"]), 0.0, "points", CONFIDENCE),
            within("26B minus 16B tokens", late, -1.0, 1.0, "points", CONFIDENCE),
        ]
    )


def _c18(log: dict[str, None]) -> Decision:
    late, *early = (_average("table 3", row, log) for row in ("After long-context", "Phase 3", "Phase 4"))
    return all_of(
        [
            above(f"after long context minus {name}", _series(late - value), 0.0, "points", CONFIDENCE)
            for name, value in zip(("phase 3", "phase 4"), early, strict=True)
        ]
    )


OPEN: dict[str, tuple[str, Callable[[dict[str, None]], Decision]]] = {
    "C16": (GRANITE, _c16),
    "C17": ("Granite-4 Micro 3B", _c17),
    "C18": ("Granite-4 Micro 3B", _c18),
}
"""Claims whose figures stand in tables of one model each, by benchmark rather than by arm."""


def side(part: Part) -> str:
    """Where a point estimate lies: ``for`` the claim, ``against`` it, or ``on the bound``."""
    value, (low, high) = part.interval.value, part.bounds
    if value is None:
        return "no figure"
    distances = [value - low] if low is not None else []
    distances += [high - value] if high is not None else []
    nearest = min(distances, default=math.inf)
    if abs(nearest) < 1e-6:
        return "on the bound"
    return "for" if nearest > 0 else "against"


def _parts(decision: Decision) -> list[dict[str, Any]]:
    return [
        {
            "label": part.label,
            "unit": part.unit,
            "test": part.test,
            "value": part.interval.value,
            "lo": part.interval.lo,
            "hi": part.interval.hi,
            "n": part.interval.n,
            "verdict": part.verdict,
            "side": side(part),
            "missing": list(part.series.missing),
        }
        for part in decision.parts
        if part.decides
    ]


def sides(parts: Sequence[Mapping[str, Any]]) -> str:
    """One word for all parts: ``for`` if all are, ``against`` if any is, else what stands in the way."""
    found = [str(part["side"]) for part in parts]
    for word in ("against", "no figure", "on the bound"):
        if word in found:
            return word
    return "for" if found else "no figure"


def _alone(claim: Claim, model: str) -> dict[str, Any] | None:
    """A claim on one model, as on a study with one seed; None where the tables have nothing of it for this model."""
    if claim.id in OPEN:
        owner, decide = OPEN[claim.id]
        log: dict[str, None] = {}
        decision = decide(log) if model == owner else None
    else:
        table = table_of([model])
        decision, log = claim.decide(table), table.log
    if decision is None or not any(part.series.values for part in decision.parts):
        return None
    parts = _parts(decision)
    return {"model": model, "verdict": decision.verdict, "side": sides(parts), "read": list(log), "parts": parts}


def _over_models(claim: Claim, models: Sequence[str]) -> dict[str, Any] | None:
    """A claim over models as if each were a seed; None with fewer than two."""
    if len(models) < 2:
        return None
    decision = claim.decide(table_of(models))
    return {"models": list(models), "verdict": decision.verdict, "parts": _parts(decision)}


def aime_error(score: float) -> tuple[float, float]:
    """Least and largest standard error over problems of an AIME score in percent, points.

    With 30 problems of 64 samples it is sqrt(p (1 - p)/30) if all samples of a problem agree, an eighth of that if they
    are independent. Where in between depends on the spread of the problems, which the tables do not give.
    """
    most = math.sqrt(score * (100 - score) / PROBLEMS)
    return most / math.sqrt(SAMPLES), most


def _uncertainty(claim: Claim, entries: Sequence[Mapping[str, Any]]) -> str | None:
    """What the tables let one know of the error of a claim's figures."""
    if claim.id == "C11":
        return "The spread over resamples of inputs is at most 0.0001; it says nothing of another run."
    if claim.id not in ("C1", "C3", "C4", "C5", "C17", "C18") or not entries:
        return None
    row = {"C17": ("table 8", "16k"), "C18": ("table 3", "After long-context")}.get(
        claim.id, ("table 6", f"{GRANITE}, mid")
    )
    score = SCORES[row[0]].get(row[1], "AIME24")
    if score is None:
        return None
    least, most = aime_error(score)
    return (
        f"AIME24 {score:g} ({row[1]}): over its 30 problems the standard error lies between {least:.1f} and {most:.1f} "
        "points, as the samples of a problem differ or agree; the tables give no spread."
    )


def _lead(verdicts: Sequence[Mapping[str, Any]]) -> Verdict:
    """The ledger's verdict: that of the first model for which all figures are there, else of the first."""
    complete = [one for one in verdicts if one["verdict"] != "not_tested"]
    return (complete or list(verdicts))[0]["verdict"] if verdicts else "not_tested"


def _entry(claim: Claim) -> dict[str, Any]:
    found = [one for one in (_alone(claim, model) for model in MODELS) if one is not None]
    verdict = _lead(found)
    missing = dict.fromkeys(reason for one in found[:1] for part in one["parts"] for reason in part["missing"])
    reasons = [text.replace("seed 0: ", "").replace("the study has", "the tables have") for text in missing]
    if not found:
        reasons = ["the tables have no figure that the rule reads"]
    complete = [one["model"] for one in found if one["verdict"] != "not_tested"]
    return {
        "id": claim.id,
        "title": claim.title,
        "verdict": verdict,
        "why": ONE if verdict == "inconclusive" else "; ".join(reasons),
        "rule": claim.rule,
        "source": REFERENCE[claim.id].source,
        "paper": REFERENCE[claim.id].text,
        "models": found,
        "over_models": _over_models(claim, complete),
        "missing": reasons,
        "uncertainty": _uncertainty(claim, found),
    }


def decide_reference() -> dict[str, Any]:
    """All eighteen claims on the paper's tables.

    Returns:
        ``rules_version`` and ``claims``: a list of {id, title, verdict, why, rule, source, paper, models (of each the
        figures ``read``, the ``parts`` with value and side, and its verdict), over_models, missing, uncertainty}.
    """
    return {"rules_version": RULES_VERSION, "confidence": CONFIDENCE, "claims": [_entry(claim) for claim in CLAIMS]}


__all__ = ["aime_error", "arm_scores", "decide_reference", "side", "sides"]
