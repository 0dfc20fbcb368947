"""Stage ``report``: one HTML file that opens from disk without network (see ``page``)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prismlab.errors import DataError
from prismlab.report import (
    frontier,
    gates,
    landscape,
    overview,
    page,
    paths,
    representations,
    samples,
    sections,
    weights,
)
from prismlab.report.cards import Card, card
from prismlab.report.records import Records
from prismlab.report.sections import Section
from prismlab.run.step import Artifact, Json, Progress, Result

VERDICTS = ("supported", "contradicted", "inconclusive", "not_tested")


def build_sections(records: Records) -> list[Section]:
    """Every section of the page but the claims and the samples, in reading order."""
    makers = (
        overview.pipeline,
        sections.scores,
        gates.gates,
        sections.mixtures,
        sections.training,
        weights.divergence,
        paths.directions,
        representations.representations,
        sections.reinforcement,
        paths.trajectories,
        frontier.frontier,
        landscape.landscape,
        sections.behaviour,
        overview.time_spent,
        overview.provenance,
    )
    return [_filled(make(records)) for make in makers]


def _filled(section: Section) -> Section:
    """The section without figures that have nothing to draw."""
    kept = [drawing for drawing in section.drawings if drawing.figure["data"]]
    without = replace(section, drawings=kept)
    lost = section.drawings and without.empty and not section.note
    return replace(without, note="The steps of this section recorded nothing that could be drawn.") if lost else without


def _ledger(records: Records) -> Mapping[str, Any] | None:
    """The ledger of the study; None if its step has no artifact."""
    found = records.of("claims")
    if not found:
        return None
    path = found[0].artifact.path / "ledger.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"ledger.json cannot be read: {error}; build the step 'claims' again") from error


def render(records: Records) -> str:
    """The page.

    Raises:
        DataError: a file of an artifact cannot be read.
        MissingExtra: plotly or jinja2 is not installed.
    """
    found, ledger = build_sections(records), _ledger(records)
    cards: Sequence[Card] = [card(claim) for claim in ledger["claims"]] if ledger else []
    return page.fill(
        "page.html.j2",
        {d.id: d.figure for section in found for d in section.drawings},
        head=overview.headline(records),
        sections=found,
        cards=cards,
        counts={verdict: sum(c.verdict == verdict for c in cards) for verdict in VERDICTS},
        ledger=ledger,
        shown=samples.collect(records),
        seeds=records.seeds,
    )


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Writes ``report.html`` from every artifact of the study.

    Raises:
        DataError: a file of an artifact cannot be read.
        MissingExtra: plotly or jinja2 is not installed.
    """
    records = Records(study=config["study"], entries=config["entries"], arms=config["arms"], inputs=inputs)
    # A lone surrogate in a study file cannot be encoded; it shows as a question mark rather than spoiling the page.
    html = render(records).encode("utf-8", errors="replace")
    (out / "report.html").write_bytes(html)
    return Result(metrics={"bytes": len(html)})
