"""Tensors of a checkpoint without torch: safetensors files, mapped into memory, their headers checked first.

The format (an 8-byte little-endian length, a JSON header, the tensors' bytes without gaps) is that of the safetensors
README. Nothing is allocated on the word of a header: every length is compared with the file's size before it is used.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.errors import CheckpointError

MAX_HEADER = 100_000_000
"""Longest header in bytes: the format's own limit."""
MAX_RANK = 16
"""Most axes of a tensor."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes an element of every type that a header may name."""
FLOATS = ("BF16", "F16", "F32", "F64")
"""Types that can be read as numbers here."""
_STORED = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True)
class TensorView:
    """One tensor in a mapped file; nothing is copied until it is read."""

    name: str
    dtype: str
    """The format's name of the type, for example ``BF16``."""
    shape: tuple[int, ...]
    buffer: memoryview
    """The tensor's bytes."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def readable(self) -> bool:
        """Whether the type is one of ``FLOATS``."""
        return self.dtype in FLOATS

    def raw(self) -> memoryview:
        """The stored bytes, read-only."""
        return self.buffer

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.floating[Any]]:
        """Elements ``start`` to ``stop`` in row-major order, [stop - start]; float32 (exact), of F64 float64.

        Raises:
            CheckpointError: the type is none of ``FLOATS``.
        """
        if not self.readable:
            raise CheckpointError(
                f"tensor {self.name}: {self.dtype} cannot be read as numbers; convert it to one of {', '.join(FLOATS)}"
            )
        stop = self.size if stop is None else stop
        stored = np.frombuffer(self.buffer, dtype=_STORED[self.dtype], count=self.size)[start:stop]
        if self.dtype == "BF16":
            # bfloat16 is the upper half of a float32, so widening is a shift.
            widened = stored.astype(np.uint32)
            widened <<= 16
            return widened.view(np.float32)
        return stored.astype(np.float64 if self.dtype == "F64" else np.float32)

    def chunks(self, size: int = 1 << 18) -> Iterator[NDArray[np.floating[Any]]]:
        """The elements in row-major order, at most ``size`` at a time, types as in ``read``."""
        for start in range(0, self.size, size):
            yield self.read(start, min(self.size, start + size))


class TensorFile(Mapping[str, TensorView]):
    """All tensors of a checkpoint by name, in the order of the names."""

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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in pairs:
        if name in out:
            raise ValueError(f"the key {name[:120]!r} stands twice")
        out[name] = value
    return out


def _json(text: bytes, path: Path, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the {what} is not sound JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: the {what} is a JSON {type(value).__name__}, not an object")
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _entry(path: Path, name: str, entry: Any, room: int) -> tuple[int, int, str, tuple[int, ...]]:
    """Check one tensor's header entry: (first byte, byte past the last, type, shape)."""
    where = f"{path}: tensor {name[:120]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: its entry needs exactly 'dtype', 'shape' and 'data_offsets'")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where}: unknown dtype {str(dtype)[:40]!r}; known are {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_count(n) for n in shape):
        raise CheckpointError(f"{where}: shape {str(shape)[:80]} is not a list of at most {MAX_RANK} counts")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        raise CheckpointError(f"{where}: data_offsets {str(offsets)[:80]} are not two counts")
    start, stop = offsets
    if not start <= stop <= room:
        raise CheckpointError(
            f"{where}: bytes {start} to {stop} lie outside the file's {room}: it is cut off or damaged"
        )
    if stop - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise CheckpointError(f"{where}: {stop - start} bytes do not hold shape {shape} of {dtype}")
    return start, stop, dtype, tuple(shape)


def _header(path: Path, mapped: mmap.mmap) -> tuple[int, dict[str, Any]]:
    """Where the tensors' bytes begin, and the parsed header."""
    length = int.from_bytes(mapped[:8], "little")
    if length > min(MAX_HEADER, len(mapped) - 8):
        raise CheckpointError(
            f"{path}: a header of {length} bytes does not fit (file {len(mapped)} bytes, limit {MAX_HEADER})"
        )
    return 8 + length, _json(mapped[8 : 8 + length], path, "header")


def read_safetensors(path: Path) -> tuple[dict[str, TensorView], dict[str, str]]:
    """Map one safetensors file: (tensors by name, its metadata).

    Raises:
        CheckpointError: the file is missing, cut off, or its header is not sound.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 8:
                raise CheckpointError(f"{path}: {size} bytes are too few for a safetensors file")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    begin, header = _header(path, mapped)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: '__metadata__' is not an object of strings")
    room = len(mapped) - begin
    entries = {name: _entry(path, name, entry, room) for name, entry in header.items()}
    reached, data = 0, memoryview(mapped)[begin:]
    for name, (start, stop, _, _) in sorted(entries.items(), key=lambda item: item[1][:2]):
        if start != reached:
            fault = "overlaps the tensor before it" if start < reached else "leaves a gap before it"
            raise CheckpointError(f"{path}: tensor {name[:120]!r} at byte {start} {fault} (which ends at {reached})")
        reached = stop
    if reached != room:
        raise CheckpointError(f"{path}: {room - reached} bytes belong to no tensor")
    views = {name: TensorView(name, e[2], e[3], data[e[0] : e[1]]) for name, e in entries.items()}
    return views, metadata


def _sharded(folder: Path) -> tuple[dict[str, TensorView], dict[str, str]]:
    path = folder / INDEX
    index = _json(path.read_bytes()[: MAX_HEADER + 1], path, "index")
    placed = index.get("weight_map")
    if not isinstance(placed, dict):
        raise CheckpointError(f"{path}: 'weight_map' is missing")
    for shard in {str(shard) for shard in placed.values()}:
        # A shard is a file of this very folder: no index may point elsewhere.
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: shard {shard[:120]!r} is not the name of a .safetensors file in this folder"
            )
    views: dict[str, TensorView] = {}
    metadata: dict[str, str] = {}
    for shard in sorted({str(shard) for shard in placed.values()}):
        found, metadata = read_safetensors(folder / shard)
        listed = {name for name, where in placed.items() if where == shard}
        if listed != set(found):
            odd = sorted(listed ^ set(found))[0]
            side = "in the index but not in the file" if odd in listed else "in the file but not in the index"
            raise CheckpointError(f"{folder / shard}: tensor {odd[:120]!r} is {side}")
        views.update(found)
    return views, metadata


def open_checkpoint(folder: Path) -> TensorFile:
    """The tensors of a checkpoint folder: ``model.safetensors``, or the shards that its index names.

    Tensors that share memory in the model are saved once, and stand here once.

    Raises:
        CheckpointError: there are no safetensors, or a file is damaged.
    """
    folder = Path(folder)
    if (folder / SINGLE).is_file():
        views, metadata = read_safetensors(folder / SINGLE)
    elif (folder / INDEX).is_file():
        views, metadata = _sharded(folder)
    else:
        raise CheckpointError(f"{folder}: neither {SINGLE} nor {INDEX}; pickled weights are not read")
    return TensorFile(folder, views, metadata)


def model_type(folder: Path) -> str:
    """``model_type`` of the folder's config.

    Raises:
        CheckpointError: there is no config, or it names none.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no config.json, so not a checkpoint in the Hugging Face layout")
    kind = _json(path.read_bytes(), path, "config").get("model_type")
    if not isinstance(kind, str):
        raise CheckpointError(f"{path}: 'model_type' is missing")
    return kind
