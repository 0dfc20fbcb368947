"""The graph of a study's checkpoints, laid out for an SVG: columns by depth, rows by order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prismlab.report.figures import colour
from prismlab.report.records import Records

BOX_WIDTH, BOX_HEIGHT = 190.0, 50.0
GAP_X, GAP_Y = 74.0, 18.0


@dataclass(frozen=True)
class Node:
    """One base or checkpoint."""

    name: str
    title: str
    detail: str
    colour: str
    x: float
    y: float
    missing: bool


@dataclass(frozen=True)
class Edge:
    """From a start to what a stage made of it."""

    path: str
    """SVG path data."""


@dataclass(frozen=True)
class Graph:
    """Nodes and edges with their places in pixels."""

    nodes: list[Node]
    edges: list[Edge]
    width: float
    height: float


def starts(spec: Mapping[str, Any]) -> list[str]:
    """What a checkpoint is made from."""
    return list(spec["weights"]) if spec["stage"] == "merge" else [spec["from"]]


def _parents(spec: Mapping[str, Any]) -> list[str]:
    """The nodes from which a checkpoint's edges come: of a snapshot (``name@step``) the run that saved it."""
    return [start.partition("@")[0] for start in starts(spec)]


def _detail(spec: Mapping[str, Any]) -> str:
    what = spec.get("mixture") or spec.get("prompts")
    steps = f", {spec['steps']:,} steps" if "steps" in spec else ""
    return f"{spec['stage']}{f' on {what}' if what else ''}{steps}"


def _depths(records: Records) -> dict[str, int]:
    specs: Mapping[str, Any] = records.study.get("checkpoints", {})
    depths = dict.fromkeys(records.study["bases"], 0)

    def depth(name: str) -> int:
        if name not in depths:
            depths[name] = 1 + max(depth(start) for start in _parents(specs[name]))
        return depths[name]

    for name in records.made():
        depth(name)
    return depths


def layout(records: Records) -> Graph:
    """Places of all bases and checkpoints; a child stands as close to its first start's row as order allows."""
    specs: Mapping[str, Any] = records.study.get("checkpoints", {})
    depths = _depths(records)
    columns: dict[int, list[str]] = {}
    for name, depth in depths.items():
        columns.setdefault(depth, []).append(name)
    row: dict[str, float] = {}
    for depth, names in sorted(columns.items()):
        wanted = {n: row[_parents(specs[n])[0]] if depth else float(i) for i, n in enumerate(names)}
        below = 0.0
        for name in sorted(names, key=lambda n: wanted[n]):
            row[name] = max(below, wanted[name])
            below = row[name] + 1
    gone = {
        entry.get("checkpoint")
        for entry in records.entries
        if "missing" in entry and entry["kind"] in ("train", "rl", "merge")
    }
    nodes = [_node(records, name, depths[name], row[name], name in gone) for name in depths]
    places = {node.name: node for node in nodes}
    edges = [_edge(places[start], places[name]) for name, spec in specs.items() for start in _parents(spec)]
    width = (max(depths.values()) + 1) * (BOX_WIDTH + GAP_X) - GAP_X
    return Graph(nodes, edges, width + 4, (max(row.values()) + 1) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 4)


def _node(records: Records, name: str, depth: int, row: float, missing: bool) -> Node:
    spec = records.study.get("checkpoints", {}).get(name)
    if spec is None:
        base = records.study["bases"][name]
        detail = f"{base['arch']}, random weights" if base.get("arch") else "given checkpoint"
    else:
        detail = _detail(spec)
    label = records.label(name)
    x, y = 2 + depth * (BOX_WIDTH + GAP_X), 2 + row * (BOX_HEIGHT + GAP_Y)
    return Node(name, label, detail, colour(label), round(x, 1), round(y, 1), missing)


def _edge(a: Node, b: Node) -> Edge:
    x0, y0, x1, y1 = a.x + BOX_WIDTH, a.y + BOX_HEIGHT / 2, b.x, b.y + BOX_HEIGHT / 2
    bend = (x1 - x0) / 2
    return Edge(f"M{x0:g},{y0:g} C{x0 + bend:g},{y0:g} {x1 - bend:g},{y1:g} {x1:g},{y1:g}")
