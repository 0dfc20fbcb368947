"""Scores from the rows of lm-evaluation-harness; the second leaderboard's are normalised as its site does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismlab.evaluate.sampled import Score, mean_of, task_score
from prismlab.evaluate.suite_base import Suite

CHOICES: Mapping[str, int] = {
    "leaderboard_bbh_boolean_expressions": 2,
    "leaderboard_bbh_causal_judgement": 2,
    "leaderboard_bbh_date_understanding": 6,
    "leaderboard_bbh_disambiguation_qa": 3,
    "leaderboard_bbh_formal_fallacies": 2,
    "leaderboard_bbh_geometric_shapes": 11,
    "leaderboard_bbh_hyperbaton": 2,
    "leaderboard_bbh_logical_deduction_five_objects": 5,
    "leaderboard_bbh_logical_deduction_seven_objects": 7,
    "leaderboard_bbh_logical_deduction_three_objects": 3,
    "leaderboard_bbh_movie_recommendation": 6,
    "leaderboard_bbh_navigate": 2,
    "leaderboard_bbh_object_counting": 19,
    "leaderboard_bbh_penguins_in_a_table": 5,
    "leaderboard_bbh_reasoning_about_colored_objects": 18,
    "leaderboard_bbh_ruin_names": 6,
    "leaderboard_bbh_salient_translation_error_detection": 6,
    "leaderboard_bbh_snarks": 2,
    "leaderboard_bbh_sports_understanding": 2,
    "leaderboard_bbh_temporal_sequences": 4,
    "leaderboard_bbh_tracking_shuffled_objects_five_objects": 5,
    "leaderboard_bbh_tracking_shuffled_objects_seven_objects": 7,
    "leaderboard_bbh_tracking_shuffled_objects_three_objects": 3,
    "leaderboard_bbh_web_of_lies": 2,
    "leaderboard_musr_murder_mysteries": 2,
    "leaderboard_musr_object_placements": 5,
    "leaderboard_musr_team_allocation": 3,
    "gpqa": 4,
    "mmlu-pro": 10,
}
"""Choices of the second leaderboard's tasks, whose inverse is what chance scores."""


def normalised(value: float, chance: float) -> float:
    """A score (0 to 1) as the second leaderboard shows it, 0 to 100: 0 at or below ``chance``, 100 at 1.

    ``100 (value - chance)/(1 - chance)``, from huggingface.co/docs/leaderboards/open_llm_leaderboard/normalization.
    """
    if not 0.0 <= chance < 1.0:
        raise ValueError(f"chance is {chance}; it lies from 0 to below 1")
    return 0.0 if value < chance else 100.0 * (value - chance) / (1.0 - chance)


def scaled(score: Score, chance: float) -> Score:
    """A SCORE in percent with value and bounds normalised; the map rises, so the bounds stay bounds."""
    ends = {key: None if score[key] is None else normalised(score[key] / 100, chance) for key in ("value", "lo", "hi")}
    return {**score, **ends}


def scores_of(
    suite: Suite,
    judged: Mapping[str, Sequence[Mapping[str, Any]]],
    excluded: frozenset[tuple[str, str]] = frozenset(),
) -> dict[str, Any]:
    """``tasks`` (a SCORE a benchmark), ``subtasks``, ``average`` and, of RULER, ``lengths``, from rows by benchmark.

    Args:
        suite: which one.
        judged: all rows, by benchmark.
        excluded: (benchmark, item) that count in no score. A task of which nothing is left has none, and so has no mean
            that it belongs to; ``contaminated`` tells how many items they are, and the SCORE with them.
    """
    found = _scores(suite, judged, excluded)
    gone = {
        name: {row["item_id"] for row in rows if (name, row["item_id"]) in excluded} for name, rows in judged.items()
    }
    if any(gone.values()):
        whole = _scores(suite, judged, frozenset())["tasks"]
        found["contaminated"] = {n: {"items": len(ids), "score": whole[n]} for n, ids in gone.items() if ids}
    return found


def _scores(
    suite: Suite, judged: Mapping[str, Sequence[Mapping[str, Any]]], excluded: frozenset[tuple[str, str]]
) -> dict[str, Any]:
    kept = {name: [row for row in rows if (name, row["item_id"]) not in excluded] for name, rows in judged.items()}
    subtasks: dict[str, dict[str, Score]] = {}
    for name, rows in judged.items():
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            # Items of a benchmark of many tasks are called <task>:<number>; lengths and levels are tasks of their own.
            part = row["item_id"].rpartition(":")[0] if row["task"] == name else row["task"]
            mine = groups.setdefault(part, [])
            mine += [] if (name, row["item_id"]) in excluded else [row]
        subtasks[name] = {task: _score(mine) for task, mine in groups.items()}
    every = [row for rows in kept.values() for row in rows]
    tasks = {name: _benchmark(suite, name, told, kept[name]) for name, told in subtasks.items()}
    found = {"tasks": tasks, "subtasks": subtasks, "average": mean_of(tasks, every, "benchmark")}
    if suite.name == "ruler":
        by_length: dict[str, dict[str, Score]] = {}
        for parts in subtasks.values():
            for task, score in parts.items():
                by_length.setdefault(task.rpartition("-")[2], {})[task] = score
        found["lengths"] = {
            length: mean_of(parts, [row for row in every if row["task"] in parts], "task")
            for length, parts in sorted(by_length.items(), key=lambda one: int(one[0]))
        }
    return {**found, "domains": {"general": found["average"]}}


def _score(rows: Sequence[Mapping[str, Any]]) -> Score:
    """A SCORE; the harness does not tell where responses were cut."""
    return {**task_score(rows), "truncation": None}


def _benchmark(suite: Suite, name: str, parts: Mapping[str, Score], rows: list[Mapping[str, Any]]) -> Score:
    """A benchmark's score from its subtasks: their mean, normalised first on the second leaderboard.

    GPQA's three sets and MATH's seven subjects are one pool of items, as the site has them.
    """
    if suite.name != "leaderboard-v2":
        return mean_of(parts, rows, "task")
    if name in ("bbh", "musr"):
        return mean_of({task: scaled(score, 1 / CHOICES[task]) for task, score in parts.items()}, rows, "task")
    if name == "ifeval":
        return mean_of(parts, rows, "level")
    return scaled(_score(rows), 1 / CHOICES[name] if name in CHOICES else 0.0)
