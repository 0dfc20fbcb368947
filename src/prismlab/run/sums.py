"""Hash of an artifact's file and, of a safetensors file, check sums of its tensors.

The hash says that a file is not what was written; the sums say which of its tensors are not. They are CRC-32, which
costs little beside the hash and finds any change within 32 bits.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from prismlab.errors import shown
from prismlab.study.content import CHUNK

HEADER = None
"""The name, among those of tensors, of what stands before them in the file."""
SHOWN = 3
"""Tensors that a message names."""


def listed(path: Path) -> dict[str, Any]:
    """``{bytes, blake2b}`` of a file, read once; of safetensors also ``tensors``: [[name, bytes, CRC-32]] in order.

    The hash is that of ``hash_file``.
    """
    digest, size = hashlib.blake2b(digest_size=32), path.stat().st_size
    sums: list[list[Any]] = []
    with path.open("rb") as file:
        parts = _parts(file, size) if path.suffix == ".safetensors" else []
        file.seek(0)
        for name, count in parts:
            crc = 0
            for piece in _pieces(file, count):
                digest.update(piece)
                crc = zlib.crc32(piece, crc)
            sums.append([name, count, f"{crc:08x}"])
        for piece in _pieces(file, size):
            digest.update(piece)
    return {"bytes": size, "blake2b": digest.hexdigest(), **({"tensors": sums} if sums else {})}


def what_changed(path: Path, known: Mapping[str, Any]) -> str:
    """Which tensors of a file of the right size are not those of its entry ``known``, in words; empty without sums."""
    changed: list[str | None] = []
    with path.open("rb") as file:
        for name, count, told in cast(Sequence[tuple[str | None, int, str]], known.get("tensors", ())):
            crc = 0
            for piece in _pieces(file, count):
                crc = zlib.crc32(piece, crc)
            if f"{crc:08x}" != told:
                changed.append(name)
    names = ["its header" if name is HEADER else f"tensor '{shown(name)}'" for name in changed[:SHOWN]]
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return ", ".join(names) + more


def _pieces(file: BinaryIO, count: int) -> Iterator[bytes]:
    """The next ``count`` bytes, or what is left of the file."""
    while count > 0 and (piece := file.read(min(count, CHUNK))):
        count -= len(piece)
        yield piece


def _parts(file: BinaryIO, size: int) -> list[tuple[str | None, int]]:
    """Name and bytes of the header and of each tensor, one behind the other; empty where the file has no such parts."""
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        return []
    try:
        header = json.loads(file.read(length))
        places = sorted((*entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []  # the stage wrote no safetensors by that name: the hash holds all the same
    parts: list[tuple[str | None, int]] = [(HEADER, 8 + length)]
    reached = 0
    for start, stop, name in places:
        if start != reached or stop < start:
            return []
        parts.append((name, stop - start))
        reached = stop
    return parts
