"""Checkpoints laid side by side: which tensors (and which parts of fused tensors) correspond, and which do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.errors import CheckpointError
from prismlab.model.families import COMPONENTS, SUBCOMPONENTS, canonical, flat_ranges, locate
from prismlab.model.tensors import TensorView

CHUNK = 1 << 18
"""Elements read at a time: 1 MB as float32, which stays in the cache."""

Skipped = list[dict[str, str]]


@dataclass(frozen=True)
class Part:
    """A tensor, or one sub-component of a fused tensor, in several checkpoints."""

    name: str
    layer: int | None
    component: str
    subcomponent: str
    ranges: tuple[tuple[int, int], ...]
    """Where it lies in the row-major elements."""
    views: tuple[TensorView, ...]
    """One a checkpoint, of equal shapes."""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return sum(stop - start for start, stop in self.ranges)

    def chunks(self, size: int = CHUNK) -> Iterator[tuple[NDArray[np.floating[Any]], ...]]:
        """Corresponding elements of all checkpoints, at most ``size`` at a time."""
        for start, stop in self.ranges:
            for begin in range(start, stop, size):
                end = min(stop, begin + size)
                yield tuple(view.read(begin, end) for view in self.views)


def _fault(views: Sequence[TensorView | None], labels: Sequence[str]) -> str | None:
    """Why a tensor cannot be compared, or None."""
    absent = [label for view, label in zip(views, labels, strict=True) if view is None]
    if absent:
        return f"not in {', '.join(absent)}"
    present = [view for view in views if view is not None]
    if len({view.shape for view in present}) > 1:
        pairs = zip(labels, present, strict=True)
        return "shapes differ: " + ", ".join(f"{label} {list(view.shape)}" for label, view in pairs)
    unread = next((view for view in present if not view.readable), None)
    return f"{unread.dtype} is not compared" if unread else None


def match(
    files: Sequence[Mapping[str, TensorView]], labels: Sequence[str], model_type: str
) -> tuple[list[Part], Skipped]:
    """Parts that all checkpoints have, and the tensors that not all have, have in other shapes, or cannot be compared.

    Args:
        files: the tensors of each checkpoint.
        labels: what to call each in a reason.
        model_type: of all of them, for the names.

    Raises:
        CheckpointError: no tensor corresponds: these are not checkpoints of one model.
    """
    named = [{canonical(name, model_type): view for name, view in file.items()} for file in files]
    parts: list[Part] = []
    skipped: Skipped = []
    for name in sorted(set().union(*named)):
        found = [views.get(name) for views in named]
        fault = _fault(found, labels)
        views = tuple(view for view in found if view is not None)
        where = locate(name, model_type)
        if fault is None:
            try:
                pieces = flat_ranges(views[0].shape, where)
            except ValueError as error:
                fault = str(error)
            else:
                parts += [
                    Part(name, where.layer, where.component, fine, tuple(ranges), views) for fine, ranges in pieces
                ]
        if fault is not None:
            skipped.append({"name": name, "reason": fault})
    if not parts:
        some = f"; {skipped[0]['name']}: {skipped[0]['reason']}" if skipped else ""
        raise CheckpointError(f"{', '.join(labels)}: no tensor is in all of them with one shape{some}")
    return parts, skipped


def one_type(kinds: Mapping[str, str]) -> str:
    """The ``model_type`` that all checkpoints share.

    Args:
        kinds: ``model_type`` by label.

    Raises:
        CheckpointError: they differ.
    """
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{label}: {kind}" for label, kind in kinds.items())
        raise CheckpointError(f"weights of different architectures cannot be compared ({listed})")
    return next(iter(kinds.values()))


def subcomponent_order(names: Sequence[str]) -> list[str]:
    """``names`` as tables show them: the known ones in their order, then tensors by name."""
    rank = {name: k for k, name in enumerate(SUBCOMPONENTS)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def component_order(names: Sequence[str]) -> list[str]:
    """``names`` in the order of ``COMPONENTS``."""
    return [name for name in COMPONENTS if name in names]
