"""What a source gives: one document at a time, on its way from a file into a corpus."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Tokens that lie wholly within the first ``prompt`` characters are read, but no loss is taken on them.
    """

    text: str
    prompt: int = 0
    """Characters of the question, up to where the answer begins; 0 where every token is learned."""
    where: str = ""
    """File and line, or data set and row, that it comes from; empty for what is generated."""
    id: str = ""
    """The row's own id, or the same as ``where``."""
