"""Safetensors files to be written: which tensor goes where, under the names that Hugging Face gives shards."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prismlab.errors import SpecError, shown
from prismlab.model.folder import INDEX, SINGLE
from prismlab.model.tensors import ITEM_BYTES

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([A-Za-z]*)")


def parse_size(text: str | int) -> int:
    """Bytes of ``5GB`` (10^9 each), ``500MB``, ``2GiB`` or a plain number.

    Raises:
        SpecError: it is none of these, or zero.
    """
    match = _SIZE.fullmatch(str(text).strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size < 1:
        raise SpecError(f"size '{shown(text, 40)}': a number and a unit are wanted, for example 5GB, 500MB or 2GiB")
    return size


@dataclass(frozen=True)
class Slot:
    """A tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Its bytes."""
        return self.elements * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """A file to be written: its header, and where each tensor's bytes begin in it."""

    file: str
    header: bytes
    """Length, JSON and filling."""
    offsets: dict[str, int]
    size: int
    """Bytes of the whole file."""


def _shard(file: str, slots: list[Slot]) -> Shard:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end, relative = 0, {}
    for slot in slots:
        relative[slot.name] = end
        header[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [end, end + slot.bytes]}
        end += slot.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers expect the data to begin at a multiple of 8
    begin = 8 + len(text)
    offsets = {name: begin + at for name, at in relative.items()}
    return Shard(file, len(text).to_bytes(8, "little") + text, offsets, begin + end)


def arrange(slots: Iterable[Slot], most: int) -> list[Shard]:
    """Tensors in their order, put into files of at most ``most`` bytes of tensors; a larger tensor has its own file."""
    groups: list[list[Slot]] = [[]]
    filled = 0
    # Wide types first: every tensor then begins at a multiple of its element's size.
    for slot in sorted(slots, key=lambda slot: -ITEM_BYTES[slot.dtype]):
        if groups[-1] and filled + slot.bytes > most:
            groups.append([])
            filled = 0
        groups[-1].append(slot)
        filled += slot.bytes
    if len(groups) == 1:
        return [_shard(SINGLE, groups[0])]
    count = len(groups)
    return [_shard(f"model-{at:05d}-of-{count:05d}.safetensors", group) for at, group in enumerate(groups, 1)]


def write_index(folder: Path, shards: list[Shard]) -> None:
    """The index that several shards need; nothing for one."""
    if len(shards) > 1:
        total = sum(shard.size - len(shard.header) for shard in shards)
        placed = {name: shard.file for shard in shards for name in shard.offsets}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
