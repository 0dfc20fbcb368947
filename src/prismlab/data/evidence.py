"""What was found of an evaluation item in a document, so that a person can judge it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["exact", "near-duplicate", "answer-key"]
MOST_TEXT = 2_000
"""Characters of a shared span that are kept."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One item found in one document."""

    kind: Kind
    """``exact``: the item's words; ``near-duplicate``: its words with other numbers; ``answer-key``: a list of answers
    by number, of no item in particular."""
    task: str
    item: str
    """Id of the item in its task; empty for an answer key."""
    part: str
    """``question``, ``choices`` or ``answer``; empty for an answer key."""
    words: int
    """Words of the part that the document has."""
    share: float
    """Their share of the part's words."""
    longest: int
    """Words of the longest span."""
    start: int
    """Where the longest span begins in the document, in characters."""
    stop: int
    text: str
    """The longest span as the document has it, cut after ``MOST_TEXT`` characters."""
    item_text: str
    """The same span as the item has it."""
    numbers: tuple[tuple[str, str], ...] = ()
    """Of a near-duplicate up to eight numbers, the item's and the document's."""
    aside: str = ""
    """Why it does not count: ``common`` (a phrase of many items), ``part`` (less than half of the item's part, and
    short), ``allowed``; empty if nothing is against it."""

    @property
    def counts(self) -> bool:
        """Whether the document holds the item: an exact hit that nothing puts aside."""
        return self.kind == "exact" and not self.aside

    def to_json(self) -> dict[str, Any]:
        """As JSON, with ``counts``."""
        return asdict(self) | {"numbers": [list(pair) for pair in self.numbers], "counts": self.counts}


def tally(hits: Iterable[Sequence[Hit]]) -> dict[str, int]:
    """Documents by the strongest thing found: ``exact``, ``near-duplicate``, ``answer-key``, ``aside`` or ``clean``."""
    counts: dict[str, int] = dict.fromkeys(("exact", "near-duplicate", "answer-key", "aside", "clean"), 0)
    for found in hits:
        kinds = {hit.kind for hit in found if not hit.aside}
        kind = next((k for k in ("exact", "near-duplicate", "answer-key") if k in kinds), "aside" if found else "clean")
        counts[kind] += 1
    return counts
