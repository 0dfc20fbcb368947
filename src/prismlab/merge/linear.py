"""Linear merge of checkpoints (stage ``merge``): summed in float64, rounded once, written whole, without torch.

Threads take pieces of tensors in turn: each reads the same elements of all checkpoints into buffers of its own, weighs,
adds and rounds them and writes the result to its place in the file. Memory does not grow with the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismlab.arith.kernels import choose
from prismlab.errors import CheckpointError, SpecError, shown
from prismlab.merge.atomic import built_whole, check_target
from prismlab.merge.beside import RECORD, check_configs, check_tokenizers, copy_beside
from prismlab.merge.parents import Family, Parent, open_family, same_bytes
from prismlab.merge.passes import merge_files
from prismlab.merge.shards import Shard, Slot, arrange, parse_size, write_index
from prismlab.model.folder import unread_weights
from prismlab.model.hub import revision
from prismlab.model.tensors import FLOATS, TensorView
from prismlab.run.step import Artifact, Json, Progress, Result, Silent

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
"""Output types by the name that a config gives them; ``keep`` besides: each tensor's own, in the first checkpoint."""
TOLERANCE = 1e-6
"""How far from 1 the sum of the weights may be."""


@dataclass(frozen=True)
class _Plan:
    """What is to be written, everything checked."""

    parents: list[Parent]
    family: Family
    slots: dict[str, Slot]
    shards: list[Shard]
    tokenizer: int | None
    """Whose tokenizer is taken."""
    differ: list[str]
    """Settings in which the configs differ."""
    notes: list[str]

    @property
    def elements(self) -> int:
        """Elements of the merged checkpoint."""
        return sum(slot.elements for slot in self.slots.values())


def _out_dtype(name: str, views: Sequence[TensorView], wanted: str) -> str:
    """Type of the merged tensor; a tensor that is no float is copied, and so must be the same everywhere."""
    if all(view.readable for view in views):
        return views[0].dtype if wanted == "keep" else DTYPES[wanted]
    if not same_bytes(views):
        types = ", ".join(dict.fromkeys(view.dtype for view in views))
        raise CheckpointError(
            f"tensor {shown(name)} ({types}) is not {' or '.join(FLOATS)} in all checkpoints and differs: it cannot be "
            "averaged; convert the checkpoints to one of these types"
        )
    return views[0].dtype


def _check_weights(parents: Sequence[Parent], allow_unnormalised: bool) -> None:
    if not parents:
        raise SpecError("nothing to merge: name at least one checkpoint")
    for parent in parents:
        if not math.isfinite(parent.weight):
            raise SpecError(f"{parent.name}: the weight {parent.weight} is not a finite number")
    total = math.fsum(parent.weight for parent in parents)
    if abs(total - 1.0) > TOLERANCE and not allow_unnormalised:
        raise SpecError(f"the weights sum to {total:.9g}, not 1: mend them, or allow it with --unnormalised")


def _source(parent: Parent, family: Family, at: int) -> dict[str, Json]:
    """What a merge's record says of a checkpoint: files by size and digest of their headers, which is cheap."""
    files = [
        {
            "name": source.path.name,
            "bytes": source.size,
            "header_blake2b": hashlib.blake2b(source.bytes(0, source.begin), digest_size=16).hexdigest(),
        }
        for source in family.files[at].sources
    ]
    about = {"name": parent.name, "weight": parent.weight, "folder": parent.folder.resolve().name}
    return {**about, "revision": revision(parent.folder), "files": files}


def _chosen(names: Sequence[str], name: str | None) -> int | None:
    if name is not None and name not in names:
        raise SpecError(f"tokenizer from '{shown(name)}': it is none of the merged checkpoints ({', '.join(names)})")
    return None if name is None else names.index(name)


def merge_linear(
    parents: Sequence[Parent | tuple[Path, float]],
    out: Path,
    dtype: str = "keep",
    *,
    max_shard_size: str | int = "5GB",
    allow_unnormalised: bool = False,
    tokenizer_from: str | None = None,
    about: Mapping[str, Json] | None = None,
    threads: int = 2,
    kernel: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Json]:
    """Write the weighted sum of checkpoints to ``out``, under the first one's names.

    Every element is summed in float64 in the given order and rounded once, to nearest and ties to even. A weight of 1
    beside weights of 0 copies the bits, if the type is the same; a checkpoint of weight 0 must fit, but its NaN stays
    out of the sum. Tensors that are no floats are copied and must be equal. A head tied in some checkpoints alone is
    stored apart. Config and other small files are the first's, the tokenizer that of ``tokenizer_from``.

    Args:
        parents: checkpoints in the Hugging Face layout and their weights.
        out: a folder that is not there, or empty. It appears whole, by a rename, or not at all.
        dtype: a key of ``DTYPES``, or ``keep`` for each tensor's own type in the first checkpoint.
        max_shard_size: bytes of tensors in a file, as text with a unit or a number.
        allow_unnormalised: accept weights that do not sum to 1 (within ``TOLERANCE``).
        tokenizer_from: name of the parent whose tokenizer is taken; None for the first's, which the others must equal.
        about: what else is to stand in the record, for example the date.
        threads: that read, add and write.
        kernel: ``numba`` or ``numpy``; None for numba where it is installed and the work large enough.
        progress: told of every piece.

    Returns:
        What the merge was made of, as it stands in ``merge.json`` beside the weights.

    Raises:
        CheckpointError: a checkpoint is damaged, they do not fit one another, ``out`` is taken, or the disk too small.
        SpecError: weights, ``dtype`` or ``max_shard_size`` are wrong.
    """
    family = [one if isinstance(one, Parent) else Parent(str(one[0]), Path(one[0]), float(one[1])) for one in parents]
    if dtype != "keep" and dtype not in DTYPES:
        raise SpecError(f"dtype '{shown(dtype, 40)}' is not one of keep, {', '.join(DTYPES)}")
    _check_weights(family, allow_unnormalised)
    chosen = _chosen([parent.name for parent in family], tokenizer_from)
    most = parse_size(max_shard_size)
    check_target(Path(out))
    plan = _plan(family, dtype, most, chosen)
    record = {**(about or {}), **_record(plan, dtype, kernel or choose(plan.elements))}
    bar = progress or Silent()
    _write(plan, Path(out), record, threads, bar)
    for text in plan.notes:
        bar.note(text)
    return record


def _write(plan: _Plan, out: Path, record: dict[str, Json], threads: int, bar: Progress) -> None:
    """Write everything, and into the record (and the notes) what was seen on the way."""
    weights = [parent.weight for parent in plan.parents]
    with built_whole(out) as folder:
        _check_room(folder, record["bytes"])
        work = (folder, plan.shards, plan.slots, plan.family.tensors, weights)
        strange = merge_files(*work, record["kernel"], threads, bar)
        if strange:
            plan.notes.append(f"{sum(strange.values()):,} results are NaN or infinite, in {len(strange)} tensors")
        record["nonfinite"] = strange
        write_index(folder, plan.shards)
        _write_beside(plan, record["dtype"], folder, record)


def _plan(parents: list[Parent], dtype: str, most: int, chosen: int | None) -> _Plan:
    """Open and check everything, before anything is written."""
    names = [parent.name for parent in parents]
    family = open_family(parents)
    differ = check_configs(family.configs, names)
    tokenizer, notes = check_tokenizers([parent.folder for parent in parents], names, chosen)
    for parent in parents:
        notes += [f"{shown(name)} in {parent.name} is not read" for name in unread_weights(parent.folder)]
    if family.head:
        notes.append(f"head {family.head}")
    if differ:
        notes.append(f"configs differ in {', '.join(map(shown, differ))}; taken from {names[0]}")
    slots = {name: Slot(name, _out_dtype(name, views, dtype), views[0].shape) for name, views in family.tensors.items()}
    return _Plan(parents, family, slots, arrange(slots.values(), most), tokenizer, differ, notes)


def _record(plan: _Plan, dtype: str, kernel: str) -> dict[str, Json]:
    names = [parent.name for parent in plan.parents]
    return {
        "schema": 1,
        "method": "linear",
        "sources": [_source(parent, plan.family, at) for at, parent in enumerate(plan.parents)],
        "dtype": dtype,
        "kernel": kernel,
        "elements": plan.elements,
        "bytes": sum(shard.size for shard in plan.shards),
        "files": [shard.file for shard in plan.shards],
        "tokenizer": None if plan.tokenizer is None else names[plan.tokenizer],
        "config": names[0],
        "config_differs": plan.differ,
        "notes": plan.notes,
    }


def _write_beside(plan: _Plan, dtype: str, folder: Path, record: Mapping[str, Json]) -> None:
    changes: dict[str, Any] = {} if dtype == "keep" else {"dtype": dtype, "torch_dtype": None}
    if plan.family.head:
        changes["tie_word_embeddings"] = False
    tokenizer = None if plan.tokenizer is None else plan.parents[plan.tokenizer].folder
    copy_beside(plan.parents[0].folder, tokenizer, folder, changes, plan.family.configs[0])
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (folder / RECORD).write_text(f"{text}\n", encoding="utf-8")


def _check_room(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise CheckpointError(
            f"{folder.parent}: the merged checkpoint needs {wanted:,} bytes, {free:,} are free; name a folder elsewhere"
        )


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``merge``: ``config["spec"]["weights"]`` by checkpoint name, which are the keys of ``inputs``.

    Raises:
        CheckpointError: checkpoints are damaged or do not fit one another.
    """
    spec = config["spec"]
    weights: dict[str, float] = {name: float(weight) for name, weight in spec["weights"].items()}
    record = merge_linear(
        [Parent(name, inputs[name].model, weight) for name, weight in weights.items()],
        out / "model",
        spec.get("dtype") or "bfloat16",
        allow_unnormalised=bool(spec.get("allow_any_sum")),
        tokenizer_from=spec.get("tokenizer_from"),
        progress=progress,
    )
    kept = ("dtype", "kernel", "nonfinite", "notes")
    return Result(metrics={"weights": weights, **{key: record[key] for key in kept}})
