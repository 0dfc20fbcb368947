"""Put a finished study's ledger on record: the whole ledger as JSON, and a page to read beside it.

    python benchmarks/record_ledger.py runs/micro-full

Writes benchmarks/results/<study>-ledger.json and benchmarks/results/<study>-ledger.md.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from prismlab.stats import mean_t

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("math", "code", "science")


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((run / "artifacts").glob("*/record.json"))]


def current(run: Path, ledger: Path) -> list[dict[str, Any]]:
    """Records that this ledger was decided on: a run folder may hold those of earlier versions of the study, too."""
    claims = json.loads((ledger.parent / "record.json").read_text())
    wanted = {entry["fingerprint"] for entry in claims["inputs"].values() if "fingerprint" in entry}
    found = [record for record in records(run) if record["fingerprint"] in wanted]
    # What evaluations were made of, one step back, carries the training records.
    made = {entry["fingerprint"] for record in found for entry in record["inputs"].values() if "fingerprint" in entry}
    return [record for record in records(run) if record["fingerprint"] in wanted | made] + [claims]


def interval(values: list[float], digits: int = 1) -> str:
    i = mean_t(values)
    if i.value is None:
        return "–"
    if i.lo is None or i.hi is None:
        return f"{i.value:.{digits}f}"
    return f"{i.value:.{digits}f} [{i.lo:.{digits}f}, {i.hi:.{digits}f}]"


def score_table(found: list[dict[str, Any]], arms: dict[str, str]) -> list[str]:
    """Mean over seeds with the t interval over seeds, by arm and domain."""
    rows: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in found:
        if record["kind"] != "evaluation":
            continue
        checkpoint = record["name"].split("@")[1].rsplit("/", 1)[0]
        metrics = record["metrics"]
        for domain in COLUMNS:
            if metrics["domains"].get(domain, {}).get("value") is not None:
                rows[checkpoint][domain].append(metrics["domains"][domain]["value"])
        if metrics["average"].get("value") is not None:
            rows[checkpoint]["AVG"].append(metrics["average"]["value"])
        texts = [text["bits_per_byte"] for text in metrics["text"].values()]
        if texts:
            rows[checkpoint]["text"].append(sum(texts) / len(texts))
    names = {checkpoint: arm for arm, checkpoint in arms.items()}
    lines = ["| arm | math | code | science | AVG | text, bits a byte |", "|---|---|---|---|---|---|"]
    for checkpoint in sorted(rows, key=lambda name: names.get(name, name)):
        cells = [interval(rows[checkpoint][column]) for column in (*COLUMNS, "AVG")]
        lines.append(
            f"| {names.get(checkpoint, checkpoint)} | {' | '.join(cells)} | {interval(rows[checkpoint]['text'], 3)} |"
        )
    return lines


def effect_text(effect: dict[str, Any] | None) -> str:
    if not effect or effect["value"] is None:
        return "–"
    value = f"{effect['value']:.4g} {effect['unit']}"
    return value if effect["lo"] is None else f"{value} [{effect['lo']:.4g}, {effect['hi']:.4g}]"


def verdict_table(ledger: dict[str, Any]) -> list[str]:
    lines = [
        "| claim | verdict | part it hangs on | effect | test | p (Holm) | the paper |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim in ledger["claims"]:
        effect = claim["effect"]
        p = "–" if claim["p"] is None else f"{claim['p']:.2g} ({claim['p_holm']:.2g})"
        hangs = effect["label"] if effect else "; ".join(claim["missing"])
        row = [f"{claim['id']} {claim['title']}", claim["verdict"], hangs, effect_text(effect), claim["test"] or "–", p]
        lines.append(f"| {' | '.join(row)} | {claim['paper']['text']} |")
    return lines


def commits(found: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Kinds of artifacts by the commit of the code that made them; a change is marked as such."""
    by: defaultdict[str, set[str]] = defaultdict(set)
    for record in found:
        git = record["git"] or {}
        by[f"{git.get('commit')}{' with changes' if git.get('dirty') else ''}"].add(record["kind"])
    return {commit: sorted(kinds) for commit, kinds in sorted(by.items())}


def main() -> None:
    run = Path(sys.argv[1])
    ledger_file = max((run / "artifacts").glob("claims-*/ledger.json"), key=lambda file: file.stat().st_mtime)
    ledger = json.loads(ledger_file.read_text())
    found = current(run, ledger_file)
    claims = found[-1]
    meta = {
        "date": claims["started"],
        "device": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "study": ledger["study"],
        "versions": claims["versions"],
        "commits": commits(found),
    }
    name = f"{ledger['study']}-ledger"
    (RESULTS / f"{name}.json").write_text(json.dumps({"record": meta, "ledger": ledger}, indent=1) + "\n")
    counts = ", ".join(f"{n} {verdict.replace('_', ' ')}" for verdict, n in ledger["counts"].items())
    page = [
        f"# Ledger of `{ledger['study']}`",
        "",
        f"{meta['date']}, {meta['device']}, seeds {', '.join(map(str, ledger['seeds']))}, rules version "
        f"{ledger['rules_version']}: {counts}. Intervals are "
        f"{ledger['confidence']:.0%} Student-t intervals over seeds.",
        "",
        *verdict_table(ledger),
        "",
        "## Scores, percent",
        "",
        *score_table(found, ledger["arms"]),
        "",
        "## Commits that the artifacts were made by",
        "",
        *[f"- {commit}: {', '.join(kinds)}" for commit, kinds in meta["commits"].items()],
    ]
    (RESULTS / f"{name}.md").write_text("\n".join(page) + "\n")
    print("\n".join(page))


if __name__ == "__main__":
    main()
