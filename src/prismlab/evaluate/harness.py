"""Tasks of lm-evaluation-harness: which there are, and their rows to local files; judged in ``harness_run``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prismlab.errors import MissingExtra, SpecError, shown
from prismlab.evaluate.fetch import keep, write_manifest
from prismlab.evaluate.suite_base import Benchmark, Suite
from prismlab.run.step import Progress

FOLDERS = ("arc", "hellaswag", "mmlu", "truthfulqa", "winogrande", "gsm8k", "leaderboard", "ruler")
"""Folders of the harness's tasks that the suites name: reading all of its thousands takes a quarter of a minute."""
BETTER = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc")
"""Metrics that are taken for a task's score, the first that it has, where the user names none."""


def _library() -> Path:
    """The folder of the harness's tasks.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import lm_eval.tasks
    except ImportError as error:
        raise MissingExtra("lm_eval", "eval", "this suite") from error
    return Path(str(lm_eval.tasks.__file__)).parent


def index_of(names: Sequence[str], include: Sequence[Path] = (), metadata: Mapping[str, Any] | None = None) -> Any:
    """The harness's index of tasks that has these names; no data is loaded for it.

    Args:
        names: tasks, groups or tags.
        include: folders with tasks of the user's own, which go before the harness's.
        metadata: given to every task.

    Raises:
        MissingExtra: the harness is not installed.
        SpecError: a folder of ``include`` is none.
    """
    root = _library()
    from lm_eval.tasks import TaskManager

    for folder in include:
        if not folder.is_dir():
            raise SpecError(f"{folder}: no folder with tasks of lm-evaluation-harness")
    there = [str(root / name) for name in FOLDERS if (root / name).is_dir()]
    own = [str(folder) for folder in include]
    more = dict(metadata or {})
    found = TaskManager(include_path=[*there, *own], include_defaults=False, metadata=more)
    if all(name in found.task_index for name in names):
        return found
    return TaskManager(include_path=[*own], include_defaults=True, metadata=more)


def settled(manager: Any, benchmark: Benchmark) -> Benchmark:
    """A benchmark whose metric and worked examples the task itself decides, with these filled in."""
    if benchmark.metric:
        return benchmark
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    config = manager.task_index[leaves(manager, str(benchmark.task))[0]].cfg
    listed = [str(one["metric"]) for one in config.get("metric_list") or () if isinstance(one.get("metric"), str)]
    listed = listed or DEFAULT_METRIC_REGISTRY.get(config.get("output_type", "generate_until"), [])
    metric = next((name for name in BETTER if name in listed), next(iter(listed), ""))
    if not metric:
        raise SpecError(f"task {benchmark.name}: it names no metric; say which with 'metrics'")
    return replace(benchmark, metric=metric, shots=int(config.get("num_fewshot") or 0))


def leaves(manager: Any, name: str) -> list[str]:
    """Tasks that a task, group or tag of the harness comes down to, in its order.

    Raises:
        SpecError: the installed harness has no such task.
    """
    entry = manager.task_index.get(name)
    if entry is None:
        raise SpecError(
            f"lm-evaluation-harness has no task {shown(name, 60)!r}; mend the name, or name the folder of your own "
            "tasks ('include')"
        )
    if entry.kind.name == "TAG":
        return [leaf for child in sorted(entry.tags) for leaf in leaves(manager, child)]
    if entry.kind.name == "GROUP":
        children = [child if isinstance(child, str) else child["task"] for child in entry.cfg["task"]]
        return [leaf for child in children for leaf in leaves(manager, child)]
    return [name]


def local_files(manager: Any, leaf: str) -> dict[str, list[str]] | None:
    """Files that a task reads its rows from by itself, by split, absolute; None of one whose rows are on the hub.

    Relative paths start at the task's own file, so that a folder of tasks can be carried.

    Raises:
        SpecError: a file is not there.
    """
    entry = manager.task_index[leaf]
    named = (entry.cfg.get("dataset_kwargs") or {}).get("data_files")
    if entry.cfg.get("dataset_path") not in ("json", "csv", "parquet") or named is None:
        return None
    by_split = named if isinstance(named, Mapping) else {"train": named}
    found: dict[str, list[str]] = {}
    for split, some in by_split.items():
        files = [Path(entry.yaml_path).parent / one for one in ([some] if isinstance(some, str) else some)]
        for file in files:
            if not file.is_file():
                raise SpecError(f"task {leaf}: {file} is not there; 'data_files' are looked for from the task's file")
        found[str(split)] = [str(file.resolve()) for file in files]
    return found


def _splits(config: Mapping[str, Any]) -> list[str]:
    keys = ("test_split", "validation_split", "training_split", "fewshot_split")
    return list(dict.fromkeys(config[key] for key in keys if config.get(key)))


def fetch_tasks(
    suite: Suite,
    benchmarks: Sequence[Benchmark],
    folder: Path,
    progress: Progress,
    checkpoint: str | None = None,
    lengths: Sequence[int] = (),
    load: Any = None,
    include: Sequence[Path] = (),
) -> dict[str, Any]:
    """Fetch the rows of a suite's harness tasks to ``folder/<suite>``, a file a task and split.

    Args:
        suite: names the folder.
        benchmarks: of this suite.
        folder: made if it is not there.
        progress: advanced by one a task.
        checkpoint: whose tokenizer sizes generated tasks (RULER).
        lengths: tokens of generated items.
        load: gives ``{split: rows}`` of (data set id, configuration, splits); by default the hub's.
        include: folders with tasks of the user's own.

    Raises:
        MissingExtra: the harness is not installed.
        SpecError: generated tasks without checkpoint or lengths.
        DataError: a set cannot be had.
    """
    made = {"pretrained": checkpoint, "max_seq_lengths": list(lengths)} if checkpoint else {}
    manager, place = index_of([str(one.task) for one in benchmarks], include, made), folder / suite.name
    tasks = {leaf: one for one in benchmarks for leaf in leaves(manager, str(one.task))}
    progress.start(len(tasks), "tasks")
    told: dict[str, Any] = {}
    for leaf in tasks:
        config = manager.task_index[leaf].cfg
        if local_files(manager, leaf):
            progress.advance()
            continue
        if config.get("custom_dataset") is not None:
            if not checkpoint or not lengths:
                raise SpecError(
                    f"{leaf} is made for a tokenizer and lengths: prism eval fetch {suite.name} CHECKPOINT --length N"
                )
            splits = dict(manager.load(leaf)["tasks"][leaf].dataset)
        else:
            splits = (load or _hub_splits)(config["dataset_path"], config.get("dataset_name"), _splits(config))
        for split, rows in splits.items():
            where = {"id": config.get("dataset_path"), "config": config.get("dataset_name"), "split": split}
            more = {"task": leaf, "hub": {**where, "verified": False}, "lengths": list(lengths)}
            told[f"{leaf}--{split}"] = {**keep(rows, place / f"{leaf}--{split}.parquet"), **more}
        write_manifest(place, told)
        progress.advance()
    return told


def _hub_splits(name: str, config: str | None, splits: Sequence[str]) -> dict[str, Any]:
    from prismlab.evaluate.fetch import hub_loader
    from prismlab.evaluate.suite_base import Hub

    return {split: hub_loader(Hub(id=name, config=config, split=split)) for split in splits}
