"""Documents to rows: each document's tokens and an end-of-sequence token, one after another, cut into rows of one length.

No token is lost or padded but the rest after a source's last row. What a row begins with may be the middle of a document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.errors import DataError

Tokens = NDArray[np.unsignedinteger[Any]]


@dataclass
class SourceStats:
    """How far a source was read."""

    documents: int = 0
    """Distinct documents met in training; all of the source's if ``epochs`` is 1 or more."""
    tokens_drawn: int = 0
    """Tokens drawn, those of repeated documents counted again, end-of-sequence tokens included."""
    epoch_tokens: int | None = None
    """Tokens of one pass; None if the source was not read to its end."""
    left_over: int = 0
    """Tokens after the last row, not used."""


class EpochStream:
    """The documents of one source, again and again, each pass in an order of its own.

    Args:
        name: of the source, for messages.
        first: tokens of the documents of the first pass, read as they are needed.
        order: gives the permutation of ``n`` documents for pass 1, 2, ...: ``order(epoch, n)``.
        needed: tokens that will be asked for, so that too many passes are refused after the first.
        max_epochs: most passes.
    """

    def __init__(
        self,
        name: str,
        first: Iterable[Tokens],
        order: Callable[[int, int], Sequence[int]],
        needed: int,
        max_epochs: float,
    ) -> None:
        self.stats = SourceStats()
        self._name, self._first, self._order = name, first, order
        self._needed, self._max_epochs = needed, max_epochs

    def __iter__(self) -> Iterator[Tokens]:
        kept: list[Tokens] = []
        for tokens in self._first:
            kept.append(tokens)
            self._count(tokens)
            self.stats.documents += 1
            yield tokens
        self.stats.epoch_tokens = sum(map(len, kept))
        self._check()
        epoch = 1
        while True:
            for at in self._order(epoch, len(kept)):
                self._count(kept[at])
                yield kept[at]
            epoch += 1

    def _count(self, tokens: Tokens) -> None:
        self.stats.tokens_drawn += len(tokens)

    def _check(self) -> None:
        size = self.stats.epoch_tokens
        if not size:
            raise DataError(f"source {self._name!r} has no document to train on")
        epochs = self._needed / size
        if epochs > self._max_epochs:
            raise DataError(
                f"source {self._name!r} has {size} tokens to train on, the mixture needs {self._needed}: {epochs:.1f} epochs, "
                f"'max_epochs' is {self._max_epochs:g}; give it less weight or more text, train shorter, or raise 'max_epochs'"
            )


def pack(documents: Iterable[Tokens], rows: int, seq_len: int, block: int = 256) -> Iterator[Tokens]:
    """Cut the concatenation of ``documents`` into exactly ``rows`` rows.

    Args:
        documents: tokens of each, end-of-sequence token included; enough of them.
        rows: how many rows.
        seq_len: tokens a row.
        block: most rows given at a time.

    Returns:
        Blocks [at most ``block``, seq_len], in order.

    Raises:
        DataError: the documents end before the rows are full.
    """
    held: list[Tokens] = []
    size = done = 0
    source = iter(documents)
    while done < rows:
        want = min(block, rows - done) * seq_len
        while size < want:
            tokens = next(source, None)
            if tokens is None:
                raise DataError(f"the documents end after {done * seq_len + size} tokens, {rows * seq_len} are needed")
            held.append(tokens)
            size += len(tokens)
        joined = np.concatenate(held)
        yield joined[:want].reshape(-1, seq_len)
        done += want // seq_len
        held, size = [joined[want:]], size - want
