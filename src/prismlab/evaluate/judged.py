"""Rows of judged choices, and scores as functions of rows.

One row an item keeps the log-likelihood of every choice, so that every score can be computed again, by characters, by
bytes or without either. ``sample_row`` is the same answer as a row of ``prismlab.score``: what gates, claims and the
report read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prismlab.evaluate.sampled import Score, aggregate, mean_of, task_score
from prismlab.evaluate.sets import ChoiceItem
from prismlab.evaluate.suite_base import Benchmark, Suite
from prismlab.score import read_as

ChoiceRow = dict[str, Any]
"""One item, with the columns of ``SCHEMA``."""

SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("task", pa.string()),
        ("domain", pa.string()),
        ("group", pa.string()),
        ("question", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("right", pa.list_(pa.int32())),
        ("loglik", pa.list_(pa.float64())),
        ("tokens", pa.list_(pa.int32())),
        ("metric", pa.string()),
        ("prediction", pa.int32()),
        ("acc", pa.float64()),
        ("acc_norm", pa.float64()),
        ("acc_bytes", pa.float64()),
        ("mc2", pa.float64()),
        ("score", pa.float64()),
        ("prompt_hash", pa.string()),
    ]
)
"""Columns of a judged item. ``loglik`` is in nats, one a choice; ``prediction`` is the place of the choice that
``metric`` takes; ``mc2`` is null but of items with several right choices or of that metric."""

MEASURES = ("acc", "acc_norm", "acc_bytes", "mc2")


def measures(loglik: Sequence[float], choices: Sequence[str], right: Sequence[int]) -> dict[str, float]:
    """``acc``, ``acc_norm`` (over characters), ``acc_bytes`` and ``mc2`` of one item, each 0 to 1.

    Of equally likely choices the first is taken, as lm-evaluation-harness does. ``mc2`` is the share of probability on
    the right choices when those of all choices sum to 1 (Lin et al. 2022); the largest is taken out of the exponents
    first, since the probability of a long answer is below the smallest number.
    """
    values = np.asarray(loglik, dtype=np.float64)
    by = {
        "acc": values,
        "acc_norm": values / np.array([float(len(choice)) for choice in choices]),
        "acc_bytes": values / np.array([float(len(choice.encode())) for choice in choices]),
    }
    shares = np.exp(values - values.max())
    found = {name: float(int(np.argmax(scores)) in right) for name, scores in by.items()}
    return {**found, "mc2": float(shares[list(right)].sum() / shares.sum())}


def predicted(loglik: Sequence[float], choices: Sequence[str], metric: str) -> int:
    """Place of the choice that ``metric`` takes; of ``mc2``, which takes none, the likeliest."""
    lengths = {"acc_norm": [len(choice) for choice in choices], "acc_bytes": [len(c.encode()) for c in choices]}
    return int(np.argmax(np.asarray(loglik) / np.asarray(lengths.get(metric, [1] * len(choices)), dtype=np.float64)))


def choice_row(benchmark: Benchmark, item: ChoiceItem, found: Sequence[tuple[float, int]]) -> ChoiceRow:
    """The row of an item, given log-likelihood and tokens of each choice."""
    loglik = [value for value, _ in found]
    scores = measures(loglik, item.choices, item.right)
    told = "\x00".join(text for pair in item.pairs for text in pair)
    return {
        "item_id": item.id,
        "task": benchmark.name,
        "domain": benchmark.domain,
        "group": item.group,
        "question": item.question,
        "choices": list(item.choices),
        "right": list(item.right),
        "loglik": loglik,
        "tokens": [tokens for _, tokens in found],
        "metric": benchmark.metric,
        "prediction": predicted(loglik, item.choices, benchmark.metric),
        **scores,
        "mc2": scores["mc2"] if benchmark.metric == "mc2" else None,
        "score": scores[benchmark.metric],
        "prompt_hash": hashlib.blake2b(told.encode(), digest_size=8).hexdigest(),
    }


def sample_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A judged item as a sample row (``prismlab.score.SCHEMA``): the chosen text is the response.

    ``score`` of ``mc2`` lies between 0 and 1; ``nll`` is the chosen text's, a token.
    """
    at = row["prediction"]
    hit = at in row["right"]
    return {
        "item_id": row["item_id"],
        "problem": row["item_id"],
        "task": row["task"],
        "domain": row["domain"],
        "sample": 0,
        "prompt_hash": row["prompt_hash"],
        "question": row["question"],
        "answer": " | ".join(row["choices"][place] for place in row["right"]),
        "response": row["choices"][at],
        "tokens": row["tokens"][at],
        "finished": True,
        "nll": -row["loglik"][at] / row["tokens"][at],
        "score": row["score"],
        "verdict": "right" if hit else "wrong",
        "reason": "" if hit else f"choice {at + 1} is the likeliest by {row['metric']}",
        "form_ok": None,
    }


def write_choices(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of ``SCHEMA`` to a Parquet file."""
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA), path, compression="zstd")


def read_choices(path: Path) -> list[ChoiceRow]:
    """Rows as :func:`write_choices` wrote them.

    Raises:
        DataError: the file is missing, is no Parquet file, or has other columns.
    """
    return read_as(path, SCHEMA, "judged items")


def other_measures(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Means in percent of every measure by task: ``{task: {acc, acc_norm, acc_bytes, mc2 where it is one}}``."""
    found: dict[str, dict[str, float]] = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        found[task] = {
            name: 100.0 * math.fsum(row[name] for row in mine) / len(mine)
            for name in MEASURES
            if all(row[name] is not None for row in mine)
        }
    return found


def without(
    rows: Sequence[Mapping[str, Any]], excluded: frozenset[tuple[str, str]]
) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """Sample rows that count, and what the others would have made of the scores.

    Args:
        rows: all sample rows.
        excluded: (task, item) of items that stand in training data.

    Returns:
        The rows of other items, and ``{task: {items, score}}`` of tasks with such items: how many they are, and the
        SCORE with them.
    """
    kept = [row for row in rows if (row["task"], row["item_id"]) not in excluded]
    told: dict[str, Any] = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = [row for row in rows if row["task"] == task]
        out = {row["item_id"] for row in mine if (task, row["item_id"]) in excluded}
        if out:
            told[task] = {"items": len(out), "score": task_score(mine)}
    return kept, told


def suite_scores(rows: Sequence[Mapping[str, Any]], suite: Suite | None) -> dict[str, Any]:
    """``tasks``, ``domains`` and ``average`` of sample rows, as ``sampled.aggregate``.

    A suite with an average of its own (``reasoning``) has it here: the mean of its parts, each the mean of its
    benchmarks. A part that is not all there has no score, and then the average has none.
    """
    found = aggregate(rows)
    if suite is None or not suite.average:
        return found
    parts: dict[str, Score] = {}
    for part, names in suite.average.items():
        mine = [row for row in rows if row["task"] in names]
        missing = [name for name in names if name not in found["tasks"]]
        scores = {name: found["tasks"].get(name, task_score([])) for name in names}
        parts[part] = mean_of(scores, mine, "benchmark")
        if missing:
            parts[part] |= {"value": None, "lo": None, "hi": None, "reason": f"not judged: {', '.join(missing)}"}
    counted = [row for row in rows if any(row["task"] in names for names in suite.average.values())]
    return {**found, "domains": {**found["domains"], **parts}, "average": mean_of(parts, counted, "part")}
