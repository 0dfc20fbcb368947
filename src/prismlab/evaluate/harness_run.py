"""Judging by lm-evaluation-harness as a library: from local rows, its samples kept as rows of ours.

Each task of the harness is taken as it is, but for where its rows come from: a file of a few lines includes the
harness's own and names local files, so that nothing is asked of the network.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prismlab.errors import DataError, SpecError, StageError, in_a_line, shown
from prismlab.evaluate.harness import index_of, leaves, local_files, settled
from prismlab.evaluate.harness_scores import scores_of
from prismlab.evaluate.suite_base import Benchmark, Suite
from prismlab.evaluate.suites import TASKS
from prismlab.run.step import Json, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROOM = 128
"""Tokens that the harness leaves for RULER's answers."""
OFFLINE = ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE")


@contextmanager
def _offline() -> Iterator[None]:
    """No request of the harness or its libraries leaves this machine."""
    before = {name: os.environ.get(name) for name in OFFLINE}
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def rows_by_task(files: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Fetched files by task and split: they are called ``<task>--<split>.parquet``."""
    found: dict[str, dict[str, Path]] = {}
    for file in files:
        task, dashes, split = file.name.removesuffix(".parquet").rpartition("--")
        if dashes and file.suffix == ".parquet":
            found.setdefault(task, {})[split] = file
    return found


def lengths_in(file: Path) -> set[int]:
    """Lengths in tokens of the generated items of a file; none of other items."""
    import pyarrow.parquet as pq

    if "max_length" not in pq.read_schema(file).names:
        return set()
    return {int(value) for value in pq.read_table(file, columns=["max_length"])["max_length"].unique().to_pylist()}


def _of_lengths(task: str, file: Path, lengths: Sequence[int], written: Path) -> Path:
    """A file of generated items with the wanted lengths alone.

    Raises:
        DataError: a length was not fetched.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    there = lengths_in(file)
    missing = sorted(set(lengths) - there)
    if missing:
        raise DataError(
            f"{task}: no items of {missing[0]} tokens in {file.name} (there are {sorted(there)}); on a machine with "
            f"network run 'prism eval fetch ruler CHECKPOINT --length {missing[0]} --to DIR'"
        )
    if there == set(lengths):
        return file
    table = pq.read_table(file)
    kept = written / file.name
    wanted = [value in lengths for value in table["max_length"].to_pylist()]
    pq.write_table(table.filter(pa.array(wanted)), kept)
    return kept


def _local_tasks(
    manager: Any, tasks: Sequence[str], suite: Suite, files: Sequence[Path], written: Path, lengths: Sequence[int]
) -> None:
    """Write a file a task that includes the harness's own and names local rows, as task ``prism_<task>``.

    Raises:
        DataError: rows of a task were not fetched; the message names the command.
    """
    there = rows_by_task(files)
    written.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        own = local_files(manager, task)
        if own is None and task not in there:
            maker = " CHECKPOINT --length N" if suite.name == "ruler" else ""
            maker = f" --tasks {task}" if suite.name == "harness" else maker
            raise DataError(
                f"{task}: its rows are not there; on a machine with network run 'prism eval fetch {suite.name}{maker} "
                "--to DIR', then name that folder with --from (in a study: 'files')"
            )
        lines: dict[str, Any] = {
            "include": str(manager.task_index[task].yaml_path),
            "task": f"prism_{task}",
            "tag": None,
        }
        if own is not None:
            kwargs = {**manager.task_index[task].cfg["dataset_kwargs"], "data_files": own}
        else:
            fetched = there[task]
            if lengths:
                fetched = {split: _of_lengths(task, file, lengths, written) for split, file in fetched.items()}
            kwargs = {"data_files": {split: str(file.resolve()) for split, file in fetched.items()}}
            lines |= {"dataset_path": "parquet", "dataset_name": None, "custom_dataset": None}
        # JSON is YAML.
        text = json.dumps({**lines, "dataset_kwargs": kwargs}, indent=1)
        (written / f"prism_{task}.yaml").write_text(text + "\n", encoding="utf-8")


def _samples(
    names: Sequence[str],
    tasks_folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    shots: int | None,
    limit: int | None,
    batch: int,
) -> Mapping[str, list[dict[str, Any]]]:
    """The harness's samples of tasks, by name.

    Raises:
        StageError: the harness fails.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks_folder), include_defaults=False)
    held: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)  # type: ignore[arg-type]
    try:
        found: Any = simple_evaluate(
            held,
            tasks=list(names),
            num_fewshot=shots,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            task_manager=manager,
        )
    except (AssertionError, ValueError, KeyError, RuntimeError, OSError) as error:
        raise StageError(f"lm-evaluation-harness failed: {type(error).__name__}: {in_a_line(error)}") from error
    return found["samples"]


def rows_of(benchmark: Benchmark, task: str, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sample rows of a task of the harness, under its benchmark's name: an item is called ``<task>:<number>``.

    IFEval gives two kinds: one a prompt, one an instruction. RULER's go by length, each a task of its own. Of several
    filters the first counts, unless the metric names one.

    Raises:
        StageError: the metric is no number from 0 to 1 a sample.
    """
    metric, _, wanted = benchmark.metric.partition(",")
    wanted = wanted or (samples[0].get("filter") if samples else None)
    rows: list[dict[str, Any]] = []
    for sample in samples:
        if sample.get("filter") != wanted:
            continue
        if "prompt_level_strict_acc" in sample:
            prompts, instructions = f"{benchmark.name}:prompts", f"{benchmark.name}:instructions"
            rows.append(_row(benchmark, prompts, task, sample, 0, float(sample["prompt_level_strict_acc"])))
            for at, met in enumerate(sample["inst_level_strict_acc"]):
                rows.append(_row(benchmark, instructions, task, sample, at, float(met)))
        elif benchmark.metric == "string match":
            length = str(sample["doc"]["max_length"])
            rows.append(_row(benchmark, f"{benchmark.name}-{length}", task, sample, 0, float(sample[length])))
        else:
            rows.append(_row(benchmark, benchmark.name, task, sample, 0, _number(task, metric, sample)))
    if samples and not rows:
        there = sorted({str(sample.get("filter")) for sample in samples})
        raise StageError(f"task {task}: no filter {wanted!r}; there are {', '.join(there)}: mend 'metrics'")
    return rows


def _number(task: str, metric: str, sample: Mapping[str, Any]) -> float | None:
    """A sample's score; None where the harness has nan, as of mc2 where no answer's probability is above 0 for it."""
    value = sample.get(metric)
    if isinstance(value, (float, np.floating)) and math.isnan(value):
        return None
    if isinstance(value, (bool, int, float, np.number)) and 0.0 <= float(value) <= 1.0:
        return float(value)
    there = ", ".join(str(name) for name in sample.get("metrics", ()))
    raise StageError(
        f"task {task}: metric {metric!r} is no number from 0 to 1 a sample (the task has {there or 'none'}); say in "
        "'metrics' which one is its score"
    )


def _row(
    benchmark: Benchmark, name: str, task: str, sample: Mapping[str, Any], number: int, score: float | None
) -> dict[str, Any]:
    """One row. The harness keeps no tokens of a response: ``tokens`` and ``nll`` are null."""
    asked = sample["arguments"]
    first: Any = next(iter(asked.values())) if isinstance(asked, Mapping) else asked[0]
    context = next(iter(first.values())) if isinstance(first, Mapping) else first[0]
    generated = isinstance(sample["filtered_resps"][0], str)
    item = f"{task}:{sample['doc_id']:05d}"
    return {
        "item_id": item,
        "problem": item,
        "task": name,
        "domain": benchmark.domain,
        "sample": number,
        "prompt_hash": str(sample["prompt_hash"])[:16],
        "question": str(context)[-4000:],
        "answer": str(sample["target"])[:4000],
        "response": sample["filtered_resps"][0] if generated else json.dumps([r[0] for r in sample["filtered_resps"]]),
        "tokens": None,
        "finished": None,
        "nll": None,
        "score": score,
        "verdict": "no_verdict" if score is None else "right" if score == 1.0 else "wrong",
        "reason": "lm-evaluation-harness gives nan" if score is None else "",
        "form_ok": None,
    }


def settle(benchmarks: Sequence[Benchmark], include: Sequence[Path]) -> list[Benchmark]:
    """The benchmarks with metric and worked examples, where the task itself decides them.

    Raises:
        MissingExtra: the harness is not installed.
        SpecError: there is no such task.
    """
    if all(one.metric for one in benchmarks):
        return list(benchmarks)
    manager = index_of([str(one.task) for one in benchmarks], include)
    return [settled(manager, one) for one in benchmarks]


def scored(
    suite: Suite,
    benchmarks: Sequence[Benchmark],
    judged: Mapping[str, list[dict[str, Any]]],
    shots: int | None,
    excluded: frozenset[tuple[str, str]] = frozenset(),
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Json]]:
    """Rows that count, rows of items in training data (``excluded``: benchmark and item), and the metrics of a suite of
    the harness with what they hang on, ``benchmarks``."""
    asked = [one if shots is None else replace(one, shots=shots) for one in benchmarks]
    rows: list[dict[str, Any]] = []
    apart: list[dict[str, Any]] = []
    for name, some in judged.items():
        for row in some:
            (apart if (name, row["item_id"]) in excluded else rows).append(row)
    return rows, apart, {**scores_of(suite, judged, excluded), "benchmarks": facts(asked, judged)}


def check_excluded(
    excluded: frozenset[tuple[str, str]], benchmarks: Sequence[Benchmark], include: Sequence[Path]
) -> None:
    """Refuse ids of items in training data that no task has, before anything is judged.

    Raises:
        SpecError: an id of one of these benchmarks is no ``<task>:<number>`` of its tasks.
    """
    names = {one.name: one for one in benchmarks}
    mine = sorted(key for key in excluded if key[0] in names)
    if not mine:
        return
    manager = index_of([str(one.task) for one in benchmarks], include)
    tasks = {name: leaves(manager, str(one.task)) for name, one in names.items()}
    for name, item in mine:
        task, _, number = item.rpartition(":")
        if task not in tasks[name] or not (number.isdecimal() and len(number) >= 5):
            raise SpecError(
                f"exclude: {shown(f'{name}/{item}', 80)} is no item of {name}: there they are called "
                f"{name}/{tasks[name][0]}:00000 and so on"
            )


def facts(benchmarks: Sequence[Benchmark], judged: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Json]:
    """By benchmark what its numbers hang on, with a hash of what was asked, whatever the order of the rows."""
    found: dict[str, Json] = {}
    for one in benchmarks:
        rows = judged[one.name]
        lines = sorted({"|".join((row["item_id"], row["prompt_hash"], row["answer"])) for row in rows})
        digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
        told = {"metric": one.metric, "shots": one.shots, "normalisation": one.normalisation}
        whole = {"licence": one.licence, "source": one.source, "of": one.items}
        found[one.name] = {"items": len({row["item_id"] for row in rows}), "hash": digest, **told, **whole}
    return found


def judge_tasks(
    suite: Suite,
    benchmarks: Sequence[Benchmark],
    files: Sequence[Path],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scratch: Path,
    progress: Progress,
    *,
    include: Sequence[Path] = (),
    lengths: Sequence[int] = (),
    shots: int | None = None,
    limit: int | None = None,
    batch: int = 8,
) -> dict[str, list[dict[str, Any]]]:
    """Sample rows of each benchmark, by its name. A benchmark that was judged before lies in ``scratch``.

    Args:
        suite: which suite.
        benchmarks: of it, settled.
        files: rows as ``fetch_tasks`` wrote them.
        model, tokenizer: the checkpoint.
        scratch: folder of this evaluation alone.
        progress: advanced by one a benchmark.
        include: folders with tasks of the user's own.
        lengths: of generated items those that are judged; empty for all.
        shots: worked examples; None for the suite's number, of tasks by name for each task's own.
        limit: first items of each task.
        batch: rows of a forward pass.

    Raises:
        MissingExtra: the harness is not installed.
        DataError: rows were not fetched.
        StageError: the harness fails, or a metric is no number a sample.
    """
    from prismlab.score import read_rows, write_rows

    manager = index_of([str(one.task) for one in benchmarks], include)
    tasks = {one: leaves(manager, str(one.task)) for one in benchmarks}
    every = [leaf for some in tasks.values() for leaf in some]
    with _offline():
        _local_tasks(manager, every, suite, files, scratch / "tasks", lengths)
        progress.start(len(tasks), "benchmarks")
        found: dict[str, list[dict[str, Any]]] = {}
        for one, some in tasks.items():
            file = scratch / f"{one.name}.parquet"
            if not file.is_file():
                names = [f"prism_{leaf}" for leaf in some]
                asked = None if shots is None and suite.name == TASKS else one.shots
                asked = asked if shots is None else shots
                samples = _samples(names, scratch / "tasks", model, tokenizer, asked, limit, batch)
                rows = [row for leaf in some for row in rows_of(one, leaf, samples[f"prism_{leaf}"])]
                draft = file.with_suffix(".tmp")
                write_rows(rows, draft)
                draft.replace(file)
            found[one.name] = read_rows(file)
            progress.advance()
    return found
