"""Cosine between two updates that start from one base (stage ``direction``), whole and by part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from prismlab.analyse.kernels import Products, choose, products
from prismlab.analyse.parts import component_order, match, one_type, subcomponent_order
from prismlab.model.tensors import model_type, open_checkpoint
from prismlab.run.step import Artifact, Json, Progress, Result, Silent


def _reason(sums: Products) -> str | None:
    """Why there is no cosine, or None."""
    if sums.cosine is not None:
        return None
    still = [label for label, squares in (("a", sums.a2), ("b", sums.b2)) if squares == 0]
    return f"{' and '.join(still)} did not move from base" if still else "a sum is beyond float64"


def _length(squares: float, base2: float) -> float | None:
    return math.sqrt(squares) / math.sqrt(base2) if base2 > 0 else None


def cosines(base: Path, a: Path, b: Path, progress: Progress | None = None) -> dict[str, Json]:
    """Directions of a - base and b - base.

    Args:
        base: a checkpoint in the Hugging Face layout.
        a: a checkpoint of the same architecture.
        b: another one.

    Returns:
        ``cosine`` of the whole; ``l2_a`` and ``l2_b``, the updates' norms over the base's norm; ``components`` and
        ``subcomponents``, cosine by name; ``reasons`` by name (``whole`` among them) where a cosine is null;
        ``skipped``, ``nonfinite`` and ``kernel`` as in the stage ``weights``.

    Raises:
        CheckpointError: a checkpoint is damaged, or they have nothing to compare.
    """
    progress = progress or Silent()
    folders = {"base": Path(base), "a": Path(a), "b": Path(b)}
    kind = one_type({label: model_type(folder) for label, folder in folders.items()})
    parts, skipped = match([open_checkpoint(folder) for folder in folders.values()], list(folders), kind)
    whole, coarse, fine = Products(), dict[str, Products](), dict[str, Products]()
    kernel = choose(sum(part.elements for part in parts))
    progress.start(len(parts), "tensors")
    for part in parts:
        sums = Products()
        for old, to_a, to_b in part.chunks():
            sums.add(products(old, to_a, to_b, kernel))
        whole.add(sums)
        coarse.setdefault(part.component, Products()).add(sums)
        fine.setdefault(part.subcomponent, Products()).add(sums)
        if sums.nonfinite:
            reason = f"{part.subcomponent}: {sums.nonfinite} elements are NaN or infinite and were left out"
            skipped.append({"name": part.name, "reason": reason})
        progress.advance()
    everything = {"whole": whole, **coarse, **fine}
    return {
        "cosine": whole.cosine,
        "l2_a": _length(whole.a2, whole.base2),
        "l2_b": _length(whole.b2, whole.base2),
        "components": {name: coarse[name].cosine for name in component_order(list(coarse))},
        "subcomponents": {name: fine[name].cosine for name in subcomponent_order(list(fine))},
        "reasons": {name: reason for name, sums in everything.items() if (reason := _reason(sums)) is not None},
        "elements": whole.elements,
        "skipped": skipped,
        "nonfinite": whole.nonfinite,
        "kernel": kernel,
    }


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``direction``: see the house plan for its inputs and metrics; it writes no file.

    Raises:
        CheckpointError: a checkpoint is damaged, or they have nothing to compare.
    """
    return Result(metrics=cosines(inputs["base"].model, inputs["a"].model, inputs["b"].model, progress))
