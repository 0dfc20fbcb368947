"""Rows of benchmark files to items that are answered by sampling."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from prismlab.data.items import Item, all_items
from prismlab.data.rows import LETTERS, BadRow, Row, encodable
from prismlab.errors import DataError
from prismlab.evaluate.sets import file_of, set_rows
from prismlab.evaluate.suite_base import Benchmark, Own
from prismlab.seeds import derive_seed

FIELDS: Mapping[str, tuple[str, str]] = {
    "aime24": ("problem", "answer"),
    "aime25": ("problem", "answer"),
    "aime26": ("problem", "answer"),
    "math500": ("problem", "answer"),
}
"""Fields of question and answer, by benchmark."""
_GPQA = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def questions_hash(items: Sequence[Item]) -> str:
    """BLAKE2b (128 bits, hexadecimal) of items, whatever their order."""
    lines = sorted(json.dumps(item.to_json(), sort_keys=True, ensure_ascii=True) for item in items)
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _gpqa(benchmark: Benchmark, row: Row) -> Item:
    """A question of GPQA; its choices in an order of its own, since the right one stands first in the file."""
    question, texts = row.text("Question").strip(), [row.text(name).strip() for name in _GPQA]
    order = list(range(len(texts)))
    random.Random(derive_seed("gpqa", question)).shuffle(order)
    choices = tuple(encodable(row.where, texts[place]) for place in order)
    lines = "\n".join(f"{LETTERS[at]}. {choice}" for at, choice in enumerate(choices))
    shown_question = encodable(row.where, f"{question}\n{lines}")
    return _item(benchmark, row, shown_question, LETTERS[order.index(0)], choices)


def _item(benchmark: Benchmark, row: Row, question: str, answer: str, choices: tuple[str, ...] | None = None) -> Item:
    if not question.strip() or not answer.strip():
        what = "answer" if question.strip() else "question"
        raise BadRow(row.where, f"no {what}", f"the {what} is empty")
    return Item(
        id="",
        task=benchmark.name,
        domain=benchmark.domain,
        question=encodable(row.where, question.strip()),
        answer=encodable(row.where, answer.strip()),
        verifier=benchmark.verifier or "exact",
        choices=choices,
    )


def _read(benchmark: Benchmark, row: Row) -> Item:
    if "verifier" in row.values:
        return Item.from_json({**row.values, "task": benchmark.name, "domain": benchmark.domain})
    if benchmark.name == "gpqa-diamond":
        return _gpqa(benchmark, row)
    fields = FIELDS.get(benchmark.name)
    if fields is None:
        raise BadRow(
            row.where,
            "no item",
            f"{benchmark.name} is read from items alone: id, task, domain, question, answer, verifier, choices, meta",
        )
    return _item(benchmark, row, row.text(fields[0]), row.text(fields[1]))


def _own(benchmark: Benchmark, own: Own, path: Path) -> list[Item]:
    """Items of a user's own file, by the fields that it names; as a task of a study reads them."""
    choices = list(own.choices) if isinstance(own.choices, tuple) else own.choices
    fields = {"question": own.question, "answer": own.answer, "choices": choices}
    spec = {"fields": fields, "verifier": benchmark.verifier, "domain": benchmark.domain}
    items = all_items(benchmark.name, spec, {}, [path], 0)
    if not items:
        raise DataError(f"{path}: holds no row")
    return items


def load_questions(benchmark: Benchmark, files: Sequence[Path], suite: str) -> list[Item]:
    """A benchmark's items, with ids of the rows (``id``, ``unique_id``, ``problem_idx``) or their places.

    A row that is an item already (``data.items.Item`` as JSON) is taken as it is.

    Raises:
        DataError: no file (the message names the command that fetches it), a broken row, an id twice, no row.
    """
    path = file_of(benchmark, files, suite)
    if benchmark.own is not None:
        return _own(benchmark, benchmark.own, path)
    found: dict[str, Item] = {}
    for number, row in enumerate(set_rows(path)):
        item = _read(benchmark, row)
        own = [row.values.get(name) for name in ("id", "unique_id", "problem_idx")]
        name = next((str(value) for value in own if isinstance(value, (str, int)) and str(value)), f"{number:05d}")
        if name in found:
            raise BadRow(row.where, "an id twice", f"the id {name!r} stands there twice; give each its own")
        found[name] = Item.from_json({**item.to_json(), "id": name})
    if not found:
        raise DataError(f"{path}: holds no row")
    return list(found.values())
