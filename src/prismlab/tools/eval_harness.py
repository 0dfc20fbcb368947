"""``prism eval`` for suites of lm-evaluation-harness: leaderboards and RULER, from fetched rows."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismlab.errors import DataError, SpecError
from prismlab.evaluate.fetch import read_manifest
from prismlab.evaluate.harness import ROOM, judge_tasks
from prismlab.evaluate.harness_scores import scores_of
from prismlab.evaluate.loglik import positions_of
from prismlab.tools import show
from prismlab.tools.evaluate import Place, claim, held_checkpoint, summary_tables, write_record

if TYPE_CHECKING:
    import pyarrow as pa

    from prismlab.evaluate.suite_base import Benchmark, Suite, Wish


def _config(
    suite: Suite, chosen: Sequence[Benchmark], wish: Wish, place: Place, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """All that decides the numbers besides the checkpoint."""
    facts = {
        one.name: {
            "metric": one.metric,
            "shots": one.shots if wish.shots is None else wish.shots,
            "items": one.items if wish.limit is None else wish.limit,
            "normalisation": one.normalisation,
            "licence": one.licence,
            "source": one.source,
        }
        for one in chosen
    }
    rows = {name: {"blake2b": one["blake2b"], "rows": one["rows"]} for name, one in sorted(manifest.items())}
    return {"suite": suite.name, "benchmarks": facts, "limit": wish.limit, "rows": rows, "dtype": place.dtype}


def _fits(manifest: Mapping[str, Any], positions: int | None, folder: Path) -> None:
    """Refuse items that are longer than the model's positions: the harness would cut them."""
    longest = max((length for one in manifest.values() for length in one.get("lengths", ())), default=0)
    if positions is not None and longest > positions:
        raise DataError(
            f"{folder}: items of {longest} tokens ({ROOM} for the answer), the model has "
            f"{positions} positions; fetch shorter ones or take a model with more"
        )


def through_harness(
    checkpoint: str, suite: Suite, wish: Wish, place: Place, *, as_json: bool = False
) -> dict[str, Any]:
    """Judge a checkpoint by a suite of lm-evaluation-harness; as ``tools.evaluate.evaluate``.

    Raises:
        SpecError: an option that these suites do not have, or no folder of rows.
        DataError: rows were not fetched.
        MissingExtra: the harness is not installed.
        StageError: the harness fails, or a length is past the model's positions.
    """
    if place.exclude is not None or wish.lengths:
        raise SpecError(f"suite {suite.name} takes no --exclude and no --length: its items are as they were fetched")
    if place.source is None:
        raise DataError(
            f"suite {suite.name} needs its rows: on a machine with network run 'prism eval fetch {suite.name} --to DIR'"
            ", then name that folder with --from"
        )
    chosen = suite.named(wish.benchmarks)
    held = held_checkpoint(checkpoint, place)
    manifest = read_manifest(place.source / suite.name)
    config = _config(suite, chosen, wish, place, manifest)
    with tempfile.TemporaryDirectory(prefix="prism-eval-") as spare, show.progress(f"eval {suite.name}") as progress:
        parts = Path(spare) if place.out is None else claim(place.out, config, held.content())
        parts.mkdir(parents=True, exist_ok=True)
        model, tokenizer = held.load()
        _fits(manifest, positions_of(model), place.source / suite.name)
        judged = judge_tasks(
            suite, chosen, place.source, model, tokenizer, parts, progress, shots=wish.shots, limit=wish.limit
        )
    metrics = scores_of(suite, judged)
    record = {"checkpoint": str(held.folder), "config": config, "metrics": metrics}
    every = [row for some in judged.values() for row in some]

    def parquet() -> Mapping[str, pa.Table]:
        import pyarrow as pa

        from prismlab.score import SCHEMA

        return {"samples": pa.Table.from_pylist(every, schema=SCHEMA)}

    if place.out is not None:
        write_record(place.out, record)
    tables, notes = summary_tables(metrics, config, suite)
    title = f"{suite.name}: {record['checkpoint']}"
    show.emit("eval", record, tables, title=title, notes=notes, parquet=parquet, out=place.out, as_json=as_json)
    return record
