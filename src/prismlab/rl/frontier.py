"""Stage ``frontier``: what RL did to its own prompts, by how often its start solved them.

Every prompt is sampled three times over: by the start, which puts it in a group (0 correct, 1 correct, more); by the
start again, independently; and by the RL checkpoint, with the second draw's random numbers. Prompts chosen for their
few correct samples do better on a second draw without any training, since the first one was partly bad luck
(regression to the mean). So what RL did is the RL checkpoint minus the start's *second* draw, never its first.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prismlab.data.items import Item
from prismlab.errors import DataError
from prismlab.model.checkpoint import load_model, load_tokenizer
from prismlab.model.generate import SamplingSettings, TransformersSampler
from prismlab.run.step import Artifact, Progress, Result
from prismlab.score import SampleRow, score_items, write_rows
from prismlab.seeds import derive_seed
from prismlab.stats import Interval, clustered_proportion, mean_pass_at_k, paired_items, pass_at_k

Rows = Sequence[Mapping[str, Any]]
Key = tuple[str, str]
"""Task and id of a prompt."""

GROUPS: dict[str, Callable[[int], bool]] = {
    "0": lambda correct: correct == 0,
    "1": lambda correct: correct == 1,
    "more": lambda correct: correct > 1,
}
"""Groups of prompts by the correct samples of the start's first draw."""


def _by_prompt(rows: Rows) -> dict[Key, list[Mapping[str, Any]]]:
    found: defaultdict[Key, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["task"], row["item_id"]].append(row)
    return found


def _percent(interval: Interval) -> dict[str, Any]:
    shown = {
        key: None if value is None else 100.0 * value
        for key, value in (("value", interval.value), ("lo", interval.lo), ("hi", interval.hi))
    }
    return shown if interval.reason is None else {**shown, "reason": interval.reason}


def _rate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return _percent(clustered_proportion([row["score"] for row in rows], [row["problem"] for row in rows]))


def _difference(new: Sequence[Mapping[str, Any]], old: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of new - old in points, paired by prompt and sample."""
    problems = [row["problem"] for row in new]
    if len(set(problems)) < 2:
        mean = sum(n["score"] - o["score"] for n, o in zip(new, old, strict=True)) / len(new)
        return _percent(Interval(mean, None, None, 1, "paired over items", "one problem shows no spread"))
    pairs = paired_items([row["score"] for row in new], [row["score"] for row in old], problems)
    return _percent(pairs.interval)


def _group(keys: Sequence[Key], draws: Mapping[str, Mapping[Key, Rows]]) -> dict[str, Any]:
    """What is known of some prompts; null with a reason where there is none of them."""
    # A pair of samples counts where both were judged: what is missing is left out, never 0.
    pairs = [
        (after, fresh)
        for key in keys
        for after, fresh in zip(draws["after"][key], draws["fresh"][key], strict=True)
        if after["score"] is not None and fresh["score"] is not None
    ]
    drawn = sum(len(draws["after"][key]) for key in keys)
    if not pairs:
        empty = {"value": None, "lo": None, "hi": None, "reason": "no prompt" if not keys else "no sample was scored"}
        rates = {name: dict(empty) for name in ("fresh", "after", "difference")}
        return {"prompts": len(keys), **rates, "solved_fresh": 0, "solved_after": 0, "unscored": drawn}
    after, fresh = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return {
        "prompts": len(keys),
        "fresh": _rate(fresh),
        "after": _rate(after),
        "difference": _difference(after, fresh),
        "solved_fresh": len({(row["task"], row["item_id"]) for row in fresh if row["score"] > 0.5}),
        "solved_after": len({(row["task"], row["item_id"]) for row in after if row["score"] > 0.5}),
        "unscored": drawn - len(pairs),
    }


def _counts(rows: Rows) -> tuple[int, int]:
    """Correct samples and samples with a verdict."""
    scores = [row["score"] for row in rows if row["score"] is not None]
    return sum(score > 0.5 for score in scores), len(scores)


def passes(fresh: Mapping[Key, Rows], after: Mapping[Key, Rows]) -> dict[str, Any]:
    """Unbiased pass@k (Chen et al. 2021) before and after RL, in percent, and its difference in points.

    Prompts of which a sample has no verdict are left out. ``k`` runs over powers of 2 up to the samples a prompt.
    """
    n = max((len(rows) for rows in fresh.values()), default=0)
    counted = {key: (_counts(fresh[key]), _counts(after[key])) for key in fresh}
    whole = {key: (old, new) for key, (old, new) in counted.items() if old[1] == new[1] == n}
    found: dict[str, Any] = {}
    for k in (2**power for power in range(n.bit_length())):
        if k > n or len(whole) < 2:
            break
        old, new = ([pair[side][0] for pair in whole.values()] for side in (0, 1))
        values = [[pass_at_k(n, correct, k) for correct in some] for some in (old, new)]
        found[str(k)] = {
            "before": _percent(mean_pass_at_k(old, [n] * len(whole), k)),
            "after": _percent(mean_pass_at_k(new, [n] * len(whole), k)),
            "difference": _percent(paired_items(values[1], values[0], list(whole)).interval),
        }
    return found


def frontier(first: Rows, fresh: Rows, after: Rows) -> dict[str, Any]:
    """The metrics of this stage, from sample rows of the three draws; see docs/architecture.md.

    Args:
        first: of the start; a prompt with a sample without verdict is set aside.
        fresh: of the start again.
        after: of the RL checkpoint, as many samples a prompt as ``fresh`` and in the same order.
    """
    draws = {"fresh": _by_prompt(fresh), "after": _by_prompt(after)}
    domains = {(row["task"], row["item_id"]): row["domain"] for row in first}
    correct = {key: _counts(rows) for key, rows in _by_prompt(first).items()}
    set_aside = [key for key, rows in _by_prompt(first).items() if correct[key][1] < len(rows)]
    kept = [key for key in correct if key not in set(set_aside)]

    def grouped(keys: Sequence[Key]) -> dict[str, Any]:
        groups = {name: _group([key for key in keys if of(correct[key][0])], draws) for name, of in GROUPS.items()}
        return {**groups, "all": _group(keys, draws)}

    by_domain = {name: [key for key in kept if domains[key] == name] for name in dict.fromkeys(domains.values())}
    samples = {"first": _most(_by_prompt(first)), "fresh": _most(draws["fresh"])}
    return {
        "prompts": len(kept),
        "set_aside": len(set_aside),
        "samples": samples,
        "groups": grouped(kept),
        "domains": {name: grouped(keys) for name, keys in by_domain.items()},
        "pass_at_k": passes(*({key: draws[side][key] for key in kept} for side in ("fresh", "after"))),
    }


def _most(draw: Mapping[Key, Rows]) -> int:
    return max((len(rows) for rows in draw.values()), default=0)


def _prompts(folder: Path, most: int | None, seed: int) -> list[Item]:
    """The prompts that a run was trained on, at random where there are more than ``most``."""
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    known = ("correct", "samples")
    items = [Item.from_json({key: value for key, value in row.items() if key not in known}) for row in rows]
    if not items:
        raise DataError(f"{folder.name}: holds no prompt, so there is nothing to sample")
    if most is None or most >= len(items):
        return items
    picked = np.random.default_rng(seed).choice(len(items), size=most, replace=False)
    return [items[at] for at in sorted(picked.tolist())]


def run(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Sample the prompts of an RL run before and after it; see docs/architecture.md for config and outputs.

    Answers are judged inside the think format, as in scoring and RL.

    Raises:
        CheckpointError: a checkpoint cannot be loaded.
        DataError: there is no prompt.
        StageError: a prompt fills the model's positions, or its logits are not finite.
    """
    spec, seed = config["spec"], config["seed"]
    items = _prompts(inputs["prompts"].path, spec["prompts"], derive_seed(seed, "choice"))
    settings = SamplingSettings(
        max_new_tokens=int(spec["max_new_tokens"]),
        temperature=float(spec["temperature"]),
        top_p=float(spec["top_p"]),
    )
    n, fresh = int(spec["samples"]), int(spec["fresh"])
    progress.start(len(items) * (n + 2 * fresh), "sample")
    drawn: dict[str, list[SampleRow]] = {}
    for side, draws in (("start", (("first", n), ("fresh", fresh))), ("run", (("after", fresh),))):
        tokenizer = load_tokenizer(inputs[side].model)
        sampler = TransformersSampler(load_model(inputs[side].model), tokenizer)
        for draw, samples in draws:
            keep = None if "scratch" not in config else Path(config["scratch"]) / draw
            # "fresh" and "after" share their random numbers, so that their difference has less noise.
            numbers = derive_seed(seed, "first" if draw == "first" else "second")
            drawn[draw] = score_items(
                sampler, tokenizer, items, samples, settings, numbers, config["template"], True, progress, keep
            )
            write_rows(drawn[draw], out / f"{draw}.parquet")
    metrics = frontier(drawn["first"], drawn["fresh"], drawn["after"])
    return Result(metrics=metrics, tokens=sum(row["tokens"] for rows in drawn.values() for row in rows))
