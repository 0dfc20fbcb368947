"""Checkpoints laid side by side: which tensors (and which parts of fused tensors) correspond, and which do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prismlab.arith.kernels import Stored
from prismlab.errors import CheckpointError, shown
from prismlab.model.families import (
    COMPONENTS,
    FAMILIES,
    SUBCOMPONENTS,
    Location,
    by_canonical,
    canonical,
    flat_ranges,
    locate,
    tied_head,
)
from prismlab.model.folder import read_config, unread_weights
from prismlab.model.tensors import STORED, TensorView, model_type, open_checkpoint

CHUNK = 1 << 19
"""Elements read at a time, where nothing else is asked for."""

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
    """One a checkpoint, of equal shapes; of a grown vocabulary the first axis may differ, and ``ranges`` are of the
    rows that all have."""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return sum(stop - start for start, stop in self.ranges)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor, cut to the rows that all checkpoints have."""
        shapes = [view.shape for view in self.views]
        return shapes[0] if not shapes[0] else (min(shape[0] for shape in shapes), *shapes[0][1:])

    def spans(self, size: int = CHUNK) -> Iterator[tuple[int, int]]:
        """Its elements in order, as ranges of at most ``size``."""
        for start, stop in self.ranges:
            for begin in range(start, stop, size):
                yield begin, min(stop, begin + size)

    def chunks(self, size: int = CHUNK) -> Iterator[tuple[Stored, ...]]:
        """Corresponding elements of all checkpoints as stored, at most ``size`` at a time; for many use ``fold``."""
        for start, stop in self.spans(size):
            buffers = tuple(np.empty(stop - start, STORED[view.dtype]) for view in self.views)
            for view, buffer in zip(self.views, buffers, strict=True):
                view.read_into(start, stop, buffer)
            yield buffers


def _listed(labels: Sequence[str], views: Sequence[TensorView]) -> str:
    return ", ".join(f"{label} {list(view.shape)}" for label, view in zip(labels, views, strict=True))


def _rows_in_common(views: Sequence[TensorView], where: Location) -> int | None:
    """Rows that all have, of embeddings and heads that differ in the first axis alone: a vocabulary that has grown."""
    shapes = [view.shape for view in views]
    if where.component not in ("embedding", "head") or min(map(len, shapes)) < 2:
        return None
    return min(shape[0] for shape in shapes) if len({shape[1:] for shape in shapes}) == 1 else None


def _fault(found: Sequence[TensorView | None], labels: Sequence[str], where: Location) -> str | None:
    """Why a tensor cannot be compared, or None."""
    absent = [label for view, label in zip(found, labels, strict=True) if view is None]
    if absent:
        return f"not in {', '.join(absent)}"
    views = [view for view in found if view is not None]
    if len({view.shape for view in views}) > 1 and not _rows_in_common(views, where):
        return f"shapes differ: {_listed(labels, views)}"
    unread = next((view for view in views if not view.readable), None)
    return f"{unread.dtype} is not compared" if unread else None


def _pieces(
    name: str, views: tuple[TensorView, ...], where: Location, labels: Sequence[str], skipped: Skipped
) -> Iterator[Part]:
    shape = views[0].shape
    if len({view.shape for view in views}) > 1:
        rows = _rows_in_common(views, where) or 0
        shape = (rows, *shape[1:])
        reason = f"shapes differ: {_listed(labels, views)}; the first {rows} rows, which all have, were compared"
        skipped.append({"name": shown(name), "reason": reason})
    try:
        pieces = flat_ranges(shape, where)
    except ValueError as error:
        skipped.append({"name": shown(name), "reason": str(error)})
        return
    for fine, ranges in pieces:
        yield Part(name, where.layer, where.component, fine, tuple(ranges), views)


def _without_copies(
    named: list[dict[str, TensorView]], tied: Mapping[str, str] | None, labels: Sequence[str], skipped: Skipped
) -> None:
    """Take out, and list, tensors that are second copies of another (a tied head)."""
    for name, first in (tied or {}).items():
        holders = [label for views, label in zip(named, labels, strict=True) if name in views]
        if holders:
            for views in named:
                views.pop(name, None)
            reason = f"tied: a copy of {first}, which is compared, in {', '.join(holders)}; it counts once"
            skipped.append({"name": shown(name), "reason": reason})


def match(
    files: Sequence[Mapping[str, TensorView]],
    labels: Sequence[str],
    model_type: str,
    tied: Mapping[str, str] | None = None,
) -> tuple[list[Part], Skipped]:
    """Parts that all checkpoints have, and the tensors that not all have, have in other shapes, or cannot be compared.

    Embeddings and heads whose first axis alone differs (a vocabulary that has grown) are compared over the rows that
    all have, and listed.

    Args:
        files: the tensors of each checkpoint.
        labels: what to call each in a reason.
        model_type: of all of them, for the names.
        tied: names of tensors that are copies of another, and of which; they are left out and listed.

    Raises:
        CheckpointError: no tensor corresponds: these are not checkpoints of one model; or a file has one tensor twice.
    """
    named = [by_canonical(file, model_type, label) for file, label in zip(files, labels, strict=True)]
    parts: list[Part] = []
    skipped: Skipped = []
    _without_copies(named, tied, labels, skipped)
    for name in sorted(set().union(*named)):
        found = [views.get(name) for views in named]
        where = locate(name, model_type)
        fault = _fault(found, labels, where)
        if fault is None:
            views = tuple(view for view in found if view is not None)
            parts += _pieces(name, views, where, labels, skipped)
        else:
            skipped.append({"name": shown(name), "reason": fault})
    if not parts:
        some = f"; {skipped[0]['name']}: {skipped[0]['reason']}" if skipped else ""
        raise CheckpointError(f"{', '.join(labels)}: no tensor is in all of them with one shape{some}")
    return parts, skipped


@dataclass(frozen=True)
class Layout:
    """Checkpoints side by side."""

    parts: list[Part]
    skipped: Skipped
    """``{name, reason}`` of whatever is not compared, or not in full."""
    model_type: str
    """Of all of them."""

    @property
    def elements(self) -> int:
        """Elements that are compared."""
        return sum(part.elements for part in self.parts)


def lay_out(folders: Mapping[str, Path], config: Path | None = None) -> Layout:
    """Open checkpoints and lay their tensors side by side; a tied head that is stored besides counts once.

    Args:
        folders: checkpoints in the Hugging Face layout by the label that reasons give them.
        config: the folder whose config speaks for all, where they need none of their own (snapshots of a run).

    Raises:
        CheckpointError: a checkpoint is damaged, or they have nothing to compare.
    """
    configs = [config or folder for folder in folders.values()]
    kind = one_type({label: model_type(folder) for label, folder in zip(folders, configs, strict=True)})
    files = [open_checkpoint(folder) for folder in folders.values()]
    heads = [name for file in files for name in file if name.endswith("lm_head.weight")]
    tied: dict[str, str] = {}
    if heads:
        copies = [tied_head(file, read_config(folder)) for file, folder in zip(files, configs, strict=True)]
        # A head that any checkpoint stores with values of its own is a tensor like others.
        if all(copy is not None or heads[0] not in file for copy, file in zip(copies, files, strict=True)):
            tied[canonical(heads[0], kind)] = "the embedding"
    parts, skipped = match(files, list(folders), kind, tied)
    for label, folder in folders.items():
        reason = f"a weight file in {label} that its index does not name: not read"
        skipped += [{"name": shown(name), "reason": reason} for name in unread_weights(folder)]
    if not known(kind):
        reason = f"the architecture {shown(kind)} has no table of components: compared tensor by tensor, as 'other'"
        skipped.append({"name": "model_type", "reason": reason})
    return Layout(parts, skipped, kind)


def known(model_type: str) -> bool:
    """Whether tensors of this architecture have components; else they are compared one by one, as ``other``."""
    return model_type in FAMILIES


def one_type(kinds: Mapping[str, str]) -> str:
    """The ``model_type`` that all checkpoints share.

    Args:
        kinds: ``model_type`` by label.

    Raises:
        CheckpointError: they differ.
    """
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{label}: {shown(kind)}" for label, kind in kinds.items())
        raise CheckpointError(f"weights of different architectures cannot be compared ({listed})")
    return next(iter(kinds.values()))


def subcomponent_order(names: Sequence[str]) -> list[str]:
    """``names`` as tables show them: the known ones in their order, then tensors by name."""
    rank = {name: k for k, name in enumerate(SUBCOMPONENTS)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def component_order(names: Sequence[str]) -> list[str]:
    """``names`` in the order of ``COMPONENTS``."""
    return [name for name in COMPONENTS if name in names]
