"""``prism claims``: the ledger of a study in the terminal, and the same rules on the paper's own tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prismlab.claims.reference_checks import averages, disagreements
from prismlab.claims.reference_ledger import decide_reference
from prismlab.errors import StoreError, shown
from prismlab.run.step import Artifact
from prismlab.tools import show


def _number(value: float | None) -> str:
    return show.NONE if value is None else show.digits(value, 4)


def _interval(effect: Mapping[str, Any]) -> str:
    return show.NONE if effect["lo"] is None else f"{_number(effect['lo'])} to {_number(effect['hi'])}"


def _verdict(text: str) -> str:
    return text.replace("_", " ")


def _counted(verdicts: Sequence[str]) -> str:
    return ", ".join(f"{count} {_verdict(verdict)}" for verdict, count in Counter(verdicts).items())


def read_ledger(artifact: Artifact) -> dict[str, Any]:
    """The ledger of a finished step ``claims``.

    Raises:
        StoreError: the file is not there or holds no ledger.
    """
    path = artifact.path / "ledger.json"
    try:
        ledger = json.loads(path.read_text(encoding="utf-8"))
        return {**ledger, "claims": list(ledger["claims"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: no ledger: {shown(error)}; 'prism run' builds it again") from None


def show_ledger(artifact: Artifact, *, out: Path | None = None, as_json: bool = False) -> None:
    """Show the ledger of a study: verdict, effect, interval, and what is missing.

    Raises:
        StoreError: the ledger cannot be read.
    """
    ledger = read_ledger(artifact)
    rows: list[list[str]] = []
    notes: list[str] = []
    for claim in ledger["claims"]:
        effect = claim["effect"]
        cells = [show.NONE] * 3 if effect is None else [_number(effect["value"]), _interval(effect), effect["unit"]]
        rows.append([claim["id"], claim["title"], _verdict(claim["verdict"]), *cells, _number(claim["p_holm"])])
        if claim["missing"]:
            notes.append(f"{claim['id']} lacks: {'; '.join(shown(reason, 200) for reason in claim['missing'])}.")
    seeds = len(ledger["seeds"])
    name = shown(ledger["study"], 60)
    table = show.Table(
        head=["claim", "", "verdict", "effect", f"{ledger['confidence']:.0%} interval", "unit", "p (Holm)"],
        rows=rows,
        title=f"{name}: {_counted([claim['verdict'] for claim in ledger['claims']])}",
        note=f"Rules version {ledger['rules_version']}; {seeds} seed{'s' if seeds > 1 else ''}, the unit of inference.",
        words=3,
    )
    show.emit("claims", ledger, [table], title=f"Claims of {name}", notes=notes, figures=list, out=out, as_json=as_json)


def _summary(record: Mapping[str, Any]) -> show.Table:
    rows: list[list[str]] = []
    for claim in record["claims"]:
        places = Counter(one["side"] for one in claim["models"])
        over = claim["over_models"]
        across = show.NONE if over is None else f"{_verdict(over['verdict'])} ({len(over['models'])})"
        said = ", ".join(f"{count} {side}" for side, count in places.items()) or show.NONE
        rows.append([claim["id"], claim["title"], _verdict(claim["verdict"]), said, across])
    return show.Table(
        head=["claim", "", "verdict by the rule", "points of models", "over models"],
        rows=rows,
        title=f"The paper's tables by rules version {record['rules_version']}",
        note="Points: on which side of the rule's thresholds one model's values lie. Over models: what the rule would "
        "say if models were repetitions, which they are not.",
        words=5,
    )


def _where(part: Mapping[str, Any]) -> str:
    return show.NONE if part["value"] is None else f"{_number(part['value'])} {part['unit']}"


def _arithmetic(claim: Mapping[str, Any]) -> show.Table:
    """Of one claim, every part for every model, then over models with the interval."""
    rows: list[list[str]] = []
    for one in claim["models"]:
        for part in one["parts"]:
            rows.append([one["model"], part["label"], part["test"], part["side"], _where(part), show.NONE])
    over = claim["over_models"]
    if over is not None:
        for part in over["parts"]:
            mean = [
                f"over {part['n']} model{'' if part['n'] == 1 else 's'}",
                part["label"],
                part["test"],
                _verdict(part["verdict"]),
            ]
            rows.append([*mean, _where(part), _interval(part)])
    head = ["model", "what", "rule", "side", "value", "interval"]
    return show.Table(head=head, rows=rows, title=f"{claim['id']}: {_verdict(claim['verdict'])}", words=4)


def _lines(claim: Mapping[str, Any]) -> list[str]:
    """Beneath a claim's table: why, what was read, what is known of its error."""
    lines = [f"{claim['id']}: {claim['why']}."]
    if claim["verdict"] == "inconclusive" and claim["missing"]:
        lines.append(f"  Lacks: {'; '.join(claim['missing'])}.")
    lines += [f"  Read, {one['model']}: {'; '.join(one['read'])}." for one in claim["models"] if one["read"]]
    if not claim["models"]:
        lines.append(f"  The paper reports: {claim['paper']} ({claim['source']}).")
    if claim["uncertainty"]:
        lines.append(f"  {claim['uncertainty']}")
    return lines


def _checked() -> tuple[show.Table, dict[str, Any], list[str]]:
    found = averages()
    rows = [[a.table, a.row, a.column, "yes" if a.agrees else "no", f"{a.printed:.2f}", a.arithmetic()] for a in found]
    agree = sum(a.agrees for a in found)
    table = show.Table(
        head=["table", "row", "average", "agrees", "printed", "recomputed"],
        rows=rows,
        title=f"Averages recomputed: {agree} of {len(found)} agree within rounding",
        words=4,
    )
    listed = [{**a.__dict__, "terms": list(a.terms), "agrees": a.agrees} for a in found]
    wrong = disagreements()
    return table, {"averages": listed, "disagreements": wrong}, wrong


def show_reference(*, out: Path | None = None, as_json: bool = False) -> None:
    """Decide all claims on the paper's tables, with the arithmetic, and check the tables against themselves."""
    record = decide_reference()
    averaged, checks, wrong = _checked()
    tables = [_summary(record), *(_arithmetic(claim) for claim in record["claims"] if claim["models"]), averaged]
    notes = [line for claim in record["claims"] for line in _lines(claim)]
    notes += ["", "Disagreements inside the paper's tables:", *(f"- {line}" for line in wrong)]
    whole = {"tool": "claims", **record, **checks}
    title = "The paper's tables by our rules"
    show.emit("claims", whole, tables, title=title, notes=notes, figures=list, out=out, as_json=as_json)
