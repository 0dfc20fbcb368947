"""What is in a corpus: documents of its rows, and how long, full and repeated they are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismlab.data.corpus import Corpus
from prismlab.errors import DataError, shown

MOST_ROWS = 20_000
"""Rows whose documents are measured, evenly over the corpus; a larger one is sampled."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A document, or the part of one that a row holds."""

    start: int
    """First token in the row."""
    tokens: np.ndarray[Any, np.dtype[np.int64]]
    continues: bool
    """Whether it began in an earlier row."""
    learned: int
    """Tokens on which a loss is taken."""


def pieces(corpus: Corpus, row: int) -> Iterator[Piece]:
    """The documents of a row in their order, padding left out.

    Raises:
        DataError: the corpus has no such row.
    """
    starts, continues = corpus.boundaries(row), corpus.continues(row)
    tokens, mask = corpus.tokens(row, row + 1)[0], corpus.loss_mask(row, row + 1)[0]
    stops = np.append(starts[1:], corpus.row_fill[row])
    for start, stop, later in zip(starts.tolist(), stops.tolist(), continues.tolist(), strict=True):
        yield Piece(start=start, tokens=tokens[start:stop], continues=later, learned=int(mask[start:stop].sum()))


def sampled_rows(corpus: Corpus, most: int = MOST_ROWS) -> list[int]:
    """Rows evenly over the corpus, all of a small one."""
    return np.unique(np.linspace(0, corpus.n_rows - 1, min(most, corpus.n_rows)).astype(np.int64)).tolist()


def measure(corpus: Corpus, most: int = MOST_ROWS) -> dict[str, Any]:
    """How the rows of a corpus are made up, by source and as JSON.

    Args:
        corpus: opened.
        most: rows whose boundaries and masks are read.

    Returns:
        ``rows`` (how many were read), ``fill`` ({source: mean share of a row that is no padding}), ``learned``
        ({source: share of its tokens that a loss is taken on}), ``pieces`` ({source: {power of two: documents or parts
        of that many tokens or more, below the double}}), ``per_row`` ({source: mean pieces a row}), ``whole``
        ({source: share of pieces that begin in their row}).
    """
    seen: Counter[str] = Counter()
    begun: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    learned: Counter[str] = Counter()
    sizes: defaultdict[str, Counter[int]] = defaultdict(Counter)
    chosen = sampled_rows(corpus, most)
    for row in chosen:
        name = corpus.sources[corpus.row_source[row]]
        starts, fill = corpus.boundaries(row), int(corpus.row_fill[row])
        seen[name] += 1
        taken[name] += fill
        begun[name] += int((~corpus.continues(row)).sum())
        learned[name] += int(corpus.loss_mask(row, row + 1).sum()) if corpus.masked else fill
        lengths = np.diff(np.append(starts, fill))
        sizes[name].update(np.log2(np.maximum(lengths, 1)).astype(np.int64).tolist())
    count = {name: sum(held.values()) for name, held in sizes.items()}
    return {
        "rows": len(chosen),
        "fill": {name: taken[name] / (corpus.seq_len * rows) for name, rows in seen.items()},
        "learned": {name: learned[name] / max(taken[name], 1) for name in seen},
        "pieces": {name: {str(2**k): n for k, n in sorted(held.items())} for name, held in sizes.items()},
        "per_row": {name: count[name] / rows for name, rows in seen.items()},
        "whole": {name: begun[name] / max(count[name], 1) for name in seen},
    }


def ahead(corpus: Corpus, points: int = 200) -> dict[str, Any]:
    """How far sources are from their shares of the tokens so far, in full rows; one is what the schedule allows.

    Args:
        corpus: opened.
        points: into how many stretches the rows are parted, at most; every row is looked at.

    Returns:
        ``most`` ({source: most rows from its share at any row, ahead or behind}), ``ahead`` and ``behind`` ([(last row
        of a stretch, rows of the source that is furthest ahead, or behind, in it)]).

    Raises:
        DataError: the manifest has no weight for a source.
    """
    stops = np.unique(np.linspace(0, corpus.n_rows, min(points, corpus.n_rows) + 1).astype(np.int64))
    fill = corpus.row_fill.astype(np.float64)
    total, first = np.cumsum(fill), stops[:-1]
    high, low = np.full(len(first), -np.inf), np.full(len(first), np.inf)
    most: dict[str, float] = {}
    for at, source in enumerate(corpus.manifest["sources"]):
        mine = corpus.row_source == at
        if mine.any() and "weight" not in source:
            raise DataError(f"{corpus.path / 'manifest.json'}: source {shown(source['name'], 60)!r} has no 'weight'")
        if mine.any():
            lead = (np.cumsum(np.where(mine, fill, 0.0)) - float(source["weight"]) * total) / corpus.seq_len
            high = np.maximum(high, np.maximum.reduceat(lead, first))
            low = np.minimum(low, np.minimum.reduceat(lead, first))
            most[corpus.sources[at]] = float(np.abs(lead).max())
    found = {"ahead": high.tolist(), "behind": low.tolist()}
    lasts = stops[1:].tolist()
    return {"most": most} | {name: list(zip(lasts, leads, strict=True)) for name, leads in found.items()}
