"""Files that are on the disk when a function returns, hashed as they are written, for the saves of a training."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

WRITTEN_AT_A_TIME = 64 * 2**20
"""Bytes of one write: large enough to cost nothing, small enough that a hash and a write take turns."""
_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data[:WRITTEN_AT_A_TIME]) :]


def write_file(path: Path, pieces: Sequence[memoryview]) -> dict[str, Any]:
    """Write and force to the disk; ``{bytes, blake2b}`` of what was written."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        for piece in pieces:
            digest.update(piece)
            _write_all(descriptor, piece)
            size += len(piece)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"bytes": size, "blake2b": digest.hexdigest()}


def _raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    values: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(values) if tensor.numel() else memoryview(b"")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Write contiguous tensors on the CPU as one safetensors file, hashed on the way and forced to the disk.

    Returns:
        ``{bytes, blake2b}`` of the file.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers expect the data to begin at a multiple of 8
    head = len(text).to_bytes(8, "little") + text
    return write_file(path, [memoryview(head), *(_raw(tensor) for tensor in tensors.values())])


def hash_file(path: Path) -> dict[str, Any]:
    digest, size = hashlib.blake2b(digest_size=16), 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(4 * 2**20):
            digest.update(piece)
            size += len(piece)
    return {"bytes": size, "blake2b": digest.hexdigest()}


def write_json(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """Whole or not there, in a folder that others are looking into."""
    draft = path.with_name(f"{path.name}.draft")
    known = write_file(draft, [memoryview(json.dumps(value, sort_keys=True).encode())])
    draft.rename(path)
    return known


def force_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Delete a folder of files, first renamed so that no half of it can be taken for a save."""
    if not folder.name.startswith("."):
        hidden = folder.with_name(f".dropped-{folder.name}")
        folder.rename(hidden)
        folder = hidden
    for file in sorted(folder.iterdir()):
        file.unlink()
    folder.rmdir()


def keep_also(path: Path, place: Path) -> None:
    """Give a file a second name, or a copy where the file system has no links."""
    try:
        os.link(path, place)
    except FileExistsError:
        place.unlink()
        os.link(path, place)
    except OSError:
        shutil.copyfile(path, place)
