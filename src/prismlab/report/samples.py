"""A few generated responses per checkpoint, right and wrong, read from an evaluation's rows. Always shown as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prismlab.errors import DataError
from prismlab.report.records import Found, Records

LONGEST = 1500
"""Characters shown of a question or a response."""
COLUMNS = (
    "task",
    "domain",
    "question",
    "answer",
    "response",
    "score",
    "tokens",
    "verdict",
    "reason",
    "item_id",
    "sample",
)
WANTED = {1.0: "right", 0.0: "wrong"}


@dataclass(frozen=True)
class Sample:
    """One response."""

    domain: str
    task: str
    right: bool
    question: str
    answer: str
    response: str
    tokens: int
    reason: str


@dataclass(frozen=True)
class Shown:
    """Responses of one checkpoint."""

    label: str
    samples: list[Sample]


def cut(text: object) -> str:
    """Text of at most ``LONGEST`` characters; says how many are left out."""
    whole = str(text)
    return whole if len(whole) <= LONGEST else f"{whole[:LONGEST]} … ({len(whole) - LONGEST:,} more characters)"


def read_samples(path: Path, domains: int) -> list[Sample]:
    """The first right and the first wrong response of every domain, in file order.

    Args:
        path: ``samples.parquet`` of an evaluation.
        domains: how many domains there are; reading stops when each has both.

    Raises:
        DataError: the file is missing, damaged or has other columns.
    """
    found: dict[tuple[str, float], Sample] = {}
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=512, columns=list(COLUMNS)):
                _take(batch, found)
                if len(found) == 2 * domains:
                    break
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise DataError(f"{path.name} of an evaluation cannot be read: {error}; build the step again") from error
    return [found[key] for key in sorted(found, key=lambda key: (key[0], -key[1]))]


def _take(batch: pa.RecordBatch, found: dict[tuple[str, float], Sample]) -> None:
    scores, domains = batch.column("score").to_pylist(), batch.column("domain").to_pylist()
    for i, (domain, score) in enumerate(zip(domains, scores, strict=True)):
        if score in WANTED and (domain, score) not in found:
            found[domain, score] = _sample(batch.slice(i, 1).to_pylist()[0])


def _sample(row: dict[str, Any]) -> Sample:
    return Sample(
        domain=str(row["domain"]),
        task=str(row["task"]),
        right=row["score"] == 1.0,
        question=cut(row["question"]),
        answer=cut(row["answer"]),
        response=cut(row["response"]),
        tokens=int(row["tokens"] or 0),
        reason=cut(row["reason"] or ""),
    )


def collect(records: Records) -> list[Shown]:
    """Responses of every checkpoint of the deciding evaluation, first seed."""
    found: list[Found] = records.of("evaluation", name=records.evaluation, seed=records.seeds[0])
    by_name = {one.entry["checkpoint"]: one for one in found}
    out: list[Shown] = []
    for name in records.checkpoints(by_name):
        if not by_name[name].artifact.metrics.get("tasks"):
            continue
        samples = read_samples(by_name[name].artifact.path / "samples.parquet", len(records.domains))
        out.append(Shown(records.label(name), samples))
    return out
