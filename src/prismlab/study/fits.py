"""What a training asks of its model that the model cannot do, as far as its shape is known without its files."""

from __future__ import annotations

from collections.abc import Iterator

from prismlab.cost.hub import hub_shape
from prismlab.cost.shapes import Mamba, Shape
from prismlab.cost.tiny import tiny_shape
from prismlab.study.checkpoints import MergeSpec, TrainSpec
from prismlab.study.series import owner
from prismlab.study.study import Study


def _start(study: Study, name: str) -> str | None:
    """What a checkpoint begins from, of a merge the first; None of a base."""
    spec = study.checkpoints.get(owner(name))
    if spec is None:
        return None
    return next(iter(spec.weights)) if isinstance(spec, MergeSpec) else spec.start


def base_shape(study: Study, name: str) -> Shape | None:
    """Shape of the base that a checkpoint comes from; None where only its files tell."""
    while (before := _start(study, name)) is not None:
        name = before
    base = study.bases[name]
    if base.arch is not None:
        return tiny_shape(base.arch, base.width, base.layers)
    return hub_shape(str(base.checkpoint))


def context_of(study: Study, name: str) -> int | None:
    """Tokens that a base or checkpoint was made for, trainings on longer rows included; None where it is not known."""
    before = _start(study, name)
    if before is None:
        shape = base_shape(study, name)
        return None if shape is None else shape.context
    own, spec = context_of(study, before), study.checkpoints[owner(name)]
    if own is None or not isinstance(spec, TrainSpec):
        return own
    if spec.rope is not None and spec.rope.factor is not None:
        own = int(own * spec.rope.factor)
    return max(own, spec.seq_len)


def model_problems(study: Study) -> Iterator[str]:
    """Trainings that their stage would refuse; to be asked of a study whose names are right and that has no cycle."""
    for name, spec in study.checkpoints.items():
        if not isinstance(spec, TrainSpec):
            continue
        here, own, shape = f"checkpoints.{name}", context_of(study, spec.start), base_shape(study, spec.start)
        if own is not None and spec.seq_len > own and spec.rope is None and not spec.allow_longer:
            yield (
                f"{here}.seq_len: rows of {spec.seq_len} tokens are longer than the {own} that {spec.start!r} was made "
                "for; say how with 'rope' (theta or scaling), or set 'allow_longer: true' to train on them as they are"
            )
        if spec.context_parallel > 1 and shape is not None and any(isinstance(part, Mamba) for part in shape.parts):
            yield (
                f"{here}.context_parallel: {spec.start!r} has Mamba layers, whose state runs along the row, so that no "
                "process can begin before the one in front of it has ended; set it to 1"
            )
