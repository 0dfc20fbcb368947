"""Stage ``report``: one HTML file that opens from disk without network.

Every script on the page is allowed by its hash in the page's own content security policy, and nothing may be fetched:
text that a model wrote, or a name in a study file, cannot run even if escaping failed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from prismlab.errors import DataError, MissingExtra
from prismlab.report import analyses, overview, paths, samples, sections
from prismlab.report.cards import Card, card
from prismlab.report.records import Records
from prismlab.report.sections import Section
from prismlab.run.step import Artifact, Json, Progress, Result

VERDICTS = ("supported", "contradicted", "inconclusive", "not_tested")


def script_json(value: object) -> str:
    """JSON that may stand inside a script element: no ``<``, ``>`` or ``&``, no line separators of JavaScript."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _rounded(value: Any) -> Any:
    """Figures to 6 significant digits: more cannot be seen, and the page stays small. What is not finite is null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    return (files("prismlab.report") / "templates" / name).read_text(encoding="utf-8")


def _plotly() -> str:
    """The plotting library as one script."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtra("plotly", "report", "the report") from error
    script = get_plotlyjs()
    if re.search(r"</script|<!--", script, re.IGNORECASE):
        raise ValueError("the plotting library holds a sequence that would end its script element")
    return script


def build_sections(records: Records) -> list[Section]:
    """Every section of the page but the claims and the samples, in reading order."""
    makers = (
        overview.pipeline,
        sections.scores,
        sections.mixtures,
        sections.training,
        analyses.divergence,
        paths.directions,
        analyses.representations,
        sections.reinforcement,
        paths.trajectories,
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
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtra("jinja2", "report", "the report") from error
    found, ledger = build_sections(records), _ledger(records)
    cards: Sequence[Card] = [card(claim) for claim in ledger["claims"]] if ledger else []
    drawn = {d.id: _rounded(d.figure) for section in found for d in section.drawings}
    plotly, script = _plotly(), _resource("page.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["raw"] = _raw()
    return environment.from_string(_resource("page.html.j2")).render(
        policy=f"default-src 'none'; script-src {_hash(plotly)} {_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
        style=_resource("style.css"),
        plotly=plotly,
        script=script,
        figures=script_json(drawn),
        head=overview.headline(records),
        sections=found,
        cards=cards,
        counts={verdict: sum(c.verdict == verdict for c in cards) for verdict in VERDICTS},
        ledger=ledger,
        shown=samples.collect(records),
        seeds=records.seeds,
    )


def _raw() -> Any:
    """Marks our own style and scripts, and JSON made safe above, as not to be escaped."""
    from markupsafe import Markup

    return Markup


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Writes ``report.html`` from every artifact of the study.

    Raises:
        DataError: a file of an artifact cannot be read.
        MissingExtra: plotly or jinja2 is not installed.
    """
    records = Records(study=config["study"], entries=config["entries"], arms=config["arms"], inputs=inputs)
    # A lone surrogate in a study file cannot be encoded; it shows as a question mark rather than spoiling the page.
    page = render(records).encode("utf-8", errors="replace")
    (out / "report.html").write_bytes(page)
    return Result(metrics={"bytes": len(page)})
