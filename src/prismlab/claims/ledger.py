"""Stage ``claims``: decides every claim of the reference study from this study's records, into ``ledger.json``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from prismlab import stats
from prismlab.claims.arms import Table
from prismlab.claims.decide import Verdict, effect_json, power_statement, weakest
from prismlab.claims.reference import REFERENCE
from prismlab.claims.rule import Claim, Decision
from prismlab.claims.rules import CLAIMS, RULES_VERSION
from prismlab.errors import StageError
from prismlab.run.step import Artifact, Json, Progress, Result

SCHEMA = 1


def _decide(claim: Claim, table: Table) -> tuple[Decision, list[str]]:
    """The decision, and what is missing for one."""
    decision = claim.decide(table)
    missing = dict.fromkeys(reason for part in decision.parts if part.decides for reason in part.series.missing)
    return decision, list(missing)


def _evidence(decision: Decision, table: Table) -> list[dict[str, Any]]:
    keys = sorted(frozenset[str]().union(*(part.series.evidence for part in decision.parts)))
    return [{"key": key, "kind": table.inputs[key].kind, "fingerprint": table.inputs[key].fingerprint} for key in keys]


def _notes(decision: Decision, missing: Sequence[str]) -> list[str]:
    notes = [*decision.notes, *dict.fromkeys(part.note for part in decision.parts if part.decides and part.note)]
    if decision.verdict != "not_tested" and missing:
        notes.append(f"Without: {'; '.join(missing)}.")
    return notes


def _entry(claim: Claim, table: Table) -> dict[str, Any]:
    decision, missing = _decide(claim, table)
    part = weakest(decision.parts)
    tested = decision.verdict != "not_tested"
    return {
        "id": claim.id,
        "title": claim.title,
        "verdict": decision.verdict,
        "effect": None if part is None else effect_json(part),
        "seeds": {} if part is None else {str(seed): value for seed, value in part.series.values.items()},
        "test": None if part is None else part.test,
        "bounds": None if part is None else list(part.bounds),
        "parts": [one.to_json() for one in decision.parts],
        "p": decision.p if tested else None,
        "p_against": decision.p_against if tested else None,
        "power": power_statement(part),
        "rule": claim.rule,
        "rules_version": RULES_VERSION,
        "needs": {"arms": list(claim.arms), "reads": list(claim.reads)},
        "missing": missing,
        "paper": REFERENCE[claim.id].to_json(),
        "evidence": _evidence(decision, table),
        "notes": _notes(decision, missing),
    }


def _adjust(entries: Sequence[dict[str, Any]]) -> None:
    """Adds Holm-adjusted p-values over all claims of this ledger that were tested, for and against."""
    for key in ("p", "p_against"):
        tested = [entry for entry in entries if entry[key] is not None]
        adjusted = stats.holm([entry[key] for entry in tested])
        for entry in entries:
            entry[f"{key}_holm"] = None
        for entry, value in zip(tested, adjusted, strict=True):
            entry[f"{key}_holm"] = value


def build(table: Table, ids: Sequence[str] | None = None) -> dict[str, Any]:
    """The whole ledger as JSON.

    Args:
        table: the study's numbers.
        ids: claims to decide; None for all eighteen.

    Raises:
        StageError: an id that is no claim.
    """
    known = [claim.id for claim in CLAIMS]
    unknown = [name for name in ids or () if name not in known]
    if unknown:
        raise StageError(f"there is no claim {unknown[0]!r}: 'claims.ids' takes {known[0]} to {known[-1]}")
    entries = [_entry(claim, table) for claim in CLAIMS if ids is None or claim.id in ids]
    _adjust(entries)
    counts: Counter[Verdict] = Counter(cast("Verdict", entry["verdict"]) for entry in entries)
    return {
        "schema": SCHEMA,
        "study": table.study["name"],
        "rules_version": RULES_VERSION,
        "confidence": table.confidence,
        "level": (1 - table.confidence) / 2,
        "seeds": list(table.seeds),
        "arms": dict(table.arms),
        "counts": {verdict: counts[verdict] for verdict in ("supported", "contradicted", "inconclusive", "not_tested")},
        "claims": entries,
    }


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Decides the claims and writes ``ledger.json``; see ``docs/claims.md`` for the rules.

    Raises:
        StageError: an unknown claim id.
    """
    table = Table(study=config["study"], entries=config["entries"], arms=config["arms"], inputs=inputs)
    ledger = build(table, config["study"].get("claims", {}).get("ids"))
    (out / "ledger.json").write_text(json.dumps(ledger, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    progress.note(", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in ledger["counts"].items()))
    verdicts = {entry["id"]: entry["verdict"] for entry in ledger["claims"]}
    return Result(metrics={"verdicts": verdicts, "rules_version": RULES_VERSION})
