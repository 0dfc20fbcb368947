"""Sample prompts with a model and verify the responses: the one place that evaluation and prompt scoring share.

Random numbers go by (seed, task, item), never by the checkpoint or by an item's place, so that two checkpoints answer
the same item with the same random numbers and their difference has less noise.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from prismlab.data import templates
from prismlab.data.items import Item
from prismlab.errors import DataError
from prismlab.model.generate import Completion, Sampler, SamplingSettings, prompt_ids
from prismlab.run.step import Progress
from prismlab.seeds import derive_seed
from prismlab.verify.answers import WAITS, in_threads, verifier_of, verify
from prismlab.verify.format import check_format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_SAMPLES = 1024
"""Samples that are kept on disk together: some batches' worth, so that few rows wait for the longest response."""

SampleRow = dict[str, Any]
"""One sample, with the columns of ``SCHEMA``."""

SCHEMA = pa.schema(
    [
        ("item_id", pa.string()),
        ("problem", pa.string()),
        ("task", pa.string()),
        ("domain", pa.string()),
        ("sample", pa.int32()),
        ("prompt_hash", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("response", pa.string()),
        ("tokens", pa.int32()),
        ("finished", pa.bool_()),
        ("nll", pa.float64()),
        ("score", pa.float64()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("form_ok", pa.bool_()),
    ]
)
"""Columns of a sample record. ``problem`` is what items share that ask the same in other words, else the item's id;
``tokens`` and ``nll`` include the stop token; ``nll`` and ``score`` may be null."""


def mean_nll(completion: Completion) -> float | None:
    """Mean negative log-probability per token at temperature 1, in nats; None from a sampler that does not tell."""
    if completion.logprobs is None or not completion.logprobs:
        return None
    return -sum(completion.logprobs) / len(completion.logprobs)


def _row(item: Item, sample: int, prompt: Sequence[int], completion: Completion, strict_format: bool) -> SampleRow:
    verdict = verify(item, completion.text, strict_format)
    return {
        "item_id": item.id,
        "problem": str(item.meta.get("problem", item.id)),
        "task": item.task,
        "domain": item.domain,
        "sample": sample,
        "prompt_hash": hashlib.blake2b(",".join(map(str, prompt)).encode(), digest_size=8).hexdigest(),
        "question": item.question,
        "answer": item.answer,
        "response": completion.text,
        "tokens": completion.tokens,
        "finished": completion.finished,
        "nll": mean_nll(completion),
        "score": verdict.score,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "form_ok": check_format(completion.text).ok,
    }


def _checked_keys(items: Sequence[Item]) -> list[tuple[str, str]]:
    """(task, id) of each item, after the checks that are to fail before anything is sampled."""
    for name in sorted({item.verifier for item in items}):
        verifier_of(name)
    keys = [(item.task, item.id) for item in items]
    if len(set(keys)) < len(keys):
        task, name = next(key for at, key in enumerate(keys) if key in keys[:at])
        raise DataError(f"task {task}: two items have the id {name!r}; give every item an id of its own")
    return keys


def score_items(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    n: int,
    settings: SamplingSettings,
    seed: int,
    template: str,
    strict_format: bool,
    progress: Progress | None = None,
    keep: Path | None = None,
) -> list[SampleRow]:
    """``n`` verified samples of each item, in the order of ``items``, as rows of ``SCHEMA``.

    Args:
        sampler: draws the responses.
        tokenizer: turns the prompt into tokens, see ``model.generate.prompt_ids``.
        items: the questions; an item is known by its task and id.
        n: samples an item.
        settings: how to draw.
        seed: with an item's task and id it names the item's random numbers.
        template: name of the prompt template.
        strict_format: only an answer inside the think format counts.
        progress: advanced by one a sample; the caller has called ``start``.
        keep: a folder of this call alone, where items are kept in chunks once they are judged, each file whole; chunks
            that are found there are not sampled again. None judges all items at once and keeps nothing.

    Raises:
        DataError: two items share task and id, so that their rows could not be told apart, or a verifier is unknown.
        SandboxError: a verifier runs programs, and this machine has no sandbox.
        MissingExtra: a verifier needs a package that is not installed.
    """
    keys = _checked_keys(items)
    shape = templates.get_template(template)
    prompts = [prompt_ids(tokenizer, shape.prompt(item.question)) for item in items]
    seeds = [derive_seed(seed, *key) for key in keys]

    def judged(part: slice) -> list[SampleRow]:
        groups = sampler.sample(prompts[part], n, settings, seeds[part], progress)
        waiting = [
            (item, sample, prompt, completion, strict_format)
            for item, prompt, group in zip(items[part], prompts[part], groups, strict=True)
            for sample, completion in enumerate(group)
        ]
        return in_threads(_row, waiting, slow=any(item.verifier in WAITS for item in items[part]))

    if keep is None:
        return judged(slice(None))
    rows: list[SampleRow] = []
    for part in _chunks(len(items), n):
        file, wanted = keep / f"chunk-{part.start:08d}.parquet", [(*key, s) for key in keys[part] for s in range(n)]
        done = _kept(file, wanted)
        if done is None:
            done = judged(part)
            _write_whole(done, file)
        elif progress is not None:
            progress.advance(len(done))
        rows += done
    return rows


def _chunks(items: int, n: int) -> Iterator[slice]:
    """Items in chunks of about ``CHUNK_SAMPLES`` samples; they depend on nothing else, so that a stopped run fits."""
    size = max(1, CHUNK_SAMPLES // n)
    return (slice(first, min(items, first + size)) for first in range(0, items, size))


def _kept(file: Path, wanted: list[tuple[str, str, int]]) -> list[SampleRow] | None:
    """Rows of a chunk that was kept; None where there is none, or what lies there is torn or of other samples."""
    try:
        rows = read_rows(file) if file.exists() else None
    except DataError:
        return None
    found = None if rows is None else [(row["task"], row["item_id"], row["sample"]) for row in rows]
    return rows if found == wanted else None


def _write_whole(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """``write_rows`` so that the file is whole or not there, whenever the process is killed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}.tmp")
    write_rows(rows, draft)
    draft.replace(file)


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write sample rows to a Parquet file. A row with a column too many or too few is our fault: ``ValueError``."""
    wanted = set(SCHEMA.names)
    for row in rows:
        if row.keys() != wanted:
            raise ValueError(f"a sample row has the wrong columns: {sorted(wanted ^ row.keys())}")
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA), path, compression="zstd")


def read_rows(path: Path) -> list[SampleRow]:
    """Sample rows as :func:`write_rows` wrote them.

    Raises:
        DataError: the file is missing, is no Parquet file, or has other columns.
    """
    return read_as(path, SCHEMA, "sample rows")


def read_as(path: Path, schema: pa.Schema, what: str) -> list[dict[str, Any]]:
    """Rows of a Parquet file that has the columns of ``schema``; ``what`` they are called in a message.

    Raises:
        DataError: the file is missing, is no Parquet file, or has other columns.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as {what}: {error}") from error
    if table.schema.names != schema.names:
        raise DataError(f"{path}: its columns are not those of {what}: {', '.join(table.schema.names)}")
    return table.to_pylist()
