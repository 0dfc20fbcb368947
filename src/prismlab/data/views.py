"""The evaluation items as sequences of words to look for, and their n-grams."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prismlab.data.grams import Batch, Grams, together
from prismlab.data.items import Item
from prismlab.data.words import NUMBER, WORD, C, Hashes, Ints, Words, grams, signatures, spelled, words_of

SHORTEST = 8
"""Words of the shortest sequence that is looked for."""
ANCHOR = 5
"""A sequence that is found whole is looked for by so many of its first words."""
TELLING = 4
"""An n-gram is looked for if it has so many different words of two letters or more that are no numbers: lists of
numbers are everywhere."""
COMMON = 4
"""An n-gram that so many different items have tells none of them."""
SHARED = 2
"""A stem of fewer than n words that so many different items have is not looked for by itself."""
_ONE = re.compile(r"[0-9A-Za-z]\S*")
Short = NDArray[np.int32]
"""Numbers of views and words: there are millions of them while an index is made."""
FORMS = (None, "'’‘ʼ`´-‐‑–", "")
"""Marks that may be left out of a copy: none, those within words, all; each form of an item that differs is indexed."""


@dataclass(frozen=True)
class View:
    """One form of one part of an item."""

    part: int
    form: int
    """Index into ``FORMS``, and of the batch that it stands in."""
    text: int
    """Index of the text in the batch."""


def _forms(item: Item, n: int) -> Iterator[tuple[str, str]]:
    """Part and text of everything to look for, the stem first; a stem of too few words also with what follows it."""
    for part, texts in item.texts().items():
        yield from ((part, text) for text in texts)
    # Words between spaces are words at least: most questions need no more, and would be in memory four times.
    if sum(1 for _ in _ONE.finditer(item.stem)) >= n:
        return
    behind = [item.right, f"Answer: {item.right}"]
    if item.choices is not None:
        # As a list of its own, and as the item is shown, with whatever stands before its choices.
        behind += [item.texts()["choices"][0], item.question.partition(item.stem)[2]]
    yield from (("short", f"{item.stem}\n{_first(text, n - 1)}") for text in behind)


def _first(text: str, words: int) -> str:
    """The first words of a text: fewer than an n-gram, so that none is of what stands behind a stem alone."""
    found = words_of(text)
    if len(found) <= words:
        return text
    # Not within numbers in a row, which would be another number then.
    while words and found.kinds[words - 1] == found.kinds[words] == NUMBER:
        words -= 1
    return text[: int(found.stops[words - 1])] if words else ""


def _telling(words: Words) -> NDArray[np.bool_]:
    """Words of two letters or more that are no number [n]."""
    return (words.kinds == WORD) & (words.stops - words.starts > 1) & ~np.isin(words.hashes, spelled())


def _before(hashes: Hashes) -> Ints:
    """Where each word stood last before; -1 where it had not been met [n]."""
    order = np.argsort(hashes, kind="stable")
    before = np.full(len(hashes), -1, np.int64)
    same = hashes[order[1:]] == hashes[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    return before


class Views:
    """All sequences of all items.

    Args:
        items: of all tasks.
        n: words of an n-gram.
        key_bits: as of ``Grams.build``.
    """

    def __init__(self, items: Sequence[Item], n: int, key_bits: int = 64) -> None:
        self.n, self.items = n, items
        self.parts: list[tuple[int, str]] = []
        """Item and name of each part."""
        self.views: list[View] = []
        self._texts, self._part_of, self._short, self._stem_of = list[str](), list[int](), list[bool](), list[int]()
        self._collect()
        self._groups: Ints
        self.batches: list[Batch]
        """Of each form the texts that are looked for in it."""
        self._choose()
        self._item_of = np.array([self.parts[view.part][0] for view in self.views], np.int64)
        self.template_lengths = np.array([len(self.template_hashes(at)) for at in range(len(self.views))], np.int64)
        """Template words of each view."""
        self._searched = np.zeros(len(items), np.bool_)
        self.template = self._index(*self._grams(n, template=True), n, key_bits)
        self._searched[:] = False
        self.exact = self._index(*self._grams(n, template=False), n, key_bits)
        self.whole = self._index(*self._anchors(), ANCHOR, key_bits)
        self.not_searched = [item for item, searched in zip(items, self._searched, strict=True) if not searched]
        """Items with no part that can be looked for."""
        for batch in self.batches:
            batch.keep()

    def _collect(self) -> None:
        for at, item in enumerate(self.items):
            stem, numbers = len(self._texts), dict[str, int]()
            for name, text in _forms(item, self.n):
                part = "question" if name == "short" else name
                if part not in numbers:
                    numbers[part] = len(self.parts)
                    self.parts.append((at, part))
                self._texts.append(text)
                self._part_of.append(numbers[part])
                self._short.append(name == "short")
                self._stem_of.append(stem)

    def _items_alike(self, signs: Hashes) -> Ints:
        """A number for each item, the same for items whose parts have the same words [items]."""
        signs = signs.copy()
        signs[np.array(self._short, np.bool_)] = 0
        owner = np.array([self.parts[part][0] for part in self._part_of], np.int64)
        whole = np.zeros(len(self.items), np.uint64)
        # A sum of products with odd numbers: the place of a text among those of its item matters.
        place = np.arange(len(signs)) - np.array(self._stem_of, np.int64)
        np.add.at(whole, owner, signs * (place.astype(np.uint64) * np.uint64(2) + np.uint64(C)))
        return np.unique(whole, return_inverse=True)[1].astype(np.int64)

    def _weak_stems(self, signs: Hashes, words: Ints) -> dict[int, bool]:
        """Whether a stem is too short, or short and shared by too many items, to be looked for by itself."""
        stems = np.unique(np.array(self._stem_of, np.int64))
        lengths = words[stems]
        _, kind = np.unique(signs[stems], return_inverse=True)
        # Items with the same words in all their texts are one.
        pairs = np.unique(np.stack([kind, self._groups]), axis=1)[0]
        shared = np.bincount(pairs)[kind] >= SHARED
        weak = (lengths < SHORTEST) | ((lengths < self.n) & shared)
        return dict(zip(stems.tolist(), weak.tolist(), strict=True))

    def _signs(self) -> tuple[list[Hashes], Ints]:
        """Of each form a number for each text, the same for the same words, and words of each in the first form."""
        whole, signs, words = together(self._texts), list[Hashes](), list[Ints]()
        for joined in FORMS:
            batch = Batch(self._texts, joined, whole)
            signs.append(signatures(batch.words.hashes, batch.first, batch.last))
            words.append(batch.last - batch.first)
        return signs, words[0]

    def _choose(self) -> None:
        """Which texts are looked for, in which forms; few need more than the first, and the others are let go."""
        signs, words = self._signs()
        self._groups = self._items_alike(signs[0])
        weak, lengths = self._weak_stems(signs[0], words), words.tolist()
        seen: set[tuple[int, int]] = set()
        used: list[list[str]] = [[] for _ in FORMS]
        for text, part in enumerate(self._part_of):
            stem = self._stem_of[text]
            least = SHORTEST if self.parts[part][1] == "question" else self.n
            if lengths[text] < least or (weak[stem] if text == stem else self._short[text] and not weak[stem]):
                continue
            for form in range(len(FORMS)):
                sign = int(signs[form][text])
                if (part, sign) not in seen:
                    seen.add((part, sign))
                    self.views.append(View(part, form, len(used[form])))
                    used[form].append(self._texts[text])
        self._texts.clear()
        self.batches = [Batch(texts, joined) for texts, joined in zip(used, FORMS, strict=True)]

    def _bounds(self, form: int, template: bool) -> tuple[Ints, Ints, Ints]:
        """Views of a form, and their first and last words (exclusive)."""
        chosen = np.array([at for at, view in enumerate(self.views) if view.form == form], np.int64)
        texts = np.array([self.views[at].text for at in chosen.tolist()], np.int64)
        batch = self.batches[form]
        if template:
            return chosen, batch.template_first[texts], batch.template_last[texts]
        return chosen, batch.first[texts], batch.last[texts]

    def _places(self, form: int, n: int, template: bool) -> tuple[Hashes, Short, Short]:
        """All telling n-grams of the views of a form: hashes, views and first words."""
        batch = self.batches[form]
        chosen, first, last = self._bounds(form, template)
        hashes, words = batch.words.template if template else (batch.words.hashes, np.arange(len(batch.words)))
        counts = np.maximum(last - first - n + 1, 0)
        at = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        places, views = np.repeat(first, counts) + at, np.repeat(chosen, counts)
        telling, before = _telling(batch.words)[words], _before(hashes)
        # A word counts where it stands first in the n-gram.
        different = sum((telling[places + k] & (before[places + k] < places)).astype(np.int8) for k in range(n))
        good = different >= (TELLING if n > ANCHOR else 1)
        return grams(hashes, n)[places[good]], views[good].astype(np.int32), at[good].astype(np.int32)

    def _grams(self, n: int, template: bool) -> tuple[Hashes, Short, Short]:
        found = [self._places(form, n, template) for form in range(len(FORMS))]
        keys, views, at = (np.concatenate(column) for column in zip(*found, strict=True))
        return keys, views, at

    def _index(self, keys: Hashes, views: Short, at: Short, n: int, key_bits: int) -> Grams:
        self._searched[self._item_of[np.unique(views)]] = True
        groups = self._groups[self._item_of].astype(np.int32)
        return Grams.build(n, keys, views, at, groups[views], key_bits)

    def _anchors(self) -> tuple[Hashes, Short, Short]:
        """Of each view that is found whole the n-gram that fewest others have."""
        keys, views, at = self._grams(ANCHOR, template=True)
        whole = self._is_whole()[views]
        keys, views, at = keys[whole], views[whole], at[whole]
        _, kind, counts = np.unique(keys, return_inverse=True, return_counts=True)
        order = np.lexsort((at, counts[kind], views))
        first = np.append(True, np.diff(views[order]) != 0)[: len(order)]
        return keys[order][first], views[order][first], at[order][first]

    def _is_whole(self) -> NDArray[np.bool_]:
        """Views of questions with no n-gram of words or of template words, but enough words."""
        whole = np.zeros(len(self.views), np.bool_)
        asked = np.array([self.parts[view.part][1] == "question" for view in self.views], np.bool_)
        for form, batch in enumerate(self.batches):
            chosen, first, last = self._bounds(form, template=False)
            _, template_first, template_last = self._bounds(form, template=True)
            telling = np.append(0, np.cumsum(_telling(batch.words)))
            words = np.minimum(last - first, template_last - template_first)
            whole[chosen] = (words < self.n) & (last - first >= SHORTEST) & (telling[last] - telling[first] >= TELLING)
        return whole & asked

    def length(self, view: int) -> int:
        """Words of a view."""
        batch, text = self.batches[self.views[view].form], self.views[view].text
        return int(batch.last[text] - batch.first[text])

    def template_hashes(self, view: int) -> Hashes:
        """Template words of a view."""
        batch, text = self.batches[self.views[view].form], self.views[view].text
        return batch.words.template[0][batch.template_first[text] : batch.template_last[text]]
