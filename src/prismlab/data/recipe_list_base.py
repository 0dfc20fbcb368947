"""What a recipe says: where a source of the reference study is published, its columns, and which rows are kept.

Facts alone, so that ``prism check`` reads them without any library; ``data.recipes`` carries them out. Columns and
licences are those of the data sets' cards. ``verified`` is false where a card was not to be had and the columns are
those that others' programs use: look at the first rows before a run of record. ``tokens`` are those of table 1 of the
reference study under the Granite-3.3-8B tokenizer, before any filter of ours; ``tokens_note`` says where a figure is
ours or shared. Rules that the reference study does not state are marked so in ``rule``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Condition = tuple[str, str, Any]
"""Field (dots go into it), comparison (``data.filters.COMPARISONS``), value."""
MESSAGES = "list of {role: string, content: string}"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One source, or one RL set, of the reference study."""

    name: str
    title: str
    hub: str
    """Data set id on the hub."""
    config: str | None = None
    """Its configuration (subset)."""
    split: str = "train"
    folder: str | None = None
    """Folder of its repository, where subsets are folders and no configurations."""
    domain: str
    use: str = "train"
    """``train`` (documents) or ``rl`` (questions with answers)."""
    licence: str
    columns: Mapping[str, str]
    """Name and type of each column."""
    verified: bool = True
    """Whether the columns are those of the published card."""
    form: str = "text"
    """``text``; ``pair`` (question, line break, answer); ``chat`` (lines with ``User:`` and ``Assistant:``)."""
    fields: Mapping[str, str]
    """As ``fields`` of a source: text, or question and answer, or messages."""
    id: str | None = None
    """Column with the row's id; the row's place where there is none."""
    keep: tuple[Condition, ...] = ()
    """Conditions that a kept row fulfils, in the order in which they are asked."""
    sample: int | None = None
    """Keep so many of the kept rows, those with the smallest hash of their id."""
    tokens: float | None = None
    tokens_note: str = ""
    rule: str = ""
    """What the conditions mean, and whose they are."""
    revision: str = "main"
    """Replace by a commit before a run of record."""

    def source(self) -> dict[str, Any]:
        """``hub`` of a source in a study file."""
        return {
            "id": self.hub,
            "revision": self.revision,
            "split": self.split,
            "config": self.config,
            "folder": self.folder,
        }
