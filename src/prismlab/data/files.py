"""Files that are whole or not there: written aside, then renamed, so that a killed build leaves no half of one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prismlab.errors import SpecError

CHUNK = 4 * 2**20


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, renamed in place when the block ends; left alone when it fails."""
    draft = path.with_name(f"{path.name}.tmp")
    yield draft
    draft.replace(path)


def make_folder(path: Path) -> None:
    """A folder that a user asks for by ``--out``, with those above it.

    Raises:
        SpecError: something else is there, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"{path}: cannot be made a folder ({error.strerror}); name another one with --out") from error


def save_arrays(path: Path, **arrays: NDArray[Any] | int | str) -> None:
    """Arrays under their names in one ``.npz`` file, whole or not there."""
    with whole(path) as draft, draft.open("wb") as file:
        np.savez(file, **{name: cast(Any, value) for name, value in arrays.items()})


def hash_file(path: Path) -> str:
    """BLAKE2b (128 bits, hexadecimal) of a file, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def hash_array(values: NDArray[Any]) -> str:
    """BLAKE2b (128 bits, hexadecimal) of an array's bytes as they lie in memory."""
    return hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16).hexdigest()
