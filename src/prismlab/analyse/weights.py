"""Weight divergence and sparsity between two checkpoints (stage ``weights``).

Divergence is ||new - old|| / ||old||; an element counts as changed at threshold t if |new - old| > t |old| (tables 12,
13 and 22 of the reference study). Sums of squares and counts are kept, so every total is exact over its parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prismlab.analyse import kernels
from prismlab.analyse.kernels import threshold_key
from prismlab.analyse.parts import Part, component_order, match, one_type, subcomponent_order
from prismlab.errors import SpecError
from prismlab.model.tensors import model_type, open_checkpoint
from prismlab.run.step import Artifact, Json, Progress, Result, Silent


def divergence_json(sums: kernels.Sums) -> dict[str, Json]:
    """DIV of the house plan: l2, elements, shares changed and equal, old zeros; ``reason`` where l2 is null."""
    n = sums.elements
    out: dict[str, Json] = {
        "l2": sums.l2,
        "elements": n,
        "changed": {
            threshold_key(t): count / n if n else None for t, count in zip(sums.thresholds, sums.changed, strict=True)
        },
        "equal": sums.equal / n if n else None,
        "zeros_old": sums.zeros_old,
    }
    if sums.l2 is None:
        out["reason"] = "no elements" if n == 0 else "the old norm is 0" if sums.old2 == 0 else "beyond float64"
    return out


def measure(part: Part, thresholds: Sequence[float], kernel: str) -> kernels.Sums:
    """The sums of one part of two checkpoints."""
    sums = kernels.Sums(tuple(thresholds))
    for old, new in part.chunks():
        sums.add(kernels.divergence(old, new, thresholds, kernel))
    return sums


class _Tally:
    """Sums by component, sub-component and layer, added up as parts come."""

    def __init__(self, thresholds: tuple[float, ...]) -> None:
        self.thresholds = thresholds
        self.total = kernels.Sums(thresholds)
        self.components: dict[str, kernels.Sums] = {}
        self.subcomponents: dict[str, kernels.Sums] = {}
        self.layers: dict[int, dict[str, kernels.Sums]] = {}

    def add(self, part: Part, sums: kernels.Sums) -> None:
        places = [(self.components, part.component), (self.subcomponents, part.subcomponent)]
        if part.layer is not None:
            places.append((self.layers.setdefault(part.layer, {}), part.component))
        self.total.add(sums)
        for place, key in places:
            place.setdefault(key, kernels.Sums(self.thresholds)).add(sums)

    def to_json(self) -> dict[str, Json]:
        fine = subcomponent_order(list(self.subcomponents))
        return {
            "total": divergence_json(self.total),
            "components": {k: divergence_json(self.components[k]) for k in component_order(list(self.components))},
            "subcomponents": {k: divergence_json(self.subcomponents[k]) for k in fine},
            "layers": {
                str(layer): {k: divergence_json(by[k]) for k in component_order(list(by))}
                for layer, by in sorted(self.layers.items())
            },
        }


def _row(part: Part, sums: kernels.Sums) -> dict[str, Any]:
    old, new = part.views
    row = {
        "name": part.name,
        "layer": part.layer,
        "component": part.component,
        "subcomponent": part.subcomponent,
        "shape": list(old.shape),
        "dtype_old": old.dtype,
        "dtype_new": new.dtype,
        "elements": sums.elements,
        "nonfinite": sums.nonfinite,
        "l2": sums.l2,
        "difference2": sums.difference2,
        "old2": sums.old2,
        "new2": sums.new2,
        "equal": sums.equal,
        "zeros_old": sums.zeros_old,
        "zeros_changed": sums.zeros_changed,
    }
    return row | {f"changed_{threshold_key(t)}": n for t, n in zip(sums.thresholds, sums.changed, strict=True)}


def _schema(thresholds: Sequence[float]) -> pa.Schema:
    text, count, real = pa.string(), pa.int64(), pa.float64()
    kinds: dict[str, pa.DataType] = {
        "name": text,
        "layer": count,
        "component": text,
        "subcomponent": text,
        "shape": pa.list_(count),
        "dtype_old": text,
        "dtype_new": text,
        "elements": count,
        "nonfinite": count,
        "l2": real,
        "difference2": real,
        "old2": real,
        "new2": real,
        "equal": count,
        "zeros_old": count,
        "zeros_changed": count,
    }
    kinds |= {f"changed_{threshold_key(t)}": count for t in thresholds}
    return pa.schema(list(kinds.items()))


def compare(
    old_folder: Path, new_folder: Path, thresholds: Sequence[float], progress: Progress
) -> tuple[dict[str, Json], list[dict[str, Any]]]:
    """Metrics of the stage, and one row a tensor part."""
    levels = tuple(sorted({float(t) for t in thresholds}))
    kind = one_type({"old": model_type(old_folder), "new": model_type(new_folder)})
    parts, skipped = match([open_checkpoint(old_folder), open_checkpoint(new_folder)], ["old", "new"], kind)
    kernel = kernels.choose(sum(part.elements for part in parts))
    tally, rows = _Tally(levels), []
    progress.start(len(parts), "tensors")
    for part in parts:
        sums = measure(part, levels, kernel)
        tally.add(part, sums)
        rows.append(_row(part, sums))
        if sums.nonfinite:
            reason = f"{part.subcomponent}: {sums.nonfinite} elements are NaN or infinite and were left out"
            skipped.append({"name": part.name, "reason": reason})
        progress.advance()
    return {**tally.to_json(), "skipped": skipped, "nonfinite": tally.total.nonfinite, "kernel": kernel}, rows


def diff(
    old_folder: Path, new_folder: Path, thresholds: Sequence[float], progress: Progress | None = None
) -> dict[str, Json]:
    """How far ``new_folder`` is from ``old_folder``.

    Args:
        old_folder: a checkpoint in the Hugging Face layout.
        new_folder: another one of the same architecture.
        thresholds: relative changes, above 0.

    Returns:
        ``total``, ``components``, ``subcomponents`` and ``layers`` as DIV of the house plan; ``skipped``, a list of
        ``{name, reason}`` of whatever was not compared in full; ``nonfinite``; ``kernel``, the pass that ran.

    Raises:
        CheckpointError: a checkpoint is damaged, or the two have nothing to compare.
    """
    return compare(Path(old_folder), Path(new_folder), thresholds, progress or Silent())[0]


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``weights``: see the house plan for its config, inputs and metrics.

    Raises:
        CheckpointError: a checkpoint is damaged, or the two have nothing to compare.
        SpecError: no thresholds.
    """
    thresholds = config["thresholds"]
    if not thresholds:
        raise SpecError("'thresholds' is empty: name at least one relative change, for example 0.01")
    metrics, rows = compare(inputs["old"].model, inputs["new"].model, thresholds, progress)
    if metrics["skipped"]:
        progress.note(f"{len(metrics['skipped'])} tensors were not compared in full, see 'skipped' in the record")
    schema = _schema(sorted({float(t) for t in thresholds}))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out / "tensors.parquet")
    return Result(metrics=metrics)
