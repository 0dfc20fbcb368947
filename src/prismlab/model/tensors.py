"""Tensors of a checkpoint without torch: safetensors files, their headers checked first, their bytes read on demand.

The format (an 8-byte little-endian length, a JSON header, the tensors' bytes without gaps) is that of the safetensors
README. Nothing is allocated on the word of a header: every length is compared with the file's size before it is used.
Files are read, not mapped: pages of a map count as memory of the process, and those of a checkpoint are many.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prismlab.errors import CheckpointError, shown
from prismlab.model.folder import (
    INDEX,
    MAX_HEADER,
    POINTER,
    SINGLE,
    open_regular,
    parse_json,
    read_config,
    read_index,
    weight_files,
)

MAX_RANK = 16
"""Most axes of a tensor."""
MAX_SPAN = 2**40
"""Largest product of a tensor's axes but zeros: one with elements is bounded by its file, an empty one by this."""

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes an element of every type that a header may name."""
FLOATS = ("BF16", "F16", "F32", "F64")
"""Types that can be read as numbers here."""
STORED = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
"""The numpy type of the stored bytes; of bfloat16, which numpy does not have, the bits."""


class Source:
    """An open file. It closes when the last view on it goes, or by ``close``."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self.size = size
        self.begin = 0
        """Where the tensors' bytes begin."""
        self._descriptor = descriptor

    def fill(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` (of bytes) with the file's bytes from ``offset`` on. Threads may call it at the same time.

        Raises:
            CheckpointError: the file is closed, ends too early, or cannot be read.
        """
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error
            if not got:
                raise CheckpointError(
                    f"{self.path}: ends {len(buffer) - done} bytes too early: it was cut off while it was read"
                )
            done += got

    def advise(self, offset: int, count: int) -> None:
        """Ask the system to read ``count`` bytes from ``offset`` on soon, where it can be asked."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._descriptor, offset, count, os.POSIX_FADV_WILLNEED)

    def bytes(self, offset: int, count: int) -> bytearray:
        """``count`` bytes from ``offset`` on."""
        out = bytearray(count)
        self.fill(offset, memoryview(out))
        return out

    def close(self) -> None:
        """Close the file; views on it cannot be read any more."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close


@dataclass(frozen=True)
class TensorView:
    """One tensor in an open file; nothing is read until it is asked for."""

    name: str
    dtype: str
    """The format's name of the type, for example ``BF16``."""
    shape: tuple[int, ...]
    path: Path
    """The file."""
    offset: int
    """Its first byte in the file."""
    source: Source = field(repr=False, compare=False)
    """The open file."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def readable(self) -> bool:
        """Whether the type is one of ``FLOATS``."""
        return self.dtype in FLOATS

    def read_into(self, start: int, stop: int, buffer: memoryview | NDArray[Any]) -> None:
        """Fill the caller's buffer with the stored bytes of elements ``start`` to ``stop`` in row-major order.

        Args:
            start: first element.
            stop: element past the last.
            buffer: writable, C-contiguous, of any type, exactly as many bytes as these elements have.

        Raises:
            CheckpointError: the file ends too early or cannot be read.
            ValueError: the elements are not the tensor's, or the buffer has another length.
        """
        item = ITEM_BYTES[self.dtype]
        count = (stop - start) * item
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"elements {start} to {stop} of a tensor of {self.size}")
        view = memoryview(cast("memoryview", buffer))  # the types do not tell that an array is a buffer
        if view.nbytes != count:
            raise ValueError(f"a buffer of {view.nbytes} bytes for {count}")
        if count:
            self.source.fill(self.offset + start * item, view.cast("B"))

    def raw(self, start: int = 0, stop: int | None = None) -> bytearray:
        """The stored bytes of elements ``start`` to ``stop``."""
        stop = self.size if stop is None else stop
        out = bytearray((stop - start) * ITEM_BYTES[self.dtype])
        self.read_into(start, stop, memoryview(out))
        return out

    def raw_chunks(self, size: int = 1 << 22) -> Iterator[bytearray]:
        """The stored bytes in order, at most ``size`` elements at a time."""
        for start in range(0, self.size, size):
            yield self.raw(start, min(self.size, start + size))

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.floating[Any]]:
        """Elements ``start`` to ``stop`` in row-major order, [stop - start]; float32 (exact), of F64 float64.

        Raises:
            CheckpointError: the type is none of ``FLOATS``, or the file ends too early.
        """
        if not self.readable:
            raise CheckpointError(
                f"tensor {shown(self.name)}: {self.dtype} cannot be read as numbers; convert it to one of "
                f"{', '.join(FLOATS)}"
            )
        stop = self.size if stop is None else stop
        stored = np.empty(stop - start, dtype=STORED[self.dtype])
        self.read_into(start, stop, stored)
        if self.dtype == "BF16":
            # bfloat16 is the upper half of a float32, so widening is a shift.
            widened = stored.astype(np.uint32)
            widened <<= 16
            return widened.view(np.float32)
        return stored.astype(np.float64 if self.dtype == "F64" else np.float32, copy=False)

    def chunks(self, size: int = 1 << 18) -> Iterator[NDArray[np.floating[Any]]]:
        """The elements in row-major order, at most ``size`` at a time, types as in ``read``."""
        for start in range(0, self.size, size):
            yield self.read(start, min(self.size, start + size))


class TensorFile(Mapping[str, TensorView]):
    """All tensors of a checkpoint by name, in the order of the names; its files are open until the last view goes."""

    def __init__(self, folder: Path, views: Mapping[str, TensorView], metadata: Mapping[str, str]) -> None:
        self.folder = folder
        self.metadata = dict(metadata)
        self._views = dict(sorted(views.items()))

    def __getitem__(self, name: str) -> TensorView:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    @property
    def elements(self) -> int:
        """Elements of all tensors."""
        return sum(view.size for view in self._views.values())

    @property
    def sources(self) -> list[Source]:
        """The open files, by name."""
        return sorted({view.source for view in self._views.values()}, key=lambda source: source.path.name)

    def close(self) -> None:
        """Close the files at once; the views cannot be read any more."""
        for source in self.sources:
            source.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _entry(path: Path, name: str, entry: Any) -> tuple[int, int, str, tuple[int, ...]]:
    """Check one tensor's header entry in itself: (first byte, byte past the last, type, shape)."""

    def fault(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor '{shown(name)}': {what}")

    if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
        raise fault("its name is no text (it holds half of a surrogate pair)")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fault("its entry needs exactly 'dtype', 'shape' and 'data_offsets'")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise fault(f"unknown dtype '{shown(dtype, 40)}'; known are {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_count(n) for n in shape):
        raise fault(f"shape {_listed(shape)} is not a list of at most {MAX_RANK} counts")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        raise fault(f"data_offsets {_listed(offsets)} are not two counts")
    start, stop = offsets
    if start > stop:
        raise fault(f"data_offsets {offsets} run backwards")
    if stop - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise fault(f"{stop - start} bytes do not hold shape {shape} of {dtype}")
    if start == stop and math.prod(n for n in shape if n) > MAX_SPAN:
        raise fault(f"shape {shape} holds nothing and spans more than any array can")
    return start, stop, dtype, tuple(shape)


def _listed(value: Any) -> str:
    """A value out of a header for a message, without first writing out a long one."""
    return shown(value[:20] if isinstance(value, list) else value, 80)


def _header(source: Source) -> dict[str, Any]:
    """The parsed header; ``source.begin`` is set to where the tensors' bytes begin."""
    path, size = source.path, source.size
    if size < 8:
        raise CheckpointError(f"{path}: {size} bytes are too few for a safetensors file")
    length = int.from_bytes(source.bytes(0, 8), "little")
    if length > min(MAX_HEADER, size - 8):
        if source.bytes(0, min(size, len(POINTER))) == POINTER:
            raise CheckpointError(f"{path}: a pointer of Git LFS, not the weights; fetch them with 'git lfs pull'")
        short = f"; {length - (size - 8)} bytes of it are missing" if size - 8 < length <= MAX_HEADER else ""
        raise CheckpointError(
            f"{path}: a header of {length} bytes does not fit (file {size} bytes, limit {MAX_HEADER}){short}"
        )
    source.begin = 8 + length
    text = bytes(source.bytes(8, length))
    if not text.startswith(b"{"):
        raise CheckpointError(f"{path}: the header is not sound JSON: it does not begin with '{{'")
    return parse_json(text, path, "header")


def _in_order(path: Path, entries: Mapping[str, tuple[int, int, str, tuple[int, ...]]], room: int) -> None:
    """Check that the tensors fill the file's ``room`` bytes without a gap, an overlap or a rest."""
    wanted = max((entry[1] for entry in entries.values()), default=0)
    if wanted > room:
        name = max(entries, key=lambda name: entries[name][1])
        raise CheckpointError(
            f"{path}: cut off or damaged: the tensors need {wanted} bytes, {room} are there, {wanted - room} bytes are "
            f"missing (the last tensor is '{shown(name)}'); fetch or save the checkpoint again"
        )
    reached = 0
    for name, (start, stop, _, _) in sorted(entries.items(), key=lambda item: item[1][:2]):
        if start != reached:
            fault = "overlaps the tensor before it" if start < reached else "leaves a gap before it"
            raise CheckpointError(
                f"{path}: tensor '{shown(name)}' at byte {start} {fault} (which ends at {reached}): the file is damaged"
            )
        reached = stop
    if reached != room:
        raise CheckpointError(f"{path}: {room - reached} bytes belong to no tensor: the file is damaged")


def read_safetensors(path: Path) -> tuple[dict[str, TensorView], dict[str, str]]:
    """Open one safetensors file: (tensors by name, its metadata).

    Raises:
        CheckpointError: the file is missing, no regular file, cut off, or its header is not sound.
    """
    source = Source(path, *open_regular(path))
    header = _header(source)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: '__metadata__' is not an object of strings")
    entries = {name: _entry(path, name, entry) for name, entry in header.items()}
    _in_order(path, entries, source.size - source.begin)
    views = {
        name: TensorView(name, dtype, shape, path, source.begin + start, source)
        for name, (start, _, dtype, shape) in entries.items()
    }
    return views, metadata


def _agree(shard: Path, listed: set[str], found: set[str]) -> None:
    """Check that an index places in a shard just the tensors that the shard holds."""
    odd = sorted(listed ^ found)
    if odd:
        side = "in the index but not in the file" if odd[0] in listed else "in the file but not in the index"
        raise CheckpointError(
            f"{shard}: tensor '{shown(odd[0])}' is {side} ({len(odd)} tensors so); fetch or save the checkpoint again"
        )


def _sharded(folder: Path, paths: Sequence[Path]) -> tuple[dict[str, TensorView], dict[str, str]]:
    placed = read_index(folder)
    views: dict[str, TensorView] = {}
    metadata: dict[str, str] = {}
    for path in paths:
        found, metadata = read_safetensors(path)
        _agree(path, {name for name, where in placed.items() if where == path.name}, set(found))
        views.update(found)
    return views, metadata


def _check_second(folder: Path, views: Mapping[str, TensorView]) -> None:
    """Refuse an index beside ``model.safetensors`` that describes other tensors: who can tell which are meant?"""
    try:
        placed = read_index(folder)
        odd = sorted(set(placed) ^ set(views))
        others = sorted(set(placed.values()) - {SINGLE})
        second = {name: view for shard in others for name, view in read_safetensors(folder / shard)[0].items()}
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}: {SINGLE} and a faulty {INDEX}; delete the one that is not meant: {error}"
        ) from error
    odd += sorted(name for name, view in second.items() if (view.dtype, view.shape) != _kind(views.get(name)))
    if odd:
        raise CheckpointError(
            f"{folder}: {SINGLE} and {INDEX} disagree on tensor '{shown(odd[0])}'; delete the one that is not meant"
        )


def _kind(view: TensorView | None) -> tuple[str, tuple[int, ...]] | None:
    return None if view is None else (view.dtype, view.shape)


def open_checkpoint(folder: Path) -> TensorFile:
    """The tensors of a checkpoint folder: ``model.safetensors``, or the shards that its index names.

    Where both are there, ``model.safetensors`` is read, as transformers does, and an index that lists other names, or
    shards of other types and shapes, is an error. Tensors that share memory in the model are saved once, and stand here
    once.

    Raises:
        CheckpointError: there are no safetensors, a file is damaged, leads elsewhere, or two of them disagree.
    """
    folder = Path(folder)
    paths = weight_files(folder)
    if paths == [folder / SINGLE]:
        views, metadata = read_safetensors(folder / SINGLE)
        if os.path.lexists(folder / INDEX):
            _check_second(folder, views)
    else:
        views, metadata = _sharded(folder, paths)
    return TensorFile(folder, views, metadata)


def model_type(folder: Path) -> str:
    """``model_type`` of the folder's config.

    Raises:
        CheckpointError: there is no config, or it names none.
    """
    kind = read_config(folder).get("model_type")
    if not isinstance(kind, str):
        raise CheckpointError(f"{Path(folder) / 'config.json'}: 'model_type' is missing")
    return kind
