"""Evaluation items among the candidates for RL prompts: found as in training text (``data.decontaminate``)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prismlab.data.decontaminate import Decontaminator
from prismlab.data.items import Item, all_items

HITS = "hits.jsonl"


def _asked(config: Mapping[str, Any]) -> list[Item]:
    """The evaluation items that are looked for."""
    items: list[Item] = []
    for task, most in config["decontaminate"]["tasks"].items():
        paths = [Path(path) for path in (config.get("files") or {}).get(task) or ()]
        items += all_items(task, config["tasks"][task], config["micro"], paths or None, most)
    return items


def contaminated(config: Mapping[str, Any], candidates: Sequence[Item], out: Path) -> set[tuple[str, str]]:
    """Task and id of candidates that hold an evaluation item; everything found is written to ``out/hits.jsonl``.

    A candidate that is an evaluation item under another name counts by its key, however short it is: items of fewer
    words than an n-gram are not searched for in texts.

    Args:
        config: of a step of kind ``prompts`` with ``decontaminate``.
        candidates: all that were scored.
        out: the artifact's folder.

    Raises:
        DataError: a task's rows are missing or broken.
    """
    asked = config["decontaminate"]
    items = _asked(config)
    keys = {item.key: item for item in items}
    look = Decontaminator(items, int(asked["n"]), tuple(asked["allow"]))
    found: set[tuple[str, str]] = set()
    texts = [f"{item.question}\n{item.answer}" for item in candidates]
    with (out / HITS).open("w", encoding="utf-8") as file:
        for item, hits in zip(candidates, look.find_many(texts), strict=True):
            place = {"task": item.task, "id": item.id}
            same = keys.get(item.key)
            if same is not None and not {same.id, f"{same.task}/{same.id}"} & set(asked["allow"]):
                found.add((item.task, item.id))
                told = {"kind": "same", "task": same.task, "item": same.id, "counts": True}
                file.write(json.dumps({"candidate": place, **told}) + "\n")
            for hit in hits:
                if hit.counts:
                    found.add((item.task, item.id))
                file.write(json.dumps({"candidate": place, **hit.to_json()}, ensure_ascii=False) + "\n")
    return found
