"""RL prompts: stage ``scoring`` samples candidates with one checkpoint, stage ``prompts`` selects among them.

A prompt is selected by how many of its samples were correct. The reference study took one mid-trained model as the
scorer of all, 16 samples a prompt, and per domain a range of correct samples: never all (nothing left to learn), and
in the balanced mix also some that were never solved.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prismlab.data.items import Item, load_items
from prismlab.errors import DataError, EndBranch
from prismlab.model.checkpoint import load_model, load_tokenizer
from prismlab.model.generate import SamplingSettings, TransformersSampler
from prismlab.model.served import served_sampler
from prismlab.rl.instructions import with_instruction
from prismlab.rl.leaks import HITS, contaminated
from prismlab.run.step import Artifact, Progress, Result
from prismlab.score import read_rows, score_items, write_rows
from prismlab.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One candidate after scoring. ``unscored`` samples have no verdict and count neither as right nor as wrong."""

    item: Item
    correct: int
    samples: int
    unscored: int


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The prompts selected of one task.

    Attributes:
        prompts: selected candidates, in the candidates' order.
        available: candidates whose number of correct samples lies in the range.
        set_aside: candidates with a sample without verdict, which are never selected.
        topped_up: how many of ``prompts`` are unsolved ones that the balanced mix added.
    """

    prompts: list[Scored]
    available: int
    set_aside: int
    topped_up: int


def count_correct(items: Sequence[Item], rows: Iterable[Mapping[str, Any]]) -> list[Scored]:
    """Count correct samples per item, in the order of ``items``.

    Args:
        items: the candidates.
        rows: sample rows with ``task``, ``item_id`` and ``score`` (1.0, 0.0 or None).

    Raises:
        DataError: an item has no row, so the scoring is not of these items.
    """
    scores: defaultdict[tuple[str, str], list[float | None]] = defaultdict(list)
    for row in rows:
        scores[row["task"], row["item_id"]].append(row["score"])
    counted: list[Scored] = []
    for item in items:
        mine = scores.get((item.task, item.id))
        if not mine:
            raise DataError(f"{item.task}: candidate {item.id!r} has no sample in the scoring; score it again")
        counted.append(
            Scored(
                item=item,
                correct=sum(score is not None and score > 0.5 for score in mine),
                samples=len(mine),
                unscored=sum(score is None for score in mine),
            )
        )
    return counted


def histogram(scored: Iterable[Scored], samples: int) -> list[int]:
    """How many candidates have 0, 1, ... ``samples`` correct; those with a sample without verdict are left out."""
    counts = [0] * (samples + 1)
    for one in scored:
        if not one.unscored:
            counts[one.correct] += 1
    return counts


def _draw(pool: Sequence[Scored], n: int, seed: int) -> list[Scored]:
    """``n`` of ``pool`` without replacement, in the pool's order; all of it where it has no more."""
    if n >= len(pool):
        return list(pool)
    picked = np.random.default_rng(seed).choice(len(pool), size=n, replace=False)
    return [pool[at] for at in sorted(picked.tolist())]


def select(scored: Sequence[Scored], task: str, spec: Mapping[str, Any], samples: int, seed: int) -> Chosen:
    """Select the prompts of one task.

    Args:
        scored: the task's candidates.
        task: its name; ``overrides`` and the random draws go by it.
        spec: JSON of ``PromptSpec``. The range of correct samples is the task's override, else ``min_correct`` to
            ``max_correct`` (null: all but every sample). More than ``per_task`` are thinned at random; in the balanced
            mix fewer are topped up with a random subset of the prompts that were never solved.
        samples: samples a prompt.
        seed: seed of the step.
    """
    default_max = samples - 1 if spec["max_correct"] is None else int(spec["max_correct"])
    low, high = spec["overrides"].get(task, (int(spec["min_correct"]), default_max))
    judged = [one for one in scored if not one.unscored]
    eligible = [one for one in judged if low <= one.correct <= high]
    limit = len(eligible) if spec["per_task"] is None else int(spec["per_task"])
    picked = _draw(eligible, limit, derive_seed(seed, "prompts", task, "limit"))
    extra: list[Scored] = []
    if spec["mix"] == "balanced" and len(picked) < limit:
        unsolved = [one for one in judged if one.correct == 0 and not low <= 0 <= high]
        extra = _draw(unsolved, limit - len(picked), derive_seed(seed, "prompts", task, "top-up"))
    wanted = {one.item.id for one in (*picked, *extra)}
    return Chosen(
        prompts=[one for one in judged if one.item.id in wanted],
        available=len(eligible),
        set_aside=len(scored) - len(judged),
        topped_up=len(extra),
    )


def _summary(chosen: Chosen) -> dict[str, Any]:
    return {
        "available": chosen.available,
        "chosen": len(chosen.prompts),
        "mean_correct": sum(one.correct for one in chosen.prompts) / len(chosen.prompts) if chosen.prompts else None,
        "set_aside": chosen.set_aside,
        "topped_up": chosen.topped_up,
    }


def _note(task: str, chosen: Chosen, spec: Mapping[str, Any], progress: Progress) -> None:
    """Tell the user what a later reader of the numbers would stumble over."""
    if chosen.set_aside:
        progress.note(f"{task}: {chosen.set_aside} candidates set aside, they have samples without a verdict")
    if not chosen.prompts:
        progress.note(f"{task}: no prompt selected, so RL has none of this task")
    elif spec["mix"] == "balanced" and len(chosen.prompts) < int(spec["per_task"]):
        progress.note(f"{task}: {len(chosen.prompts)} prompts instead of {spec['per_task']}, there are no more")


def _candidates(config: Mapping[str, Any]) -> list[Item]:
    """The candidates of every task, from its training split."""
    spec, seed = config["spec"], config["seed"]
    # The planner tells paths apart from the configuration, so that no fingerprint depends on where a file lies.
    paths: Mapping[str, Sequence[str]] = config.get("files", {})
    items: list[Item] = []
    for task in spec["tasks"]:
        items += load_items(
            task,
            config["tasks"][task],
            config["micro"],
            split="train",
            n=int(spec["candidates"]),
            files=None if task not in paths else [Path(path) for path in paths[task]],
            seed=derive_seed(seed, "candidates", task),
        )
    return items


def run_scoring(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``scoring``: sample candidates of the training splits and verify them inside the think format.

    See docs/architecture.md for config and outputs. Metrics also hold ``set_aside`` per task: candidates with a sample
    without verdict, which the histogram leaves out.

    Raises:
        DataError: a task has fewer items than the candidates asked for, or broken rows.
        CheckpointError: the scorer cannot be loaded.
    """
    spec, seed = config["spec"], config["seed"]
    n = int(spec["samples"])
    items = _candidates(config)
    folder = inputs["scorer"].model
    tokenizer = load_tokenizer(folder)
    sampler = served_sampler(config, folder, tokenizer) or TransformersSampler(load_model(folder), tokenizer)
    settings = SamplingSettings(
        max_new_tokens=int(spec["max_new_tokens"]),
        temperature=float(spec["temperature"]),
        top_p=float(spec["top_p"]),
    )
    progress.start(len(items) * n, "sample")
    rows = score_items(
        sampler,
        tokenizer,
        items,
        n,
        settings,
        seed=derive_seed(seed, "scoring"),
        template=config["template"],
        strict_format=True,
        progress=progress,
        keep=Path(config["scratch"]) / "samples" if "scratch" in config else None,
    )
    write_rows(rows, out / "samples.parquet")
    with (out / "items.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(item.to_json(), ensure_ascii=False) + "\n" for item in items)
    return Result(metrics=_scoring_metrics(items, rows, n), tokens=sum(row["tokens"] for row in rows))


def _scoring_metrics(items: Sequence[Item], rows: Iterable[Mapping[str, Any]], n: int) -> dict[str, Any]:
    by_task: defaultdict[str, list[Scored]] = defaultdict(list)
    for one in count_correct(items, rows):
        by_task[one.item.task].append(one)
    return {
        task: {
            "candidates": len(scored),
            "histogram": histogram(scored, n),
            "set_aside": sum(one.unscored > 0 for one in scored),
        }
        for task, scored in by_task.items()
    }


def _scored(
    config: Mapping[str, Any], folder: Path, out: Path
) -> tuple[Mapping[str, list[Scored]], Counter[str] | None]:
    """Candidates by task with their counts, and how many of each task hold an evaluation item (None: not looked for).

    With ``action: drop`` those that do are not among the candidates.
    """
    lines = (folder / "items.jsonl").read_text(encoding="utf-8").splitlines()
    items = [Item.from_json(json.loads(line)) for line in lines]
    asked = config.get("decontaminate")
    leaks = set() if asked is None else contaminated(config, items, out)
    by_task: defaultdict[str, list[Scored]] = defaultdict(list)
    for one in count_correct(items, read_rows(folder / "samples.parquet")):
        held = by_task[one.item.task]
        if asked is None or asked["action"] != "drop" or (one.item.task, one.item.id) not in leaks:
            held.append(one)
    return by_task, None if asked is None else Counter(task for task, _ in leaks)


def run_prompts(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``prompts``: select RL prompts by their number of correct samples.

    See docs/architecture.md for config and outputs. Where the study decontaminates, candidates that hold an evaluation
    item are counted, and with ``action: drop`` never selected.

    Raises:
        EndBranch: no prompt was selected of any task.
        DataError: the scoring does not hold a task that the study names, or an evaluation task's rows are broken.
    """
    spec, samples = config["spec"], int(config["samples"])
    by_task, leaks = _scored(config, inputs["scoring"].path, out)
    metrics: dict[str, Any] = {}
    prompts: list[Scored] = []
    progress.start(len(spec["tasks"]), "task")
    for task in spec["tasks"]:
        if task not in by_task:
            raise DataError(f"task {task!r} was not scored (only {', '.join(sorted(by_task))}): add it to the scoring")
        chosen = select(by_task[task], task, spec, samples, config["seed"])
        _note(task, chosen, spec, progress)
        metrics[task] = _summary(chosen) | ({} if leaks is None else {"contaminated": leaks[task]})
        if leaks is not None and leaks[task]:
            progress.note(f"{task}: {leaks[task]} candidates hold an evaluation item; {HITS} lists them")
        prompts.extend(chosen.prompts)
        progress.advance(1)
    if not prompts:
        shown = "; ".join(f"{task} {histogram(by_task[task], samples)}" for task in spec["tasks"])
        raise EndBranch(f"no prompt has the wanted number of correct samples; prompts with 0, 1, ... correct: {shown}")
    with (out / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for one in prompts:
            shown = with_instruction(one.item, config["seed"]) if one.item.task in spec["randomise"] else one.item
            row = {**shown.to_json(), "correct": one.correct, "samples": one.samples}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return Result(metrics=metrics)
