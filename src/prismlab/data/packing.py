"""Documents to rows: each one's tokens and an end-of-sequence token, one after another, cut into rows of one length.

Nothing is padded, and nothing lost but the rest after a source's last row. A row may begin inside a document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
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


class EpochStream:
    """The documents of one source, again and again, each pass in an order of its own.

    Args:
        name: of the source, for messages.
        read: gives the tokens of the documents of pass 0, 1, ..., read as they are needed.
        order: gives the permutation of ``n`` documents for pass 1, 2, ...: ``order(epoch, n)``.
        needed: tokens that will be asked for, so that too many passes are refused after the first.
        max_epochs: most passes.
        keep: keep the first pass in memory and permute it for the later ones by ``order``; else ``read`` them anew.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[int], Iterable[Tokens]],
        order: Callable[[int, int], Sequence[int]],
        needed: int,
        max_epochs: float,
        keep: bool = True,
    ) -> None:
        self.stats = SourceStats()
        self._name, self._read, self._order = name, read, order
        self._needed, self._max_epochs, self._keep = needed, max_epochs, keep

    def __iter__(self) -> Iterator[Tokens]:
        kept: list[Tokens] = []
        for tokens in self._read(0):
            if self._keep:
                kept.append(tokens)
            self.stats.tokens_drawn += len(tokens)
            self.stats.documents += 1
            yield tokens
        self.stats.epoch_tokens = self.stats.tokens_drawn
        self._check()
        for epoch in count(1):
            again = (kept[at] for at in self._order(epoch, len(kept))) if self._keep else self._read(epoch)
            for tokens in again:
                self.stats.tokens_drawn += len(tokens)
                yield tokens

    def _check(self) -> None:
        size = self.stats.epoch_tokens
        if not size:
            raise DataError(f"source {self._name!r} has no document to train on")
        epochs = self._needed / size
        if epochs > self._max_epochs:
            raise DataError(
                f"source {self._name!r} has {size} tokens to train on, {self._needed} are needed: {epochs:.1f} epochs, "
                f"but 'max_epochs' is {self._max_epochs:g}; give it less weight or more text, or raise it"
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
