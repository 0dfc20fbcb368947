"""Writes the sample files beside this script, one of each kind that a study reads. Everything in them is generated."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prismlab.micro.world import ELEMENTS, fact_documents, task_questions
from prismlab.study.world import MicroSpec

FOLDER = Path(__file__).parent
SPEC = MicroSpec(math_min_digits=1, math_max_digits=2, science_elements=40)


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def compressed(data: bytes) -> bytes:
    """gzip without a time inside, so that the same rows give the same bytes."""
    return gzip.compress(data, mtime=0)


def word_problem(question: str, answer: str) -> dict[str, object]:
    first, second = question.removeprefix("Add ").removesuffix("=?").split("+")
    text = f"A lab holds {first} samples and receives {second} more. How many samples does it hold?"
    return {"question": text, "answer": f"It holds {first} + {second} = {answer} samples.\n#### {answer}"}


def main() -> None:
    rng = random.Random(0)
    facts = fact_documents(0, SPEC)
    (FOLDER / "web.jsonl").write_bytes(jsonl([{"text": " ".join(next(facts) for _ in range(4))} for _ in range(400)]))
    notes = [
        f"{name}, symbol {symbol}, is the element with {n} protons." for n, (symbol, name) in enumerate(ELEMENTS, 1)
    ]
    (FOLDER / "notes.txt").write_text("\n\n".join(notes) + "\n")
    train = [word_problem(q.question, q.answer) for q in task_questions("math", "train", 600, 0, SPEC)]
    test = [word_problem(q.question, q.answer) for q in task_questions("math", "test", 100, 0, SPEC)]
    (FOLDER / "math.jsonl.gz").write_bytes(compressed(jsonl(train)))
    (FOLDER / "math_test.jsonl").write_bytes(jsonl(test))
    programs = task_questions("code", "train", 400, 0, SPEC)
    code = [
        {"text": f"Write f so that {q.question.removesuffix(' f?')}.", "code": f"def f(x):\n    return {q.answer}\n"}
        for q in programs
    ]
    pq.write_table(pa.Table.from_pylist(code), FOLDER / "code.parquet")
    science = [
        {
            "query": "Which of these elements has most protons?",
            "choices": list(q.choices or ()),
            "gold": "ABCDE".index(q.answer),
        }
        for q in task_questions("science", "train", 400, 0, SPEC)
    ]
    (FOLDER / "science.jsonl").write_bytes(jsonl(science))
    picked = [rng.randrange(len(ELEMENTS)) for _ in range(200)]
    chat = [
        {
            "messages": [
                {"role": "user", "content": f"What is the symbol of {ELEMENTS[at][1]}?"},
                {"role": "assistant", "content": f"It is {ELEMENTS[at][0]}, element number {at + 1}."},
            ]
        }
        for at in picked
    ]
    (FOLDER / "chat.jsonl").write_bytes(jsonl(chat))


if __name__ == "__main__":
    main()
