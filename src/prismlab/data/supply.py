"""The rows of one source: its documents, pass after pass, each pass in an order of its own, laid out in rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from prismlab.data.cache import TokenCache
from prismlab.data.packing import Ints, Layout, best_fit_rows, cut_at_row_ends, joined
from prismlab.errors import DataError

FIRST_WINDOW = 1024
"""Documents that best-fit packing looks at first; doubled until it is the window that was asked for."""
Order = Callable[[str, int, int], Ints]
"""``order("epoch", 2, n)``: a permutation of n things, the same wherever the corpus is built."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a source's rows took; tokens include end-of-sequence tokens. Nothing else was lost or repeated."""

    documents: int
    """Distinct documents drawn."""
    tokens: int
    """Tokens in rows, padding apart, those of repeated documents and of overlaps counted each time."""
    padding: int
    """Places in rows without a token."""
    epochs: float | None
    """Passes over the source; None within the first, since its size is not known then."""
    left_over_tokens: int
    """Tokens of documents that were drawn and found no place behind the last row."""
    short_documents: int
    """Distinct documents passed over for having fewer than ``min_tokens``."""
    short_tokens: int
    """Their tokens."""
    split_documents: int
    """Times that a document stands in more than one row, or ends behind the last one."""
    repeated_tokens: int
    """Tokens that stand in two chunks of one document, where chunks overlap."""


class Supply(ABC):
    """What both ways of packing share: the order of documents in each pass.

    Args:
        name: of the source, for messages.
        cache: its tokens.
        order: permutations.
        seq_len: tokens a row.
        packing: JSON of ``PackingSpec``.
        expected: rows that will be asked for, about; what is far too much is refused early.
        max_epochs: most passes.
    """

    def __init__(
        self,
        name: str,
        cache: TokenCache,
        order: Order,
        *,
        seq_len: int,
        packing: dict[str, Any],
        expected: float,
        max_epochs: float,
    ) -> None:
        self.name, self.cache, self.seq_len = name, cache, seq_len
        self._order, self._packing = order, packing
        self._expected, self._max_epochs = expected, max_epochs
        self._pass: tuple[tuple[int, int], Ints] = ((-1, -1), np.zeros(0, np.int64))
        self._checked = False

    @abstractmethod
    def ensure(self, rows: float) -> None:
        """Read as much of the source as ``rows`` rows need.

        Raises:
            DataError: the source is empty, or that would be more than ``max_epochs`` passes.
        """

    @abstractmethod
    def size(self, row: int) -> float:
        """Tokens of a row, more of the source being read if need be."""

    @abstractmethod
    def layout(self, start: int, stop: int) -> Layout:
        """Rows ``start`` to ``stop`` (exclusive) over the cache's documents."""

    @abstractmethod
    def usage(self, rows: int) -> Usage:
        """What the first ``rows`` rows took, once they were laid out."""

    def kept(self, epoch: int) -> Ints:
        """The documents of a pass in its order, as far as they are in the cache; short ones are passed over."""
        key = (epoch, self.cache.kept_documents)
        if self._pass[0] != key:
            kept = np.flatnonzero(self.cache.lengths >= self._packing["min_tokens"])
            self._pass = (key, kept[self._order("epoch", epoch, len(kept))] if epoch else kept)
        return self._pass[1]

    def refuse_many_epochs(self, rows: float, rows_a_pass: float) -> None:
        """Raise where ``rows`` rows are more than ``max_epochs`` passes.

        Raises:
            DataError: they are, or the source is empty.
        """
        size, wanted = self.cache.kept_tokens, ceil(rows) * self.seq_len
        if not size:
            why = f" of {self._packing['min_tokens']} tokens or more" if len(self.cache.lengths) else ""
            raise DataError(f"source {self.name!r} has no document{why} to train on")
        if rows > self._max_epochs * rows_a_pass * (1 + 1e-9):
            raise DataError(
                f"source {self.name!r} has {size} tokens to train on, {wanted} are needed: {rows / rows_a_pass:.1f} "
                f"epochs, but 'max_epochs' is {self._max_epochs:g}; give it less weight or more text, or raise it"
            )

    def _short(self, documents: int) -> tuple[int, int]:
        """Documents and tokens passed over among the first ``documents`` of the cache."""
        lengths = self.cache.lengths[:documents]
        short = lengths[lengths < self._packing["min_tokens"]]
        return len(short), int(short.sum())


class Concatenated(Supply):
    """Rows cut out of one long run of tokens."""

    def ensure(self, rows: float) -> None:
        wanted = ceil(rows) * self.seq_len
        self.cache.ensure(lambda: self.cache.kept_tokens >= wanted)
        if self.cache.ended:
            self.refuse_many_epochs(rows, self.cache.kept_tokens / self.seq_len)

    def size(self, row: int) -> float:
        return float(self.seq_len)

    def layout(self, start: int, stop: int) -> Layout:
        self.ensure(stop)
        whole, at, left = self.cache.kept_tokens, start * self.seq_len, (stop - start) * self.seq_len
        document, offset, length = list[Ints](), list[Ints](), list[Ints]()
        while left:
            epoch, begin = divmod(at, whole) if self.cache.ended else (0, at)
            kept = self.kept(epoch)
            ends = np.cumsum(self.cache.lengths[kept])
            stop_at = min(begin + left, int(ends[-1]))
            first = int(np.searchsorted(ends, begin, side="right"))
            last = int(np.searchsorted(ends, stop_at, side="left"))
            chosen = kept[first : last + 1]
            tokens, from_ = self.cache.lengths[chosen], np.zeros(len(chosen), np.int64)
            from_[0] = begin - (ends[first] - tokens[0])
            tokens[0] -= from_[0]
            tokens[-1] -= ends[last] - stop_at
            document.append(chosen)
            offset.append(from_)
            length.append(tokens)
            at, left = at + stop_at - begin, left - (stop_at - begin)
        if not document:
            none = np.zeros(0, np.int64)
            return Layout(np.zeros(1, np.int64), none, none, none)
        return cut_at_row_ends(np.concatenate(document), np.concatenate(offset), np.concatenate(length), self.seq_len)

    def usage(self, rows: int) -> Usage:
        whole, tokens = self.cache.kept_tokens, rows * self.seq_len
        at = epoch = documents = split = met = 0
        while at < tokens:
            kept = self.kept(epoch)
            ends = at + np.cumsum(self.cache.lengths[kept])
            drawn = int(np.searchsorted(ends, tokens, side="left")) + 1
            begins, ends = np.append(at, ends[:-1])[:drawn], ends[:drawn]
            split += int((begins // self.seq_len != (ends - 1) // self.seq_len).sum())
            if epoch == 0:
                documents, met = len(ends), int(kept[len(ends) - 1]) + 1
            at, epoch = int(ends[-1]), epoch + 1
        # Exactly one pass counts as within the first: whether it was the whole source was never looked at.
        short = self._short(len(self.cache.lengths) if epoch > 1 else met)
        return Usage(
            documents=documents,
            tokens=tokens,
            padding=0,
            epochs=tokens / whole if epoch > 1 else None,
            left_over_tokens=at - tokens,
            short_documents=short[0],
            short_tokens=short[1],
            split_documents=split,
            repeated_tokens=0,
        )


@dataclass(frozen=True)
class _Window:
    epoch: int
    first: int
    """Its documents are ``kept(epoch)[first:stop]``."""
    stop: int
    rows_before: int
    rows: int


class BestFit(Supply):
    """Rows of whole documents, packed a window at a time, so that memory stays bounded.

    A window lies within one pass. Its rows are shuffled, since best-fit decreasing fills the first of them with the
    longest documents.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._windows = list[_Window]()
        self._fill = list[Ints]()
        self._held: tuple[int, Layout] | None = None
        self._rows_a_pass = 0
        self._fills: Ints = np.zeros(0, np.int64)

    @property
    def rows(self) -> int:
        """Rows that are laid out."""
        return self._windows[-1].rows_before + self._windows[-1].rows if self._windows else 0

    def ensure(self, rows: float) -> None:
        while self.rows < ceil(rows):
            self._extend()

    def _next(self) -> tuple[int, int, int]:
        """Pass, first and stop of the next window."""
        last = self._windows[-1] if self._windows else _Window(0, 0, 0, 0, 0)
        epoch, first = last.epoch, last.stop
        # From the second pass on the whole source is here and nothing is gained by small windows.
        size = int(self._packing["window"])
        if epoch == 0:
            size = min(FIRST_WINDOW << min(len(self._windows), 40), size)
            self.cache.ensure(lambda: self.cache.kept_documents >= first + size)
        if first < self.cache.kept_documents:
            return epoch, first, min(first + size, self.cache.kept_documents)
        if not self._rows_a_pass:
            self._rows_a_pass = self.rows
            self.refuse_many_epochs(self._expected * 0.9, self.rows)
        return epoch + 1, 0, min(self._packing["window"], self.cache.kept_documents)

    def _extend(self) -> None:
        epoch, first, stop = self._next()
        number = len(self._windows)
        layout = self._lay_out(number, epoch, first, stop)
        self._windows.append(_Window(epoch, first, stop, self.rows, layout.rows))
        self._fill.append(layout.fill())

    def _lay_out(self, number: int, epoch: int, first: int, stop: int) -> Layout:
        if self._held is None or self._held[0] != number:
            chosen = self.kept(epoch)[first:stop]
            packed = best_fit_rows(self.cache.lengths[chosen], self.seq_len, self._packing["overlap"])
            packed = packed.take(self._order("rows", number, packed.rows))
            self._held = (number, Layout(packed.starts, chosen[packed.document], packed.offset, packed.length))
        return self._held[1]

    def size(self, row: int) -> float:
        if row >= len(self._fills):
            self.ensure(row + 1)
            self._fills = np.concatenate(self._fill)
        return float(self._fills[row])

    def layout(self, start: int, stop: int) -> Layout:
        self.ensure(stop)
        found = list[Layout]()
        for number, window in enumerate(self._windows):
            low, high = max(start - window.rows_before, 0), min(stop - window.rows_before, window.rows)
            if low < high:
                whole = self._lay_out(number, window.epoch, window.first, window.stop)
                found.append(whole.take(np.arange(low, high)))
        none = np.zeros(0, np.int64)
        return joined(found) if found else Layout(np.zeros(1, np.int64), none, none, none)

    def usage(self, rows: int) -> Usage:
        if self._rows_a_pass:
            self.refuse_many_epochs(rows, self._rows_a_pass)
        used = [window for window in self._windows if window.rows_before < rows]
        tokens = documents = split = repeated = drawn = met = 0
        for number, window in enumerate(used):
            layout = self._lay_out(number, window.epoch, window.first, window.stop)
            drawn += int(layout.length.sum())
            taken = layout.take(np.arange(min(rows - window.rows_before, window.rows)))
            tokens += int(taken.length.sum())
            repeated += int((taken.offset > 0).sum()) * self._packing["overlap"]
            long = self.cache.lengths[taken.document] > self.seq_len
            split += len(np.unique(taken.document[long]))
            if window.epoch == 0:
                documents, met = window.stop, int(self.kept(0)[window.stop - 1]) + 1
        wrapped = bool(used) and used[-1].epoch > 0
        short = self._short(len(self.cache.lengths) if wrapped else met)
        return Usage(
            documents=documents,
            tokens=tokens,
            padding=rows * self.seq_len - tokens,
            epochs=rows / self._rows_a_pass if wrapped else None,
            left_over_tokens=drawn - tokens,
            short_documents=short[0],
            short_tokens=short[1],
            split_documents=split,
            repeated_tokens=repeated,
        )
