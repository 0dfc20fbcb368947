"""``prism eval`` for suites of lm-evaluation-harness: leaderboards and RULER, from fetched rows."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismlab.errors import DataError, SpecError
from prismlab.evaluate.fetch import file_hash
from prismlab.evaluate.harness_run import ROOM, check_excluded, judge_tasks, lengths_in, scored, settle
from prismlab.evaluate.loglik import positions_of
from prismlab.tools import show
from prismlab.tools.evaluate import (
    VERSION,
    Place,
    claimed,
    excluded_fact,
    held_checkpoint,
    read_excluded,
    summary_tables,
    write_record,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from prismlab.evaluate.suite_base import Benchmark, Suite, Wish


def _config(
    suite: Suite,
    chosen: Sequence[Benchmark],
    wish: Wish,
    place: Place,
    files: Sequence[Path],
    excluded: frozenset[tuple[str, str]],
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
    rows = {file.name: file_hash(file) for file in sorted(files)}
    own = [file for folder in place.include for file in sorted(folder.rglob("*")) if file.is_file()]
    included = {file.name: file_hash(file) for file in own if "__pycache__" not in file.parts}
    more = {"lengths": list(wish.lengths)} if wish.lengths else {}
    more |= {"include": included} if included else {}
    more |= {"excluded": excluded_fact(excluded)} if excluded else {}
    whole = {"suite": suite.name, "benchmarks": facts, "limit": wish.limit, "rows": rows, "dtype": place.dtype}
    return {**whole, "version": VERSION, "harness": version("lm_eval"), **more}


def _fits(files: Sequence[Path], wanted: Sequence[int], positions: int | None) -> None:
    """Refuse items that are longer than the model's positions: the harness would cut them."""
    longest = max(wanted or {length for file in files for length in lengths_in(file)}, default=0)
    if positions is not None and longest > positions:
        raise DataError(
            f"items of {longest} tokens ({ROOM} for the answer), the model has {positions} positions; fetch shorter "
            "ones, name those that fit with --length, or take a model with more"
        )


def _refuse(suite: Suite, wish: Wish, place: Place) -> None:
    """Options that suites of the harness do not have."""
    given = {
        "--length": bool(wish.lengths) and suite.name != "ruler",
        "--samples": wish.samples is not None,
        "--temperature": wish.temperature is not None,
        "--top-p": wish.top_p is not None,
        "--max-new-tokens": wish.max_new_tokens is not None,
    }
    wrong = [name for name, there in given.items() if there]
    if wrong:
        raise SpecError(f"suite {suite.name} takes no {wrong[0]}: its tasks and items say that themselves")


def through_harness(
    checkpoint: str, suite: Suite, wish: Wish, place: Place, files: Sequence[Path], *, as_json: bool = False
) -> dict[str, Any]:
    """Judge a checkpoint by a suite of lm-evaluation-harness; as ``tools.evaluate.evaluate``.

    Args besides: ``files``, those that hold the rows.

    Raises:
        SpecError: an option that these suites do not have, or no such task.
        DataError: rows were not fetched.
        MissingExtra: the harness is not installed.
        StageError: the harness fails, or a length is past the model's positions.
    """
    _refuse(suite, wish, place)
    files = [file for file in files if "--" in file.name and file.suffix == ".parquet"]
    files = [file for file in files if file.parent.name == suite.name] or files
    # Which tasks there are is known without the checkpoint; a wrong name is told at once.
    chosen = settle(suite.named(wish.benchmarks), place.include)
    excluded = read_excluded(place.exclude)
    if excluded and not any(name in {one.name for one in chosen} for name, _ in excluded):
        raise SpecError(f"--exclude: none of its {len(excluded)} ids is of {', '.join(one.name for one in chosen)}")
    check_excluded(excluded, chosen, place.include)
    held = held_checkpoint(checkpoint, place)
    config = _config(suite, chosen, wish, place, files, excluded)
    with ExitStack() as stack:
        if place.out is None:
            parts = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prism-eval-")))
        else:
            parts = stack.enter_context(claimed(place.out, config, held.content()))
        progress = stack.enter_context(show.progress(f"eval {suite.name}"))
        parts.mkdir(parents=True, exist_ok=True)
        model, tokenizer = held.load()
        _fits(files if suite.name == "ruler" else (), wish.lengths, positions_of(model))
        judged = judge_tasks(
            suite,
            chosen,
            files,
            model,
            tokenizer,
            parts,
            progress,
            include=place.include,
            lengths=wish.lengths,
            shots=wish.shots,
            limit=wish.limit,
        )
    every, _, metrics = scored(suite, chosen, judged, wish.shots, excluded)
    told = metrics.pop("benchmarks")
    config = {**config, "benchmarks": {name: {**told[name], **one} for name, one in config["benchmarks"].items()}}
    for name, one in config["benchmarks"].items():
        one["items"] = told[name]["items"]
    record = {"checkpoint": str(held.folder), "config": config, "metrics": metrics}

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
