"""Instructions around a prompt's question, one at random: the reference study randomised those of science prompts.

Its wordings are not published; these are ours. The question itself, with its choices, is left as it is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prismlab.data.items import Item
from prismlab.seeds import derive_seed

OPEN = (
    "{question}",
    "Answer the following question.\n{question}",
    "{question}\nReason step by step, then state your answer.",
    "Here is a question from science. Think about it before you answer.\n{question}",
    "{question}\nWhat is the answer?",
    "Question: {question}",
)
"""For questions without choices."""

CHOICE = (
    "{question}",
    "Choose the right answer.\n{question}",
    "{question}\nReason step by step, then give the letter of the right choice.",
    "Which of the choices is right?\n{question}",
    "{question}\nAnswer with one letter.",
    "Question: {question}",
)
"""For questions with lettered choices."""


def with_instruction(item: Item, seed: int) -> Item:
    """The item with one of the wordings around its question; which one depends on seed, task and id."""
    wordings = OPEN if item.choices is None else CHOICE
    rng = np.random.default_rng(derive_seed(seed, "instruction", item.task, item.id))
    number = int(rng.integers(len(wordings)))
    meta = {**item.meta, "instruction": number}
    return replace(item, question=wordings[number].format_map({"question": item.question}), meta=meta)
