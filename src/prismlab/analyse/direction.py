"""Cosines between the updates of k checkpoints that start from one base (stage ``direction``), whole and by part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prismlab.arith import kernels
from prismlab.arith.fold import fold
from prismlab.arith.kernels import Stored
from prismlab.arith.parts import component_order, lay_out, subcomponent_order
from prismlab.arith.sums import Updates
from prismlab.errors import CheckpointError, shown
from prismlab.run.step import Artifact, Json, Progress, Result, Silent

BASE = "the base"
"""What the base is called where a reason names checkpoints."""
WHOLE = "whole"
Place = tuple[str, str]
"""A group of parts and the name of one in it."""


def cosines(
    base: Path, folders: Mapping[str, Path], progress: Progress | None = None, device: str = "cpu"
) -> dict[str, Json]:
    """Directions of x - base for every x of ``folders``, in one pass over all files.

    Args:
        base: a checkpoint in the Hugging Face layout.
        folders: checkpoints of the same architecture by name, one or more.
        progress: told of every tensor.
        device: where to compute, see ``arith.kernels.choose``.

    Returns:
        ``names``; ``cosine`` of the whole, [k][k] in the order of the names; ``l2``, the updates' norms over the base's
        norm by name; ``components``, ``subcomponents`` and ``layers`` (by number), [k][k] each by part; ``reasons`` by
        part (``whole`` and ``layer 3`` among them) where a cosine is null; ``elements``; ``skipped``, ``nonfinite`` and
        ``kernel`` as in the stage ``weights``.

    Raises:
        CheckpointError: a checkpoint is damaged, or they have nothing to compare, or there is none.
    """
    if not folders:
        raise CheckpointError("no checkpoint was given whose update from the base could be measured")
    bar, names = progress or Silent(), list(folders)
    label = BASE
    while label in folders:
        label += "*"
    layout = lay_out({label: Path(base), **{name: Path(folder) for name, folder in folders.items()}})
    kernel, skipped = kernels.choose(layout.elements, device), list(layout.skipped)
    found: dict[Place, Updates] = {}
    bar.start(len(layout.parts), "tensors")

    def visit(start: Stored, *others: Stored) -> Updates:
        return kernels.updates(start, others, kernel)

    for part, sums in fold(layout.parts, visit, bar, size=kernels.chunk_size(kernel)):
        places = [("", WHOLE), ("components", part.component), ("subcomponents", part.subcomponent)]
        places += [] if part.layer is None else [("layers", str(part.layer))]
        for place in places:
            found.setdefault(place, Updates.zero(len(names))).add(sums)
        if sums.nonfinite:
            reason = f"{part.subcomponent}: {sums.nonfinite} elements are NaN or infinite and were left out"
            skipped.append({"name": shown(part.name), "reason": reason})
    return {**_metrics(found, names), "skipped": skipped, "nonfinite": found["", WHOLE].nonfinite, "kernel": kernel}


def _table(sums: Updates, k: int) -> list[list[float | None]]:
    return [[sums.cosine(a, b) for b in range(k)] for a in range(k)]


def _reason(sums: Updates, names: list[str]) -> str | None:
    """Why there are nulls among the cosines, or None."""
    still = [name for k, name in enumerate(names) if sums.square(k) == 0]
    if still:
        return f"{' and '.join(still)} did not move from the base"
    return "a sum is beyond float64" if any(None in row for row in _table(sums, len(names))) else None


def _metrics(found: Mapping[Place, Updates], names: list[str]) -> dict[str, Json]:
    whole, k = found["", WHOLE], len(names)

    def members(group: str) -> list[str]:
        return [name for kind, name in found if kind == group]

    def tables(group: str, order: list[str]) -> dict[str, Json]:
        return {name: _table(found[group, name], k) for name in order}

    told = {f"layer {at}" if kind == "layers" else at: _reason(sums, names) for (kind, at), sums in found.items()}
    return {
        "names": names,
        "cosine": _table(whole, k),
        "l2": {name: whole.length(at) for at, name in enumerate(names)},
        "components": tables("components", component_order(members("components"))),
        "subcomponents": tables("subcomponents", subcomponent_order(members("subcomponents"))),
        "layers": tables("layers", sorted(members("layers"), key=int)),
        "reasons": {name: reason for name, reason in told.items() if reason is not None},
        "elements": whole.elements,
    }


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``direction``: see the house plan for its config, inputs and metrics; it writes no file.

    Raises:
        CheckpointError: a checkpoint is damaged, or they have nothing to compare.
    """
    folders = {name: inputs[name].model for name in config["names"]}
    return Result(metrics=cosines(inputs[config["base"]].model, folders, progress))
