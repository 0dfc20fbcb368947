"""Evaluation items found in training documents: n-grams of normalised words, each hit checked on the text.

The rules, with measured rates, are in docs/data.md:

- an item's part (question, choices, answer) of at least n words is found by any n of its words in a row;
- one of 8 to n - 1 words only whole; a question of fewer words, or a short one that several items share, only with its
  right answer or its choices behind it;
- a question whose words are there with other numbers is a near-duplicate if at least 60% of it is;
- a hit counts if a span of 2 n words or at least half of the part is there, else it is put aside as ``part``;
- an n-gram that 4 or more different items have tells none of them: a hit of such n-grams alone, shorter than 2 n
  words, is put aside as ``common``;
- a list of answers by number is reported as an answer key, of no item in particular.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from prismlab.data.evidence import Hit, tally
from prismlab.data.grams import Batch, Runs, runs
from prismlab.data.items import Item
from prismlab.data.matching import NEAR_SHARE, Match, Reader, judged
from prismlab.data.normalise import word_texts
from prismlab.data.views import COMMON, Views
from prismlab.data.words import NUMBER, words_of
from prismlab.errors import SpecError

BATCH_CHARS = 2**20
"""Characters of documents that are read at once."""
_KEY = re.compile(
    r"(?:(?P<mark>\b(?:Q|Question|Item|No|Nr|Problem)\.?\s?)|(?<![\w.,]))(?P<number>\d{1,4})"
    r"\s?[-.:=)\]]{1,2}\s{0,2}\(?(?P<letter>[A-E])(?![\w'’])"
)
_BETWEEN = re.compile(r"[\s,;|/.)]{0,8}")
MARKED, UNMARKED = 2, 4
"""Answers in a row, numbered one by one, that make an answer key where ``Q`` or the like is beside, and elsewhere."""


@dataclass(frozen=True)
class Report:
    """What was found in a corpus."""

    hits: Mapping[int, Sequence[Hit]]
    """By number of the document, in order; documents without a hit are left out."""
    documents: int
    characters: int
    counts: Mapping[str, int]
    """Documents by the strongest thing found in them, as of ``evidence.tally``."""
    items: int
    """Items searched for."""
    not_searched: int
    """Items too short to be searched for."""


class Decontaminator:
    """Finds evaluation items in documents. It may be pickled, and shared by threads.

    Args:
        items: of all tasks.
        n: words of an n-gram.
        allow: what is put aside where it is found: ids of items, as ``task/id`` or alone, or texts of at least one word
            that a hit's longest span lies within.
        key_bits: as of ``Grams.build``.

    Raises:
        SpecError: ``n`` is below 8, or there is no item.
    """

    def __init__(self, items: Iterable[Item], n: int = 13, allow: Sequence[str] = (), key_bits: int = 64) -> None:
        items = list(items)
        if n < 8:
            raise SpecError(f"decontaminate: n is {n}; n-grams of fewer than 8 words are everywhere: take 8 or more")
        if not items:
            raise SpecError("decontaminate: there is no item to look for; name tasks or evaluations that have some")
        self.n = n
        self.views = Views(items, n, key_bits)
        self._ids = {one for item in items for one in (item.id, f"{item.task}/{item.id}")}
        self._allowed_ids = {one for one in allow if one in self._ids}
        self._allowed = [f" {' '.join(word_texts(one))} " for one in allow if one not in self._ids]

    @property
    def not_searched(self) -> list[Item]:
        """Items of which no part is long enough to be searched for."""
        return self.views.not_searched

    def find(self, text: str) -> list[Hit]:
        """What one document has of the items, in order of items."""
        return self.find_many([text])[0]

    def find_many(self, texts: Sequence[str]) -> list[list[Hit]]:
        """What each document has of the items."""
        if not texts:
            return []
        batch = Batch(texts)
        reader = Reader(self.views, batch)
        exact = self._exact(reader)
        template = self._template(reader, {document for document, _ in exact})
        out: list[list[Hit]] = [[] for _ in texts]
        for document, part in sorted({*exact, *template}):
            near = template.get((document, part), {})
            found = judged(reader, document, [*exact.get((document, part), {}).values()], [*near.values()])
            if found is not None:
                out[document].append(self._permitted(found))
        for document, start, stop in _key_places(batch):
            out[document] += answer_keys(texts[document], start, stop)
        return out

    def _permitted(self, hit: Hit) -> Hit:
        if {hit.item, f"{hit.task}/{hit.item}"} & self._allowed_ids:
            return replace(hit, aside="allowed")
        if self._allowed:
            words = f" {' '.join(word_texts(hit.text))} "
            if any(words in one for one in self._allowed):
                return replace(hit, aside="allowed")
        return hit

    def _exact(self, reader: Reader) -> _Matches:
        hashes = reader.batch.words.hashes
        found = self.views.exact.find(hashes, COMMON)
        matches = _Matches(self.views, False)
        for document, view, place, at, length, rare in _each(runs(found, self.n, reader.batch.text_of(found.places))):
            reader.exact(matches.of(document, view), place, at, length, rare, self.n)
        return matches

    def _template(self, reader: Reader, suspects: set[int]) -> _Matches:
        """Matches of templates; those of other documents than ``suspects`` begin with an n-gram that a number is in.

        An n-gram without a number is one of words, too, so that whoever has it is suspect already. Only suspects are
        asked for all of their n-grams: elsewhere most of the index is not touched.
        """
        batch, hashes = reader.batch, reader.batch.words.template[0]
        matches = _Matches(self.views, True)
        first = batch.words.template[1]
        numbers = self.views.template.find(hashes, COMMON, numbers=True)
        for document in sorted(suspects | set(batch.text_of(first[numbers.places]).tolist())):
            low, high = int(batch.template_first[document]), int(batch.template_last[document])
            found = self.views.template.find(hashes[low:high], COMMON)
            stretches = self._enough(runs(found, self.n, np.full(len(found.places), document)))
            for _, view, place, at, length, rare in _each(stretches):
                reader.template(matches.of(document, view), low + place, at, length, rare, self.n)
        whole = self.views.whole.find(hashes, COMMON)
        texts = reader.batch.text_of(first[whole.places])
        columns = (texts, whole.places - whole.at, whole.views)
        for document, place, view in zip(*(column.tolist() for column in columns), strict=True):
            if reader.fits(document, place, view):
                length = len(self.views.template_hashes(view))
                match = matches.of(document, view)
                reader.template(match, place, 0, length, True, length)
                match.whole = match.longest == length
        return matches

    def _enough(self, found: Runs) -> Runs:
        """Stretches of texts and views that have enough in common for a near-duplicate."""
        new = np.append(True, (np.diff(found.texts) != 0) | (np.diff(found.views) != 0))[: len(found.texts)]
        pair = np.cumsum(new) - 1
        words = np.bincount(pair, found.words)[pair] if len(pair) else found.words
        return found.only(words >= NEAR_SHARE * self.views.template_lengths[found.views])

    def scan(self, documents: Iterable[str], threads: int = 1) -> Report:
        """What all documents have of the items.

        Args:
            documents: texts, read as they are needed.
            threads: documents searched at a time, in batches; the result does not depend on it.
        """
        hits: list[Sequence[Hit]] = []
        numbers: list[int] = []
        count = characters = 0
        for size, lengths, found in self._in_threads(batches(documents), threads):
            for at, one in enumerate(found):
                if one:
                    numbers.append(count + at)
                    hits.append(one)
            count, characters = count + size, characters + lengths
        counts = tally(hits)
        counts["clean"] += count - len(hits)
        return Report(
            hits=dict(zip(numbers, hits, strict=True)),
            documents=count,
            characters=characters,
            counts=counts,
            items=len(self.views.items) - len(self.not_searched),
            not_searched=len(self.not_searched),
        )

    def _work(self, texts: list[str]) -> tuple[int, int, list[list[Hit]]]:
        return len(texts), sum(map(len, texts)), self.find_many(texts)

    def _in_threads(self, parts: Iterator[list[str]], threads: int) -> Iterator[tuple[int, int, list[list[Hit]]]]:
        if threads == 1:
            yield from map(self._work, parts)
            return
        with ThreadPoolExecutor(threads) as pool:
            # Twice as many batches as threads at a time: memory stays bounded.
            waiting = [pool.submit(self._work, part) for part in islice(parts, 2 * threads)]
            while waiting:
                done = waiting.pop(0).result()
                waiting += [pool.submit(self._work, part) for part in islice(parts, 1)]
                yield done


class _Matches(dict[tuple[int, int], dict[int, Match]]):
    """Matches by document and part, then by view."""

    def __init__(self, views: Views, template: bool) -> None:
        super().__init__()
        self._views, self._template = views, template

    def of(self, document: int, view: int) -> Match:
        """The match of a document with a view, empty at first."""
        found = self.setdefault((document, self._views.views[view].part), {})
        if view not in found:
            length = len(self._views.template_hashes(view)) if self._template else self._views.length(view)
            found[view] = Match(view, np.zeros(length, np.bool_))
        return found[view]


def _each(found: Runs) -> Iterator[tuple[int, int, int, int, int, bool]]:
    columns = (found.texts, found.views, found.places, found.at, found.words, found.rare)
    return zip(*(column.tolist() for column in columns), strict=True)


def batches(documents: Iterable[str], characters: int = BATCH_CHARS) -> Iterator[list[str]]:
    """Documents in lists of about so many characters."""
    held, size = list[str](), 0
    for document in documents:
        held.append(document)
        size += len(document)
        if size >= characters:
            yield held
            held, size = [], 0
    if held:
        yield held


_LETTERS = words_of("a b c d e").hashes
_MARKS = words_of("q question item no nr problem").hashes


def _key_places(batch: Batch) -> Iterator[tuple[int, int, int]]:
    """Where numbers with a letter from A to E behind each follow close: document, start and stop in characters."""
    words = batch.words
    numbers = np.flatnonzero(words.kinds[:-1] == NUMBER)
    numbers = numbers[np.isin(words.hashes[numbers + 1], _LETTERS)]
    texts = batch.text_of(numbers)
    new = np.append(True, (np.diff(numbers) > 4) | (np.diff(texts) != 0))[: len(numbers)]
    first = np.flatnonzero(new)
    last = np.append(first, len(numbers))[1:] - 1
    before = numbers[first] - 1
    marked = (before >= 0) & np.isin(words.hashes[before], _MARKS)
    enough = last - first + 1 >= np.where(marked, MARKED, UNMARKED)
    for low, high in zip(first[enough].tolist(), last[enough].tolist(), strict=True):
        document = int(texts[low])
        begin = int(batch.begin[document])
        # The mark before the first number may be a word of its own.
        start = int(words.starts[max(int(batch.first[document]), int(numbers[low]) - 1)])
        yield document, start - begin, int(words.stops[numbers[high] + 1]) - begin


def answer_keys(text: str, start: int, stop: int) -> list[Hit]:
    """Lists of answers by number (``Q17: B; Q18: D``) within a part of a text, nothing but marks between pairs."""
    out: list[Hit] = []
    held: list[re.Match[str]] = []

    def close() -> None:
        least = MARKED if held and all(one["mark"] for one in held) else UNMARKED
        if len(held) >= least:
            out.append(_key_hit(text, held[0].start(), held[-1].end(), len(held)))
        held.clear()

    for found in _KEY.finditer(text, start, stop):
        follows = held and int(found["number"]) == int(held[-1]["number"]) + 1
        if not follows or not _BETWEEN.fullmatch(text, held[-1].end(), found.start()):
            close()
        held.append(found)
    close()
    return out


def _key_hit(text: str, start: int, stop: int, pairs: int) -> Hit:
    return Hit(
        kind="answer-key",
        task="",
        item="",
        part="",
        words=pairs,
        share=0.0,
        longest=pairs,
        start=start,
        stop=stop,
        text=text[start:stop][:2000],
        item_text="",
    )
