"""The pass of a merge over all elements: read, weigh, add, round, write, by several threads in bounded memory."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismlab.arith.machine import load
from prismlab.merge.blend import BLEND, Blend
from prismlab.merge.rounding import encode, weighted_sum
from prismlab.merge.shards import Shard, Slot
from prismlab.model.tensors import ITEM_BYTES, STORED, TensorView
from prismlab.run.step import Progress

TASK = 1 << 22
"""Elements that a thread takes at a time."""
STEP = 1 << 19
"""Elements of all checkpoints together that a thread reads at a time: 1 MB of bfloat16."""


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
    """The arithmetic of one merge, with buffers that every thread keeps.

    Args:
        kernel: ``numba`` or ``numpy``.
        checkpoints: how many are merged.
    """

    def __init__(self, kernel: str, checkpoints: int) -> None:
        self._own = threading.local()
        self._step = max(1, STEP // max(2, checkpoints) // 1024) * 1024
        self._checkpoints = checkpoints
        self._compiled = kernel == "numba"
        if self._compiled:
            load(BLEND)  # here and not in a thread: whatever is wrong with it is then told at once

    def _buffers(self) -> tuple[Any, Any]:
        """Room [checkpoints, step x 8 bytes] for what is read, and [step x 8] for the result."""
        if not hasattr(self._own, "raw"):
            self._own.raw = np.empty((self._checkpoints, self._step * 8), np.uint8)
            self._own.out = np.empty(self._step * 8, np.uint8)
        return self._own.raw, self._own.out

    def run(self, task: Task) -> tuple[str, int]:
        """Do a task: the tensor's name, and how many results are NaN or infinite (copied ones are not counted)."""
        blend = self._blender(task) if task.weights else None
        strange, size = 0, ITEM_BYTES[task.dtype]
        raw, out = self._buffers()
        for start in range(task.start, task.stop, self._step):
            count = min(self._step, task.stop - start)
            for row, view in zip(raw, task.views, strict=False):
                view.read_into(start, start + count, row[: count * ITEM_BYTES[view.dtype]])
            done = raw[0, : count * size]
            if blend is not None:
                done = out[: count * size]
                strange += blend(raw, count, done)
            _write(task.file, done.data, task.offset + (start - task.start) * size)
        return task.name, strange

    def _blender(self, task: Task) -> Callable[[Any, int, Any], int]:
        """A function that weighs, adds and rounds what was read of a task's tensors."""
        types = [view.dtype for view in task.views]
        if not self._compiled:

            def reference(raw: Any, count: int, done: Any) -> int:
                arrays = [_floats(row[: count * ITEM_BYTES[k]], k) for row, k in zip(raw, types, strict=False)]
                values, strange = encode(weighted_sum(arrays, task.weights), task.dtype)
                done[:] = values.view(np.uint8)
                return strange

            return reference
        return Blend(np.arange(len(types)) * (self._step * 8), types, task.weights, task.dtype)


def _floats(raw: Any, dtype: str) -> Any:
    stored = raw.view(STORED[dtype])
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32) if dtype == "BF16" else stored


def _write(file: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], offset + done)


def _reserve(file: int, size: int) -> None:
    """Ask for a file's room at once, where the system knows how: writing into it then costs a third less.

    Where it does not, nothing is lost; ``os.posix_fallocate`` would write to every block instead.
    """
    fallocate = getattr(ctypes.CDLL(None), "fallocate", None) if sys.platform == "linux" else None
    if fallocate is not None:
        fallocate(file, 0, ctypes.c_int64(0), ctypes.c_int64(size))


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
) -> Iterator[Task]:
    for name, offset in shard.offsets.items():
        slot = slots[name]
        views, used = _used(tensors[name], weights, slot.dtype)
        for start in range(0, slot.elements, TASK):
            place = offset + start * ITEM_BYTES[slot.dtype]
            yield Task(name, slot.dtype, views, used, start, min(slot.elements, start + TASK), file, place)


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
        progress: told of every task.

    Returns:
        How many results are NaN or infinite, by tensor, where there are any.

    Raises:
        CheckpointError: a checkpoint cannot be read to its end.
    """
    work = Pass(kernel, len(weights))
    strange: dict[str, int] = {}
    progress.start(sum(math.ceil(slot.elements / TASK) for slot in slots.values()), "pieces")
    pool = ThreadPoolExecutor(threads)
    try:
        for shard in shards:
            file = os.open(folder / shard.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                _reserve(file, shard.size)
                _write(file, memoryview(shard.header), 0)
                tasks = _tasks(shard, file, tensors, slots, weights)
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
