"""The tokens of one source on disk, in parts that are whole or not there, so that a stopped build goes on from them.

``part-00000.tok``  tokens of the part's documents, flat, in the tokenizer's type
``part-00000.npz``  ``lengths`` and ``prompts`` [documents], counts of what was read so far, hash; written last
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from prismlab.data.document import Document
from prismlab.data.encode import Encoded, Encoders
from prismlab.data.files import hash_array, hash_file, save_arrays, whole
from prismlab.data.packing import Ints

FIRST_PART, LARGEST_PART = 32, 2**16
"""Documents a part: few at first, so that a small corpus does not read a whole source."""
PART_CHARS = 4 * 2**20
"""Characters at which a part ends, whatever its documents."""
OPEN_FILES = 256
MANY = 8
"""Pieces of a part from which on mapping it costs less than as many reads."""


@dataclass(frozen=True)
class Part:
    """Documents that are encoded together, and what had been met when the last of them was read."""

    documents: list[Document]
    counts: Mapping[str, int]
    last: bool
    """Whether the source ends here."""


def parts(documents: Iterable[Document], counts: Callable[[], Mapping[str, int]], first: int = 0) -> Iterator[Part]:
    """Documents in parts, from part ``first`` on; where a part ends depends on the documents alone."""
    source, number = iter(documents), first
    held = next(source, None)
    while held is not None:
        most, part, size = min(FIRST_PART << min(number, 16), LARGEST_PART), list[Document](), 0
        while held is not None and len(part) < most and size < PART_CHARS:
            part.append(held)
            size += len(held.text)
            held = next(source, None)
        yield Part(part, dict(counts()), held is None)
        number += 1


class _Index:
    """Where the documents of the parts at hand begin: 24 bytes a document, held once.

    Args:
        lengths: tokens of each document.
        prompts: those of them on which no loss is taken.
        parts: documents and tokens of each part.
    """

    def __init__(self, lengths: Ints, prompts: Ints, parts: list[tuple[int, int]]) -> None:
        self.lengths, self.prompts = lengths, prompts
        self.begins = np.append(0, np.cumsum(lengths))
        self.part_begins = np.append(0, np.cumsum([tokens for _, tokens in parts], dtype=np.int64))
        self.first_documents = np.append(0, np.cumsum([documents for documents, _ in parts], dtype=np.int64))


class TokenCache:
    """One source's documents as tokens, encoded as they are needed.

    Args:
        folder: of this source, made here; parts that are already there are taken as they are.
        encoders: of the corpus.
        open_documents: gives the source's documents from the start, in an order that never changes.
        counts: what was met so far while documents were read (held out, empty, ...).
        min_tokens: shorter documents are passed over by who packs, and not counted as kept.
        told: called with the number of kept tokens whenever a part was added.
    """

    def __init__(
        self,
        folder: Path,
        encoders: Encoders,
        open_documents: Callable[[], Iterable[Document]],
        counts: Callable[[], Mapping[str, int]],
        min_tokens: int = 0,
        told: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._encoders, self._open = folder, encoders, open_documents
        self._counts, self._min_tokens, self._told = counts, min_tokens, told
        self.dtype = encoders.encoder.dtype
        self._parts = list[tuple[int, int]]()
        self._fresh = list[tuple[Ints, Ints]]()
        self._met: list[dict[str, int]] = []
        self._files: dict[int, int] = {}
        self._indexed = _Index(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
        self._coming: Iterator[tuple[Part, Encoded]] | None = None
        self.ended = False
        """Whether all documents of the source are here."""
        self.kept_documents = self.kept_tokens = 0
        """Documents here of at least ``min_tokens`` tokens, and their tokens."""
        while not self.ended and self._take(len(self._parts)):
            pass

    def _name(self, number: int, suffix: str) -> Path:
        return self._folder / f"part-{number:05d}.{suffix}"

    def _take(self, number: int) -> bool:
        """Take the part that an earlier build left; False if it left none or a damaged one, which is encoded anew."""
        try:
            with np.load(self._name(number, "npz"), allow_pickle=False) as found:
                if hash_file(self._name(number, "tok")) != str(found["hash"]):
                    return False
                counts = dict(zip(found["names"].tolist(), found["counts"].tolist(), strict=True))
                self._note(found["lengths"], found["prompts"], counts, bool(found["last"]))
        except (OSError, ValueError, KeyError, EOFError):
            return False
        return True

    def _note(self, lengths: Ints, prompts: Ints, counts: dict[str, int], last: bool) -> None:
        self._parts.append((len(lengths), int(lengths.sum())))
        self._fresh.append((lengths, prompts))
        self._met.append(counts)
        self.ended = last
        kept = lengths[lengths >= self._min_tokens]
        self.kept_documents += len(kept)
        self.kept_tokens += int(kept.sum())
        self._told(int(kept.sum()))

    @property
    def _index(self) -> _Index:
        if self._fresh:
            lengths = np.concatenate([self._indexed.lengths, *(lengths for lengths, _ in self._fresh)])
            prompts = np.concatenate([self._indexed.prompts, *(prompts for _, prompts in self._fresh)])
            self._indexed, self._fresh = _Index(lengths, prompts, self._parts), []
        return self._indexed

    @property
    def lengths(self) -> Ints:
        """Tokens of each document here."""
        return self._index.lengths

    @property
    def prompts(self) -> Ints:
        """Tokens of each document here on which no loss is taken."""
        return self._index.prompts

    def _encode(self) -> Iterator[tuple[Part, Encoded]]:
        waiting: list[Part] = []

        def told() -> Iterator[list[Document]]:
            documents = islice(self._open(), sum(documents for documents, _ in self._parts), None)
            for part in parts(documents, self._counts, len(self._parts)):
                waiting.append(part)
                yield part.documents

        for encoded in self._encoders.encode(told()):
            yield waiting.pop(0), encoded

    def _more(self) -> None:
        if self._coming is None:
            self._coming = self._encode()
        found = next(self._coming, None)
        number = len(self._parts)
        if found is None:  # The source has no document at all.
            self.ended = True
            return
        part, encoded = found
        with whole(self._name(number, "tok")) as draft:
            encoded.tokens.tofile(draft)
        save_arrays(
            self._name(number, "npz"),
            lengths=encoded.lengths,
            prompts=encoded.prompts,
            names=np.array(list(part.counts), str),
            counts=np.array(list(part.counts.values()), np.int64),
            last=part.last,
            hash=hash_array(encoded.tokens),
        )
        self._note(encoded.lengths, encoded.prompts, dict(part.counts), part.last)

    def ensure(self, enough: Callable[[], bool]) -> None:
        """Encode further parts until ``enough`` or the source ends."""
        while not self.ended and not enough():
            self._more()

    def met_until(self, document: int) -> Mapping[str, int]:
        """What was met when the last document of the part that holds ``document`` was read."""
        if not self._met:
            return dict(self._counts())
        part = int(np.searchsorted(self._index.first_documents, document, side="right")) - 1
        return self._met[min(part, len(self._met) - 1)]

    def gather(
        self, document: Ints, offset: Ints, length: Ints, place: Ints, out: NDArray[Any], compiled: bool = False
    ) -> None:
        """Read segments of documents into ``out`` (flat, of the tokenizer's type) at ``place``.

        Segments that follow one another both on disk and in ``out`` are moved at once. A part of which many pieces are
        wanted is mapped while they are copied, so that one part at most is in memory besides ``out``.

        Args:
            document: of each segment [n].
            offset: its first token in the document [n].
            length: its tokens [n].
            place: where it goes in ``out`` [n].
            out: of the tokenizer's type, C-contiguous.
            compiled: copy many pieces by ``data.fit``, which is faster and needs numba; the result is the same.
        """
        if not len(document):
            return
        index = self._index
        source = index.begins[document] + offset
        part = np.searchsorted(index.part_begins, source, side="right") - 1
        apart = (source[1:] != (source + length)[:-1]) | (place[1:] != (place + length)[:-1]) | (part[1:] != part[:-1])
        first = np.append(0, np.flatnonzero(apart) + 1)
        stop = np.append(first[1:], len(source)) - 1
        order = np.argsort(part[first], kind="stable")
        first, stop = first[order], stop[order]
        pieces = np.stack([source[first] - index.part_begins[part[first]], place[first], place[stop] + length[stop]])
        move = self._compiled if compiled else self._move
        seams = np.flatnonzero(np.diff(part[first], prepend=-1, append=-1))
        for low, high in pairwise(seams.tolist()):
            move(int(part[first[low]]), pieces[:, low:high], out.reshape(-1))

    def _move(self, number: int, pieces: Ints, out: NDArray[Any]) -> None:
        """Copy ``pieces`` of one part's file: their first tokens there, first and last places in ``out`` [3, n]."""
        file, target = self._file(number), memoryview(cast(Any, out.view(np.uint8)))
        rows = (pieces * self.dtype.itemsize).T.tolist()
        if len(rows) < MANY:
            for at, low, high in rows:
                self._read(number, file, at, target[low:high])
            return
        with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as whole_part:
            for at, low, high in rows:
                target[low:high] = whole_part[at : at + high - low]

    def _compiled(self, number: int, pieces: Ints, out: NDArray[Any]) -> None:
        from prismlab.data.fit import copy_pieces

        if pieces.shape[1] < MANY:
            self._move(number, pieces, out)
            return
        with mmap.mmap(self._file(number), 0, access=mmap.ACCESS_READ) as mapped:
            copy_pieces(np.frombuffer(mapped, self.dtype), pieces, out)

    def _file(self, number: int) -> int:
        if number not in self._files:
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[number] = os.open(self._name(number, "tok"), os.O_RDONLY)
        return self._files[number]

    def _read(self, number: int, file: int, at: int, target: memoryview) -> None:
        while target:
            got = os.preadv(file, [target], at)
            if got == 0:
                raise OSError(f"{self._name(number, 'tok')}: ends early; delete the folder and build again")
            at, target = at + got, target[got:]

    def close(self) -> None:
        """Close the files, and give up what is being encoded ahead."""
        for file in self._files.values():
            os.close(file)
        self._files, self._coming = {}, None
