"""Trainings that share: a snapshot as a checkpoint (``name@step``), a longer run on the trunk of a shorter one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prismlab.study.checkpoints import MergeSpec, TrainSpec
from prismlab.study.explain import problem
from prismlab.study.running import HOW
from prismlab.study.study import Study

_OWN = {"steps", "snapshots", "keep_snapshots", "keep_master", "share_prefix", *HOW}
_DECAY = {"schedule", "decay_steps", "final_lr_factor"}


def owner(name: str) -> str:
    """The training whose snapshot ``name@step`` is; of any other name the name."""
    return name.partition("@")[0]


def snapshots_of(steps: int, snapshots: int) -> list[int]:
    """Steps after which a run saves its snapshots, rising: those of ``train.optim.snapshot_steps``."""
    return sorted({round(k * steps / snapshots) for k in range(1, snapshots + 1)} - {0}) if snapshots else []


def snapshot_problems(where: str, name: str, study: Study) -> Iterator[str]:
    """What is wrong with ``name@step`` as a start."""
    run, _, step = name.partition("@")
    spec = study.checkpoints.get(run)
    kept = {one: known for one, known in study.checkpoints.items() if getattr(known, "snapshots", 0)}
    if spec is None or isinstance(spec, MergeSpec) or run not in kept:
        yield problem(where, f"{run!r} has no snapshots", [f"{one}@STEP" for one in kept] or "a checkpoint", name)
        return
    steps = snapshots_of(spec.steps, spec.snapshots)
    if not spec.keep_snapshots:
        yield f"{where}: the snapshots of {run!r} are not kept; set its 'keep_snapshots: true'"
    elif step not in {str(one) for one in steps}:
        yield problem(where, f"{run!r} saves no snapshot at step {step!r}", [f"{run}@{one}" for one in steps], name)


def stable_steps(spec: TrainSpec) -> int:
    """Steps at the beginning whose learning rate does not depend on the run's length (``train.optim.stable_steps``); 0
    for a schedule that decays from the start.
    """
    optimizer = spec.optimizer
    if optimizer.schedule == "constant":
        return spec.steps
    if optimizer.schedule != "wsd":
        return 0
    stable = spec.steps - (optimizer.decay_steps or max(1, round(spec.steps / 10)))
    return stable if stable >= optimizer.warmup else 0


def _trunk(spec: TrainSpec) -> dict[str, Any]:
    """What two runs on one trunk have in common."""
    whole = spec.model_dump(mode="json", exclude=_OWN)
    whole["optimizer"] = {key: value for key, value in whole["optimizer"].items() if key not in _DECAY}
    return whole


def prefixes(study: Study) -> dict[str, tuple[str, int]]:
    """Trainings that go on from another one of the study: name to (the shorter one, steps they have in common).

    The longest common part is taken. A run that is to save a snapshot within it goes by itself.
    """
    runs = [(name, spec) for name, spec in study.checkpoints.items() if isinstance(spec, TrainSpec)]
    runs = [(name, spec) for name, spec in runs if spec.share_prefix and stable_steps(spec)]
    found: dict[str, tuple[str, int]] = {}
    for name, spec in runs:
        first = min(snapshots_of(spec.steps, spec.snapshots), default=spec.steps)
        others = [
            (stable_steps(other), shorter)
            for shorter, other in runs
            if (other.steps, shorter) < (spec.steps, name)
            and stable_steps(other) <= min(stable_steps(spec), first - 1)
            and _trunk(other) == _trunk(spec)
        ]
        if others:
            step, shorter = max(others)
            found[name] = (shorter, step)
    return found
