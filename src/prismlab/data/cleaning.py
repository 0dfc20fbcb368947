"""The phases of cleaning a source, and the last one of them, which puts together what the others counted."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document as Passed
from datatrove.pipeline.base import PipelineStep

from prismlab.data import dedup
from prismlab.data.blocks import (
    EXAMPLES,
    Drops,
    First,
    LengthFilter,
    MakeDocuments,
    ReadRows,
    RecipeFilter,
    save_json,
)
from prismlab.data.contamination import DropContaminated, FindItems, Gather, item_note, save_items
from prismlab.data.executors import Phase
from prismlab.data.files import whole
from prismlab.data.recipe_list import RECIPES
from prismlab.data.shard_blocks import Draw, DrawnFilter, ReadShards, WriteShards
from prismlab.errors import DataError

PART_BYTES = 256 * 2**20
"""Files are read in parts of about so many bytes on disk, one task each; a larger file is a part of its own."""
DROPS = ("recipe", "length", "drawn", "copies", "near", "items")
"""What drops documents, in the order in which they meet it."""
HASHES_AT_A_TIME = 2**22
"""Hashes of ids compared at a time: about 100 MB."""
DROPPED = pa.schema([(name, pa.string()) for name in ("reason", "where", "id", "excerpt", "detail")])
"""Columns of ``dropped.parquet``; ``detail`` names the document that stayed instead, or the evaluation item."""


def parts(files: Sequence[str | Path], listing: Sequence[Mapping[str, str]]) -> list[list[list[str]]]:
    """Files by task, in order: ``[[path, BLAKE2b], ...]`` each; they depend on the files' sizes alone.

    Args:
        files: paths.
        listing: ``[{name, blake2b}]`` of the same files, or nothing where they were not hashed.
    """
    digests = [entry["blake2b"] for entry in listing] if listing else [""] * len(files)
    found: list[list[list[str]]] = []
    size = 0
    for file, digest in zip(files, digests, strict=True):
        path = Path(file)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        bytes_here = path.stat().st_size
        if not found or size + bytes_here > PART_BYTES:
            found.append([])
            size = 0
        found[-1].append([str(path), digest])
        size += bytes_here
    return found


def distinct(files: Sequence[Path], values: int) -> int:
    """How many different hashes ``.npy`` files of uint64 hold, a stretch of hashes at a time in memory.

    Args:
        files: of hashes, evenly spread over 64 bits.
        values: how many there are in all, about.
    """
    stretches, found = -(-values // HASHES_AT_A_TIME), 0
    for stretch in range(stretches):
        # Both ends belong to the stretch, since 2**64 is no uint64.
        low, last = (np.uint64((stretch + one) * 2**64 // stretches - one) for one in (0, 1))
        held = [np.zeros(0, np.uint64)]
        for file in files:
            hashes = np.load(file, mmap_mode="r", allow_pickle=False)
            held.append(hashes[(hashes >= low) & (hashes <= last)])
        found += len(np.unique(np.concatenate(held)))
    return found


def sample_of(spec: Mapping[str, Any]) -> int | None:
    """How many rows the source's recipe draws."""
    return RECIPES[spec["recipe"]].sample if spec.get("recipe") else None


class Work:
    """Cleaning one source in one folder.

    Args:
        config: of a step of kind ``clean``.
        folder: for everything that is made.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        self.config, self.folder = config, folder
        self.name = str(config["source"])
        self.spec: dict[str, Any] = dict(config["sources"][self.name])
        self.sample, self.most = sample_of(self.spec), self.spec.get("max_documents")
        self.draws = self.sample is not None or self.most is not None

    def begin(self) -> None:
        """What phases need on disk before they start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "logs").mkdir(exist_ok=True)
        if self.config.get("decontaminate"):
            save_items(self.config, self.folder)

    def reading(self) -> list[Phase]:
        """Rows of the source, filtered, as documents in shards."""
        files = (self.config.get("files") or {}).get(self.name) or []
        listing = (self.config.get("content") or {}).get(self.name) or []
        given = parts(files, listing) if self.spec.get("files") is not None else [[]]
        micro = None
        if self.spec.get("micro") is not None:
            micro = (self.name, self.config["micro"], self.config["template"], int(self.config["seed"]))
        recipe, length = Drops(self.folder, "recipe"), Drops(self.folder, "length")
        # With a sample all rows must be seen; else no part needs more documents than are wanted in all.
        first = First(None if self.sample is not None else self.most)
        pipeline = [
            ReadRows(self.spec, given, micro, (recipe, length)),
            RecipeFilter(self.spec, recipe),
            MakeDocuments(self.spec, self.config["template"], self.folder, first),
            LengthFilter(self.spec, length),
            first,
            WriteShards(self.folder, "read", split=True),
        ]
        return [Phase("read", pipeline, len(given))]

    def _shards(self) -> list[str]:
        return [str(path) for path in sorted((self.folder / "read").glob("*.parquet"))]

    def _stream(self, *drops: Drops) -> list[Any]:
        drawn = [DrawnFilter(self.folder, drops[0] if drops else None)] if self.draws else []
        return [ReadShards(self._shards(), drops), *drawn]

    def _without_copies(self) -> list[Any]:
        return [*self._stream(), *([dedup.exact_filter(self.folder, None)] if self._exact else [])]

    def _without_near_copies(self) -> list[Any]:
        near = [dedup.minhash_filter(self.folder, None)] if self._near else []
        return [*self._without_copies(), *near]

    @property
    def _exact(self) -> bool:
        return self.spec["dedup"] in ("exact", "minhash")

    @property
    def _near(self) -> bool:
        return self.spec["dedup"] == "minhash"

    def rest(self) -> list[Phase]:
        """All that comes after reading; how many shards there are is known then."""
        shards, phases = self._shards(), list[Phase]()
        if self.draws:
            phases.append(Phase("draw", [Draw(self.folder, shards, self.sample, self.most)], 1))
        if self._exact:
            phases += dedup.exact_phases(self.folder, len(shards), self._stream)
        if self._near:
            phases += dedup.minhash_phases(self.folder, len(shards), self._without_copies)
        asked = self.config.get("decontaminate")
        if asked:
            find = FindItems(self.folder, asked)
            phases.append(Phase("items-find", [*self._without_near_copies(), find], len(shards)))
            phases.append(Phase("items-gather", [Gather(self.folder, asked)], 1))
        phases.append(Phase("write", self._writing(), len(shards)))
        phases.append(Phase("finish", [Finish(self.folder, self._stream, self._without_copies, len(shards))], 1))
        return phases

    def _writing(self) -> list[Any]:
        drawn = Drops(self.folder, "drawn", f"not among the {self.sample or self.most} drawn")
        copies = Drops(self.folder, "copies", dedup.COPY, dedup.copy_note)
        near = Drops(self.folder, "near", dedup.NEAR, dedup.number_note)
        items = Drops(self.folder, "items", note=item_note)
        blocks = self._stream(drawn, copies, near, items)
        if self._exact:
            blocks.append(dedup.exact_filter(self.folder, copies))
        if self._near:
            blocks += [dedup.Number(), dedup.minhash_filter(self.folder, near)]
        if (self.config.get("decontaminate") or {}).get("action") == "drop":
            blocks.append(DropContaminated(self.folder, items))
        return [*blocks, WriteShards(self.folder, "documents", split=False)]


class Finish(PipelineStep):
    """Counts of all tasks to ``metrics.json``, examples to ``dropped.parquet``, broken rows to ``quarantine.jsonl``.

    Args:
        folder: of the whole work.
        stream: gives the blocks that copies were looked for in.
        without_copies: those that near copies were looked for in.
        shards: how many.
    """

    type, name = "Summary", "Prism summary"

    def __init__(self, folder: Path, stream: Any, without_copies: Any, shards: int) -> None:
        super().__init__()
        self.folder, self.shards = folder, shards
        self.streams = {"copies": stream(), "near": without_copies()}

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Passed]:
        with whole(self.folder / "quarantine.jsonl") as draft, draft.open("wb") as bad_rows:
            for file in sorted((self.folder / "bad").glob("*.jsonl")):
                with file.open("rb") as part:
                    shutil.copyfileobj(part, bad_rows)
        dropped, examples = self._dropped()
        with whole(self.folder / "dropped.parquet") as draft:
            pq.write_table(pa.Table.from_pylist(examples, schema=DROPPED), draft, compression="zstd")
        save_json(self.folder / "metrics.json", self._metrics(dropped))
        return
        yield

    def _metrics(self, dropped: Mapping[str, int]) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        bad: Counter[str] = Counter()
        for file in sorted((self.folder / "read").glob("*.json")):
            part = json.loads(file.read_text(encoding="utf-8"))
            counts.update(part["counts"])
            bad.update(part["bad"])
        for file in (self.folder / "dropped").glob("recipe-*.json"):
            # These never came so far as to be counted as rows.
            counts["rows"] += sum(json.loads(file.read_text(encoding="utf-8"))["counts"].values())
        documents = characters = 0
        files = sorted((self.folder / "documents").glob("*.parquet"))
        for file in files:
            with pq.ParquetFile(file) as shard:
                for batch in shard.iter_batches(1000, columns=["text"]):
                    documents += len(batch)
                    characters += sum(map(len, batch["text"].to_pylist()))
        repeated = documents - distinct([file.with_suffix(".ids.npy") for file in files], documents)
        hits = self.folder / "hits.json"
        return {
            "rows": counts["rows"],
            "bad": dict(sorted(bad.items())),
            "empty": counts["empty"],
            "dropped": dict(sorted(dropped.items())),
            "documents": documents,
            "characters": characters,
            "shards": len(files),
            "repeated_ids": repeated,
            "settled_documents": counts["settled_documents"],
            "bidi_documents": counts["bidi_documents"],
            "contamination": json.loads(hits.read_text(encoding="utf-8")) if hits.is_file() else None,
        }

    def _dropped(self) -> tuple[Counter[str], list[dict[str, Any]]]:
        """Counts by reason and, of each, the first examples."""
        counts: Counter[str] = Counter()
        kept: Counter[str] = Counter()
        examples: list[dict[str, Any]] = []
        files = (file for phase in DROPS for file in sorted((self.folder / "dropped").glob(f"{phase}-*.json")))
        for file in files:
            part = json.loads(file.read_text(encoding="utf-8"))
            counts.update(part["counts"])
            for example in part["examples"]:
                kept[example["reason"]] += 1
                if kept[example["reason"]] <= EXAMPLES:
                    examples.append({**example, "detail": example["detail"] or self._instead(example)})
        return counts, examples

    def _instead(self, example: Mapping[str, Any]) -> str:
        """Which document stayed instead of a duplicate."""
        if "hash" in example:
            place = dedup.first_of_copies(self.folder, self.shards, example["hash"])
        elif "number" in example:
            place = dedup.first_of_group(self.folder, example["rank"], example["number"])
        else:
            return ""
        return f"stays: {dedup.where_is(self.streams[example['phase']], *place, self.shards)}"
