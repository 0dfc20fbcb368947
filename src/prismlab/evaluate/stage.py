"""Stage ``evaluation``: sample tasks with a checkpoint, and score held-out text."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismlab.data.sources import heldout_texts
from prismlab.errors import DataError
from prismlab.evaluate import text as text_loss
from prismlab.evaluate.asked import Answers, Asked, answer, ask, costs, metrics_of
from prismlab.evaluate.draw import draw_of, files_of
from prismlab.evaluate.judged import write_choices
from prismlab.evaluate.sampled import aggregate
from prismlab.evaluate.suite_base import Wish
from prismlab.evaluate.suites import suite_of
from prismlab.model.checkpoint import load_model, load_tokenizer
from prismlab.model.served import served_sampler
from prismlab.run.step import Artifact, Json, Progress, Result
from prismlab.score import write_rows
from prismlab.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SUITE_FILES, TASK_FILES = "@suite", "@tasks"
"""Where ``config["files"]`` has the files of a suite, and those of tasks of the user's own for the harness."""


def _texts(config: Mapping[str, Json], inputs: Mapping[str, Artifact]) -> dict[str, list[str]]:
    """Held-out documents of every source, read before any is scored: a broken source is told early."""
    share, most = float(config["heldout"]), int(config["spec"]["text_documents"])
    texts: dict[str, list[str]] = {}
    for name in config["spec"]["text"]:
        source, files = config["sources"][name], files_of(config, name)
        cleaned = inputs[name].path if name in inputs else None
        texts[name] = heldout_texts(name, source, config["micro"], files, config["template"], share, most, cleaned)
        if not texts[name]:
            raise DataError(f"source {name}: no held-out document; raise 'heldout' or give it more documents")
    return texts


def _of_a_length(config: Mapping[str, Json]) -> dict[str, Json]:
    """Tasks of the evaluation that were made for a length in tokens."""
    tasks = {name: config["tasks"][name] for name in config["spec"]["tasks"]}
    return {name: task for name, task in tasks.items() if (task.get("micro") or {}).get("tokens") is not None}


def _wish(config: Mapping[str, Json]) -> Wish:
    spec = config["spec"]["suite"]
    names = ("limit", "shots", "samples", "temperature", "top_p", "max_new_tokens")
    given: dict[str, Any] = {name: spec[name] for name in names}
    given |= {"benchmarks": tuple(spec["benchmarks"]), "lengths": tuple(spec["lengths"])}
    return Wish(**given, template=config["template"], seed=int(config["seed"]))


def _asked(config: Mapping[str, Json], tokenizer: PreTrainedTokenizerBase) -> Asked | None:
    """What the evaluation's suite asks; None for one of tasks, and where the harness asks."""
    suite = config["spec"].get("suite")
    if suite is None or any(one.kind == "harness" for one in suite_of(suite).benchmarks):
        return None
    return ask(suite_of(suite), _wish(config), files_of(config, SUITE_FILES) or [], config["micro"], tokenizer)


def _suite_rows(
    asked: Asked, answers: Answers, config: Mapping[str, Json], out: Path
) -> tuple[list[dict[str, Any]], dict[str, Json]]:
    """Rows that count and the metrics of a suite; items in training data are kept apart, in ``excluded.parquet``."""
    excluded = _excluded(config)
    apart = [row for row in answers.rows if (row["task"], row["item_id"]) in excluded]
    if apart:
        write_rows(apart, out / "excluded.parquet")
    if answers.choices:
        write_choices(answers.choices, out / "choices.parquet")
    rows = [row for row in answers.rows if (row["task"], row["item_id"]) not in excluded]
    return rows, {**metrics_of(asked, answers, excluded), "benchmarks": asked.facts()}


def _excluded(config: Mapping[str, Json]) -> frozenset[tuple[str, str]]:
    """(benchmark, item) of items that stand in training data."""
    pairs = (text.partition("/") for text in config["spec"]["suite"]["exclude"])
    return frozenset((task, item) for task, _, item in pairs)


def _by_harness(
    config: Mapping[str, Json],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress,
    out: Path,
) -> tuple[list[dict[str, Any]], dict[str, Json]]:
    """Rows and metrics of a suite that lm-evaluation-harness judges."""
    from prismlab.evaluate.harness_run import check_excluded, judge_tasks, scored, settle
    from prismlab.evaluate.loglik import positions_of

    spec, included = config["spec"]["suite"], files_of(config, TASK_FILES) or []
    suite, include = suite_of(spec), roots(included)
    benchmarks = settle(suite.named(tuple(spec["benchmarks"])), include)
    _check_lengths(spec["lengths"], positions_of(model))
    excluded = _excluded(config)
    check_excluded(excluded, benchmarks, include)
    with tempfile.TemporaryDirectory(prefix="prism-eval-") as spare:
        judged = judge_tasks(
            suite,
            benchmarks,
            files_of(config, SUITE_FILES) or [],
            model,
            tokenizer,
            Path(config.get("scratch") or spare),
            progress,
            include=include,
            lengths=spec["lengths"],
            shots=spec["shots"],
            limit=spec["limit"],
        )
    rows, apart, metrics = scored(suite, benchmarks, judged, spec["shots"], excluded)
    if apart:
        write_rows(apart, out / "excluded.parquet")
    return rows, metrics


def _check_lengths(lengths: Sequence[int], positions: int | None) -> None:
    longest = max(lengths, default=0)
    if positions is not None and longest > positions:
        raise DataError(
            f"items of {longest} tokens, the model has {positions} positions; judge shorter ones ('lengths') or take a "
            "model with more"
        )


def roots(files: Sequence[Path]) -> list[Path]:
    """Folders that hold the files, without those that lie within another."""
    folders = {file.parent for file in files}
    return sorted(one for one in folders if not any(other in folders for other in one.parents))


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """See the house plan for config, inputs, files and metrics.

    Answers are judged leniently (what follows ``</think>``, or else the whole response), so that a checkpoint that has
    never seen the think format is scored on its answers; ``form_ok`` of a row tells whether the format was kept.

    Raises:
        DataError: a task or source is missing or broken, or no document is held out.
        CheckpointError: the checkpoint cannot be loaded or sampled.
        StageError: a prompt fills the model's positions, or a loss is not finite.
    """
    texts, draw = _texts(config, inputs), draw_of(config)
    folder = inputs["checkpoint"].model
    tokenizer = load_tokenizer(folder)
    # Items are read before the model is loaded: a missing set is told early.
    asked = _asked(config, tokenizer)
    unknown = [] if asked is None else asked.check_excluded(_excluded(config))
    model = load_model(folder, dtype="float32")
    if config["spec"].get("suite") is not None and asked is None:
        rows, scores = _by_harness(config, model, tokenizer, progress, out)
    elif asked is not None:
        if unknown:
            told = f"{unknown[0]} and {len(unknown) - 1} others" if len(unknown) > 1 else unknown[0]
            progress.note(f"warning: 'exclude' names {told}, which the suite does not ask")
        for line in costs(asked, tokenizer):
            progress.note(line)
        scratch = config.get("scratch")
        answers = answer(asked, lambda: (model, tokenizer), None if scratch is None else Path(scratch), progress)
        rows, scores = _suite_rows(asked, answers, config, out)
    else:
        progress.start(draw.samples, "samples")
        rows = draw.rows(model, tokenizer, progress, served_sampler(config, folder, tokenizer))
        lengths = {name: int(task["micro"]["tokens"]) for name, task in _of_a_length(config).items()}
        scores = aggregate(rows, lengths)
    write_rows(rows, out / "samples.parquet")
    documents: list[dict[str, Any]] = []
    losses: dict[str, Json] = {}
    progress.start(sum(map(len, texts.values())), "documents")
    for name, some in texts.items():
        most = int(config["spec"]["text_tokens"])
        mine = text_loss.score_documents(model, tokenizer, name, some, progress, most)
        losses[name] = text_loss.bits_per_byte(mine, derive_seed(config["seed"], "text", name))
        documents += mine
    text_loss.write_rows(documents, out / "text.parquet")
    metrics = {**scores, "text": losses}
    # The harness keeps no tokens of its rows.
    tokens = sum(row["tokens"] or 0 for row in rows) + sum(row["tokens"] for row in documents)
    return Result(metrics=metrics, tokens=tokens)
