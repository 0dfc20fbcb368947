"""Judging benchmarks of choices piece by piece, so that a stopped evaluation goes on and no item is judged twice.

What is done lies in whole files, a chunk of items each. Which items a chunk has depends on the benchmark alone, and
what is computed together lies within a chunk: a stopped and resumed evaluation gives the same bits as one at a stroke.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from prismlab.errors import DataError
from prismlab.evaluate.judged import ChoiceRow, choice_row, read_choices, write_choices
from prismlab.evaluate.loglik import LogLikelihoods
from prismlab.evaluate.sets import ChoiceItem
from prismlab.evaluate.suite_base import Benchmark
from prismlab.run.step import Progress

CHUNK_ITEMS = 512
"""Most items a chunk: enough that items of like length run together."""
CHUNK_CHARACTERS = 2**20
"""Most characters a chunk, its choices' contexts counted once an item: with worked examples, few items take long."""


def chunks_of(items: Sequence[ChoiceItem]) -> Iterator[list[ChoiceItem]]:
    """Items with contexts of like length together, in chunks; the order of ``items`` does not matter."""
    chunk: list[ChoiceItem] = []
    characters = 0
    for item in sorted(items, key=lambda item: (max(map(len, item.contexts)), item.id)):
        size = max(map(len, item.contexts)) + sum(map(len, item.continuations))
        if chunk and (len(chunk) == CHUNK_ITEMS or characters + size > CHUNK_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(item)
        characters += size
    if chunk:
        yield chunk


def _kept(file: Path, wanted: Sequence[str]) -> list[ChoiceRow] | None:
    """Rows of a chunk that was judged before; None where none is, or what lies there is torn or of other items."""
    try:
        rows = read_choices(file) if file.exists() else None
    except DataError:
        return None
    return rows if rows is not None and [row["item_id"] for row in rows] == list(wanted) else None


def _write_whole(rows: Sequence[ChoiceRow], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}.tmp")
    write_choices(rows, draft)
    draft.replace(file)


def judge(
    sets: Mapping[Benchmark, Sequence[ChoiceItem]],
    engine: Callable[[], LogLikelihoods],
    keep: Path | None,
    progress: Progress,
) -> list[ChoiceRow]:
    """A row of every item, in the order of the sets and of their items.

    Args:
        sets: benchmarks and their items, whose ids differ within a benchmark.
        engine: makes what computes log-likelihoods; called once, and not at all if everything is judged already.
        keep: folder of this evaluation alone (same checkpoint, same items, same settings); None keeps nothing.
        progress: started here, advanced by one an item.

    Raises:
        DataError: two items of a benchmark share an id.
        StageError: a choice without tokens or with too many; the model's weights are broken.
    """
    for benchmark, items in sets.items():
        if len({item.id for item in items}) < len(items):
            raise DataError(f"{benchmark.name}: two items share an id; give every item its own")
    progress.start(sum(map(len, sets.values())), "items")
    made: LogLikelihoods | None = None
    rows: list[ChoiceRow] = []
    for benchmark, items in sets.items():
        mine: dict[str, ChoiceRow] = {}
        for number, chunk in enumerate(chunks_of(items)):
            file = None if keep is None else keep / f"{benchmark.name}-{number:05d}.parquet"
            done = None if file is None else _kept(file, [item.id for item in chunk])
            if done is None:
                made = made or engine()
                found = made.of([item.pairs for item in chunk])
                done = [choice_row(benchmark, item, values) for item, values in zip(chunk, found, strict=True)]
                if file is not None:
                    _write_whole(done, file)
            mine |= {row["item_id"]: row for row in done}
            progress.advance(len(done), task=benchmark.name)
        rows += [mine[item.id] for item in items]
    return rows
