"""Suites that lm-evaluation-harness judges, as a library: from fetched files, its samples kept as rows.

Each task of the harness is taken as it is, but for where its rows come from: a file of a few lines includes the
harness's own and names local Parquet files, so that nothing is asked of the network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismlab.errors import DataError, MissingExtra, SpecError, StageError, in_a_line, shown
from prismlab.evaluate.fetch import keep, read_manifest, write_manifest
from prismlab.evaluate.suite_base import Benchmark, Suite
from prismlab.run.step import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FOLDERS = ("arc", "hellaswag", "mmlu", "truthfulqa", "winogrande", "gsm8k", "leaderboard", "ruler")
"""Folders of the harness's tasks that the suites name: reading all of its thousands takes a quarter of a minute."""
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


def _index(metadata: Mapping[str, Any] | None = None) -> Any:
    """The harness's index of the tasks in ``FOLDERS``; nothing is loaded for it."""
    root = _library()
    from lm_eval.tasks import TaskManager

    there: list[str | Path] = [str(root / name) for name in FOLDERS if (root / name).is_dir()]
    return TaskManager(include_path=[*there], include_defaults=False, metadata=dict(metadata or {}))


def leaves(manager: Any, name: str) -> list[str]:
    """Tasks that a task, group or tag of the harness comes down to, in its order.

    Raises:
        SpecError: the installed harness has no such task.
    """
    entry = manager.task_index.get(name)
    if entry is None:
        raise SpecError(f"the installed lm-evaluation-harness has no task {shown(name, 60)!r}; install 0.4.13 or newer")
    if entry.kind.name == "TAG":
        return [leaf for child in sorted(entry.tags) for leaf in leaves(manager, child)]
    if entry.kind.name == "GROUP":
        children = [child if isinstance(child, str) else child["task"] for child in entry.cfg["task"]]
        return [leaf for child in children for leaf in leaves(manager, child)]
    return [name]


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
) -> dict[str, Any]:
    """Fetch the rows of a suite's harness tasks to ``folder/<suite>``, a file a task and split.

    Args:
        suite: names the folder.
        benchmarks: of this suite.
        folder: made if it is not there.
        progress: advanced by one a task.
        checkpoint: whose tokenizer sizes generated tasks (RULER).
        lengths: tokens of generated items.
        load: gives ``{split: rows}`` of (data set id, configuration, revision); by default the hub's.

    Raises:
        MissingExtra: the harness is not installed.
        SpecError: generated tasks without checkpoint or lengths.
        DataError: a set cannot be had.
    """
    made = {"pretrained": checkpoint, "max_seq_lengths": list(lengths)} if checkpoint else {}
    manager, place = _index(made), folder / suite.name
    tasks = {leaf: one for one in benchmarks for leaf in leaves(manager, str(one.task))}
    progress.start(len(tasks), "tasks")
    told: dict[str, Any] = {}
    for leaf in tasks:
        config = manager.task_index[leaf].cfg
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


def _local_tasks(manager: Any, tasks: Sequence[str], suite: Suite, folder: Path, written: Path) -> list[str]:
    """Write a file a task that includes the harness's own and names local rows; returns the new names.

    Raises:
        DataError: rows of a task were not fetched; the message names the command.
    """
    place = folder / suite.name
    manifest = read_manifest(place)
    written.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for task in tasks:
        parts = {key.partition("--")[2]: one for key, one in manifest.items() if one.get("task") == task}
        missing = [split for split, one in parts.items() if not (place / one["file"]).is_file()]
        if not parts or missing:
            raise DataError(
                f"{task}: its rows are not in {place}; on a machine with network run 'prism eval fetch {suite.name} "
                "--to DIR', then name that folder with --from"
            )
        files = {split: str((place / one["file"]).resolve()) for split, one in parts.items()}
        lines = {
            "include": str(manager.task_index[task].yaml_path),
            "task": f"prism_{task}",
            "tag": None,
            "dataset_path": "parquet",
            "dataset_name": None,
            "custom_dataset": None,
            "dataset_kwargs": {"data_files": files},
        }
        # JSON is YAML.
        (written / f"prism_{task}.yaml").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
        names.append(f"prism_{task}")
    return names


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
    """Sample rows of a task from the harness's samples.

    IFEval gives two kinds: one a prompt, one an instruction. RULER's go by length, each a task of its own.
    """
    metric, _, wanted = benchmark.metric.partition(",")
    rows: list[dict[str, Any]] = []
    for sample in samples:
        if wanted and sample.get("filter") != wanted:
            continue
        if "prompt_level_strict_acc" in sample:
            rows.append(_row(benchmark, f"{task}:prompts", sample, 0, float(sample["prompt_level_strict_acc"])))
            for at, met in enumerate(sample["inst_level_strict_acc"]):
                rows.append(_row(benchmark, f"{task}:instructions", sample, at, float(met)))
        elif benchmark.metric == "string match":
            length = str(sample["doc"]["max_length"])
            rows.append(_row(benchmark, f"{benchmark.name}-{length}", sample, 0, float(sample[length])))
        else:
            rows.append(_row(benchmark, task, sample, 0, float(sample[metric])))
    return rows


def _row(benchmark: Benchmark, task: str, sample: Mapping[str, Any], number: int, score: float) -> dict[str, Any]:
    """One row. The harness keeps no tokens of a response: ``tokens`` and ``nll`` are null."""
    asked = sample["arguments"]
    first: Any = next(iter(asked.values())) if isinstance(asked, Mapping) else asked[0]
    context = next(iter(first.values())) if isinstance(first, Mapping) else first[0]
    generated = isinstance(sample["filtered_resps"][0], str)
    right = bool(score == 1.0)
    return {
        "item_id": f"{sample['doc_id']:05d}",
        "problem": f"{sample['doc_id']:05d}",
        "task": task,
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
        "verdict": "right" if right else "wrong",
        "reason": "",
        "form_ok": None,
    }


def judge_tasks(
    suite: Suite,
    benchmarks: Sequence[Benchmark],
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scratch: Path,
    progress: Progress,
    shots: int | None = None,
    limit: int | None = None,
    batch: int = 8,
) -> dict[str, list[dict[str, Any]]]:
    """Sample rows of each benchmark, by its name. A benchmark that was judged before lies in ``scratch``.

    Args:
        suite: which suite; names the folder of its rows.
        benchmarks: of it.
        folder: where ``fetch_tasks`` put the rows.
        model, tokenizer: the checkpoint.
        scratch: folder of this evaluation alone.
        progress: advanced by one a benchmark.
        shots: worked examples, where not the suite's number.
        limit: first items of each task.
        batch: rows of a forward pass.

    Raises:
        MissingExtra: the harness is not installed.
        DataError: rows were not fetched.
        StageError: the harness fails, or a length is past the model's positions.
    """
    from prismlab.score import read_rows, write_rows

    manager = _index()
    tasks = {one: leaves(manager, str(one.task)) for one in benchmarks}
    every = [leaf for some in tasks.values() for leaf in some]
    with _offline():
        _local_tasks(manager, every, suite, folder, scratch / "tasks")
        progress.start(len(tasks), "benchmarks")
        found: dict[str, list[dict[str, Any]]] = {}
        for one, some in tasks.items():
            file = scratch / f"{one.name}.parquet"
            if not file.is_file():
                names, asked = [f"prism_{leaf}" for leaf in some], one.shots if shots is None else shots
                samples = _samples(names, scratch / "tasks", model, tokenizer, asked or None, limit, batch)
                rows = [row for leaf in some for row in rows_of(one, leaf, samples[f"prism_{leaf}"])]
                draft = file.with_suffix(".tmp")
                write_rows(rows, draft)
                draft.replace(file)
            found[one.name] = read_rows(file)
            progress.advance()
    return found
