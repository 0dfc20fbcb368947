"""What steps cost: tokens, floating-point operations, disk, and seconds where records of like steps tell them.

Operations are those of ``prismlab.cost``, attention over the context included, by the shape of the base's model. Where
the shape is not known (a class without one), the usual count of dense transformers stands in (Kaplan et al. 2020): 6 N
a token to train, 2 N to sample, N the parameters; attention is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from prismlab.cost.hub import hub_shape
from prismlab.cost.operations import forward_operations, token_operations
from prismlab.cost.shapes import Shape, shape_of
from prismlab.cost.tiny import tiny_shape
from prismlab.cost.training import Disk, operations_of, setting_of, training_disk
from prismlab.errors import SpecError
from prismlab.study.checkpoints import TrainSpec
from prismlab.study.load import LoadedStudy
from prismlab.study.steps import Step
from prismlab.study.study import Study

_SAMPLING = ("scoring", "evaluation", "landscape", "frontier")
_NARROW_VOCABULARY = 2**16
"""Vocabularies below this are stored in two bytes a token, others in four."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Tokens are exact for training, an upper bound for sampling (every response at its longest). None: unknown."""

    tokens: int | None = None
    flops: float | None = None
    sampled: float = 0.0
    """Those of ``flops`` that sample, which a device does at a lower share of its rate than training."""
    seconds: float | None = None
    disk: Disk | None = None


def _root_base(study: Study, name: str) -> str:
    name = name if name in study.bases else name.partition("@")[0]
    while name in study.checkpoints:
        spec = study.checkpoints[name]
        name = next(iter(spec.weights)) if spec.stage == "merge" else spec.start.partition("@")[0]
    return name


def _config_of(folder: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # The base step tells what is wrong with the folder; a plan only lacks its shape.
    return cast(dict[str, Any], found) if isinstance(found, dict) else None


def shape_for(loaded: LoadedStudy, name: str) -> Shape | None:
    """Shape of a base or checkpoint: by its base's config.json, as a known hub model or a tiny one; None else."""
    root = _root_base(loaded.study, name)
    base = loaded.study.bases[root]
    if base.arch is not None:
        return tiny_shape(base.arch, base.width, base.layers)
    folders = loaded.files.get(f"bases.{root}")
    if not folders:
        return hub_shape(str(base.checkpoint))
    config = _config_of(folders[0])
    try:
        return None if config is None else shape_of(config)
    except SpecError:
        return None


def parameters(loaded: LoadedStudy, name: str) -> float | None:
    """Parameters of a base or checkpoint: by its shape or its weight files on disk; None where neither is known."""
    shape = shape_for(loaded, name)
    if shape is not None:
        return float(shape.parameters)
    folders = loaded.files.get(f"bases.{_root_base(loaded.study, name)}")
    size = sum(file.stat().st_size for file in folders[0].glob("*.safetensors")) if folders else 0
    return size / 2 if size else None  # Two bytes a parameter: released models are bf16.


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
        shared = (step.config.get("prefix") or {"step": 0})["step"]
        return (spec["steps"] - shared) * spec["rows"] * spec["seq_len"]
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
        if spec.get("suite") is not None:
            return None  # How many items its files hold is not looked up; the step says it before it judges.
        return len(spec["tasks"]) * spec["items"] * spec["samples"] * spec["max_new_tokens"]
    return None


def _sampled(shape: Shape, tokens: float, longest: int) -> float:
    """Operations to sample ``tokens`` in responses of ``longest``; what the prompts cost is not known beforehand."""
    return tokens * token_operations(shape, longest / 2)


def _rl_training(shape: Shape, spec: Mapping[str, Any]) -> float:
    """RL trains on what it sampled and, with a KL penalty, asks the reference."""
    rows = spec["steps"] * spec["prompts_per_step"] * spec["samples"]
    return rows * forward_operations(shape, int(spec["max_new_tokens"])).total * (4.0 if spec["kl_beta"] > 0 else 3.0)


def _dense_operations(step: Step) -> float | None:
    """Operations a token and parameter by the usual count."""
    if step.kind == "rl":
        return 10.0 if step.config["spec"]["kl_beta"] > 0 else 8.0
    return 6.0 if step.kind == "train" else 2.0 if step.kind in _SAMPLING else None


def step_operations(
    step: Step, shape: Shape | None, size: float | None, tokens: int | None
) -> tuple[float | None, float]:
    """Operations of a step, and those of them that sample: by the shape of its model, else by its parameters; None
    where neither is known."""
    spec: Mapping[str, Any] = step.config.get("spec") or {}
    factor = _dense_operations(step)
    if tokens is None or factor is None or (shape is None and size is None):
        return None, 0.0
    if shape is None:
        sampled = 0.0 if step.kind == "train" else 2.0 * (size or 0.0) * tokens
        return factor * (size or 0.0) * tokens, sampled
    if step.kind == "train":
        # On one device: where a loss goes in pieces depends on how many rows are done at a time.
        return tokens / spec["seq_len"] * operations_of(shape, setting_of(spec, 1)).total, 0.0
    sampled = _sampled(shape, tokens, int(spec["max_new_tokens"]))
    return sampled + (_rl_training(shape, spec) if step.kind == "rl" else 0.0), sampled


def step_disk(step: Step, shape: Shape | None, tokens: int | None, vocab: int | None) -> Disk | None:
    """Bytes of a step's artifact, where weights or tokens make it large; None where they do not or are not known."""
    spec: Mapping[str, Any] = step.config.get("spec") or {}
    if step.kind == "corpus" and tokens is not None and vocab is not None:
        return Disk(kept=float(tokens * (2 if vocab < _NARROW_VOCABULARY else 4)))
    if shape is None:
        return None
    if step.kind in ("train", "rl"):
        return training_disk(shape, {**spec, **step.how}, trunk="branch" in step.config)
    if step.kind == "merge":
        return Disk(kept=shape.parameters * (4.0 if spec.get("dtype") == "float32" else 2.0))
    return Disk(kept=2.0 * shape.parameters) if step.kind == "base" else None


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
        tokens, shape, size = step_tokens(step), None, None
        checkpoint = step.facts.get("checkpoint") or step.facts.get("mid")
        if checkpoint is not None and _root_base(self._loaded.study, str(checkpoint)) in self._loaded.study.bases:
            shape, size = shape_for(self._loaded, str(checkpoint)), parameters(self._loaded, str(checkpoint))
        flops, sampled = (None, 0.0) if checkpoint is None else step_operations(step, shape, size, tokens)
        disk = step_disk(step, shape, tokens, self._vocabulary)
        return Cost(tokens=tokens, flops=flops, sampled=sampled, seconds=self._seconds(step, tokens), disk=disk)

    @cached_property
    def _vocabulary(self) -> int | None:
        """Of the tokenizer that corpora are made with."""
        name = self._loaded.study.tokenizer or next(iter(self._loaded.study.bases))
        shape = shape_for(self._loaded, name)
        return None if shape is None else shape.vocab

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
