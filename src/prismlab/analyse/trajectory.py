"""Divergence and active set of a series of checkpoints against the first (stage ``trajectory``).

The overlap of the active sets of two consecutive snapshots is Jaccard's: elements in both over elements in either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prismlab.arith import trace
from prismlab.arith.parts import one_type
from prismlab.arith.sums import ULP_CLASSES, threshold_key
from prismlab.arith.trace import TOTAL, Measured, Trace
from prismlab.errors import StageError
from prismlab.model.tensors import model_type
from prismlab.run.step import Artifact, Json, Progress, Result

EARLY = 0.4
"""Share of the steps at which ``front_share`` is read."""
_STEP = re.compile(r"step-(\d{1,9})")


def snapshot_folders(run: Path) -> dict[int, Path]:
    """Folders with the weights of a run's snapshots, by step, in rising order."""
    found = {
        int(match[1]): folder
        for folder in (run / "snapshots").glob("step-*")
        if (match := _STEP.fullmatch(folder.name)) and any(folder.glob("*.safetensors"))
    }
    return dict(sorted(found.items()))


def first_reached(steps: Sequence[int], l2: Sequence[float], share: float) -> float | None:
    """The step at which the divergence first reaches ``share`` of its final value, by linear interpolation from (0, 0).

    None if the run did not move.
    """
    if l2[-1] == 0:
        return None
    goal, before, height = share * l2[-1], 0.0, 0.0
    for step, value in zip(steps, l2, strict=True):
        if value >= goal:
            return before + (step - before) * (goal - height) / (value - height)
        before, height = float(step), value
    raise AssertionError("the last value reaches every share of itself")


def front_share(steps: Sequence[int], l2: Sequence[float]) -> float | None:
    """Share of the final divergence that reached at 40% of the steps, by linear interpolation; None if it is 0."""
    if l2[-1] == 0:
        return None
    return float(np.interp(EARLY * steps[-1], [0, *steps], [0.0, *l2])) / l2[-1]


def _share(count: int, elements: int) -> float | None:
    return count / elements if elements else None


def _curves(steps: Sequence[int], series: Sequence[Measured]) -> dict[str, Json]:
    """One component, or the whole, over the steps."""
    all_sums = [one.sums for one in series]
    l2 = [sums.l2 for sums in all_sums]
    known = [value for value in l2 if value is not None]
    whole = len(known) == len(l2)
    out: dict[str, Json] = {
        "l2": l2,
        "changed": {
            threshold_key(t): [_share(s.changed[k], s.elements) for s in all_sums]
            for k, t in enumerate(all_sums[0].thresholds)
        },
        "equal": [_share(s.equal, s.elements) for s in all_sums],
        "ulp": {name: [_share(s.ulp[k], s.ulp_elements) for s in all_sums] for k, name in enumerate(ULP_CLASSES)},
        "overlap": [None if one.active is None else one.active.jaccard for one in series],
        "overlap_exact": [None if one.moved is None else one.moved.jaccard for one in series],
        "step50": first_reached(steps, known, 0.5) if whole else None,
        "step80": first_reached(steps, known, 0.8) if whole else None,
        "front_share": front_share(steps, known) if whole else None,
    }
    if not whole:
        out["reason"] = "the start's norm is 0"
    elif known[-1] == 0:
        out["reason"] = "the run did not move"
    return out


def metrics(found: Trace) -> dict[str, Json]:
    """What the stage returns of a trace: see the house plan."""
    steps, total = found.steps, found.series(TOTAL)
    return {
        "steps": steps,
        **_curves(steps, total),
        "components": {name: _curves(steps, found.series(name)) for name in found.components},
        "skipped": found.skipped,
        "nonfinite": sum(one.sums.nonfinite for one in total),
        "kernel": found.kernel,
    }


def _minus(first: Sequence[float | None], second: Sequence[float | None]) -> list[float | None]:
    return [None if a is None or b is None else a - b for a, b in zip(first, second, strict=True)]


def _at(curves: Mapping[str, Any], places: Sequence[int]) -> dict[str, Any]:
    """Distances, shares of the last distance and shares changed at some of the steps."""
    l2 = curves["l2"]
    relative = [value / l2[-1] if value is not None and l2[-1] else None for value in l2]
    return {
        "l2": [l2[k] for k in places],
        "relative": [relative[k] for k in places],
        "changed": {key: [values[k] for k in places] for key, values in curves["changed"].items()},
    }


def _gap(first: Mapping[str, Any], second: Mapping[str, Any], places: tuple[list[int], list[int]]) -> dict[str, Json]:
    one, other = _at(first, places[0]), _at(second, places[1])
    changed = {key: _minus(one["changed"][key], other["changed"][key]) for key in one["changed"]}
    return {**{key: _minus(one[key], other[key]) for key in ("l2", "relative")}, "changed": changed}


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Json]:
    """Of two series on one axis, the first minus the second, at the steps that both have.

    Args:
        first: metrics of a trajectory.
        second: of another one, at the same thresholds.

    Returns:
        ``steps``; ``l2``; ``relative``, of the shares of each series' own last distance; ``changed`` by threshold, of
        shares; ``components``: the same by component, of those that both have. Null where one of the two has no value.
    """
    steps = [step for step in first["steps"] if step in second["steps"]]
    places = [first["steps"].index(step) for step in steps], [second["steps"].index(step) for step in steps]
    shared = [name for name in first["components"] if name in second["components"]]
    parts = {name: _gap(first["components"][name], second["components"][name], places) for name in shared}
    return {"steps": steps, **_gap(first, second, places), "components": parts}


def follow(
    start: Path,
    snapshots: Mapping[int, Path],
    thresholds: Sequence[float],
    progress: Progress | None = None,
    device: str = "cpu",
) -> dict[str, Json]:
    """How far a series of checkpoints is from ``start``, step by step: the metrics of the stage ``trajectory``.

    Arguments and errors are those of ``arith.trace.measure``.
    """
    return metrics(trace.measure(start, snapshots, thresholds, progress=progress, device=device))


def _final_step(run: Artifact) -> int:
    """The step of the run's final checkpoint: what it did if it says so, else what it was asked to do."""
    steps = run.metrics.get("steps")
    return int(steps if steps is not None else run.config["spec"]["steps"])


def _trace(start: Artifact, ran: Artifact, thresholds: Sequence[float], progress: Progress) -> Trace:
    """What the run measured while it saved its snapshots, else what those that it kept tell."""
    one_type({"start": model_type(start.model), "run": model_type(ran.model)})
    if (ran.path / trace.FILE).is_file():
        found = trace.read(ran.path / trace.FILE)
        if list(found.thresholds) != sorted({float(t) for t in thresholds}):
            raise StageError(
                f"the run was measured at thresholds {list(found.thresholds)}, not at {list(thresholds)}; set "
                "'keep_snapshots: true' on its stage to measure afterwards"
            )
        return found
    folders = snapshot_folders(ran.path)
    if not folders:
        raise StageError("the run has no snapshots; set 'snapshots' of its stage to the number of points wanted")
    folders.setdefault(_final_step(ran), ran.model)
    return trace.measure(start.model, dict(sorted(folders.items())), thresholds, progress=progress)


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``trajectory``: see the house plan for its config, inputs and metrics.

    The final checkpoint is the last point, unless a snapshot was saved after the last step. ``overlap`` has null for
    the first snapshot, which has none before it; ``overlap_exact`` is the same of elements that changed at all.

    Raises:
        StageError: the run has no snapshots, or measured them at other thresholds.
        CheckpointError: weights are damaged or do not correspond.
    """
    found = _trace(inputs["start"], inputs["run"], config["thresholds"], progress)
    trace.write(found, out / trace.FILE)
    return Result(metrics=metrics(found))
