"""Documents to tokens in bulk: parts of a source encoded in this process or in several, with one result."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.data.document import Document
from prismlab.errors import DataError
from prismlab.model.tokens import Encoder

BATCH_CHARS = 2**20
"""Characters encoded at a time: a tokenizer needs a hundred bytes and more for each token under way."""
LONGEST = 4 * 2**20
"""Characters of a piece: a longer document is cut at a line break or else a space, its pieces are encoded apart."""


@dataclass(frozen=True)
class Encoded:
    """Documents as tokens."""

    tokens: NDArray[Any]
    """Of all documents, one after another, each with its end-of-sequence token."""
    lengths: NDArray[np.int64]
    """Tokens of each document [n]."""
    prompts: NDArray[np.int64]
    """Tokens of each document on which no loss is taken [n]."""


def pieces(text: str, longest: int = LONGEST) -> Iterator[str]:
    """A text in pieces of at most ``longest`` characters, cut behind the last line break or else the last space."""
    begin = 0
    while len(text) - begin > longest:
        limit = begin + longest
        cut = max(text.rfind("\n", begin, limit), -1) + 1 or text.rfind(" ", begin, limit) + 1 or limit
        yield text[begin:cut]
        begin = cut
    yield text[begin:]


def _batches(documents: Sequence[Document]) -> Iterator[list[Document]]:
    held, size = list[Document](), 0
    for document in documents:
        if held and size + len(document.text) > BATCH_CHARS:
            yield held
            held, size = [], 0
        held.append(document)
        size += len(document.text)
    if held:
        yield held


def _tokens(encoder: Encoder, documents: Sequence[Document]) -> list[NDArray[Any]]:
    if len(documents) > 1 or len(documents[0].text) <= LONGEST:
        return encoder.encode([document.text for document in documents])
    parts = [encoder.encode([piece])[0] for piece in pieces(documents[0].text)]
    return [np.concatenate([*(part[:-1] for part in parts[:-1]), parts[-1]])]


def encode_documents(encoder: Encoder, documents: Sequence[Document]) -> Encoded:
    """The tokens of documents, encoded in batches of bounded size.

    Raises:
        DataError: a token id is not below the vocabulary's size, or a question-answer document is too long.
    """
    tokens: list[NDArray[Any]] = []
    prompts = np.zeros(len(documents), np.int64)
    done = 0
    for batch in _batches(documents):
        tokens += _tokens(encoder, batch)
        asked = [at for at, document in enumerate(batch) if document.prompt]
        if asked:
            prompts[[done + at for at in asked]] = _prompts(encoder, [batch[at] for at in asked])
        done += len(batch)
    flat = np.concatenate(tokens) if tokens else np.zeros(0, encoder.dtype)
    if len(flat) and int(flat.max()) >= encoder.vocab:
        raise DataError(f"token id {int(flat.max())}, the tokenizer's vocabulary has {encoder.vocab}")
    return Encoded(flat, np.array([len(one) for one in tokens], np.int64), prompts)


def _prompts(encoder: Encoder, documents: Sequence[Document]) -> list[int]:
    for document in documents:
        if len(document.text) > LONGEST:
            raise DataError(
                f"{document.where or 'a document'}: {len(document.text)} characters; with 'loss: answer' a document "
                f"has at most {LONGEST}"
            )
    return encoder.prompt_tokens([document.text for document in documents], [one.prompt for one in documents])


_encoder: Encoder | None = None
"""Of a worker process."""


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a killed build must leave no process behind."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _begin(encoder: Encoder, parent: int) -> None:
    global _encoder
    # Read when the tokenizer first runs: there are as many processes as were asked for, so a thread each.
    os.environ["RAYON_NUM_THREADS"] = "1"
    _encoder = encoder
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _work(documents: Sequence[Document]) -> Encoded:
    assert _encoder is not None
    return encode_documents(_encoder, documents)


AHEAD = 2
"""Parts under way for each process: while one is encoded another is read or written."""


class Encoders:
    """Encodes parts in order, in this process (with the tokenizer's own threads) or in several (a thread each).

    Args:
        encoder: of the tokenizer.
        workers: processes; 1 is this one.
    """

    def __init__(self, encoder: Encoder, workers: int = 1) -> None:
        self.encoder, self.workers = encoder, workers
        self._pool: Executor | None = None

    def _begun(self) -> Executor:
        if self._pool is None and self.workers == 1:
            # The tokenizer works without the interpreter's lock, and a long document keeps but one of its threads busy.
            self._pool = ThreadPoolExecutor(AHEAD)
        elif self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.workers,
                multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(self.encoder, os.getpid()),
            )
        return self._pool

    def encode(self, parts: Iterable[Sequence[Document]]) -> Iterator[Encoded]:
        """The tokens of each part, in their order; two parts a process are under way."""
        pool, under_way = self._begun(), deque[Future[Encoded]]()
        for part in parts:
            here = self.workers == 1
            under_way.append(pool.submit(encode_documents, self.encoder, part) if here else pool.submit(_work, part))
            if len(under_way) >= AHEAD * self.workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Encoders:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
