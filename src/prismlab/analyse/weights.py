"""Weight divergence between checkpoints (stage ``weights``).

Divergence is ||new - old|| / ||old||; an element counts as changed at threshold t if |new - old| > t |old| (tables 12,
13 and 22 of the reference study). Beyond the paper: distance in steps of the saved format, sign flips, old zeros. Sums
of squares and counts are kept, so every total is exact over its parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismlab.arith import kernels
from prismlab.arith.fold import fold
from prismlab.arith.kernels import Stored
from prismlab.arith.parts import Layout, Part, component_order, lay_out, subcomponent_order
from prismlab.arith.sums import ULP_CLASSES, Sums, rising, threshold_key
from prismlab.errors import CheckpointError, shown
from prismlab.run.step import Artifact, Json, Progress, Result, Silent

if TYPE_CHECKING:
    import pyarrow as pa

OLD, NEW = "old", "new"
"""What two checkpoints are called where a reason names them."""
MASTER = "master"
"""Folder of an artifact with the weights before they were rounded."""


def _share(counted: int, n: int) -> float | None:
    return counted / n if n else None


def _ulp(sums: Sums) -> dict[str, Json]:
    n = sums.ulp_elements
    shares = {name: number / n for name, number in zip(ULP_CLASSES, sums.ulp, strict=True)} if n else None
    out: dict[str, Json] = {"ulp": shares}
    if n < sums.elements:
        some = f"{sums.elements - n} of {sums.elements} elements are" if n else "they are"
        out["ulp_reason"] = f"steps are counted between equal types: {some} saved in two types"
    elif not n:
        out["ulp_reason"] = "no elements"
    return out


def divergence_json(sums: Sums) -> dict[str, Json]:
    """DIV of the house plan: l2, shares changed and equal, steps, sign flips, zeros; reasons where some are null."""
    n = sums.elements
    changed = {threshold_key(t): _share(k, n) for t, k in zip(sums.thresholds, sums.changed, strict=True)}
    out: dict[str, Json] = {"l2": sums.l2, "elements": n, "changed": changed, "equal": _share(sums.equal, n)}
    out |= {**_ulp(sums), "sign_flips": _share(sums.sign_flips, n)}
    out |= {"zeros_old": sums.zeros_old, "zeros_changed": sums.zeros_changed}
    if sums.l2 is None:
        still = "the old norm is 0" if sums.old2 == 0 and sums.zeros_old == n else "its squares are beyond float64"
        out["reason"] = still if n else "no elements"
    return out


def keys_of(names: Sequence[str]) -> dict[str, str]:
    """Names from files as keys of a record: short and printable; names that then look alike are numbered."""
    out: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        key, n = shown(name), 2
        while key in taken:
            key, n = f"{shown(name)} ({n})", n + 1
        taken.add(key)
        out[name] = key
    return out


@dataclass
class _Tally:
    """Sums by component, sub-component and layer, added up as parts come."""

    thresholds: tuple[float, ...]
    total: Sums
    components: dict[str, Sums] = field(default_factory=dict[str, Sums])
    subcomponents: dict[str, Sums] = field(default_factory=dict[str, Sums])
    layers: dict[int, dict[str, Sums]] = field(default_factory=dict[int, dict[str, Sums]])
    types: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    """Elements by the type in which each side saves them."""

    def add(self, part: Part, types: Mapping[str, str], sums: Sums) -> None:
        places = [(self.components, part.component), (self.subcomponents, part.subcomponent)]
        if part.layer is not None:
            places.append((self.layers.setdefault(part.layer, {}), part.component))
        self.total.add(sums)
        for place, key in places:
            place.setdefault(key, Sums(self.thresholds)).add(sums)
        for side, dtype in types.items():
            met = self.types.setdefault(side, {})
            met[dtype] = met.get(dtype, 0) + part.elements

    def to_json(self) -> dict[str, Json]:
        """``total``, ``components``, ``subcomponents``, ``layers`` and ``format``."""
        fine = keys_of(subcomponent_order(list(self.subcomponents)))
        return {
            "total": divergence_json(self.total),
            "components": {k: divergence_json(self.components[k]) for k in component_order(list(self.components))},
            "subcomponents": {key: divergence_json(self.subcomponents[name]) for name, key in fine.items()},
            "layers": {
                str(layer): {k: divergence_json(by[k]) for k in component_order(list(by))}
                for layer, by in sorted(self.layers.items())
            },
            "format": self.types,
        }


def _row(part: Part, types: Mapping[str, str], sums: Sums) -> dict[str, Any]:
    row = {
        "name": part.name,
        "layer": part.layer,
        "component": part.component,
        "subcomponent": part.subcomponent,
        "shape": list(part.shape),
        "dtype_old": types[OLD],
        "dtype_new": types[NEW],
        "l2": sums.l2,
    }
    counted = ("elements", "nonfinite", "difference2", "old2", "equal", "zeros_old", "zeros_changed", "sign_flips")
    row |= {name: getattr(sums, name) for name in counted}
    row |= {
        f"ulp_{name}": number if sums.ulp_elements else None for name, number in zip(ULP_CLASSES, sums.ulp, strict=True)
    }
    return row | {f"changed_{threshold_key(t)}": n for t, n in zip(sums.thresholds, sums.changed, strict=True)}


@dataclass
class Found:
    """What is known of one checkpoint against the old one."""

    metrics: dict[str, Json]
    rows: list[dict[str, Any]]
    """One a tensor, or a sub-component of a fused tensor: counts and sums, from which all metrics follow."""
    sums: list[Sums]
    """The same, row by row."""

    def table(self) -> pa.Table:
        """The rows in the order of their names."""
        import pyarrow as pa

        text, count, real = pa.string(), pa.int64(), pa.float64()
        known = {"shape": pa.list_(count), "l2": real, "difference2": real, "old2": real}
        known |= dict.fromkeys(("name", "component", "subcomponent", "dtype_old", "dtype_new"), text)
        schema = pa.schema([(name, known.get(name, count)) for name in self.rows[0]])
        rows = sorted(self.rows, key=lambda row: (row["name"], row["subcomponent"]))
        return pa.Table.from_pylist(rows, schema=schema)


@dataclass
class _Column:
    """Sums of one part of every new checkpoint."""

    sums: list[Sums]

    def add(self, other: _Column) -> None:
        for mine, its in zip(self.sums, other.sums, strict=True):
            mine.add(its)


def _measure(
    layout: Layout,
    names: Sequence[str],
    levels: tuple[float, ...],
    bar: Progress,
    device: str,
    threads: int | None,
) -> dict[str, Found]:
    """One pass over checkpoints laid out as old, then ``names``."""
    kernel = kernels.choose(layout.elements, device)

    def visit(old: Stored, *news: Stored) -> _Column:
        return _Column([kernels.divergence(old, new, levels, kernel) for new in news])

    tallies = {name: _Tally(levels, Sums(levels)) for name in names}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    kept: dict[str, list[Sums]] = {name: [] for name in names}
    skipped = {name: list(layout.skipped) for name in names}
    for part, column in fold(layout.parts, visit, bar, threads=threads, size=kernels.chunk_size(kernel)):
        for at, (name, sums) in enumerate(zip(names, column.sums, strict=True)):
            types = {OLD: part.views[0].dtype, NEW: part.views[at + 1].dtype}
            tallies[name].add(part, types, sums)
            rows[name].append(_row(part, types, sums))
            kept[name].append(sums)
            if sums.nonfinite:
                told = f"{shown(part.subcomponent)}: {sums.nonfinite} elements are NaN or infinite and were left out"
                skipped[name].append({"name": shown(part.name), "reason": told})
    out: dict[str, Found] = {}
    for name, tally in tallies.items():
        rest = {"skipped": skipped[name], "nonfinite": tally.total.nonfinite, "kernel": kernel}
        out[name] = Found({"model_type": layout.model_type, **tally.to_json(), **rest}, rows[name], kept[name])
    return out


def _same(a: Layout, b: Layout) -> bool:
    """Whether two layouts compare the very same parts."""
    return {(p.name, p.ranges) for p in a.parts} == {(p.name, p.ranges) for p in b.parts}


def compare(
    old: Path,
    news: Mapping[str, Path],
    thresholds: Sequence[float],
    progress: Progress | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    svd: str | None = None,
) -> dict[str, Found]:
    """How far each of k checkpoints is from ``old``, in one pass over all files where they hold the same tensors.

    Args:
        old: a checkpoint in the Hugging Face layout.
        news: checkpoints of the same architecture, by name.
        thresholds: relative changes, above 0.
        progress: told of every tensor.
        device: where to compute, see ``arith.kernels.choose``.
        threads: of the CPU; None for as many as the process may use, at most 8.
        svd: a regular expression on tensors' names: the spectra of their updates are measured, too.

    Returns:
        By name, see ``diff``. What is said of one checkpoint does not depend on the others.

    Raises:
        CheckpointError: a checkpoint is damaged, or has nothing to compare with the old one, or there is none.
        SpecError: no threshold, one that is not above 0, or ``svd`` is no regular expression.
    """
    bar, levels = progress or Silent(), rising(thresholds)
    if not news:
        raise CheckpointError(f"{old}: no checkpoint was given to compare it with")
    labels = {name: NEW if len(news) == 1 else name for name in news}
    origin = OLD
    while origin in labels.values():  # a checkpoint of that name must not take the old one's place
        origin += "*"
    pairs = {name: lay_out({origin: Path(old), labels[name]: Path(folder)}) for name, folder in news.items()}
    first, *others = pairs.values()
    if others and all(_same(first, pair) for pair in others):
        joint = lay_out({OLD: Path(old), **{f"{k}": Path(folder) for k, folder in enumerate(news.values())}})
        bar.start(len(joint.parts), "tensors")
        found = _measure(joint, list(pairs), levels, bar, device, threads)
        for name, pair in pairs.items():
            lost = found[name].metrics["skipped"][len(joint.skipped) :]
            found[name].metrics["skipped"] = [*pair.skipped, *lost]
    else:
        bar.start(sum(len(pair.parts) for pair in pairs.values()), "tensors")
        found = {name: _measure(pair, [name], levels, bar, device, threads)[name] for name, pair in pairs.items()}
    if svd is not None:
        from prismlab.analyse.spectrum import chosen, spectra

        for name, pair in pairs.items():
            found[name].metrics["spectra"] = spectra(chosen(pair.parts, svd), bar)
    return found


def diff(
    old_folder: Path,
    new_folder: Path,
    thresholds: Sequence[float],
    progress: Progress | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    svd: str | None = None,
) -> dict[str, Json]:
    """How far ``new_folder`` is from ``old_folder``; for several new ones, and the arguments, see ``compare``.

    Returns:
        ``total``, ``components``, ``subcomponents`` and ``layers`` as DIV of the house plan; ``format``, elements of
        each side by the type in which they are saved; ``model_type``; ``skipped``, a list of ``{name, reason}`` of
        whatever was not compared in full; ``nonfinite``; ``kernel``, the pass that ran; with ``svd`` also ``spectra``
        (see ``spectrum.spectra``).

    Raises:
        CheckpointError: a checkpoint is damaged, or the two have nothing to compare.
        SpecError: a threshold or ``svd`` is not sound.
    """
    found = compare(old_folder, {NEW: new_folder}, thresholds, progress, device=device, threads=threads, svd=svd)
    return found[NEW].metrics


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``weights``: see the house plan for its config, inputs and metrics.

    Raises:
        CheckpointError: a checkpoint is damaged, or the two have nothing to compare.
        SpecError: thresholds or ``svd`` are not sound.
    """
    import pyarrow.parquet as pq

    old, new, levels = inputs[OLD].model, inputs[NEW].model, config["thresholds"]
    found = compare(old, {NEW: new}, levels, progress, svd=config.get("svd"))[NEW]
    metrics = found.metrics
    master = inputs[NEW].path / MASTER
    # The master weights belong to what was trained: against any other start than its own they tell nothing.
    if master.is_dir() and _started_from(inputs[NEW], inputs[OLD]):
        from prismlab.analyse.rounding import rounding

        metrics["rounding"] = rounding(old, new, master, levels, progress)
    if metrics["skipped"]:
        progress.note(f"{len(metrics['skipped'])} tensors were not compared in full, see 'skipped' in the record")
    pq.write_table(found.table(), out / "tensors.parquet")
    return Result(metrics=metrics)


def _started_from(new: Artifact, old: Artifact) -> bool:
    start = new.record.get("inputs", {}).get("start", {})
    return isinstance(start, Mapping) and start.get("fingerprint") == old.fingerprint
