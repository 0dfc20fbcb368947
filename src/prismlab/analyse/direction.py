"""Cosines between the updates of k checkpoints that start from one base (stage ``direction``), whole and by part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismlab.analyse.kernels import Array
from prismlab.analyse.parts import component_order, match, one_type, subcomponent_order
from prismlab.errors import CheckpointError
from prismlab.model.tensors import model_type, open_checkpoint
from prismlab.run.step import Artifact, Json, Progress, Result, Silent

BASE = "base"
"""What the base is called where a reason names checkpoints."""


@dataclass
class Updates:
    """Sums over k updates x_i - base."""

    products: NDArray[np.float64]
    """[k, k]: sums of (x_i - base)(x_j - base)."""
    base2: float = 0.0
    """Sum of base^2."""
    elements: int = 0
    """Elements finite in all."""
    nonfinite: int = 0
    """Elements left out because one of them is NaN or infinite."""

    def add(self, other: Updates) -> None:
        """Take in the sums of another part."""
        self.products = self.products + other.products
        self.base2 += other.base2
        self.elements += other.elements
        self.nonfinite += other.nonfinite


def updates(base: Array, others: tuple[Array, ...]) -> Updates:
    """The sums of one chunk."""
    finite = np.logical_and.reduce([np.isfinite(side) for side in (base, *others)])
    left_out = int(base.size - np.count_nonzero(finite))
    start = base[finite].astype(np.float64)
    moved = [other[finite].astype(np.float64) - start for other in others]
    products = np.array([[np.multiply(a, b).sum() for b in moved] for a in moved])
    return Updates(products, float(np.multiply(start, start).sum()), start.size, left_out)


@dataclass
class Directions:
    """What is known of the updates of one part."""

    sums: Updates
    names: list[str] = field(default_factory=list[str])

    def cosine(self) -> list[list[float | None]]:
        """[k, k], held to [-1, 1] against rounding; null in the row and the column of an update that is zero."""
        # Two roots, not the root of a product: the product of two small sums can underflow.
        norms = [math.sqrt(square) for square in np.diag(self.sums.products)]
        rows: list[list[float | None]] = []
        for i, mine in enumerate(norms):
            row: list[float | None] = []
            for j, its in enumerate(norms):
                norm = mine * its
                ratio = float(self.sums.products[i, j]) / norm if norm > 0 else math.nan
                exact = 1.0 if i == j and math.isfinite(ratio) else ratio
                row.append(max(-1.0, min(1.0, exact)) if math.isfinite(exact) else None)
            rows.append(row)
        return rows

    def lengths(self) -> dict[str, float | None]:
        """||x - base|| / ||base|| by name; null where the base's norm is 0."""
        base = math.sqrt(self.sums.base2)
        squares = np.diag(self.sums.products)
        return {
            name: math.sqrt(square) / base if base > 0 else None
            for name, square in zip(self.names, squares, strict=True)
        }

    def reason(self) -> str | None:
        """Why there are nulls in ``cosine``, or None."""
        squares = np.diag(self.sums.products)
        still = [name for name, square in zip(self.names, squares, strict=True) if square == 0]
        if still:
            return f"{' and '.join(still)} did not move from the base"
        return None if np.isfinite(self.sums.products).all() else "a sum is beyond float64"


def cosines(base: Path, folders: Mapping[str, Path], progress: Progress | None = None) -> dict[str, Json]:
    """Directions of x - base for every x of ``folders``, in one pass over all files.

    Args:
        base: a checkpoint in the Hugging Face layout.
        folders: checkpoints of the same architecture by name, one or more.

    Returns:
        ``names``; ``cosine`` of the whole, [k][k] in the order of the names; ``l2``, the updates' norms over the base's
        norm by name; ``components``, ``subcomponents`` and ``layers`` (by number), [k][k] each by part; ``reasons`` by
        part (``whole`` among them) where a cosine is null; ``elements``; ``skipped`` and ``nonfinite`` as in the stage
        ``weights``.

    Raises:
        CheckpointError: a checkpoint is damaged, or they have nothing to compare, or there is none.
    """
    if not folders:
        raise CheckpointError("no checkpoint was given whose update from the base could be measured")
    progress, names = progress or Silent(), list(folders)
    labels = [BASE, *names]
    everything = [Path(base), *map(Path, folders.values())]
    kind = one_type({label: model_type(folder) for label, folder in zip(labels, everything, strict=True)})
    parts, skipped = match([open_checkpoint(folder) for folder in everything], labels, kind)
    named: dict[tuple[str, str], Updates] = {}
    progress.start(len(parts), "tensors")
    for part in parts:
        sums = Updates(np.zeros((len(names), len(names))))
        for start, *others in part.chunks():
            sums.add(updates(start, tuple(others)))
        layer = [] if part.layer is None else [("layers", str(part.layer))]
        keys = [("", "whole"), ("components", part.component), ("subcomponents", part.subcomponent), *layer]
        for key in keys:
            named.setdefault(key, Updates(np.zeros((len(names), len(names))))).add(sums)
        if sums.nonfinite:
            reason = f"{part.subcomponent}: {sums.nonfinite} elements are NaN or infinite and were left out"
            skipped.append({"name": part.name, "reason": reason})
        progress.advance()
    return _metrics({key: Directions(sums, names) for key, sums in named.items()}, skipped)


def _metrics(found: Mapping[tuple[str, str], Directions], skipped: list[dict[str, str]]) -> dict[str, Json]:
    whole = found["", "whole"]

    def by(group: str, order: list[str]) -> dict[str, Json]:
        return {name: found[group, name].cosine() for name in order}

    def names(group: str) -> list[str]:
        return [name for kind, name in found if kind == group]

    reasons = {
        name: reason
        for (group, name), one in found.items()
        if group != "layers" and (reason := one.reason()) is not None
    }
    return {
        "names": whole.names,
        "cosine": whole.cosine(),
        "l2": whole.lengths(),
        "components": by("components", component_order(names("components"))),
        "subcomponents": by("subcomponents", subcomponent_order(names("subcomponents"))),
        "layers": by("layers", sorted(names("layers"), key=int)),
        "reasons": reasons,
        "elements": whole.sums.elements,
        "skipped": skipped,
        "nonfinite": whole.sums.nonfinite,
    }


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``direction``: see the house plan for its config, inputs and metrics; it writes no file.

    Raises:
        CheckpointError: a checkpoint is damaged, or they have nothing to compare.
    """
    folders = {name: inputs[name].model for name in config["names"]}
    return Result(metrics=cosines(inputs[config["base"]].model, folders, progress))
