"""What steps cost: tokens, floating-point operations, and seconds where records of like steps tell them.

Operations follow the usual count for dense transformers (Kaplan et al. 2020): 6 N a token to train, 2 N to sample or to
score, N the parameters. Attention over the context is not in it, so long contexts cost more than this says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from prismlab.study.checkpoints import TrainSpec
from prismlab.study.load import LoadedStudy
from prismlab.study.steps import Step
from prismlab.study.study import Study

HUB_PARAMETERS = {
    "ibm-granite/granite-3.3-8b-base": 8.17e9,
    "ibm-granite/granite-4.0-micro-base": 3.40e9,
    "ibm-granite/granite-4.0-h-micro-base": 3.19e9,
    "meta-llama/Llama-3.1-8B": 8.03e9,
    "mistralai/Mistral-7B-v0.1": 7.24e9,
    "mistralai/Mistral-Small-24B-Base-2501": 23.57e9,
    "nvidia/Nemotron-H-8B-Base-8K": 8.10e9,
}
"""Parameters of the reference study's seven bases, from their model cards (rounded)."""
_OPERATIONS = {"train": 6.0, "scoring": 2.0, "evaluation": 2.0, "landscape": 2.0, "frontier": 2.0}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Tokens are exact for training, an upper bound for sampling (every response at its longest). None: unknown."""

    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None


def _root_base(study: Study, name: str) -> str:
    while name in study.checkpoints:
        spec = study.checkpoints[name]
        name = next(iter(spec.weights)) if spec.stage == "merge" else spec.start
    return name


def parameters(loaded: LoadedStudy, name: str) -> float | None:
    """Parameters of a base or checkpoint: weight files on disk, the known models, or a tiny model's shape.

    A tiny model counts 12 width^2 a layer (attention and MLP), embeddings apart; None where nothing is known.
    """
    base = loaded.study.bases[_root_base(loaded.study, name)]
    if base.checkpoint is None:
        return 12.0 * base.width**2 * base.layers
    folders = loaded.files.get(f"bases.{_root_base(loaded.study, name)}")
    if folders:
        size = sum(file.stat().st_size for file in folders[0].glob("*.safetensors"))
        return size / 2 if size else None  # Two bytes a parameter: released models are bf16.
    return HUB_PARAMETERS.get(base.checkpoint.partition("@")[0])


def _places(points: int, grid: int | None) -> int:
    """Points of a landscape: those of its path and its grid, each once."""
    legs = [Fraction(k, points - 1) for k in range(points)]
    sides = [Fraction(k, grid - 1) for k in range(grid)] if grid else []
    path = {(a, Fraction(0)) for a in legs} | {(Fraction(1), b) for b in legs}
    return len(path | {(a, b) for a in sides for b in sides})


def step_tokens(step: Step) -> int | None:
    """Tokens that a step trains on (exact), packs (exact) or samples (at most); None for a step that handles none."""
    spec: Mapping[str, Any] = step.config.get("spec") or {}
    if step.kind == "corpus":
        return step.config["rows"] * step.config["seq_len"]
    if step.kind == "train":
        return spec["steps"] * spec["rows"] * spec["seq_len"]
    if step.kind == "rl":
        return spec["steps"] * spec["prompts_per_step"] * spec["samples"] * spec["max_new_tokens"]
    if step.kind == "scoring":
        return len(spec["tasks"]) * spec["candidates"] * spec["samples"] * spec["max_new_tokens"]
    if step.kind == "landscape":
        return _places(spec["points"], spec["grid"]) * (
            len(spec["tasks"]) * spec["items"] * spec["samples"] * spec["max_new_tokens"]
        )
    if step.kind == "frontier":
        most = spec["prompts"]  # Null: how many prompts there will be is not known beforehand.
        return None if most is None else most * (spec["samples"] + 2 * spec["fresh"]) * spec["max_new_tokens"]
    if step.kind == "evaluation":
        return len(spec["tasks"]) * spec["items"] * spec["samples"] * spec["max_new_tokens"]
    return None


def _operations(step: Step) -> float | None:
    """Operations a token and parameter; RL samples (2), trains (6) and, with a KL penalty, asks the reference (2)."""
    if step.kind == "rl":
        return 10.0 if step.config["spec"]["kl_beta"] > 0 else 8.0
    return _OPERATIONS.get(step.kind)


class Costs:
    """Costs of the steps of one study.

    Args:
        loaded: the study.
        records: records of steps that were carried out. A step is taken to need the seconds a token of those of its
            kind or, where it handles no tokens, their mean; with no such record its seconds are unknown.
    """

    def __init__(self, loaded: LoadedStudy, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self._loaded = loaded
        self._past: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            if record.get("status") == "complete":
                self._past.setdefault(record["kind"], []).append(record)

    def of(self, step: Step) -> Cost:
        """The cost of one step."""
        tokens, operations = step_tokens(step), _operations(step)
        flops = None
        checkpoint = step.facts.get("checkpoint") or step.facts.get("mid")
        if tokens is not None and operations is not None and checkpoint is not None:
            size = parameters(self._loaded, str(checkpoint))
            flops = None if size is None else operations * size * tokens
        return Cost(tokens=tokens, flops=flops, seconds=self._seconds(step, tokens))

    def _seconds(self, step: Step, tokens: int | None) -> float | None:
        past = self._past.get(step.kind)
        if not past:
            return None
        if tokens is None:
            return sum(float(record["seconds"]) for record in past) / len(past)
        done = [(float(record["seconds"]), recorded_tokens(record)) for record in past]
        known = [(seconds, count) for seconds, count in done if count]
        if not known:
            return None
        return tokens * sum(seconds for seconds, _ in known) / sum(count for _, count in known)


def recorded_tokens(record: Mapping[str, Any]) -> int | None:
    """Tokens of a recorded step by the same count as a planned one, so that the two can be compared."""
    step = Step(
        kind=record["kind"],
        id=record["name"],
        name=record["name"],
        seed=None,
        config=record["config"],
        entry="",
        version=record["version"],
    )
    return step_tokens(step)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How often a training run passes over a source whose size the mixture states."""

    checkpoint: str
    source: str
    tokens: float
    """Tokens of the run that this source gives."""
    epochs: float
    """Those tokens over the source's own size."""


def passes(study: Study) -> list[Passes]:
    """Passes over every source with a stated size (``tokens_in_source``), by checkpoint."""
    found: list[Passes] = []
    for name, spec in study.checkpoints.items():
        if not isinstance(spec, TrainSpec):
            continue
        mixture = study.mixtures[spec.mixture]
        shares = study.shares(spec.mixture)
        for source, size in (mixture.tokens_in_source or {}).items():
            tokens = spec.tokens * shares.get(source, 0.0)
            if tokens:
                found.append(Passes(checkpoint=name, source=source, tokens=tokens, epochs=tokens / size))
    return found
