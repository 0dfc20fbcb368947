"""The documents of one source on disk, so that they can be read in any order without being held in memory.

``texts.bin``  UTF-8, one after another
``texts.npz``  ``ends`` and ``prompts`` [documents], counts of what was read; written last
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from prismlab.data.document import Document
from prismlab.data.files import save_arrays, whole


class Spool:
    """Documents by their number.

    Args:
        folder: made here; what an earlier build left there is taken if it is complete.
        documents: gives them, if they are not there yet.
        counts: what was met while they were read.
        told: called with the number of documents that were written.
    """

    def __init__(
        self,
        folder: Path,
        documents: Callable[[], Iterable[Document]],
        counts: Callable[[], Mapping[str, int]],
        told: Callable[[int], None] = lambda documents: None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._texts, self._index = folder / "texts.bin", folder / "texts.npz"
        if not self._read():
            self._write(documents(), counts, told)
            self._read()

    def _read(self) -> bool:
        try:
            with np.load(self._index, allow_pickle=False) as found:
                self._ends, self._prompts = found["ends"], found["prompts"]
                self.counts = dict(zip(found["names"].tolist(), found["counts"].tolist(), strict=True))
            size = int(self._ends[-1]) if len(self._ends) else 0
            return self._texts.stat().st_size == size
        except (OSError, ValueError, KeyError, EOFError):
            return False

    def _write(
        self, documents: Iterable[Document], counts: Callable[[], Mapping[str, int]], told: Callable[[int], None]
    ) -> None:
        # Flat arrays: a list would hold an object of 32 bytes for each of millions of documents.
        ends, prompts, size = array("q"), array("q"), 0
        with whole(self._texts) as draft, draft.open("wb") as file:
            for document in documents:
                size += file.write(document.text.encode("utf-8"))
                ends.append(size)
                prompts.append(document.prompt)
                told(1)
        met = counts()
        save_arrays(
            self._index,
            ends=np.array(ends, np.int64),
            prompts=np.array(prompts, np.int64),
            names=np.array(list(met), str),
            counts=np.array(list(met.values()), np.int64),
        )

    def __len__(self) -> int:
        return len(self._ends)

    def in_order(self, order: Iterable[int]) -> Iterator[Document]:
        """The documents of these numbers."""
        file = os.open(self._texts, os.O_RDONLY)
        try:
            for number in order:
                begin = int(self._ends[number - 1]) if number else 0
                raw = os.pread(file, int(self._ends[number]) - begin, begin)
                yield Document(raw.decode("utf-8"), int(self._prompts[number]))
        finally:
            os.close(file)
