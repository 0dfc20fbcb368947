"""The frame of the page: headline, pipeline, where the time went, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prismlab.report import graph
from prismlab.report.figures import Bars, Panel, colour, draw
from prismlab.report.plan import plan_and_reality
from prismlab.report.records import Found, Records
from prismlab.report.sections import Cell, Drawing, Section, Table, name_cell
from prismlab.report.text import NONE, duration, percent, short
from prismlab.stats import Interval

LONGEST_STEPS = 30
SHOWN_VERSIONS = ("prismlab", "python", "torch", "transformers", "trl", "numpy")


@dataclass(frozen=True)
class Headline:
    """What stands at the top of the page."""

    title: str
    name: str
    description: str
    facts: list[tuple[str, str]]
    """Label and value: date, seeds, versions, time."""


def records_of(records: Records) -> list[Mapping[str, Any]]:
    """The records of all finished steps."""
    return [artifact.record for artifact in records.inputs.values()]


def headline(records: Records) -> Headline:
    """Title and facts; the date is that of the last step, so an equal study gives an equal page."""
    study, every = records.study, records_of(records)
    started = sorted(str(record["started"]) for record in every if record.get("started"))
    seconds = sum(float(record.get("seconds") or 0) for record in every)
    tokens = sum(int(one.artifact.record.get("tokens") or 0) for kind in ("train", "rl") for one in records.of(kind))
    versions: dict[str, str] = {}
    for record in every:
        versions |= {name: version for name, version in (record.get("versions") or {}).items() if version is not None}
    named = ", ".join(f"{name} {versions[name]}" for name in SHOWN_VERSIONS if name in versions)
    facts = [
        ("date", started[-1][:10] if started else NONE),
        ("seeds", ", ".join(map(str, records.seeds))),
        ("steps", f"{len(every)} of {len(records.entries)}"),
        ("computing", duration(seconds)),
        ("tokens trained on", f"{tokens:,}" if tokens else NONE),
        ("versions", named or NONE),
    ]
    return Headline(
        study.get("report", {}).get("title") or study["name"], study["name"], study.get("description", ""), facts
    )


def _training_cells(spec: Mapping[str, Any]) -> tuple[Cell, str, str]:
    """Budget, learning rate, and what it learns from."""
    data = str(spec.get("mixture") or spec.get("prompts") or NONE)
    if spec["stage"] == "merge":
        return Cell(NONE), NONE, " + ".join(f"{weight:g} {name}" for name, weight in spec["weights"].items())
    if spec["stage"] == "rl":
        size = Cell(f"{spec['steps']:,} steps", f"of {spec['prompts_per_step']} prompts × {spec['samples']} samples")
    else:
        size = Cell(f"{spec['steps'] * spec['rows'] * spec['seq_len']:,} tokens")
    return size, f"{spec['optimizer']['lr']:g}".replace("e-0", "e-"), data


def pipeline(records: Records) -> Section:
    """Graph and table of all checkpoints."""
    rows: list[list[Cell]] = []
    for name in records.made():
        spec = records.study["checkpoints"][name]
        size, rate, data = _training_cells(spec)
        steps = [one for kind in ("train", "rl", "merge") for one in records.of(kind, checkpoint=name)]
        seconds = sum(float(one.artifact.record.get("seconds") or 0) for one in steps)
        lost = [e for e in records.entries if e.get("checkpoint") == name and "missing" in e]
        reasons = dict.fromkeys(f"no {e['kind']}: {e['missing']}" for e in lost)
        state = "; ".join([f"{len(steps)} of {len(records.seeds)} seeds", *reasons])
        cells = [Cell(text, number=False) for text in (str(spec["stage"]), " + ".join(graph.starts(spec)), data)]
        rows.append(
            [
                name_cell(records, name),
                *cells,
                size,
                Cell(rate),
                Cell(duration(seconds)),
                Cell(state, number=False),
            ]
        )
    head = ["checkpoint", "stage", "from", "data", "budget a seed", "learning rate", "time, all seeds", "done"]
    missing = records.missing()
    note = (
        ""
        if not missing
        else f"Steps without an artifact: {len(missing)}. " + "; ".join(f"{k} ({r})" for k, r in missing[:8])
    )
    table = Table(
        head, rows, "Arms are checkpoints in the role that a claim gives them; a checkpoint's own name is beneath."
    )
    return Section("pipeline", "Pipeline", tables=[table], note=note, extra={"graph": graph.layout(records)})


def time_spent(records: Records) -> Section:
    """Seconds by step, summed over seeds."""
    steps: dict[str, float] = {}
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for entry in records.entries:
        artifact = records.inputs.get(entry["key"])
        if artifact is None:
            continue
        name = entry["key"].removesuffix(f"/s{entry['seed']}")
        steps[name] = steps.get(name, 0.0) + float(artifact.record.get("seconds") or 0)
        kinds.setdefault(entry["kind"], []).append(artifact.record)
    if not steps:
        return Section("time", "Where the time went", note="No step has run.")
    whole = sum(steps.values()) or 1.0
    longest = sorted(steps, key=lambda name: -steps[name])[:LONGEST_STEPS]
    bars = [
        Bars(
            name=kind,
            colour=colour(kind),
            values={n: Interval(steps[n], None, None, 1, "sum") for n in longest if n.split("/")[0] == kind},
        )
        for kind in dict.fromkeys(name.split("/")[0] for name in longest)
    ]
    figure = draw([Panel(title="", y="seconds", bars=bars)], columns=1, height=320)
    axis = {**figure["layout"]["xaxis"], "categoryorder": "array", "categoryarray": longest, "tickangle": -40}
    figure["layout"] |= {"barmode": "overlay", "xaxis": axis}
    figure["data"] = [{**t, "hovertemplate": "%{x}<br>%{y:.1f} s<extra></extra>"} for t in figure["data"]]
    by_time = sorted(kinds, key=lambda kind: -sum(float(record.get("seconds") or 0) for record in kinds[kind]))
    rows = [_kind_row(kind, kinds[kind], whole) for kind in by_time]
    head = ["kind of step", "steps", "seconds", "share", "tokens", "tokens a second", "peak memory, MB"]
    more = f"; the {LONGEST_STEPS} longest of {len(steps)}" if len(steps) > LONGEST_STEPS else ""
    how = f"Each bar is a step, its seconds summed over seeds{more}; colours tell kinds of steps."
    table = Table(head, rows, "Seconds of computing, whatever ran side by side.")
    return Section(
        "time",
        "Where the time went",
        short="Time",
        drawings=[Drawing("time", figure, how, "Seconds by step")],
        tables=[table, *plan_and_reality(records)],
    )


def _kind_row(kind: str, found: list[Mapping[str, Any]], whole: float) -> list[Cell]:
    seconds = sum(float(record.get("seconds") or 0) for record in found)
    tokens = sum(int(record.get("tokens") or 0) for record in found)
    peaks = [float(record["peak_memory_mb"]) for record in found if record.get("peak_memory_mb") is not None]
    return [
        Cell(kind, number=False),
        Cell(str(len(found))),
        Cell(f"{seconds:,.1f}"),
        Cell(percent(seconds / whole)),
        Cell(f"{tokens:,}" if tokens else NONE),
        Cell(short(tokens / seconds) if tokens and seconds else NONE),
        Cell(f"{max(peaks):,.0f}" if peaks else NONE),
    ]


def provenance(records: Records) -> Section:
    """Versions, git state and every record."""
    versions: dict[str, set[str]] = {}
    commits: set[str] = set()
    for record in records_of(records):
        for name, version in (record.get("versions") or {}).items():
            versions.setdefault(str(name), set()).add("not installed" if version is None else str(version))
        git = record.get("git") or {}
        if git.get("commit"):
            commits.add(f"{str(git['commit'])[:12]}{' with local changes' if git.get('dirty') else ''}")
    rows = [
        [Cell(name, number=False), Cell(", ".join(sorted(found)), number=False)]
        for name, found in sorted(versions.items())
    ]
    rows += [[Cell("git", number=False), Cell(commit, number=False)] for commit in sorted(commits)]
    steps = [_record_row(Found(e, records.inputs[e["key"]])) for e in records.entries if e["key"] in records.inputs]
    head = ["step", "fingerprint", "seconds", "peak MB", "tokens", "status"]
    tables = [
        Table(
            ["what", "version"],
            rows,
            "Versions that the steps ran with; several, if steps ran under several.",
            folded=True,
        ),
        Table(head, steps, "Every artifact that this page and the ledger were made from.", folded=True),
    ]
    lead = "A fingerprint depends on configuration, inputs and data; the ledger's evidence links here."
    return Section("provenance", "Provenance", short="Records", lead=lead, tables=tables)


def _record_row(one: Found) -> list[Cell]:
    record = one.artifact.record
    tokens, peak = record.get("tokens"), record.get("peak_memory_mb")
    return [
        Cell(str(one.entry["key"]), number=False),
        Cell(one.artifact.fingerprint, number=False, href=f"id:a-{one.artifact.fingerprint}"),
        Cell(f"{float(record.get('seconds') or 0):,.1f}"),
        Cell(NONE if peak is None else f"{float(peak):,.0f}"),
        Cell(NONE if tokens is None else f"{int(tokens):,}"),
        Cell(str(record.get("status", "complete")), number=False),
    ]
