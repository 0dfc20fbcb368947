"""Content hashes of the files a study reads: a fingerprint knows what a file holds, never where it lies."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from prismlab.errors import DataError

CHUNK = 4 * 2**20
_CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")


def hash_file(path: Path) -> str:
    """BLAKE2b (32 bytes, hexadecimal) of a file, read in pieces."""
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


class FileHashes:
    """Hashes of files, remembered by path, size and time of change in ``cache`` (a JSON file) where one is given."""

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._known: dict[str, str] = self._read()
        self._changed = False

    def _read(self) -> dict[str, str]:
        """What was remembered. An unreadable cache only costs time: the files themselves are hashed again."""
        if self._cache is None or not self._cache.is_file():
            return {}
        try:
            known = cast(object, json.loads(self._cache.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}
        if not isinstance(known, dict):
            return {}
        return {str(key): str(value) for key, value in cast(dict[object, object], known).items()}

    def of(self, path: Path) -> str:
        """The hash of one file.

        Raises:
            DataError: it cannot be read.
        """
        try:
            stat = path.stat()
            key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
            if key not in self._known:
                self._known[key] = hash_file(path)
                self._changed = True
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        return self._known[key]

    def listing(self, files: Sequence[Path]) -> list[dict[str, str]]:
        """``[{name, blake2b}]`` of files, in the given order."""
        return [{"name": file.name, "blake2b": self.of(file)} for file in files]

    def checkpoint(self, folder: Path, *, code: bool = False) -> list[dict[str, str]]:
        """The listing of a checkpoint folder's configuration, weights and tokenizer, and its ``code``, by name."""
        patterns = (*_CHECKPOINT_FILES, *(("*.py",) if code else ()))
        files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
        return self.listing(sorted(files, key=lambda file: file.name))

    def save(self) -> None:
        """Write what is new to the cache, if its folder exists."""
        if self._cache is None or not self._changed or not self._cache.parent.is_dir():
            return
        draft = self._cache.with_name(f"{self._cache.name}.{os.getpid()}")
        try:
            draft.write_text(json.dumps(self._known, indent=0, sort_keys=True), encoding="utf-8")
            draft.replace(self._cache)
        except OSError:
            return  # Somebody else's run folder, or a full disk: the files are hashed again next time.
        self._changed = False
