"""Linear CKA by layer between checkpoints, from the Gram matrices that ``states`` keeps (stage ``cka``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prismlab.analyse.grams import InputSet, States, load
from prismlab.analyse.similarity import Floats, cross, draw, estimates, of_pair
from prismlab.errors import StageError
from prismlab.run.step import Artifact, Json, Progress, Result
from prismlab.seeds import derive_seed

LISTED = 20
"""Most inputs that are named one by one."""

LAYERS = pa.schema(
    [
        ("old", pa.string()),
        ("new", pa.string()),
        ("source", pa.string()),
        ("layer", pa.int64()),
        ("cka", pa.float64()),
        ("mean", pa.float64()),
        ("std", pa.float64()),
        ("debiased", pa.float64()),
        ("debiased_std", pa.float64()),
        ("inputs", pa.int64()),
    ]
)
CROSS = pa.schema(
    [
        ("old", pa.string()),
        ("new", pa.string()),
        ("source", pa.string()),
        ("layer_old", pa.int64()),
        ("layer_new", pa.int64()),
        ("cka", pa.float64()),
        ("debiased", pa.float64()),
    ]
)


def compare_all(
    states: Mapping[str, States],
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    resamples: int = 20,
    resample_size: int = 100,
    seed: int = 0,
    with_cross: bool = False,
    progress: Progress | None = None,
) -> dict[str, Json]:
    """Similarity by layer between checkpoints, every input set for itself.

    Args:
        states: what ``states.measure`` found of each checkpoint, by name, all on the same inputs.
        pairs: (old, new) names to compare; None for every two checkpoints in their order.
        resamples: number of resamples for the spreads.
        resample_size: inputs a resample.
        seed: of the resamples, which are the same for every layer and pair.
        with_cross: also every layer of one against every layer of the other; where the depths differ always.
        progress: advances by a set and layer.

    Returns:
        ``names`` and ``pairs``, a list of ``old``, ``new`` and ``sets``: {set: {``layers`` (a list of layer, cka, mean,
        std, debiased, debiased_std), ``min`` over layers and its ``min_layer``, ``debiased_min``, ``final`` (the last
        layer's cka), ``inputs``, ``differing`` (inputs that the two tokenizers cut differently: ``count``, and the
        ``first`` of them from 0), ``cross`` (null, or ``cka`` and ``debiased``, [layers of old + 1][of new + 1]),
        ``reason`` (why a number is null; else null)}}. Numbers are null where states do not vary; with unequal depths
        ``layers`` is empty.

    Raises:
        StageError: the checkpoints were measured on other sets or other texts.
    """
    names = list(states)
    asked = list(pairs) if pairs is not None else list(combinations(names, 2))
    _same_inputs(states)
    found: dict[tuple[str, str], dict[str, Json]] = {pair: {} for pair in asked}
    for name in next(iter(states.values())).sets:
        sets = {checkpoint: states[checkpoint].sets[name] for checkpoint in names}
        rows = _layers(sets, asked, resamples, resample_size, derive_seed(seed, "cka", name), progress)
        for pair in asked:
            found[pair][name] = _summary(*pair, sets, rows[pair], with_cross)
    return {"names": names, "pairs": [{"old": a, "new": b, "sets": found[a, b]} for a, b in asked]}


def _same_inputs(states: Mapping[str, States]) -> None:
    first, *others = states
    wanted = {name: one.texts for name, one in states[first].sets.items()}
    for name in others:
        if {set_: one.texts for set_, one in states[name].sets.items()} != wanted:
            raise StageError(f"the states of {first} and {name} are of other inputs: measure both on the same texts")


def _layers(
    sets: Mapping[str, InputSet],
    pairs: Sequence[tuple[str, str]],
    resamples: int,
    size: int,
    seed: int,
    progress: Progress | None,
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows by layer of each pair; none for checkpoints of unequal depth, which have no layers in common."""
    names = list(sets)
    draws = draw(sets[names[0]].inputs, resamples, size, seed)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {pair: [] for pair in pairs}
    for layer in range(max(len(one.grams) for one in sets.values())):
        deep = [name for name in names if len(sets[name].grams) > layer]
        found = estimates([sets[name].grams[layer] for name in deep], draws)
        for a, b in pairs:
            if len(sets[a].grams) == len(sets[b].grams) > layer:
                rows[a, b].append({"layer": layer, **vars(of_pair(found, deep.index(a), deep.index(b)))})
        if progress:
            progress.advance()
    return rows


def _listing(matrix: Floats) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def _summary(
    a: str, b: str, sets: Mapping[str, InputSet], layers: list[dict[str, Any]], with_cross: bool
) -> dict[str, Json]:
    old, new = sets[a], sets[b]
    plain = [(row["cka"], row["layer"]) for row in layers if row["cka"] is not None]
    debiased = [row["debiased"] for row in layers if row["debiased"] is not None]
    least = min(plain) if plain else (None, None)
    differing = [at for at, (one, other) in enumerate(zip(old.ids, new.ids, strict=True)) if one != other]
    found: dict[str, Json] = {
        "layers": layers,
        "min": least[0],
        "min_layer": least[1],
        "debiased_min": min(debiased) if debiased else None,
        "inputs": old.inputs,
        "final": layers[-1]["cka"] if layers else None,
        "differing": {"count": len(differing), "first": differing[:LISTED]},
        "cross": None,
        "reason": _reason(old, new, layers),
    }
    if with_cross or not layers:
        kinds = {"cka": False, "debiased": True}
        found["cross"] = {key: _listing(cross(old.grams, new.grams, kind)) for key, kind in kinds.items()}
    return found


def _reason(old: InputSet, new: InputSet, layers: Sequence[Mapping[str, Any]]) -> str | None:
    if not layers:
        return f"{len(old.grams) - 1} and {len(new.grams) - 1} layers: no layer stands for one of the other"
    still = [str(row["layer"]) for row in layers if row["cka"] is None or row["debiased"] is None]
    return f"states that do not vary enough over the inputs in layers {', '.join(still)}" if still else None


def tables(found: Mapping[str, Any]) -> tuple[pa.Table, pa.Table | None]:
    """What ``compare_all`` found as two tables: a row a pair, set and layer; and a row a pair, set and two layers.

    The second is None where no pair was crossed.
    """
    rows: list[dict[str, Any]] = []
    crossed: list[dict[str, Any]] = []
    for pair in found["pairs"]:
        for source, one in pair["sets"].items():
            where = {"old": pair["old"], "new": pair["new"], "source": source}
            rows += [{**where, "inputs": one["inputs"], **layer} for layer in one["layers"]]
            both = one["cross"] or {"cka": [], "debiased": []}
            for i, (line, corrected) in enumerate(zip(both["cka"], both["debiased"], strict=True)):
                for j, (value, other) in enumerate(zip(line, corrected, strict=True)):
                    at = {"layer_old": i, "layer_new": j}
                    crossed.append({**where, **at, "cka": value, "debiased": other})
    table = pa.Table.from_pylist(rows, schema=LAYERS)
    return table, pa.Table.from_pylist(crossed, schema=CROSS) if crossed else None


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``cka``: see the house plan for its config, inputs and metrics.

    Raises:
        DataError: the states of a checkpoint cannot be read.
        StageError: the two were measured on other inputs.
    """
    spec = config["spec"]
    states = {key: load(inputs[key].path) for key in ("a", "b")}
    found = compare_all(
        states,
        resamples=int(spec["resamples"]),
        resample_size=int(spec["resample_size"]),
        seed=int(config["seed"]),
        with_cross=bool(spec["cross"]),
    )
    sets: dict[str, Any] = found["pairs"][0]["sets"]
    asked = inputs["a"].metrics["sets"]
    for name, one in sets.items():
        one["asked"] = asked[name]["asked"]
        if one["differing"]["count"]:
            progress.note(
                f"{name}: the tokenizers cut {one['differing']['count']} of {one['inputs']} inputs differently"
            )
    for table, name in zip(tables(found), ("layers", "cross"), strict=True):
        if table is not None:
            # The step's name says which checkpoints these are; here they are only a and b.
            pq.write_table(table.drop_columns(["old", "new"]), out / f"{name}.parquet")
    return Result(metrics={"sets": sets, "dtype": {key: one.dtype for key, one in states.items()}})
