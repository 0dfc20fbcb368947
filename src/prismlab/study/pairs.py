"""Which checkpoints an analysis compares where the study does not say."""

from __future__ import annotations

from prismlab.study.arms import infer_arms
from prismlab.study.check import starts_of
from prismlab.study.checkpoints import MergeSpec, RLSpec, TrainSpec
from prismlab.study.series import owner
from prismlab.study.study import Study


def is_random(study: Study, name: str) -> bool:
    """Whether a name is a base with random weights, which is no old side of any comparison."""
    return name in study.bases and study.bases[name].arch is not None


def root_of(study: Study, name: str) -> str | None:
    """Where a checkpoint's chain begins: what pretraining made of random weights, else the outside base.

    A merge is followed to its first checkpoint. None if it begins with random weights that no pretraining touched.
    """
    pretrained: str | None = None
    while name in study.checkpoints:
        spec = study.checkpoints[name]
        start = starts_of(spec)[0]
        if isinstance(spec, TrainSpec) and spec.stage == "pretrain" and is_random(study, start):
            pretrained = name
        name = owner(start)
    return pretrained if is_random(study, name) else name


def weight_pairs(study: Study) -> list[tuple[str, str]]:
    """``(old, new)`` pairs: those of ``analyses.weights``, else each stage's start and end, and root to each RL run."""
    if study.analyses.weights is not None and study.analyses.weights.pairs is not None:
        return list(dict.fromkeys(study.analyses.weights.pairs))
    pairs: list[tuple[str, str]] = []
    for name, spec in study.checkpoints.items():
        pairs += [(start, name) for start in starts_of(spec) if not is_random(study, start)]
    for name, spec in study.checkpoints.items():
        root = root_of(study, name)
        if isinstance(spec, RLSpec) and root is not None:
            pairs.append((root, name))
    return list(dict.fromkeys(pairs))


def cka_pairs(study: Study) -> list[tuple[str, str]]:
    """Pairs of ``analyses.cka``, else those of the weights."""
    if study.analyses.cka is not None and study.analyses.cka.pairs is not None:
        return list(dict.fromkeys(study.analyses.cka.pairs))
    return weight_pairs(study)


def direction_groups(study: Study) -> list[tuple[str, ...]]:
    """``(base, a, b, ...)`` of ``analyses.direction``, else what is mid-trained from each start, and what RL or
    fine-tuning makes of each start, where there are two or more.

    The two kinds stay apart, since RL's branch can end and would take the directions of mid-training with it.
    """
    if study.analyses.direction is not None and study.analyses.direction.groups is not None:
        return list(dict.fromkeys(tuple(group) for group in study.analyses.direction.groups))
    found: dict[tuple[str, bool], list[str]] = {}
    for name, spec in study.checkpoints.items():
        if isinstance(spec, MergeSpec) or spec.stage in ("pretrain", "extend") or is_random(study, spec.start):
            continue
        found.setdefault((spec.start, spec.stage == "midtrain"), []).append(name)
    return [(start, *names) for (start, _), names in found.items() if len(names) > 1]


CHAIN = ("base", "mid[MCS]", "mid[MCS]>rl[MCS]")
"""Arms of the reference study's landscape, and of C13."""


def landscape_triples(study: Study) -> list[tuple[str, str, str]]:
    """``(base, mid, RL)`` of ``analyses.landscape``, else those of the arms in ``CHAIN``, where the study has all."""
    if study.analyses.landscape is not None and study.analyses.landscape.triples is not None:
        return list(dict.fromkeys(study.analyses.landscape.triples))
    arms = infer_arms(study)
    base, mid, run = (arms.get(arm) for arm in CHAIN)
    return [] if base is None or mid is None or run is None else [(base, mid, run)]


def trajectory_checkpoints(study: Study) -> list[str]:
    """Checkpoints of ``analyses.trajectory``, else every RL checkpoint with snapshots."""
    if study.analyses.trajectory is not None and study.analyses.trajectory.checkpoints is not None:
        return list(dict.fromkeys(study.analyses.trajectory.checkpoints))
    return [name for name, spec in study.checkpoints.items() if isinstance(spec, RLSpec) and spec.snapshots > 0]


def frontier_checkpoints(study: Study) -> list[str]:
    """RL checkpoints of ``analyses.frontier``, else every one of the study."""
    if study.analyses.frontier is not None and study.analyses.frontier.checkpoints is not None:
        return list(dict.fromkeys(study.analyses.frontier.checkpoints))
    return [name for name, spec in study.checkpoints.items() if isinstance(spec, RLSpec)]


def evaluated(study: Study, evaluation: str) -> list[str]:
    """Checkpoints that an evaluation samples: those it names, else every one and every base that is not random."""
    named = study.evaluations[evaluation].checkpoints
    if named is not None:
        return list(dict.fromkeys(named))
    return [*(name for name in study.bases if not is_random(study, name)), *study.checkpoints]


def stopping(study: Study, checkpoint: str) -> list[str]:
    """Gates that may stop what begins from a checkpoint."""
    return [name for name, spec in study.gates.items() if spec.action == "stop" and checkpoint in gated(study, name)]


def gated(study: Study, gate: str) -> list[str]:
    """Checkpoints that a gate tests: those it names, else all that its evaluation samples, but never its reference."""
    spec = study.gates[gate]
    named = evaluated(study, spec.evaluation) if spec.checkpoints is None else spec.checkpoints
    return [name for name in dict.fromkeys(named) if name != spec.reference]
