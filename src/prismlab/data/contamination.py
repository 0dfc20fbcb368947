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
from prismlab.data.executors import give_back
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
ROWS = 10_000
"""Hits held in memory until they are written."""


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
        give_back()
    return _built[key]


def forget() -> None:
    """Give up the memory of what looks for items."""
    _built.clear()
    give_back()


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
        told = _Evidence()
        with whole(self.folder / "hits.parquet") as draft, pq.ParquetWriter(draft, HITS, compression="zstd") as writer:
            for file in sorted((self.folder / "items").glob("*.jsonl")):
                places: dict[str, str] = {}
                for one in _searched(file):
                    if len(told.rows) >= ROWS and "hits" in one:
                        told.write(writer)
                    hits = told.add(one)
                    if counting := [hit for hit in hits if hit.counts]:
                        best = max(counting, key=lambda hit: hit.share)
                        places[str(one["number"])] = f"{best.task}/{best.item}"
                save_json(self.folder / "contaminated" / f"{int(file.stem):05d}.json", places)
            told.write(writer)
        save_json(self.folder / "hits.json", self._summary(told))
        return
        yield

    def _summary(self, told: _Evidence) -> dict[str, Any]:
        look = finder(self.folder, self.asked)
        return {
            "action": self.asked["action"],
            "n": self.asked["n"],
            "documents": told.counts | {"clean": told.documents - sum(told.counts.values()) + told.counts["clean"]},
            "tasks": {task: told.by_task[task] for task in self.asked["tasks"]},
            "items_found": len(told.items),
            "items_searched": len(look.views.items) - len(look.not_searched),
            "items_too_short": len(look.not_searched),
        }


def _searched(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


class _Evidence:
    """What was found, added up a document at a time: a source where every document holds an item fits in memory."""

    def __init__(self) -> None:
        self.counts = tally([])
        self.by_task: Counter[str] = Counter()
        self.items: set[tuple[str, str]] = set()
        self.documents = 0
        self.rows: list[dict[str, Any]] = []

    def add(self, one: Mapping[str, Any]) -> list[Hit]:
        """A document's hits, or none of a line that says how many documents were looked at."""
        self.documents += one.get("documents", 0)
        if "hits" not in one:
            return []
        hits = [_hit(hit) for hit in one["hits"]]
        for kind, count in tally([hits]).items():
            self.counts[kind] += count
        counting = {(hit.task, hit.item) for hit in hits if hit.counts}
        self.by_task.update({task for task, _ in counting})
        self.items |= counting
        place = {"where": one["where"], "id": one["id"]}
        self.rows += [{**hit.to_json(), "numbers": json.dumps(hit.numbers), **place} for hit in hits]
        return hits

    def write(self, writer: pq.ParquetWriter) -> None:
        """Hits that are held to ``hits.parquet``."""
        writer.write_table(pa.Table.from_pylist(self.rows, schema=HITS))
        self.rows = []


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
