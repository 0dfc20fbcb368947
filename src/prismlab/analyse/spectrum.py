"""Top singular values and stable rank of an update new - old, from a few passes over the two tensors.

Randomised subspace iteration (Halko, Martinsson, Tropp 2011, algorithm 4.4), then the singular values of the matrix
projected on what it found (algorithm 5.1). Each iteration has the next estimate at hand, so iterating stops when the
largest singular value stands still. All values are bounds from below, and they fall in order; the stable rank, which
divides by the largest, is bounded from above.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.arith.kernels import widen
from prismlab.arith.parts import Part
from prismlab.errors import SpecError, shown
from prismlab.model.tensors import STORED, TensorView
from prismlab.run.step import Json, Progress
from prismlab.seeds import derive_seed

Floats = NDArray[np.float64]

TOP = 8
"""Singular values that are told."""
SPARE = 12
"""Directions iterated besides: they speed up the convergence of those told."""
SETTLED = 1e-3
"""Relative growth of the largest singular value below which iterating stops."""
MOST_ITERATIONS = 12
"""Iterations at most: a flat spectrum (noise) converges slowly."""
BLOCK = 1 << 20
"""Elements of the update held at a time: 8 MB of float64."""
HELD = 1 << 22
"""Elements up to which the whole update is held: 32 MB of float64."""


@dataclass(frozen=True)
class Matrix:
    """A part of two checkpoints as a matrix [rows, columns] that can be gone through again and again."""

    views: tuple[TensorView, TensorView]
    start: int
    """Its first element in the row-major elements of both tensors."""
    rows: int
    columns: int

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Rows of new - old: (first row, [at most BLOCK elements of whole rows])."""
        step = max(1, BLOCK // self.columns)
        for row in range(0, self.rows, step):
            count = min(step, self.rows - row)
            begin = self.start + row * self.columns
            sides: list[Floats] = []
            for view in self.views:
                stored = np.empty(count * self.columns, STORED[view.dtype])
                view.read_into(begin, begin + len(stored), stored)
                with np.errstate(invalid="ignore"):  # widening a signalling NaN warns; the caller meets it in the sum
                    sides.append(widen(stored).astype(np.float64))
            old, new = sides
            with np.errstate(invalid="ignore", over="ignore"):
                new -= old
            yield row, new.reshape(count, self.columns)


class _Update:
    """Products with the update, from memory where it is small."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix
        self._held = list(matrix.blocks()) if matrix.rows * matrix.columns <= HELD else None

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        return iter(self._held) if self._held is not None else self._matrix.blocks()

    def times(self, right: Floats) -> tuple[Floats, float]:
        """D @ right [rows, k], and the sum of squares of D."""
        out, square = np.empty((self._matrix.rows, right.shape[1])), 0.0
        with np.errstate(invalid="ignore", over="ignore"):
            for row, block in self.blocks():
                out[row : row + len(block)] = block @ right
                square += float(np.multiply(block, block).sum())
        return out, square

    def transposed_times(self, left: Floats) -> Floats:
        """D.T @ left [columns, k]."""
        out = np.zeros((self._matrix.columns, left.shape[1]))
        for row, block in self.blocks():
            out += block.T @ left[row : row + len(block)]
        return out


@dataclass(frozen=True)
class Spectrum:
    """What was found of one update."""

    frobenius: float
    """Frobenius norm."""
    singular: tuple[float, ...]
    """Largest singular values in falling order, at most ``TOP``."""
    iterations: int
    """Power iterations done."""
    settled: bool
    """Whether the largest value grew by less than ``SETTLED`` in the last iteration."""

    @property
    def stable_rank(self) -> float | None:
        """Frobenius norm squared over the largest singular value squared; None of a zero update."""
        return (self.frobenius / self.singular[0]) ** 2 if self.singular and self.singular[0] > 0 else None


def spectrum(matrix: Matrix, seed: int, top: int = TOP) -> Spectrum:
    """Norms of the update of one matrix.

    Args:
        matrix: where it lies.
        seed: of the random directions.
        top: singular values wanted.

    Raises:
        ValueError: the update is not finite.
        CheckpointError: a file ends too early.
    """
    update, least = _Update(matrix), min(matrix.rows, matrix.columns)
    width = min(least, top + SPARE)
    random = np.random.default_rng(seed).standard_normal((matrix.columns, width))
    reached, square = update.times(random)
    if not math.isfinite(square):
        raise ValueError("the update holds NaN or infinity, or is beyond float64")
    if square == 0:
        return Spectrum(0.0, (), 0, True)
    before, found, done = 0.0, np.zeros(0), 0
    while True:
        basis = np.linalg.qr(reached)[0]
        projected = update.transposed_times(basis)  # the transpose of what algorithm 5.1 takes the SVD of
        turned, found, _ = np.linalg.svd(projected, full_matrices=False)
        settled = width == least or found[0] - before <= SETTLED * found[0]
        if settled or done == MOST_ITERATIONS:
            break
        before, done = found[0], done + 1
        reached, _ = update.times(turned)
    return Spectrum(math.sqrt(square), tuple(float(value) for value in found[: min(top, width)]), done, bool(settled))


def _matrix(part: Part) -> Matrix | None:
    """A part of two checkpoints as a matrix; None if it is none."""
    shape, old, new = part.shape, part.views[0], part.views[1]
    if len(shape) != 2 or len(part.ranges) != 1 or not part.elements:
        return None
    start, stop = part.ranges[0]
    return Matrix((old, new), start, (stop - start) // shape[1], shape[1])


def chosen(parts: Sequence[Part], pattern: str | None) -> list[Part]:
    """Parts whose tensor's name holds a match of a regular expression, by name; none without one.

    Raises:
        SpecError: the pattern is no regular expression.
    """
    if pattern is None:
        return []
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise SpecError(f"{shown(pattern)!r} is no regular expression: {error}") from error
    return sorted((part for part in parts if wanted.search(part.name)), key=lambda part: (part.name, part.ranges))


def _row(part: Part) -> dict[str, Json]:
    row: dict[str, Any] = {
        "name": shown(part.name),
        "layer": part.layer,
        "subcomponent": shown(part.subcomponent),
        "shape": list(part.shape),
    }
    row |= dict.fromkeys(("frobenius", "stable_rank", "singular", "settled", "reason"))
    matrix = _matrix(part)
    if matrix is None:
        return row | {"reason": "not a matrix, or an empty one"}
    row["shape"] = [matrix.rows, matrix.columns]
    seed = derive_seed("spectrum", part.name, part.subcomponent)
    try:
        found = spectrum(matrix, seed)
    except ValueError as error:
        return row | {"reason": str(error)}
    row |= {"frobenius": found.frobenius, "singular": list(found.singular), "settled": found.settled}
    return row | {"stable_rank": found.stable_rank, "reason": None if found.singular else "the update is zero"}


def spectra(parts: Sequence[Part], progress: Progress) -> list[dict[str, Json]]:
    """The spectra of updates of chosen parts of two checkpoints.

    Returns:
        For each ``name``, ``layer``, ``subcomponent``, ``shape`` (of the part), ``frobenius`` (norm of the update),
        ``stable_rank``, ``singular`` (largest values), ``settled`` (whether the largest stood still), ``reason`` where
        they are null.

    Raises:
        CheckpointError: a file ends too early.
    """
    rows: list[dict[str, Json]] = []
    if parts:
        progress.start(len(parts), "matrices")
    for part in parts:
        rows.append(_row(part))
        progress.advance()
    return rows
