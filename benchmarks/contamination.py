"""What decontamination finds of planted evaluation items, and what it reports where there are none.

``python benchmarks/contamination.py --data DIR [--code DIR ...] [--planted 200] [--out FILE]``

items     GSM8K test, HumanEval, ARC test (easy and challenge) and MMLU test, from the files under ``--data``.
planted   Items drawn at random of those that are looked for, each in the middle of a piece of real text of its own
          (PEPs, books, Wikipedia): verbatim, in each of the forms of ``tests/data/test_decontaminate.py`` (case, space,
          marks, width, accents, letters that look alike, hidden characters), and with other numbers.
clean     Real text that holds none of the items: the same text, Shakespeare, WikiText-2 and, with ``--code``, source
          code and notes of the folders given. A document that is found to hold an item is a false alarm.
exams     Exam questions of other sets (ARC train, OpenBookQA train, GSM8K train), where short questions and stock
          lists of choices are shared; what is found there a person has to judge (docs/data.md).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prismlab.data.decontaminate import Decontaminator
from prismlab.data.evidence import Hit
from prismlab.data.items import Item, all_items
from prismlab.data.sources import row_documents
from prismlab.study.spec import SourceSpec, TaskSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "data"))
PAIR = {"question": "question", "answer": "answer"}
EXAM = {"question": "query", "choices": "choices", "answer": "gold"}
TASKS: dict[str, dict[str, Any]] = {
    "gsm8k-test": {"files": ["math/gsm8k_test.jsonl"], "verifier": "number", "fields": PAIR},
    "humaneval": {
        "files": ["code/humaneval.jsonl.gz"],
        "verifier": "tests",
        "fields": {"question": "prompt", "answer": "canonical_solution"},
    },
    "arc-test": {
        "files": ["science/arc_easy_test.jsonl", "science/arc_challenge_test.jsonl"],
        "verifier": "choice",
        "fields": EXAM,
    },
    "mmlu-test": {
        "files": ["retention/mmlu_test.jsonl.gz"],
        "verifier": "choice",
        "fields": {**PAIR, "choices": ["A", "B", "C", "D"]},
    },
}
CLEAN: dict[str, dict[str, Any]] = {
    "PEPs": {"files": ["text/python_peps.jsonl.gz"]},
    "books": {"files": ["text/public_domain_books.jsonl.gz"]},
    "Wikipedia": {"files": ["text/wikipedia_30_articles.txt.gz"]},
    "Shakespeare": {"files": ["text/tinyshakespeare.txt.gz"]},
    "WikiText-2": {"files": ["text/wikitext2_test_raw_part.txt.gz"]},
}
EXAMS: dict[str, dict[str, Any]] = {
    "ARC train": {"files": ["science/arc_easy_train.jsonl", "science/arc_challenge_train.jsonl"], "fields": EXAM},
    "OpenBookQA train": {"files": ["science/openbookqa_train.jsonl.gz"], "fields": EXAM},
    "GSM8K train": {"files": ["math/gsm8k_train.jsonl.gz"], "fields": PAIR},
}
SUFFIXES = (".py", ".md", ".rst", ".txt")
MOST_FILE = 400_000
PIECE = 3000


def items_of(data: Path) -> list[Item]:
    """Every item of the tasks."""
    found: list[Item] = []
    for name, asked in TASKS.items():
        spec = TaskSpec.model_validate({**asked, "domain": "any"}).model_dump(mode="json", by_alias=True)
        found += all_items(name, spec, {}, [data / file for file in asked["files"]], 0)
    return found


def texts_of(data: Path, name: str, asked: dict[str, Any]) -> list[str]:
    """The documents of a source."""
    spec = SourceSpec.model_validate({**asked, "domain": "any"}).model_dump(mode="json", by_alias=True)
    files = [str(data / file) for file in asked["files"]]
    return [document.text for document in row_documents(name, spec, files, "think")]


def code_of(folders: Sequence[Path], most: int) -> Iterator[str]:
    """Text files of folders, of each name and size one, up to so many characters in all."""
    seen: set[tuple[str, int]] = set()
    given = 0
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix not in SUFFIXES or not path.is_file() or not 200 <= path.stat().st_size <= MOST_FILE:
                continue
            if (path.name, path.stat().st_size) in seen:
                continue
            seen.add((path.name, path.stat().st_size))
            text = path.read_text(encoding="utf-8", errors="replace")
            given += len(text)
            yield text
            if given >= most:
                return


def alone(finder: Decontaminator, searched: Sequence[Item]) -> dict[str, Any]:
    """The same of items without text around them."""
    missed: list[str] = []
    for at in range(0, len(searched), 200):
        part = searched[at : at + 200]
        for item, held in zip(part, finder.find_many([item.question for item in part]), strict=True):
            if not any(hit.counts and (hit.task, hit.item) == (item.task, item.id) for hit in held):
                missed.append(f"{item.task}/{item.id}")
    return {"items": len(searched), "found": len(searched) - len(missed), "missed": missed}


def planted(
    finder: Decontaminator, chosen: Sequence[Item], math: Sequence[Item], pieces: Sequence[str], rng: random.Random
) -> dict[str, Any]:
    """Shares of items that are found, by what was done to them."""
    from test_decontaminate import CHANGES, other_numbers

    def found(items: Sequence[Item], change: Callable[[str], str], wanted: Callable[[Hit], bool]) -> dict[str, Any]:
        documents = [
            f"{piece[: PIECE // 2]}\n{change(item.question)}\n{piece[PIECE // 2 :]}"
            for item, piece in zip(items, pieces, strict=False)
        ]
        hits = finder.find_many(documents)
        missed = [
            f"{item.task}/{item.id}"
            for item, held in zip(items, hits, strict=True)
            if not any(wanted(hit) and (hit.task, hit.item) == (item.task, item.id) for hit in held)
        ]
        others = sum(
            any(hit.counts and (hit.task, hit.item) != (item.task, item.id) for hit in held)
            for item, held in zip(items, hits, strict=True)
        )
        return {"items": len(items), "found": len(items) - len(missed), "missed": missed, "others": others}

    told = {
        "verbatim": found(chosen, lambda text: text, lambda hit: hit.counts),
    }
    for change in CHANGES:
        told[change.__name__] = found(chosen, lambda text, change=change: change(text, rng), lambda hit: hit.counts)
    told["other numbers"] = found(math, other_numbers, lambda hit: hit.kind == "near-duplicate")
    return told


def seen_in(finder: Decontaminator, texts: Sequence[str] | Iterator[str]) -> dict[str, Any]:
    """Documents by the strongest thing found in them, and what counts."""
    start = time.process_time()
    report = finder.scan(texts)
    counting = [hit for hits in report.hits.values() for hit in hits if hit.counts]
    return {
        "documents": report.documents,
        "characters": report.characters,
        "counts": dict(report.counts),
        "cpu_seconds": round(time.process_time() - start, 1),
        "counting": [f"{hit.task}/{hit.item} {hit.part}: {hit.text[:100]}" for hit in counting][:60],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--code", type=Path, nargs="*", default=[], help="folders of source code and notes")
    parser.add_argument("--most", type=float, default=300e6, help="characters of --code, at most")
    parser.add_argument("--planted", type=int, default=200)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    items, rng = items_of(asked.data), random.Random(0)
    start = time.process_time()
    finder = Decontaminator(items)
    index = time.process_time() - start
    not_searched = {id(item) for item in finder.not_searched}
    searched = [item for item in items if id(item) not in not_searched]
    clean = {name: texts_of(asked.data, name, spec) for name, spec in CLEAN.items()}
    long = [text for name in ("PEPs", "books", "Wikipedia") for text in clean[name]]
    pieces = [text[at : at + PIECE] for text in long for at in range(0, len(text) - PIECE, PIECE)]
    count = asked.planted
    chosen, pieces = rng.sample(searched, count), rng.sample(pieces, count)
    problems = [one for one in searched if one.task == "gsm8k-test" and len(re.findall(r"\d+", one.stem)) > 1]
    math = rng.sample(problems, count)
    found = {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()},
        "items": {"all": len(items), "searched": len(searched), "tasks": dict.fromkeys(TASKS, 0)},
        "index_cpu_seconds": round(index, 1),
        "planted": planted(finder, chosen, math, pieces, rng),
        "alone": alone(finder, rng.sample(searched, min(len(searched), 10 * count))),
        "clean": {name: seen_in(finder, texts) for name, texts in clean.items()},
        "exams": {name: seen_in(finder, texts_of(asked.data, name, spec)) for name, spec in EXAMS.items()},
    }
    for item in searched:
        found["items"]["tasks"][item.task] += 1
    if asked.code:
        found["clean"]["code and notes"] = seen_in(finder, code_of(asked.code, int(asked.most)))
    documents = sum(one["documents"] for one in found["clean"].values())
    alarms = sum(one["counts"]["exact"] for one in found["clean"].values())
    characters = sum(one["characters"] for one in found["clean"].values())
    found["false_alarms"] = {
        "documents": documents,
        "characters": characters,
        "alarms": alarms,
        # Of a count of 0 the bound with 95% confidence is 1 - 0.05^(1/n).
        "at_most": 1 - 0.05 ** (1 / documents) if not alarms else None,
    }
    found["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
