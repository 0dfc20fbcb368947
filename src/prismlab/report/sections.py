"""Sections of the page that show how checkpoints were made and what they can do: scores, mixtures, training, RL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prismlab.report import figures
from prismlab.report.figures import Bars, Figure, Line, Panel, colour
from prismlab.report.records import Found, Records, in_order, json_lines, number
from prismlab.report.text import NONE, percent, short, with_interval
from prismlab.stats import Interval


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    small: str = ""
    """Second line, in small print: an interval."""
    best: bool = False
    number: bool = True
    href: str | None = None
    """Link to another part of the page."""


@dataclass(frozen=True)
class Table:
    """A table that scrolls on narrow screens."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    folded: bool = False
    """Behind a summary line, for long tables."""


@dataclass(frozen=True)
class Drawing:
    """A figure with the sentence that says how to read it."""

    id: str
    figure: Figure
    caption: str
    label: str


@dataclass(frozen=True)
class Section:
    """One part of the page; without drawings and tables it is left out but for its note."""

    id: str
    title: str
    lead: str = ""
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    short: str = ""
    """Name in the navigation, where the title is long."""
    note: str = ""
    """One line: why the section is empty, or what to know."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """For sections with a layout of their own."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.drawings and not self.tables and not self.extra


def name_cell(records: Records, checkpoint: str) -> Cell:
    """The arm of a checkpoint, its own name beneath."""
    label = records.label(checkpoint)
    return Cell(label, "" if label == checkpoint else checkpoint, number=False)


Reader = Callable[[Mapping[str, Any]], object]


def _column(
    records: Records,
    steps: Mapping[str, list[Found]],
    read: Reader,
    best: Callable[[set[float]], float] | None,
    digits: int = 1,
) -> dict[str, Cell]:
    values = {name: records.interval(found, read) for name, found in steps.items()}
    known = {i.value for i in values.values() if i.value is not None}
    # Where all are equal, as at a floor, none is best.
    winner = best(known) if best and len(known) > 1 else None
    return {
        name: with_interval(i, digits, winner is not None and i.value == winner, Cell) for name, i in values.items()
    }


def scores(records: Records) -> Section:
    """Scores of every checkpoint by domain, with truncation and text loss."""
    name = records.evaluation
    found = records.of("evaluation", name=name) if name else []
    if not found:
        return Section("scores", "Scores", note="No evaluation has run in this study.")
    order = records.checkpoints(one.entry["checkpoint"] for one in found)
    steps = {c: [one for one in found if one.entry["checkpoint"] == c] for c in order}
    domains = in_order(d for one in found for d in one.artifact.metrics.get("domains", {}))
    sources = list(dict.fromkeys(s for one in found for s in one.artifact.metrics.get("text", {})))
    columns = {d: _column(records, steps, lambda m, d=d: m.get("domains", {}).get(d), max) for d in domains}
    if domains:
        columns["average"] = _column(records, steps, lambda m: m.get("average"), max)
        columns["truncated, %"] = _column(records, steps, _truncation, None)
    for s in sources:
        column = _column(records, steps, lambda m, s=s: _bits(m, s), min, 3)
        columns[f"{s}, bits per byte"] = column
    rows = [[name_cell(records, c), *(column[c] for column in columns.values())] for c in order]
    inside = "over seeds" if len(records.seeds) > 1 else "over items inside the one seed"
    caption = (
        f"Evaluation {name!r}: percent correct by domain, with {records.confidence:.0%} intervals {inside}; the "
        "best of a column is bold. Truncated responses hit the length limit. Bits per byte is the loss on "
        "held-out text: lower is better."
    )
    if len(records.seeds) > 1:
        caption += " With few seeds an interval can reach below 0 or above 100; none stands where all seeds agree."
    table = Table(["checkpoint", *columns], rows, caption)
    panels = [_score_panel(records, steps, d) for d in domains]
    how = (
        "Each bar is a checkpoint, whiskers are the intervals of the table, cut off at 0 and 100. Claims compare arms "
        "seed by seed: two whiskers that overlap neither show nor rule out a difference."
    )
    drawings = [Drawing("scores", _overlaid(figures.draw(panels)), how, "Scores by domain")] if panels else []
    return Section("scores", "Scores", drawings=drawings, tables=[table])


def _score_panel(records: Records, steps: Mapping[str, list[Found]], domain: str) -> Panel:
    def bars(checkpoint: str) -> Bars:
        label = records.label(checkpoint)
        value = records.interval(steps[checkpoint], lambda m: m.get("domains", {}).get(domain))
        return Bars(name=label, colour=colour(label), values={label: value})

    drawn = [bars(checkpoint) for checkpoint in steps]
    return Panel(title=domain, y="percent", bars=drawn, y_range=(0.0, _ceiling(drawn)))


def _ceiling(drawn: Sequence[Bars]) -> float:
    """Where an axis of percents ends: a little above the highest bar or whisker, at the latest just above 100."""
    values = [value for bars in drawn for i in bars.values.values() for value in (i.value, i.hi) if value is not None]
    return min(100.0, max(values, default=0.0)) * 1.04 or 1.0


UNNAMED = 28
"""Pixels that an axis saves whose names stand in the legend."""


def _overlaid(figure: Figure) -> Figure:
    """One bar a category: names stand in the legend, so the axis needs none."""
    layout = {**figure["layout"], "barmode": "overlay"}
    layout["height"] -= UNNAMED
    layout["margin"] = {**layout["margin"], "b": layout["margin"]["b"] - UNNAMED}
    layout["meta"] = {**layout["meta"], "unnamed": UNNAMED}
    for key, axis in layout.items():
        if key.startswith("xaxis"):
            layout[key] = {**axis, "showticklabels": False}
    return {**figure, "layout": layout}


def _truncation(metrics: Mapping[str, Any]) -> float | None:
    return number((metrics.get("average") or {}).get("truncation"))


def _bits(metrics: Mapping[str, Any], source: str) -> object:
    found = metrics.get("text", {}).get(source, {})
    value = found.get("bits_per_byte")
    return {"value": value, "lo": found.get("lo"), "hi": found.get("hi"), "items": found.get("documents")}


def mixtures(records: Records) -> Section:
    """What the corpora really hold."""
    rows: dict[str, dict[str, float]] = {}
    lines: list[list[Cell]] = []
    domains: dict[str, str] = {}
    for one in records.of("corpus"):
        mixture = str(one.artifact.config.get("mixture", one.entry["name"]))
        sources = one.artifact.metrics.get("sources", {})
        label = mixture if mixture not in rows or one.seed == records.seeds[0] else None
        if label is None or label in rows:
            continue
        rows[label] = {name: 100 * float(s["share"]) for name, s in sources.items()}
        for name, s in sources.items():
            domains[name] = str(s["domain"])
            lines.append(
                [
                    Cell(mixture, number=False),
                    Cell(name, number=False),
                    Cell(str(s["domain"]), number=False),
                    Cell(percent(s["share"])),
                    Cell(f"{int(s['tokens']):,}"),
                    Cell(f"{int(s['documents']):,}"),
                    Cell(short(s["epochs"])),
                ]
            )
    if not rows:
        return Section("mixtures", "Mixtures", note="No corpus was built in this study.")
    figure = figures.stacked(rows, _source_colours(domains), "percent of tokens")
    how = "Each row is a mixture as it was really drawn; each part is a source's share of the tokens."
    head = ["mixture", "source", "domain", "share", "tokens", "documents", "epochs"]
    caption = f"Realised shares, seed {records.seeds[0]}; epochs are passes over a source, {NONE} within the first."
    drawing = Drawing("mixtures", figure, how, "Shares of sources in mixtures")
    return Section("mixtures", "Mixtures", drawings=[drawing], tables=[Table(head, lines, caption, folded=True)])


def _source_colours(domains: Mapping[str, str]) -> dict[str, str]:
    """Sources of one domain share its colour, from full to pale."""
    out: dict[str, str] = {}
    for domain in dict.fromkeys(domains.values()):
        names = [name for name, d in domains.items() if d == domain]
        base = colour(domain, figures.DOMAIN_COLOURS).lstrip("#")
        red, green, blue = (int(base[i : i + 2], 16) for i in (0, 2, 4))
        for k, name in enumerate(names):
            fade = 1 - 0.55 * k / max(1, len(names) - 1) if len(names) > 1 else 1
            out[name] = f"rgba({red},{green},{blue},{fade:.2f})"
    return out


def curves(records: Records, kind: str, read: Reader, logs: Mapping[str, list[dict[str, Any]]]) -> list[Line]:
    """One line a checkpoint, of a value of its logged steps."""
    found = records.of(kind)
    lines: list[Line] = []
    for checkpoint in records.checkpoints(one.entry["checkpoint"] for one in found):
        seeds = {
            one.seed: [
                (float(row["step"]), value)
                for row in logs[one.entry["key"]]
                if (value := number(read(row))) is not None
            ]
            for one in found
            if one.entry["checkpoint"] == checkpoint
        }
        label = records.label(checkpoint)
        lines.append(Line(name=label, colour=colour(label), seeds=seeds))
    return lines


def _logs(records: Records, kind: str) -> dict[str, list[dict[str, Any]]]:
    return {one.entry["key"]: json_lines(one) for one in records.of(kind)}


def _domains_of(logs: Mapping[str, list[dict[str, Any]]], field: str) -> list[str]:
    return in_order(d for rows in logs.values() for row in rows for d in row.get(field) or {})


def training(records: Records) -> Section:
    """Loss of every training, whole and by domain."""
    logs = _logs(records, "train")
    if not logs:
        return Section("training", "Training", note="No checkpoint was trained in this study.")

    def panel(title: str, read: Reader) -> Panel:
        return Panel(title=title, x="step", y="loss, nats", lines=curves(records, "train", read, logs))

    panels = [panel("all domains", lambda row: row.get("loss"))]
    panels += [panel(d, lambda row, d=d: (row.get("domains") or {}).get(d)) for d in _domains_of(logs, "domains")]
    how = "Training loss against the optimizer step: the thick line is the mean over seeds, thin ones are single seeds."
    drawings = [Drawing("training", figures.draw(panels), how, "Training loss")]
    return Section("training", "Training", drawings=[*drawings, *_watched(records)])


def _watched(records: Records) -> list[Drawing]:
    """Held-out loss and distance to the start, of trainings that measured them."""
    watched = [one for one in records.of("train") if (one.artifact.config.get("spec") or {}).get("monitor")]
    if not watched:
        return []
    logs: dict[str, list[dict[str, Any]]] = {one.entry["key"]: [] for one in records.of("train")}
    logs |= {one.entry["key"]: json_lines(one, "heldout.jsonl") for one in watched}

    def panel(title: str, unit: str, read: Reader) -> Panel:
        lines = [line for line in curves(records, "train", read, logs) if any(line.seeds.values())]
        return Panel(title=title, x="step", y=unit, lines=lines)

    panels = [
        panel(f"held-out {name}", "loss, nats", lambda row, name=name: (row.get("heldout") or {}).get(name))
        for name in _domains_of(logs, "heldout")
    ]
    panels.append(panel("distance to the start", "KL, nats", lambda row: row.get("kl")))
    how = (
        "Measured while training, on held-out documents: loss a token of each source, and KL(start || now) of the next "
        "token on general text, the early sign of forgetting. The thick line is the mean over seeds."
    )
    return [Drawing("watched", figures.draw(panels), how, "Held-out loss while training")]


RL_PANELS = (
    ("reward", "mean reward", "reward"),
    ("length", "tokens", "response length"),
    ("kl", "nats per token", "KL to the reference"),
    ("entropy", "nats", "entropy"),
    ("no_signal", "share of groups", "groups without signal"),
    ("truncation", "share", "truncated responses"),
)


def reinforcement(records: Records) -> Section:
    """Reward, pass rates, length and KL over RL."""
    logs = _logs(records, "rl")
    if not logs:
        return Section("rl", "Reinforcement learning", note="No RL run has finished in this study.")

    def panel(title: str, unit: str, read: Reader) -> Panel:
        return Panel(title=title, x="step", y=unit, lines=curves(records, "rl", read, logs))

    panels = [panel(title, unit, lambda row, f=f: row.get(f)) for f, unit, title in RL_PANELS[:1]]
    panels += [
        panel(f"pass rate, {d}", "share", lambda row, d=d: (row.get("pass") or {}).get(d))
        for d in _domains_of(logs, "pass")
    ]
    panels += [panel(title, unit, lambda row, f=f: row.get(f)) for f, unit, title in RL_PANELS[1:]]
    how = (
        "Per optimizer step, over the step's own samples: the thick line is the mean over seeds. A group whose rewards "
        "are all equal gives no signal."
    )
    return Section(
        "rl",
        "Reinforcement learning",
        short="RL",
        drawings=[Drawing("rl", figures.draw(panels), how, "Reward and pass rates in RL")],
    )


BEHAVIOUR_PANELS = (
    ("length_median", "tokens", "median length"),
    ("nll", "nats per token", "negative log-probability"),
    ("nll_correct", "nats per token", "the same, correct responses"),
    ("nll_incorrect", "nats per token", "the same, incorrect responses"),
    ("truncation", "share", "truncated"),
)


def behaviour(records: Records) -> Section:
    """Length and confidence of responses."""
    found = records.of("behaviour")
    if not found:
        return Section("behaviour", "Behaviour", note="The analysis 'behaviour' was not part of this study.")
    order = records.checkpoints(one.entry["checkpoint"] for one in found)
    panels: list[Panel] = []
    for key, unit, title in BEHAVIOUR_PANELS:
        bars: list[Bars] = []
        for c in order:
            steps = [one for one in found if one.entry["checkpoint"] == c]
            interval: Interval = records.interval(steps, lambda m, key=key: m.get("all", {}).get(key))
            bars.append(
                Bars(name=records.label(c), colour=colour(records.label(c)), values={records.label(c): interval})
            )
        panels.append(Panel(title=title, y=unit, bars=bars))
    how = (
        "Over all responses of an evaluation: a lower negative log-probability is more confidence; bars that are "
        "absent had too few responses of that sort."
    )
    drawing = Drawing("behaviour", _overlaid(figures.draw(panels)), how, "Response length and confidence")
    return Section("behaviour", "Behaviour", drawings=[drawing])
