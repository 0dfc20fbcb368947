"""Stretches that a document shares with an item, checked word by word on both texts, and what they amount to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.data.evidence import MOST_TEXT, Hit
from prismlab.data.grams import Batch
from prismlab.data.views import SHORTEST, Views
from prismlab.data.words import NUMBER_HASH

NEAR_SHARE = 0.6
"""Share of a question that a near-duplicate has."""
PART = 0.5
"""A stretch shorter than 2 n words counts if at least so much of the item's part is there."""
MOST_NUMBERS = 8
"""Changed numbers that a hit shows."""


@dataclass
class Match:
    """What one document has of one view."""

    view: int
    covered: NDArray[np.bool_]
    """Which words of the view (of its template) the document has."""
    longest: int = 0
    """Words of the longest stretch."""
    place: int = 0
    """Its first word in the batch of documents."""
    at: int = 0
    """Its first word in the view."""
    rare: bool = False
    whole: bool = False
    pairs: dict[int, tuple[str, str] | None] = field(default_factory=dict[int, "tuple[str, str] | None"])
    """Of a template's words the item's number and the document's, or None where they are the same."""

    @property
    def numbers(self) -> list[tuple[str, str]]:
        """Numbers of the item that the document has nowhere in their place, and what it has instead."""
        return [pair for _, pair in sorted(self.pairs.items()) if pair is not None]

    @property
    def words(self) -> int:
        return int(self.covered.sum())

    @property
    def share(self) -> float:
        return self.words / len(self.covered)

    def take(self, place: int, at: int, length: int, rare: bool) -> None:
        """Add a stretch that was checked."""
        self.covered[at : at + length] = True
        self.rare |= rare
        if length > self.longest:
            self.place, self.at, self.longest = place, at, length


def equal_stretches(equal: Sequence[bool], n: int) -> list[tuple[int, int]]:
    """Longest stretches of at least ``n`` true values: starts and stops."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(equal, np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= n]


class Reader:
    """Words of documents and of views, to be compared as text.

    Args:
        views: of the items.
        batch: of the documents.
    """

    def __init__(self, views: Views, batch: Batch) -> None:
        self.views, self.batch = views, batch

    def _item(self, view: int) -> tuple[Batch, int]:
        one = self.views.views[view]
        return self.views.batches[one.form], one.text

    def exact(self, match: Match, place: int, at: int, length: int, rare: bool, n: int) -> None:
        """Add what a stretch of equal hashes has in equal words."""
        batch, text = self._item(match.view)
        first = int(batch.first[text]) + at
        ours, theirs = batch.words.texts(first, first + length), self.batch.words.texts(place, place + length)
        for low, high in equal_stretches([a == b for a, b in zip(ours, theirs, strict=True)], n):
            match.take(place + low, at + low, high - low, rare)

    def template(self, match: Match, place: int, at: int, length: int, rare: bool, n: int) -> None:
        """Add what a stretch of equal template hashes has in equal words, and the numbers that differ."""
        batch, text = self._item(match.view)
        first = int(batch.template_first[text]) + at
        equal, pairs = list[bool](), list[tuple[str, str] | None]()
        for k in range(length):
            one, two, pair = self._template_pair(batch, first + k, place + k)
            equal.append(one == two)
            pairs.append(pair)
        for low, high in equal_stretches(equal, n):
            match.take(place + low, at + low, high - low, rare)
            for k in range(low, high):
                # An item that repeats itself also meets itself a few words on, where its numbers are others.
                match.pairs[at + k] = pairs[k] and match.pairs.get(at + k, pairs[k])

    def _template_pair(self, batch: Batch, ours: int, theirs: int) -> tuple[str, str, tuple[str, str] | None]:
        hashes, first = batch.words.template
        other_hashes, other_first = self.batch.words.template
        if hashes[ours] == NUMBER_HASH and other_hashes[theirs] == NUMBER_HASH:
            a, b = batch.words.numbers(ours), self.batch.words.numbers(theirs)
            return "", "", (a, b) if a != b else None
        return batch.words.word(int(first[ours])), self.batch.words.word(int(other_first[theirs])), None

    def fits(self, document: int, place: int, view: int) -> bool:
        """Whether a whole view may begin at a template word: all its hashes are there, within the document."""
        hashes = self.views.template_hashes(view)
        stop = place + len(hashes)
        if place < int(self.batch.template_first[document]) or stop > int(self.batch.template_last[document]):
            return False
        return bool((self.batch.words.template[0][place:stop] == hashes).all())

    def hit(self, document: int, match: Match, template: bool, kind: Any, aside: str) -> Hit:
        """A match as evidence, with the texts of its longest stretch."""
        batch, text = self._item(match.view)
        item, part = self.views.parts[self.views.views[match.view].part]
        start, stop = self._span(self.batch, match.place, match.longest, template)
        first = int((batch.template_first if template else batch.first)[text]) + match.at
        low, high = self._span(batch, first, match.longest, template)
        begin = int(self.batch.begin[document])
        return Hit(
            kind=kind,
            task=self.views.items[item].task,
            item=self.views.items[item].id,
            part=part,
            words=match.words,
            share=match.share,
            longest=match.longest,
            start=start - begin,
            stop=stop - begin,
            text=self.batch.words.text[start : min(stop, start + MOST_TEXT)],
            item_text=batch.words.text[low : min(high, low + MOST_TEXT)],
            numbers=tuple(match.numbers[:MOST_NUMBERS]) if kind == "near-duplicate" else (),
            aside=aside,
        )

    @staticmethod
    def _span(batch: Batch, first: int, length: int, template: bool) -> tuple[int, int]:
        if not template:
            return batch.words.span(first, first + length)
        starts = batch.words.template[1]
        stop = int(starts[first + length]) if first + length < len(starts) else len(batch.words)
        return batch.words.span(int(starts[first]), stop)


def judged(reader: Reader, document: int, exact: Sequence[Match], template: Sequence[Match]) -> Hit | None:
    """What a document's matches with one part of an item amount to; None if it is nothing.

    Args:
        reader: of the batch.
        document: its number there.
        exact: of the part's views; the first may cover nothing.
        template: the same of templates and of whole views.
    """
    best = max(exact, key=lambda match: (match.share, match.longest), default=None)
    near = max(template, key=lambda match: (match.share, match.longest, not match.numbers), default=None)
    n = reader.views.n
    changed = near is not None and _is_near(reader, near)
    if best is not None and best.words and (best.share == 1.0 or not changed):
        return reader.hit(document, best, False, "exact", _aside(best, n))
    if near is None or near.share < NEAR_SHARE or (near.numbers and not changed):
        return None
    return reader.hit(document, near, True, "near-duplicate" if changed else "exact", _aside(near, n))


def _is_near(reader: Reader, match: Match) -> bool:
    """Whether the numbers of enough of a question differ."""
    part = reader.views.parts[reader.views.views[match.view].part][1]
    words = int((reader.views.template_hashes(match.view) != NUMBER_HASH).sum())
    return part == "question" and match.share >= NEAR_SHARE and bool(match.numbers) and words >= SHORTEST


def _aside(match: Match, n: int) -> str:
    """Why a match that was checked does not count."""
    if match.whole or match.longest >= 2 * n:
        return ""
    if not match.rare:
        return "common"
    return "part" if match.share < PART else ""
