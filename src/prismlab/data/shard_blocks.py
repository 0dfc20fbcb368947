"""Blocks of datatrove pipelines that write documents in Parquet shards, read them again, and draw among them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document as Passed
from datatrove.pipeline.base import PipelineStep

from prismlab.data.blocks import Drops
from prismlab.data.files import whole

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("prompt", pa.int32()), ("where", pa.string())])
"""Columns of cleaned documents: ``prompt`` is the number of characters before the answer, 0 where all is learned."""
BATCH_DOCUMENTS, BATCH_CHARACTERS = 1000, 4 * 2**20
SHARD_DOCUMENTS, SHARD_CHARACTERS = 200_000, 256 * 2**20


class WriteShards(PipelineStep):
    """Documents to Parquet files of bounded size, ``NAME/TASK-NUMBER.parquet``, and the hash of each one's id.

    Args:
        folder: of the whole work.
        name: of the folder below it.
        split: begin another file once one is large; else one file a task.
    """

    type, name = "Writer", "Prism shards"

    def __init__(self, folder: Path, name: str, split: bool) -> None:
        super().__init__()
        self.target, self.split = folder / name, split

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Passed]:
        self.target.mkdir(parents=True, exist_ok=True)
        stream, number, more = iter(data), 0, True
        while more:
            file = self.target / (f"{rank:05d}-{number:05d}.parquet" if self.split else f"{rank:05d}.parquet")
            with whole(file) as draft:
                more = self._shard(stream, draft, file)
            number += 1
        return
        yield  # A generator, as datatrove wants it: nothing comes after a writer.

    def _shard(self, stream: Iterator[Passed], draft: Path, file: Path) -> bool:
        """One file; whether documents are left."""
        size = batch = 0
        hashes: list[int] = []
        held: list[Passed] = []
        full = False
        with pq.ParquetWriter(draft, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
            for passed in stream:
                held.append(passed)
                hashes.append(id_hash(passed.id))
                batch += len(passed.text)
                if len(held) == BATCH_DOCUMENTS or batch >= BATCH_CHARACTERS:
                    writer.write_table(_table(held))
                    size, batch, held = size + batch, 0, []
                full = self.split and (size >= SHARD_CHARACTERS or len(hashes) >= SHARD_DOCUMENTS)
                if full:
                    break
            if held:
                writer.write_table(_table(held))
        np.save(file.with_suffix(".ids.npy"), np.array(hashes, np.uint64))
        return full


def _table(held: Sequence[Passed]) -> pa.Table:
    rows = [
        {"id": one.id, "text": one.text, "prompt": one.metadata["prompt"], "where": one.metadata["where"]}
        for one in held
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def id_hash(name: str) -> int:
    """BLAKE2b (64 bits) of an id: by it rows are drawn."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest(), "little")


class ReadShards(PipelineStep):
    """Documents of the shards that reading wrote; each task takes one, and tells it to the drops that follow."""

    type, name = "Reader", "Prism shards"

    def __init__(self, shards: Sequence[str], drops: Sequence[Drops] = ()) -> None:
        super().__init__()
        self.shards, self.drops = list(shards), drops

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Passed]:
        for one in self.drops:
            one.at(rank)
        with pq.ParquetFile(self.shards[rank], page_checksum_verification=True) as file:
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    metadata = {"where": row["where"], "prompt": row["prompt"], "rank": rank}
                    yield Passed(row["text"], row["id"], metadata=metadata)


class Draw(PipelineStep):
    """Which documents of the whole source are drawn: masks by shard in ``drawn/``.

    Args:
        sample: those with the smallest hashes of their ids, ties by their place; None for all.
        first: of these the first ones of the source; None for all.
    """

    type, name = "Sampler", "Prism draw"

    def __init__(self, folder: Path, shards: Sequence[str], sample: int | None, first: int | None) -> None:
        super().__init__()
        self.folder, self.shards, self.sample, self.first = folder, list(shards), sample, first

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Passed]:
        hashes = [np.load(Path(shard).with_suffix(".ids.npy"), allow_pickle=False) for shard in self.shards]
        every = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
        kept = np.ones(len(every), bool)
        if self.sample is not None and self.sample < len(every):
            kept[:] = False
            kept[np.argsort(every, kind="stable")[: self.sample]] = True
        if self.first is not None:
            kept &= np.cumsum(kept) <= self.first
        (self.folder / "drawn").mkdir(parents=True, exist_ok=True)
        begin = 0
        for at, part in enumerate(hashes):
            np.save(self.folder / "drawn" / f"{at:05d}.npy", kept[begin : begin + len(part)])
            begin += len(part)
        return
        yield


class DrawnFilter(PipelineStep):
    """Documents that were drawn; the others are dropped and counted where ``drops`` is given."""

    type, name = "Filter", "Prism drawn"

    def __init__(self, folder: Path, drops: Drops | None) -> None:
        super().__init__()
        self.folder, self.drops = folder, drops

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Passed]:
        mask = np.load(self.folder / "drawn" / f"{rank:05d}.npy", allow_pickle=False)
        for at, passed in enumerate(data):
            if mask[at]:
                yield passed
            elif self.drops is not None:
                self.drops.write(passed, rank)
        if self.drops is not None:
            self.drops.__exit__(None)
