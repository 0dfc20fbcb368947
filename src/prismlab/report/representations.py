"""The section of the page that shows representations: CKA by layer, by pair and between depths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismlab.report import figures
from prismlab.report.figures import Line, Panel, colour, layer_ticks
from prismlab.report.heat import NEAR_ONE, HeatMap, heat_maps
from prismlab.report.records import Found, Records, number
from prismlab.report.sections import Cell, Drawing, Section, Table
from prismlab.report.text import with_interval

Pair = tuple[str, str]


def _found(records: Records, pair: Pair) -> list[Found]:
    return records.of("cka", old=pair[0], new=pair[1])


def _set(metrics: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    return metrics.get("sets", {}).get(source, {})


def representations(records: Records) -> Section:
    """CKA by layer for every pair and input set, and the smallest of every two checkpoints where there are several."""
    pairs = records.pairs("cka")
    if not pairs:
        return Section("cka", "Representations", note="The analysis 'cka' was not part of this study.")
    sets = list(dict.fromkeys(name for one in records.of("cka") for name in one.artifact.metrics.get("sets", {})))
    how = (
        "Similarity of hidden states of two checkpoints on the same inputs, layer by layer: 1 is equal up to "
        "rotation and scale. The debiased estimator is switched on in the legend; with few inputs the plain one "
        "reads too high."
    )
    figure = figures.draw([_panel(records, pairs, source) for source in sets], columns=2, height=310, digits=".5f")
    drawings = [Drawing("cka", figure, how, "CKA by layer")]
    if len({name for pair in pairs for name in pair}) > 2:
        maps = [_square(records, pairs, source) for source in sets]
        text = "Smallest plain CKA over the layers of every two checkpoints that were compared, mean over seeds."
        drawings.append(Drawing("cka-pairs", heat_maps(maps), text, "Smallest CKA by pair"))
    crossed = _crossed(records, pairs, sets)
    if crossed:
        text = "Every layer of one checkpoint (rows) against every layer of the other (columns), plain CKA, first seed."
        drawings.append(Drawing("cka-cross", heat_maps(crossed), text, "CKA between all layers"))
    tables = [_table(records, pairs, sets)]
    return Section("cka", "Representations", short="CKA", drawings=drawings, tables=tables)


def _panel(records: Records, pairs: Sequence[Pair], source: str) -> Panel:
    lines: list[Line] = []
    for pair in pairs:
        label, tint = records.pair_label(*pair), colour(records.label(pair[1]))
        # The bootstrap's mean stands in the table: a third line a pair would make the legend longer than the figure.
        for field, dash, suffix in (("cka", "solid", ""), ("debiased", "dot", ", debiased")):
            seeds = {one.seed: _points(one, source, field) for one in _found(records, pair)}
            # Pairs over several stages and the other estimators wait in the legend.
            shown = records.start_of(pair[1]) == pair[0] and not suffix
            line = Line(name=label + suffix, colour=tint, seeds=seeds, dash=dash, shown=shown, markers=not suffix)
            lines.append(line)
    return Panel(title=f"inputs: {source}", x="layer", y="linear CKA", lines=lines, x_ticks=layer_ticks(lines))


def _points(one: Found, source: str, field: str) -> list[tuple[float, float]]:
    rows = _set(one.artifact.metrics, source).get("layers", [])
    points = [(float(row["layer"]), number(row.get(field))) for row in rows]
    return [(x, y) for x, y in points if y is not None]


def _square(records: Records, pairs: Sequence[Pair], source: str) -> HeatMap:
    names = records.checkpoints(name for pair in pairs for name in pair)
    known: dict[Pair, float | None] = {(name, name): 1.0 for name in names}
    for old, new in pairs:
        smallest = records.interval(_found(records, (old, new)), lambda m: _set(m, source).get("min"))
        known[old, new] = known[new, old] = smallest.value
    values = [[known.get((row, column)) for column in names] for row in names]
    return HeatMap(title=f"inputs: {source}", names=list(map(records.label, names)), values=values, look=NEAR_ONE)


def _crossed(records: Records, pairs: Sequence[Pair], sets: Sequence[str]) -> list[HeatMap]:
    maps: list[HeatMap] = []
    for pair in pairs:
        for source in sets:
            for one in _found(records, pair)[:1]:
                cross = _set(one.artifact.metrics, source).get("cross")
                if cross:
                    rows, columns = (
                        [f"{n}" for n in range(size)] for size in (len(cross["cka"]), len(cross["cka"][0]))
                    )
                    title = f"{records.pair_label(*pair)}, inputs: {source}"
                    look = NEAR_ONE
                    maps.append(HeatMap(title=title, names=rows, columns=columns, values=cross["cka"], look=look))
    return maps


def _table(records: Records, pairs: Sequence[Pair], sets: Sequence[str]) -> Table:
    rows: list[list[Cell]] = []
    reasons: dict[str, None] = {}
    for pair in pairs:
        found = _found(records, pair)
        row = [Cell(records.pair_label(*pair), number=False)]
        for source in sets:
            for read in (_least, _least_mean, _least_debiased):
                interval = records.interval(found, lambda m, s=source, r=read: r(_set(m, s)))
                row.append(with_interval(interval, 5, False, Cell))
            why = {str(_set(one.artifact.metrics, source).get("reason") or "") for one in found} - {""}
            reasons |= {f"{records.pair_label(*pair)}, {source}: {reason}": None for reason in sorted(why)}
        rows.append(row)
    kinds = ("smallest", "bootstrap", "debiased")
    head = ["pair", *(f"{source}, {what}" for source in sets for what in kinds)]
    caption = "Smallest CKA over the layers, by input set: over all inputs, mean of the paper's bootstrap, debiased."
    return Table(head, rows, " ".join([caption, *(f"{reason}." for reason in reasons)]))


def _least(found: Mapping[str, Any]) -> object:
    return found.get("min")


def _least_mean(found: Mapping[str, Any]) -> object:
    means = [value for value in (number(row.get("mean")) for row in found.get("layers", [])) if value is not None]
    return min(means) if means else None


def _least_debiased(found: Mapping[str, Any]) -> object:
    return found.get("debiased_min")
