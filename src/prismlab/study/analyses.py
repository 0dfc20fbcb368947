"""From the analyses of a study to their steps; ``plan`` goes through them in this order, once a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pydantic import BaseModel

from prismlab.study.checkpoints import MergeSpec, RLSpec
from prismlab.study.pairs import (
    cka_pairs,
    direction_groups,
    evaluated,
    frontier_checkpoints,
    gated,
    landscape_triples,
    trajectory_checkpoints,
    weight_pairs,
)
from prismlab.study.study import THRESHOLDS, CkaSpec, Study


class Builder(Protocol):
    """What an analysis needs of the planner."""

    study: Study

    def add(self, kind: str, name: str, seed: int | None, config: Mapping[str, Any], **rest: Any) -> str:
        """Add a step once and return its id."""
        ...

    def checkpoint(self, name: str, seed: int) -> str:
        """The step that makes a base or a checkpoint."""
        ...

    def evaluation(self, name: str, checkpoint: str, seed: int) -> str:
        """The step that evaluates a checkpoint."""
        ...

    def prompt_set(self, name: str, seed: int) -> str:
        """The step that selects prompts."""
        ...

    def data(self, sources: Any, tasks: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Config keys and paths of the sources and tasks that a step reads."""
        ...

    def cleaned(self, names: Any, seed: int) -> dict[str, str]:
        """Inputs of a step that reads sources: those of them that are cleaned first."""
        ...


def _json(spec: BaseModel) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True)


def _weights(builder: Builder, seed: int) -> None:
    spec = builder.study.analyses.weights
    if spec is None:
        return
    for old, new in weight_pairs(builder.study):
        inputs = {"old": builder.checkpoint(old, seed), "new": builder.checkpoint(new, seed)}
        config, facts = {"thresholds": thresholds(builder.study), "svd": spec.svd}, {"old": old, "new": new}
        builder.add("weights", f"{old}:{new}", seed, config, inputs=inputs, facts=facts)


def thresholds(study: Study) -> list[float]:
    """Relative changes at which weights and trajectories are measured."""
    return list(study.analyses.weights.thresholds if study.analyses.weights else THRESHOLDS)


def _direction(builder: Builder, seed: int) -> None:
    if builder.study.analyses.direction is None:
        return
    met: Counter[str] = Counter()
    for base, *names in direction_groups(builder.study):
        met[base] += 1
        inputs = {name: builder.checkpoint(name, seed) for name in (base, *names)}
        config = {"base": base, "names": names}
        facts = {"base": base, "checkpoints": names}
        title = base if met[base] == 1 else f"{base}:{met[base]}"
        builder.add("direction", title, seed, config, inputs=inputs, facts=facts)


def _cka(builder: Builder, seed: int) -> None:
    spec = builder.study.analyses.cka
    if spec is None:
        return
    config = {"spec": {key: _json(spec)[key] for key in ("resamples", "resample_size", "cross")}}
    for old, new in cka_pairs(builder.study):
        inputs = {"a": _states(builder, spec, old, seed), "b": _states(builder, spec, new, seed)}
        facts = {"old": old, "new": new}
        # One seed for all pairs: the same resamples of the same inputs, so that pairs can be compared.
        builder.add("cka", f"{old}:{new}", seed, config, seed_name="cka", inputs=inputs, facts=facts)


def _states(builder: Builder, spec: CkaSpec, checkpoint: str, seed: int) -> str:
    """One pass over the inputs for each checkpoint, whatever pairs it stands in."""
    data, paths = builder.data(spec.sources, None)
    config = {
        "spec": {key: _json(spec)[key] for key in ("sources", "inputs", "max_tokens", "batch", "dtype")},
        "heldout": builder.study.heldout,
        "template": builder.study.template,
        **data,
    }
    base = builder.study.bases.get(checkpoint)
    # All seeds share outside weights, and which inputs are held out depends on no seed: so they share the pass, too.
    shared = base is not None and base.checkpoint is not None
    cleaned = builder.cleaned(spec.sources, seed)
    inputs = {"checkpoint": builder.checkpoint(checkpoint, seed), **cleaned}
    facts = {"checkpoint": checkpoint}
    one = None if shared else seed
    return builder.add("states", checkpoint, one, config, seed_name="states", inputs=inputs, facts=facts, **paths)


def _behaviour(builder: Builder, seed: int) -> None:
    if builder.study.analyses.behaviour is None:
        return
    name = builder.study.analyses.behaviour.evaluation
    for checkpoint in evaluated(builder.study, name):
        inputs = {"evaluation": builder.evaluation(name, checkpoint, seed)}
        where = f"{name}@{checkpoint}"
        builder.add("behaviour", name, seed, {}, step_name=where, inputs=inputs, facts={"checkpoint": checkpoint})


def _trajectory(builder: Builder, seed: int) -> None:
    if builder.study.analyses.trajectory is None:
        return
    for name in trajectory_checkpoints(builder.study):
        spec = builder.study.checkpoints[name]
        if isinstance(spec, MergeSpec):
            continue
        inputs = {"start": builder.checkpoint(spec.start, seed), "run": builder.checkpoint(name, seed)}
        config = {"thresholds": thresholds(builder.study)}
        builder.add("trajectory", name, seed, config, inputs=inputs, facts={"checkpoint": name, "start": spec.start})


def _landscape(builder: Builder, seed: int) -> None:
    spec = builder.study.analyses.landscape
    if spec is None:
        return
    evaluation = builder.study.evaluations[spec.evaluation]
    data, paths = builder.data(None, evaluation.tasks)
    sampling = {
        "tasks": list(evaluation.tasks),
        "items": spec.items or evaluation.items,
        "samples": spec.samples or evaluation.samples,
        "temperature": evaluation.temperature,
        "top_p": evaluation.top_p,
        "max_new_tokens": evaluation.max_new_tokens,
    }
    points = {"points": spec.points, "grid": spec.grid}
    config = {"spec": {**sampling, **points}, "name": spec.evaluation, "template": builder.study.template, **data}
    for names in landscape_triples(builder.study):
        facts = dict(zip(("base", "mid", "rl"), names, strict=True))
        inputs = {key: builder.checkpoint(name, seed) for key, name in facts.items()}
        # The seed is the evaluation's: every point of every landscape meets the same random numbers.
        title = ":".join(names)
        builder.add("landscape", title, seed, config, seed_name=spec.evaluation, inputs=inputs, facts=facts, **paths)


def _frontier(builder: Builder, seed: int) -> None:
    spec = builder.study.analyses.frontier
    if spec is None:
        return
    for name in frontier_checkpoints(builder.study):
        run = builder.study.checkpoints[name]
        if not isinstance(run, RLSpec):
            continue
        inputs = {"start": builder.checkpoint(run.start, seed), "run": builder.checkpoint(name, seed)}
        asked = {key: _json(spec)[key] for key in ("prompts", "samples", "fresh")}
        sampling = {key: _json(run)[key] for key in ("temperature", "top_p", "max_new_tokens")}
        config = {"spec": {**asked, **sampling}, "template": builder.study.template}
        facts = {"checkpoint": name, "start": run.start, "prompts": run.prompts}
        # The seed is the prompt set's: runs on the same prompts meet the same random numbers.
        inputs["prompts"] = builder.prompt_set(run.prompts, seed)
        builder.add("frontier", name, seed, config, seed_name=run.prompts, inputs=inputs, facts=facts)


def gate_step(builder: Builder, name: str, checkpoint: str, seed: int) -> str:
    """The step that holds a checkpoint against its gate's reference."""
    spec = builder.study.gates[name]
    sides = {"base": spec.reference, "new": checkpoint}
    inputs = {key: builder.evaluation(spec.evaluation, side, seed) for key, side in sides.items()}
    facts = {"checkpoint": checkpoint, "reference": spec.reference, "evaluation": spec.evaluation}
    rule = {key: _json(spec)[key] for key in ("margin", "margins", "action")}
    config = {"spec": rule, "reference": spec.reference, "checkpoint": checkpoint}
    return builder.add("gate", name, seed, config, step_name=f"{name}@{checkpoint}", inputs=inputs, facts=facts)


def _gates(builder: Builder, seed: int) -> None:
    for name in builder.study.gates:
        for checkpoint in gated(builder.study, name):
            gate_step(builder, name, checkpoint, seed)


ANALYSES: tuple[Callable[[Builder, int], None], ...] = (
    _weights,
    _direction,
    _cka,
    _behaviour,
    _trajectory,
    _landscape,
    _frontier,
    _gates,
)
"""What plans each analysis, in the order of the report."""
