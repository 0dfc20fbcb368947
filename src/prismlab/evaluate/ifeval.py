"""IFEval among our own suites: prompts whose instructions a rule can check, strict, by prompt and by instruction."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prismlab.data.items import Item
from prismlab.data.rows import BadRow, Row, encodable
from prismlab.errors import DataError
from prismlab.evaluate.sampled import Score, task_score
from prismlab.evaluate.sets import set_rows
from prismlab.evaluate.suite_base import Benchmark
from prismlab.verify.format import answer_part
from prismlab.verify.instructions import CHECKS, followed, read_instructions


def _instructions(row: Row) -> list[tuple[str, dict[str, Any]]]:
    kinds, given = row.field("instruction_id_list"), row.field("kwargs")
    if not isinstance(kinds, (list, tuple)) or not isinstance(given, (list, tuple)) or len(kinds) != len(given):
        raise BadRow(row.where, "instructions", "as many 'kwargs' as 'instruction_id_list' are wanted, both lists")
    # The hub's rows have every argument of every kind, null where it is not this one's.
    return [
        (str(kind), {key: value for key, value in (one or {}).items() if value is not None})
        for kind, one in zip(kinds, given, strict=True)
    ]


def read_prompts(benchmark: Benchmark, path: Path) -> tuple[list[Item], dict[str, int]]:
    """Items of a file of IFEval, and how many prompts were left out by kind of instruction that no rule can check.

    An item's answer is its instructions as JSON, so that rows can be judged again by themselves.

    Raises:
        DataError: a row is broken, or an instruction lacks an argument.
    """
    items: list[Item] = []
    aside: Counter[str] = Counter()
    for row in set_rows(path):
        asked = _instructions(row)
        unknown = [kind for kind, _ in asked if kind not in CHECKS]
        if unknown or not asked:
            aside[unknown[0] if unknown else "no instruction"] += 1
            continue
        try:
            followed(asked, "a")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            kinds = ", ".join(kind for kind, _ in asked)
            raise BadRow(row.where, "instructions", f"arguments of {kinds} are missing or wrong: {error}") from error
        items.append(
            Item(
                id=str(row.field("key")),
                task=benchmark.name,
                domain=benchmark.domain,
                question=encodable(row.where, row.text("prompt").strip()),
                answer=encodable(row.where, json.dumps(asked, ensure_ascii=False)),
                verifier="instructions",
            )
        )
    if not items:
        raise DataError(f"{path}: holds no prompt whose instructions can be checked by rule")
    return items, dict(sorted(aside.items()))


def instruction_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Strict accuracy over instructions, from sample rows of IFEval.

    Args:
        rows: sample rows whose ``answer`` is instructions as JSON.

    Returns:
        ``{"all": SCORE, "kinds": {kind: {followed, of}}}``; the unit of the interval is the prompt, since instructions
        of one response are not independent.
    """
    single: list[dict[str, Any]] = []
    kinds: dict[str, list[bool]] = {}
    for row in rows:
        asked = read_instructions(row["answer"])
        if asked is None:
            continue
        met = followed(asked, answer_part(row["response"]))
        single += [{**row, "score": float(one)} for one in met]
        for (kind, _), one in zip(asked, met, strict=True):
            kinds.setdefault(kind, []).append(one)
    whole: Score = task_score(single)
    return {"all": whole, "kinds": {kind: {"followed": sum(v), "of": len(v)} for kind, v in sorted(kinds.items())}}
