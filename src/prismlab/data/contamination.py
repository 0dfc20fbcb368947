"""Blocks that look for evaluation items in documents: found first, put together over the source, then dropped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document as Passed
from datatrove.pipeline.base import PipelineStep

from prismlab.data.blocks import Drops, save_json
from prismlab.data.decontaminate import BATCH_CHARS, Decontaminator
from prismlab.data.evidence import Hit, tally
from prismlab.data.files import hash_file, whole
from prismlab.data.items import Item, all_items

HITS = pa.schema(
    [
        *((name, pa.string()) for name in ("where", "id", "kind", "task", "item", "part", "text", "item_text")),
        *((name, pa.string()) for name in ("numbers", "aside")),
        *((name, pa.int64()) for name in ("words", "longest", "start", "stop")),
        ("share", pa.float64()),
        ("counts", pa.bool_()),
    ]
)
"""Columns of ``hits.parquet``: the document, then the fields of ``evidence.Hit`` (``numbers`` as JSON)."""


def save_items(config: Mapping[str, Any], folder: Path) -> None:
    """Write the items to look for to ``items.jsonl``: every row of each task, of a generated one as many as are asked.

    Raises:
        DataError: a task's rows are missing or broken.
    """
    target = folder / "items.jsonl"
    if target.is_file():
        return
    with whole(target) as draft, draft.open("w", encoding="utf-8") as file:
        for task, asked in config["decontaminate"]["tasks"].items():
            paths = [Path(path) for path in (config.get("files") or {}).get(task) or ()]
            for item in all_items(task, config["tasks"][task], config["micro"], paths or None, asked):
                file.write(json.dumps(item.to_json()) + "\n")


_built: dict[tuple[str, int, tuple[str, ...]], Decontaminator] = {}


def finder(folder: Path, asked: Mapping[str, Any]) -> Decontaminator:
    """What looks for the items of ``items.jsonl``; a process builds it once for all sources that share their items."""
    path, n, allow = folder / "items.jsonl", int(asked["n"]), tuple(asked["allow"])
    key = (hash_file(path), n, allow)
    if key not in _built:
        _built.clear()
        with path.open(encoding="utf-8") as file:
            _built[key] = Decontaminator([Item.from_json(json.loads(line)) for line in file], n, allow)
    return _built[key]


def forget() -> None:
    """Give up the memory of what looks for items."""
    _built.clear()


class FindItems(PipelineStep):
    """What each document has of the items, to ``items/SHARD.jsonl``; nothing is dropped yet.

    Args:
        folder: of the whole work.
        asked: ``n`` and ``allow``.
    """

    type, name = "Decontamination", "Prism items"

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        super().__init__()
        self.folder, self.asked = folder, dict(asked)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Passed]:
        (self.folder / "items").mkdir(exist_ok=True)
        look, number, size = finder(self.folder, self.asked), 0, 0
        held: list[Passed] = []
        with whole(self.folder / "items" / f"{rank:05d}.jsonl") as draft, draft.open("w", encoding="utf-8") as file:

            def search() -> int:
                for at, hits in enumerate(look.find_many([one.text for one in held]), number):
                    if hits:
                        one = held[at - number]
                        place = {"number": at, "where": one.metadata["where"], "id": one.id}
                        file.write(json.dumps({**place, "hits": [hit.to_json() for hit in hits]}) + "\n")
                return len(held)

            for passed in data:
                held.append(passed)
                size += len(passed.text)
                if size >= BATCH_CHARS:
                    number, size, held = number + search(), 0, []
            number += search()
            file.write(json.dumps({"documents": number}) + "\n")
        return
        yield


def _hit(values: Mapping[str, Any]) -> Hit:
    fields = {key: value for key, value in values.items() if key != "counts"}
    return Hit(**{**fields, "numbers": tuple((one, other) for one, other in fields["numbers"])})


class Gather(PipelineStep):
    """What was found in all shards: ``hits.parquet``, ``hits.json``, and the places of documents that hold an item.

    Args:
        folder: of the whole work.
        asked: ``n``, ``allow``, ``action`` and ``tasks``.
    """

    type, name = "Decontamination", "Prism evidence"

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        super().__init__()
        self.folder, self.asked = folder, dict(asked)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Passed]:
        found: list[dict[str, Any]] = []
        documents = 0
        files = sorted((self.folder / "items").glob("*.jsonl"))
        for file in files:
            with file.open(encoding="utf-8") as lines:
                for line in map(json.loads, lines):
                    documents += line.get("documents", 0)
                    if "hits" in line:
                        found.append({**line, "shard": int(file.stem)})
        hits = [[_hit(hit) for hit in one["hits"]] for one in found]
        self._rows(found, hits)
        self._places(found, hits, len(files))
        save_json(self.folder / "hits.json", self._summary(hits, documents))
        return
        yield

    def _rows(self, found: list[dict[str, Any]], every: list[list[Hit]]) -> None:
        rows = [
            {**hit.to_json(), "numbers": json.dumps(hit.numbers), "where": one["where"], "id": one["id"]}
            for one, hits in zip(found, every, strict=True)
            for hit in hits
        ]
        with whole(self.folder / "hits.parquet") as draft:
            pq.write_table(pa.Table.from_pylist(rows, schema=HITS), draft, compression="zstd")

    def _places(self, found: list[dict[str, Any]], every: list[list[Hit]], shards: int) -> None:
        places: list[dict[str, str]] = [{} for _ in range(shards)]
        for one, hits in zip(found, every, strict=True):
            if counting := [hit for hit in hits if hit.counts]:
                best = max(counting, key=lambda hit: hit.share)
                places[one["shard"]][str(one["number"])] = f"{best.task}/{best.item}"
        for shard, held in enumerate(places):
            save_json(self.folder / "contaminated" / f"{shard:05d}.json", held)

    def _summary(self, every: list[list[Hit]], documents: int) -> dict[str, Any]:
        look = finder(self.folder, self.asked)
        counts = tally(every)
        counts["clean"] += documents - len(every)
        by_task = Counter(task for hits in every for task in {hit.task for hit in hits if hit.counts})
        items = {(hit.task, hit.item) for hits in every for hit in hits if hit.counts}
        return {
            "action": self.asked["action"],
            "n": self.asked["n"],
            "documents": counts,
            "tasks": {task: by_task[task] for task in self.asked["tasks"]},
            "items_found": len(items),
            "items_searched": len(look.views.items) - len(look.not_searched),
            "items_too_short": len(look.not_searched),
        }


class DropContaminated(PipelineStep):
    """Documents that hold no evaluation item; of the very stream that ``FindItems`` was given."""

    type, name = "Filter", "Prism decontamination"

    def __init__(self, folder: Path, drops: Drops) -> None:
        super().__init__()
        self.folder, self.drops = folder, drops

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Passed]:
        file = self.folder / "contaminated" / f"{rank:05d}.json"
        places: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
        for number, passed in enumerate(data):
            item = places.get(str(number))
            if item is None:
                yield passed
                continue
            passed.metadata |= {"filter_reason": f"holds an item of {item.partition('/')[0]}", "item": item}
            self.drops.write(passed, rank)
        self.drops.__exit__(None)


def item_note(document: Passed) -> dict[str, Any]:
    """Which item a dropped document holds."""
    return {"detail": f"item {document.metadata['item']}"}
