"""Documents to rows: which part of which document stands where. Only lengths are needed, no tokens are moved here.

``concat``    documents one after another, cut at row ends; nothing is padded, and a row may begin inside a document.
``best_fit``  whole documents, as many as fit, by best-fit decreasing; the rest of a row is padded. Documents longer
              than a row are cut into chunks that fill whole rows but the last, and overlap if asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.errors import MissingExtra

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """Rows as segments: pieces of documents, in the order in which they stand in the row."""

    starts: Ints
    """First segment of each row, and the number of segments [rows + 1]."""
    document: Ints
    """Document of each segment [segments]."""
    offset: Ints
    """First token of each segment within its document [segments]."""
    length: Ints
    """Tokens of each segment, at least one [segments]."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.starts) - 1

    def fill(self) -> Ints:
        """Tokens of each row, padding apart [rows]."""
        return np.diff(np.append(0, np.cumsum(self.length))[self.starts])

    def places(self, seq_len: int) -> Ints:
        """Where each segment begins in the rows laid end to end [segments]."""
        ends = np.append(0, np.cumsum(self.length))
        row = np.repeat(np.arange(self.rows), np.diff(self.starts))
        return row * seq_len + ends[:-1] - ends[self.starts][row]

    def take(self, rows: Ints) -> Layout:
        """The layout of these rows, in the order given."""
        counts = np.diff(self.starts)[rows]
        starts = np.append(0, np.cumsum(counts))
        chosen = np.repeat(self.starts[:-1][rows] - starts[:-1], counts) + np.arange(starts[-1])
        return Layout(starts, self.document[chosen], self.offset[chosen], self.length[chosen])


def joined(layouts: list[Layout]) -> Layout:
    """Rows of several layouts, one after another; there must be one at least."""
    if len(layouts) == 1:
        return layouts[0]
    before = np.append(0, np.cumsum([layout.starts[-1] for layout in layouts]))
    starts = [layout.starts[:-1] + at for layout, at in zip(layouts, before[:-1], strict=True)]
    return Layout(
        np.concatenate([*starts, before[-1:]]),
        np.concatenate([layout.document for layout in layouts]),
        np.concatenate([layout.offset for layout in layouts]),
        np.concatenate([layout.length for layout in layouts]),
    )


def cut_at_row_ends(document: Ints, offset: Ints, length: Ints, seq_len: int) -> Layout:
    """Segments laid end to end and cut at row ends.

    Args:
        document: of each segment [n].
        offset: first token of each within its document [n].
        length: tokens of each [n]; their sum is a multiple of ``seq_len``.
        seq_len: tokens a row.
    """
    ends = np.cumsum(length)
    rows = int(ends[-1]) // seq_len if len(ends) else 0
    row_starts = np.arange(rows, dtype=np.int64) * seq_len
    begins = np.union1d(ends - length, row_starts)
    segment = np.searchsorted(ends, begins, side="right")
    return Layout(
        np.append(np.searchsorted(begins, row_starts), len(begins)),
        document[segment],
        offset[segment] + begins - (ends - length)[segment],
        np.diff(begins, append=rows * seq_len),
    )


def chunks(length: Ints, seq_len: int, overlap: int) -> tuple[Ints, Ints, Ints]:
    """Documents as chunks of at most ``seq_len`` tokens: document, offset and length of each.

    All chunks of a document but its last are full; each begins ``overlap`` tokens before its predecessor ends, and so
    repeats that many.
    """
    step = seq_len - overlap
    count = np.where(length > seq_len, -(-(length - overlap) // step), 1)
    document = np.repeat(np.arange(len(length), dtype=np.int64), count)
    number = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
    offset = number * step
    return document, offset, np.minimum(length[document] - offset, seq_len)


def best_fit_rows(length: Ints, seq_len: int, overlap: int = 0) -> Layout:
    """Rows of whole documents by best-fit decreasing (``data.fit``), chunks of long ones among them.

    Args:
        length: tokens of each document [n].
        seq_len: tokens a row.
        overlap: tokens that chunks of one document share, below ``seq_len``.

    Raises:
        MissingExtra: numba is not installed.
    """
    try:
        from prismlab.data.fit import best_fit
    except ImportError as error:
        raise MissingExtra("numba", "kernels", "packing by best_fit") from error
    document, offset, tokens = chunks(length, seq_len, overlap)
    starts, items = best_fit(tokens, seq_len)
    return Layout(starts, document[items], offset[items], tokens[items])


def pad_rows(tokens: NDArray[Any], at: Ints, fill: Ints, pad: int) -> None:
    """Write padding behind the tokens of rows; those that are full are not looked at.

    Args:
        tokens: [rows, seq_len].
        at: which rows [n].
        fill: tokens of each of them [n].
        pad: id of the padding token.
    """
    for row in np.flatnonzero(fill < tokens.shape[1]).tolist():
        tokens[at[row], fill[row] :] = pad
