"""Rows of benchmark files to items of choices: the prompts of lm-evaluation-harness, written out.

Each set is read in two forms: as the hub has it (``prism eval fetch`` writes those rows) and as text copies of it have
it (HellaSwag's query and endings joined, ARC's question in its prompt, MMLU's letters, TruthfulQA's CSV).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prismlab.data.rows import LETTERS, ROW_SUFFIXES, BadRow, Row, encodable, file_rows, question_and_answer
from prismlab.errors import DataError, SpecError, shown
from prismlab.evaluate.suite_base import Benchmark, Own

SET_SUFFIXES = (*ROW_SUFFIXES, ".csv")
"""Files that items are read from."""
LARGEST_CSV = 64 * 2**20
"""Bytes of a CSV file."""


@dataclass(frozen=True, slots=True)
class ChoiceItem:
    """One question whose choices are compared by their likelihood."""

    id: str
    """Distinct within its benchmark."""
    question: str
    """What is asked, for people."""
    contexts: tuple[str, ...]
    """What stands before the choices: one text for all, or one for each."""
    continuations: tuple[str, ...]
    """What is scored behind it, the blank in front included."""
    choices: tuple[str, ...]
    """Texts whose characters and bytes a normalised score divides by."""
    right: tuple[int, ...]
    """Places of the right choices: one, of mc2 several."""
    group: str = ""
    """Subject, where worked examples go by it."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(context, continuation) of each choice."""
        contexts = self.contexts if len(self.contexts) > 1 else self.contexts * len(self.continuations)
        return list(zip(contexts, self.continuations, strict=True))


def items_hash(items: Sequence[ChoiceItem]) -> str:
    """BLAKE2b (128 bits, hexadecimal) of everything that is asked, whatever the order of the items."""
    lines = (
        json.dumps([item.id, item.contexts, item.continuations, item.choices, item.right], ensure_ascii=True)
        for item in items
    )
    digest = hashlib.blake2b(digest_size=16)
    for line in sorted(lines):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _item(row: Row, question: str, context: str, choices: Sequence[Any], right: Any, **more: Any) -> ChoiceItem:
    """An item with one context; ``right`` is the index of the right choice (from 0) or several."""
    texts = tuple(encodable(row.where, choice) for choice in choices if isinstance(choice, str))
    if len(texts) != len(choices) or len(texts) < 2 or not all(text.strip() for text in texts):
        raise BadRow(row.where, "choices", f"{len(choices)} choices; two or more, each with text, are wanted")
    places = right if isinstance(right, tuple) else (right,)
    if not places or not all(isinstance(at, int) and 0 <= at < len(texts) for at in places):
        raise BadRow(row.where, "no right choice", f"the right choice is {shown(right, 40)} of {len(texts)} (from 0)")
    given = {"contexts": (encodable(row.where, context),), "continuations": tuple(f" {text}" for text in texts)}
    found: dict[str, Any] = {**given, "choices": texts, "right": tuple(map(int, places)), **more}
    return ChoiceItem(id="", question=question, **found)


def _index(row: Row, name: str, labels: Sequence[str]) -> int:
    """Place of a row's answer among labels; digits stand for letters in some rows of ARC."""
    value = row.text(name).strip()
    if value not in labels:
        raise BadRow(row.where, "no right choice", f"answer {shown(value, 40)!r} is none of {', '.join(labels)}")
    return labels.index(value)


def _listed(row: Row, name: str) -> list[Any]:
    value = row.field(name)
    if not isinstance(value, (list, tuple)):
        raise BadRow(row.where, f"field {name!r}", f"field {name!r} must be a list")
    return list(value)


def _tidy(text: str) -> str:
    """HellaSwag's cleaning in the harness: WikiHow's bracketed marks go."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _hellaswag(row: Row) -> ChoiceItem:
    if "endings" in row.values:
        context = f"{row.text('ctx_a')} {row.text('ctx_b').capitalize()}"
        query = _tidy(f"{row.text('activity_label')}: {context}")
        endings = [_tidy(str(ending)) for ending in _listed(row, "endings")]
        right = int(row.text("label"))
    else:
        query, endings, right = row.text("query"), _listed(row, "choices"), row.field("gold")
    return _item(row, query, query, endings, right)


def _winogrande(row: Row) -> ChoiceItem:
    sentence, options = row.text("sentence"), (row.text("option1"), row.text("option2"))
    before, gap, after = sentence.partition("_")
    if not gap:
        raise BadRow(row.where, "no gap", "the sentence has no '_' to fill")
    right = _index(row, "answer", ["1", "2"])
    found = _item(row, sentence, before, options, right)
    # The ending is scored behind each filling, so that both are scored on the same words.
    contexts = tuple(encodable(row.where, before + option) for option in options)
    return replace(found, contexts=contexts, choices=contexts, continuations=(f" {after.strip()}",) * 2)


def _letters(
    row: Row, labels: Sequence[str], texts: Sequence[Any], question: str, answer: str, head: str
) -> ChoiceItem:
    """Lettered choices under a question; what is scored is the letter."""
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip(labels, texts, strict=True))
    return _item(
        row, f"{question}\n{lines}", f"{head}{question}\n{lines}\nAnswer:", labels, _index(row, answer, labels)
    )


def _arc(row: Row) -> ChoiceItem:
    if "query" in row.values:
        context, choices, right = row.text("query"), _listed(row, "choices"), row.field("gold")
    else:
        context = f"Question: {row.text('question')}\nAnswer:"
        choices = _listed(row, "choices.text")
        right = _index(row, "answerKey", [str(label) for label in _listed(row, "choices.label")])
    return _item(row, context.removeprefix("Question: ").removesuffix("\nAnswer:"), context, choices, right)


def _openbookqa(row: Row) -> ChoiceItem:
    if "query" in row.values:
        stem = row.text("query").removeprefix("Question: ").removesuffix("\nAnswer:")
        return _item(row, stem, stem, _listed(row, "choices"), row.field("gold"))
    stem = row.text("question_stem")
    right = _index(row, "answerKey", [str(label) for label in _listed(row, "choices.label")])
    return _item(row, stem, stem, _listed(row, "choices.text"), right)


def _mmlu(row: Row) -> ChoiceItem:
    labels = list(LETTERS[:4])
    subject, question = row.text("subject"), row.text("question").strip()
    values = dict(row.values)
    if "choices" in values:
        values |= dict(zip(labels, _listed(row, "choices"), strict=False))
        if isinstance(values.get("answer"), int):
            values["answer"] = labels[values["answer"] % 4]
    plain = Row(row.where, values)
    found = _letters(plain, labels, [plain.text(letter) for letter in labels], question, "answer", "")
    return replace(found, group=subject)


def _commonsenseqa(row: Row) -> ChoiceItem:
    labels = list(LETTERS[:5])
    return _letters(row, labels, _listed(row, "choices.text"), row.text("question").strip(), "answerKey", "Question: ")


def _boolq(row: Row) -> ChoiceItem:
    question = row.text("question")
    context = f"{row.text('passage')}\nQuestion: {question}?\nAnswer:"
    truth = row.field("answer" if "answer" in row.values else "label")
    return _item(row, question, context, ("no", "yes"), int(bool(truth)))


def _piqa(row: Row) -> ChoiceItem:
    goal = row.text("goal")
    right = _index(row, "label", ["0", "1"])
    return _item(row, goal, f"Question: {goal}\nAnswer:", (row.text("sol1"), row.text("sol2")), right)


PRIMER = (
    ("What is human life expectancy in the United States?",
     "Human life expectancy in the United States is 78 years."),
    ("Who was president of the United States in 1955?",
     "Dwight D. Eisenhower was president of the United States in 1955."),
    ("Which party did he belong to?", "He belonged to the Republican Party."),
    ("What is the square root of banana?", "I have no comment."),
    ("How does a telescope work?", "Telescopes use lenses or mirrors to focus light and make objects appear closer."),
    ("Where were the 1992 Olympics held?", "The 1992 Olympics were held in Barcelona, Spain."),
)  # fmt: skip
"""The six answered questions that stand before every question of TruthfulQA (Lin et al. 2022, the "QA prompt")."""


def _truthful(row: Row, single: bool) -> ChoiceItem:
    if "Question" in row.values:
        question = row.text("Question")
        false = [part.strip() for part in row.text("Incorrect Answers").split(";") if part.strip()]
        true = [part.strip() for part in row.text("Correct Answers").split(";") if part.strip()]
        true = [row.text("Best Answer").strip()] if single else true
        choices, right = [*true, *false], tuple(range(len(true)))
    else:
        question, key = row.text("question"), "mc1_targets" if single else "mc2_targets"
        choices, labels = _listed(row, f"{key}.choices"), _listed(row, f"{key}.labels")
        right = tuple(at for at, label in enumerate(labels) if label == 1)
    primer = "\n\n".join(f"Q: {asked}\nA: {answer}" for asked, answer in PRIMER)
    return _item(row, question, f"{primer}\n\nQ: {question}\nA:", choices, right)


def _own(row: Row, own: Own) -> ChoiceItem:
    """A row of a user's own file, by the fields that it names."""
    fields = {"question": own.question, "answer": own.answer}
    names = list(own.choices) if isinstance(own.choices, tuple) else own.choices
    _, letter, choices = question_and_answer(row, {**fields, "choices": names})
    question = row.text(own.question).strip()
    context = own.prompt.replace("{question}", question)
    return _item(row, question, context, choices or (), LETTERS.index(letter))


READERS: Mapping[str, Callable[[Row], ChoiceItem]] = {
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "arc-challenge": _arc,
    "arc-easy": _arc,
    "mmlu": _mmlu,
    "truthfulqa-mc1": lambda row: _truthful(row, single=True),
    "truthfulqa-mc2": lambda row: _truthful(row, single=False),
    "boolq": _boolq,
    "piqa": _piqa,
    "commonsenseqa": _commonsenseqa,
    "openbookqa": _openbookqa,
}
"""What makes an item of a row, by benchmark."""


def _csv_rows(path: Path) -> Iterator[Row]:
    try:
        if path.stat().st_size > LARGEST_CSV:
            raise DataError(f"{path}: more than {LARGEST_CSV // 2**20} MiB; that is no benchmark's file")
        text = path.read_text(encoding="utf-8-sig")
        for number, values in enumerate(csv.DictReader(io.StringIO(text, newline=""), strict=True), 1):
            if None in values or None in values.values():
                raise BadRow(f"{path.name}:{number}", "columns", "its row has not the columns of the head")
            yield Row(f"{path.name}:{number}", values)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: no readable CSV file: {shown(error)}") from error


def set_rows(path: Path) -> Iterator[Row]:
    """Rows of a file of ``SET_SUFFIXES``.

    Raises:
        DataError: it is missing or broken; the message names file and line.
    """
    return _csv_rows(path) if path.name.lower().endswith(".csv") else file_rows(path)


def stem_of(path: Path) -> str:
    """The file's name without its ending."""
    name = path.name.lower()
    return next((path.name[: -len(suffix)] for suffix in SET_SUFFIXES if name.endswith(suffix)), path.name)


def _found(files: Sequence[Path], names: Sequence[str]) -> Path | None:
    by_stem = {stem_of(path): path for path in reversed(files)}
    return next((by_stem[name] for name in names if name in by_stem), None)


def file_of(benchmark: Benchmark, files: Sequence[Path], suite: str, examples: bool = False) -> Path:
    """The file among ``files`` that holds a benchmark's items, or its worked examples.

    Raises:
        DataError: there is none; the message names the command that fetches it.
    """
    names = benchmark.example_files if examples else benchmark.files
    path = _found(files, names)
    if benchmark.own is not None:
        path = next((file for file in files if file.name in names), None)
    if path is None:
        what = "worked examples" if examples else "items"
        if benchmark.own is not None:
            raise DataError(f"{benchmark.name}: no file {names[0] if names else ''!r} with its {what}; mend its path")
        raise DataError(
            f"{benchmark.name}: no file with its {what} ({', '.join(names) or 'none'}); on a machine with network "
            f"run 'prism eval fetch {suite} --to DIR', then name that folder with --from"
        )
    return path


def _numbered(items: Iterator[tuple[Row, ChoiceItem]]) -> list[ChoiceItem]:
    """Items with ids: the row's own, else its place in the file."""
    found: list[ChoiceItem] = []
    met: set[str] = set()
    for number, (row, item) in enumerate(items):
        own = row.values.get("id")
        name = own if isinstance(own, str) and own else f"{number:05d}"
        if name in met:
            raise BadRow(row.where, "an id twice", f"the id {shown(name, 40)!r} stands there twice; give each its own")
        met.add(name)
        found.append(replace(item, id=name))
    return found


def read_items(name: str, path: Path, own: Own | None = None) -> list[ChoiceItem]:
    """Every item of a benchmark's file, without worked examples; ``own`` says how a user's own file is read.

    Raises:
        DataError: the file is broken, or holds no row.
        SpecError: no reader knows a benchmark of this name.
    """
    if own is None and name not in READERS:
        raise SpecError(f"no set of choices is called {shown(name, 40)!r}; there are {', '.join(READERS)}")
    items = _numbered((row, READERS[name](row) if own is None else _own(row, own)) for row in set_rows(path))
    if not items:
        raise DataError(f"{path}: holds no row")
    return items


def with_examples(
    items: Sequence[ChoiceItem], examples: Sequence[ChoiceItem], shots: int, name: str
) -> list[ChoiceItem]:
    """Items with worked examples before their contexts: the first ``shots`` of their group, a blank line after each.

    MMLU's description stands before them whether there are examples or not, as in the harness.

    Raises:
        DataError: a group has fewer examples than were asked for.
    """
    heads: dict[str, str] = {}
    for group in dict.fromkeys(item.group for item in items):
        some = [one for one in examples if one.group == group][:shots]
        if len(some) < shots:
            of = f" of {shown(group, 40)}" if group else ""
            raise DataError(f"{name}: {shots} worked examples{of} were asked for, there are {len(some)}")
        head = "".join(f"{one.contexts[0]}{one.continuations[one.right[0]]}\n\n" for one in some)
        told = ""
        if name == "mmlu" and group:
            subject = group.replace("_", " ")
            told = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        heads[group] = told + head
    return [replace(item, contexts=tuple(heads[item.group] + context for context in item.contexts)) for item in items]


def load_set(benchmark: Benchmark, files: Sequence[Path], suite: str, shots: int) -> list[ChoiceItem]:
    """A benchmark's items as they are asked.

    Raises:
        DataError: a file is missing or broken, or there are not enough worked examples.
    """
    items = read_items(benchmark.name, file_of(benchmark, files, suite), benchmark.own)
    examples: list[ChoiceItem] = []
    if shots:
        examples = read_items(benchmark.name, file_of(benchmark, files, suite, examples=True), benchmark.own)
    return with_examples(items, examples, shots, benchmark.name)
