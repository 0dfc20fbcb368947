"""Held-out loss while training: the curves of the page are the rows of heldout.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from synthetic import World, complete

from prismlab.report.records import Records
from prismlab.report.sections import training

ROWS = [
    {"step": 0, "heldout": {"web": 3.0, "code": 2.0}, "general": 3.0, "kl": 0.0},
    {"step": 5, "heldout": {"web": 3.25, "code": 1.5}, "general": 3.25, "kl": 0.125},
]


def trained(root: Path, monitor: dict[str, Any] | None) -> Records:
    world: World = complete((0,), sweeps=False)
    world.inputs.clear()
    world.entries.clear()
    for name, given in (("mid", monitor), ("other", None)):
        folder = root / name
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, "domains": {"web": 2.0}}) + "\n")
        if given is not None:
            (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        config = {"spec": {"monitor": given}}
        world.add("train", name, 0, {}, config, folder, checkpoint=name, start="base")
    return Records(study=world.study, entries=world.entries, arms={}, inputs=world.inputs)


def test_the_curves_are_the_rows_that_were_measured(tmp_path: Path) -> None:
    section = training(trained(tmp_path, {"heldout": ["web", "code"]}))
    assert [drawing.id for drawing in section.drawings] == ["training", "watched"]
    figure: Any = section.drawings[1].figure
    found = json.loads(figure.to_json())["data"] if hasattr(figure, "to_json") else figure["data"]
    points = {tuple(zip(trace["x"], trace["y"], strict=True)) for trace in found if len(trace["x"]) == 2}
    assert points == {((0, 3.0), (5, 3.25)), ((0, 2.0), (5, 1.5)), ((0, 0.0), (5, 0.125))}


def test_without_monitor_there_is_no_such_figure(tmp_path: Path) -> None:
    assert [drawing.id for drawing in training(trained(tmp_path, None)).drawings] == ["training"]
