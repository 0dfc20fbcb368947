"""The pass of a merge over all elements: read, weigh, add, round, write, by several threads in bounded memory."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismlab.merge.rounding import encode, weighted_sum
from prismlab.merge.shards import Shard, Slot
from prismlab.model.tensors import ITEM_BYTES, STORED, TensorView
from prismlab.run.step import Progress

PIECE = 1 << 19
"""Elements merged at a time by a thread, of two checkpoints; of more as many fewer."""


@dataclass(frozen=True)
class Task:
    """Elements ``start`` to ``stop`` of a merged tensor, and where they go."""

    name: str
    dtype: str
    views: tuple[TensorView, ...]
    """Of the checkpoints whose weight is not 0; of a copied tensor one."""
    weights: tuple[float, ...]
    """Empty for a copied tensor."""
    start: int
    stop: int
    file: int
    """Descriptor of the output file."""
    offset: int
    """Where the first byte goes."""


class Pass:
    """The arithmetic of one merge, with buffers that every thread keeps."""

    def __init__(self, kernel: str, piece: int, most: int) -> None:
        self._own = threading.local()
        # Each tensor's part of a buffer holds the widest type and begins at a multiple of 64.
        self._room = piece * 8
        self._most = most
        self._compiled: Any = None
        if kernel == "numba":
            from prismlab.merge import compiled

            self._compiled = compiled

    def _buffers(self) -> tuple[Any, Any]:
        if not hasattr(self._own, "raw"):
            self._own.raw = np.empty(self._room * self._most, np.uint8)
            self._own.out = np.empty(self._room, np.uint8)
        return self._own.raw, self._own.out

    def run(self, task: Task) -> tuple[str, int]:
        """Do a task: the tensor's name, and how many results are NaN or infinite (copied ones are not counted)."""
        raw, out = self._buffers()
        count = task.stop - task.start
        starts, begin = [], 0
        for view in task.views:
            size = count * ITEM_BYTES[view.dtype]
            view.read_into(task.start, task.stop, raw[begin : begin + size])
            starts.append(begin)
            begin += size + -size % 64
        strange = 0
        if not task.weights:
            done = raw[: count * ITEM_BYTES[task.dtype]]
        elif self._compiled is not None:
            done = out[: count * ITEM_BYTES[task.dtype]]
            kinds = self._compiled.KINDS
            codes = np.array([kinds[view.dtype] for view in task.views])
            weights = np.array(task.weights)
            strange = int(self._compiled.blend(raw, np.array(starts), codes, weights, count, done, kinds[task.dtype]))
        else:
            arrays = [
                _floats(raw[at : at + count * ITEM_BYTES[view.dtype]], view.dtype)
                for at, view in zip(starts, task.views, strict=True)
            ]
            values, strange = encode(weighted_sum(arrays, task.weights), task.dtype)
            done = values.view(np.uint8)
        _write(task.file, done.data, task.offset)
        return task.name, strange


def _floats(raw: Any, dtype: str) -> Any:
    stored = raw.view(STORED[dtype])
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32) if dtype == "BF16" else stored


def _write(file: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], offset + done)


def _used(views: Sequence[TensorView], weights: Sequence[float], dtype: str) -> tuple[Any, Any]:
    """Which tensors enter the sum with which weights; no weights for a tensor whose bytes are copied."""
    if not all(view.readable for view in views):
        return (views[0],), ()
    pairs = [(view, weight) for view, weight in zip(views, weights, strict=True) if weight != 0]
    if len(pairs) == 1 and pairs[0][1] == 1 and pairs[0][0].dtype == dtype:
        return (pairs[0][0],), ()
    pairs = pairs or [(views[0], 0.0)]
    return tuple(view for view, _ in pairs), tuple(weight for _, weight in pairs)


def _tasks(
    shard: Shard,
    file: int,
    tensors: Mapping[str, Sequence[TensorView]],
    slots: Mapping[str, Slot],
    weights: Sequence[float],
    piece: int,
) -> Iterator[Task]:
    for name, offset in shard.offsets.items():
        slot = slots[name]
        views, used = _used(tensors[name], weights, slot.dtype)
        for start in range(0, slot.elements, piece):
            place = offset + start * ITEM_BYTES[slot.dtype]
            yield Task(name, slot.dtype, views, used, start, min(slot.elements, start + piece), file, place)


def merge_files(
    folder: Path,
    shards: Sequence[Shard],
    slots: Mapping[str, Slot],
    tensors: Mapping[str, Sequence[TensorView]],
    weights: Sequence[float],
    kernel: str,
    threads: int,
    progress: Progress,
) -> dict[str, int]:
    """Write the merged tensors.

    Args:
        folder: where the files go; none of them is there.
        shards: the files.
        slots: type and shape of each merged tensor.
        tensors: the tensors of all checkpoints that it is made of.
        weights: one a checkpoint.
        kernel: ``numba`` or ``numpy``.
        threads: how many read, add and write.
        progress: told of every piece.

    Returns:
        How many results are NaN or infinite, by tensor, where there are any.

    Raises:
        CheckpointError: a checkpoint cannot be read to its end.
    """
    piece = max(16, 2 * PIECE // max(2, len(weights)) // 1024) * 1024
    work = Pass(kernel, piece, len(weights))
    strange: dict[str, int] = {}
    progress.start(sum(math.ceil(slot.elements / piece) for slot in slots.values()), "pieces")
    pool = ThreadPoolExecutor(threads)
    try:
        for shard in shards:
            file = os.open(folder / shard.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                _write(file, memoryview(shard.header), 0)
                tasks = _tasks(shard, file, tensors, slots, weights, piece)
                for done in as_completed([pool.submit(work.run, task) for task in tasks]):
                    name, found = done.result()
                    if found:
                        strange[name] = strange.get(name, 0) + found
                    progress.advance()
            except BaseException:
                # No thread may write to a descriptor that is closed, and perhaps another file's by then.
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                os.close(file)
    finally:
        pool.shutdown()
    return dict(sorted(strange.items()))
