"""Items: verifiable questions, of the micro world, of files or of the hub."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from prismlab.data.normalise import word_texts
from prismlab.data.rows import LETTERS, Row, encodable, file_rows, hub_rows, question_and_answer
from prismlab.data.tests import read_tests
from prismlab.errors import DataError
from prismlab.micro.retrieval import retrieval_questions
from prismlab.micro.world import Question, task_questions
from prismlab.seeds import derive_seed
from prismlab.study.world import MicroSpec

MICRO_VERIFIERS = {"math": "number", "code": "program", "science": "choice", "retrieval": "exact"}
HUB_ROWS = 100_000
"""At most this many rows of a hub data set are read for a task."""
_BEFORE = re.compile(r"^\s*(?:question|problem|q)\s*[:.]\s+", re.IGNORECASE)
_AFTER = re.compile(r"\s*\b(?:answer|a)\s*:\s*$", re.IGNORECASE)
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
"""GSM8K's notes to a calculator, which copies of it often leave out."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One verifiable question."""

    id: str
    """Distinct within its task."""
    task: str
    domain: str
    question: str
    """As it is shown, lettered choices included."""
    answer: str
    """The reference answer; for choices the letter."""
    verifier: str
    """``number``, ``math``, ``choice``, ``exact``, ``program`` or ``tests``."""
    choices: tuple[str, ...] | None = None
    """Texts of the choices in the order of their letters."""
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a verifier needs besides: ``points`` ([[x, y], ...]) for ``program``, ``tests`` (see ``verify.code``) for
    ``tests``."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back to an equal item."""
        return {
            "id": self.id,
            "task": self.task,
            "domain": self.domain,
            "question": self.question,
            "answer": self.answer,
            "verifier": self.verifier,
            "choices": None if self.choices is None else list(self.choices),
            "meta": dict(self.meta),
        }

    @property
    def stem(self) -> str:
        """The question without its choices and without words like ``Question:`` and ``Answer:`` around it."""
        shown = self.question
        if self.choices is not None:
            # As ``question_and_answer`` puts them, from the first lettered line on.
            shown = shown.rpartition(f"\n{LETTERS[0]}. {self.choices[0].strip()}")[0] or shown
        return _AFTER.sub("", _BEFORE.sub("", shown)).strip() or shown

    @property
    def right(self) -> str:
        """The reference answer as text: of choices the right one's."""
        if self.choices is not None and self.answer in LETTERS[: len(self.choices)] and self.answer:
            return self.choices[LETTERS.index(self.answer)]
        return self.answer

    @property
    def key(self) -> str:
        """BLAKE2b (64 bits, hexadecimal) of the normalised question and answer: stable under the item's name and form.

        Two items with one key ask the same, in whichever task and under whichever id.
        """
        words = " ".join([*word_texts(self.stem), "=", *word_texts(self.right)])
        return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()

    def texts(self) -> dict[str, tuple[str, ...]]:
        """All that can be found of the item in a text: per part the forms in which it may stand there.

        ``question`` is the stem; ``choices`` the lettered lines; ``answer`` the reference answer, where there are no
        choices: a letter is no trace, and the right choice stands among ``choices``.
        """
        parts: dict[str, tuple[str, ...]] = {"question": (self.stem,)}
        if self.choices is not None:
            lines = "\n".join(f"{LETTERS[at]}. {choice}" for at, choice in enumerate(self.choices))
            return parts | {"choices": (lines, "\n".join(self.choices))}
        plain = _CALCULATOR.sub("", self.answer)
        return parts | {"answer": (self.answer,) if plain == self.answer else (self.answer, plain)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Item:
        """The item that ``to_json`` wrote.

        Raises:
            DataError: a key is missing or not known.
        """
        known = set(cls.__dataclass_fields__)
        if set(values) != known:
            wrong = sorted(set(values) ^ known)
            raise DataError(
                f"an item has the keys {', '.join(sorted(known))}; missing or not known: {', '.join(wrong)}"
            )
        choices = values["choices"]
        return cls(**{**values, "choices": None if choices is None else tuple(choices), "meta": dict(values["meta"])})


def micro_item(task: str, question: Question) -> Item:
    """A question of the micro world as an item of ``task``."""
    return Item(
        id=question.id,
        task=task,
        domain=question.domain,
        question=question.question,
        answer=question.answer,
        verifier=MICRO_VERIFIERS[question.domain],
        choices=question.choices,
        # The same problem may be asked in several ways (a program at other points): intervals resample problems.
        meta={"problem": question.key}
        | ({} if question.points is None else {"points": [list(point) for point in question.points]}),
    )


def _item_id(row: Row, names: Sequence[str]) -> str:
    for name in names:
        value = row.values.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value):
            return str(value)
    return row.where


def _row_items(task: str, spec: Mapping[str, Any], rows: Iterable[Row]) -> Iterator[Item]:
    for row in rows:
        meta: dict[str, Any] = {}
        if spec["verifier"] == "tests":
            question, choices = row.text(spec["fields"]["question"]).strip(), None
            answer, meta["tests"] = read_tests(row, spec["fields"]["answer"])
        else:
            question, answer, choices = question_and_answer(row, spec["fields"])
        yield Item(
            id=_item_id(row, ("id", "task_id")),
            task=task,
            domain=spec["domain"],
            question=encodable(row.where, question),
            answer=encodable(row.where, answer),
            verifier=spec["verifier"],
            choices=choices,
            meta=meta,
        )


def _check_ids(task: str, items: Sequence[Item]) -> None:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"task {task!r}: two rows share the id {item.id!r}; ids of a task must differ")
        seen.add(item.id)


def _all_rows(task_name: str, task_spec_json: Mapping[str, Any], files: Sequence[Path] | None) -> list[Item]:
    if task_spec_json.get("hub") is not None:
        rows = islice(hub_rows(task_spec_json["hub"]), HUB_ROWS)
    elif files:
        rows = (row for path in files for row in file_rows(Path(path)))
    else:
        raise DataError(f"task {task_name!r}: no file was found; check the paths under 'files'")
    items = list(_row_items(task_name, task_spec_json, rows))
    _check_ids(task_name, items)
    return items


def all_items(
    task_name: str,
    task_spec_json: Mapping[str, Any],
    micro_json: Mapping[str, Any],
    files: Sequence[Path] | None,
    n: int,
) -> list[Item]:
    """Every item that an evaluation of the task could ask: all rows; of the micro world the ``n`` of the test split.

    Args:
        n: items of a generated task, which has no end; as many as evaluations take of it.

    Args besides and errors: as of ``load_items``.
    """
    if task_spec_json.get("micro") is not None:
        return load_items(task_name, task_spec_json, micro_json, "test", n, files, 0)
    return _all_rows(task_name, task_spec_json, files)


def load_items(
    task_name: str,
    task_spec_json: Mapping[str, Any],
    micro_json: Mapping[str, Any],
    split: Literal["train", "test"],
    n: int,
    files: Sequence[Path] | None,
    seed: int,
) -> list[Item]:
    """``n`` items of a task in a fixed order.

    With ``split="test"`` the choice depends on the task's name alone, so that every checkpoint and every seed answers
    the same questions; with ``"train"`` it depends on ``seed``. A task of the micro world has disjoint splits. A task
    of files or of the hub has the rows it names and no other: which rows are for training and which for testing is told
    by naming two tasks.

    Args:
        task_name: name of the task in the study.
        task_spec_json: JSON of its ``TaskSpec``.
        micro_json: JSON of the study's ``MicroSpec``.
        split: which split of the micro world, and which of the two ways to choose.
        n: how many.
        files: paths of the task's files, None for micro and hub tasks.
        seed: seed of the choice when ``split`` is ``"train"``.

    Raises:
        DataError: fewer than ``n`` items exist (the message says how many), or a row is broken.
        MissingExtra: a hub task without the package ``datasets``.
    """
    order = derive_seed("items", task_name) if split == "test" else seed
    if task_spec_json.get("micro") is not None:
        domain = task_spec_json["micro"]["domain"]
        length = task_spec_json["micro"].get("tokens")
        if length is not None:
            found = list(islice(retrieval_questions(split, order, int(length)), n))
        else:
            found = task_questions(domain, split, n, order, MicroSpec.model_validate(micro_json))
        return [micro_item(task_name, question) for question in found]
    items = _all_rows(task_name, task_spec_json, files)
    if len(items) < n:
        raise DataError(f"task {task_name!r} has {len(items)} items, {n} were asked for: ask for fewer")
    return random.Random(order).sample(items, n)
