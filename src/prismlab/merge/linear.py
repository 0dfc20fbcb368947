"""Linear merge of checkpoints (stage ``merge``): tensor by tensor, summed in float64, rounded once, without torch."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from prismlab.errors import CheckpointError
from prismlab.model.families import canonical
from prismlab.model.tensors import ITEM_BYTES, SINGLE, TensorFile, TensorView, model_type, open_checkpoint
from prismlab.run.step import Artifact, Json, Progress, Result, Silent

CHUNK = 1 << 20
"""Elements merged at a time: 8 MB as float64."""
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
"""Output types by the name that a config gives them."""
COPIED = (".json", ".txt", ".model", ".jinja")
"""Endings of the files beside the weights: config, tokenizer, chat template."""

Floats = NDArray[np.float64]


def round_bf16(values: Floats) -> NDArray[np.uint16]:
    """bfloat16 bits of float64 values, rounded once, to nearest and ties to even, as IEEE 754 has it.

    Going by way of float32 would round twice: a value just above the middle of two bfloat16 numbers can become the
    middle. Here float32 is cut off toward zero and its last bit is set if anything was lost ("round to odd"), which
    keeps every later comparison with a middle right (Boldo and Melquiond 2008). NaN stays NaN.
    """
    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype(np.float32)
    bits = narrow.view(np.uint32)
    wide = narrow.astype(np.float64)
    away = np.abs(wide) > np.abs(values)
    # One unit less in the integer is the next number toward zero, also from infinity to the largest finite one.
    bits = np.where(away, bits - np.uint32(1), bits)
    bits |= ((wide != values) & ~np.isnan(values)).astype(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    rounded = rounded.astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        # The sum would carry out of a NaN's payload into its sign: cut it and set the quiet bit instead.
        rounded[nan] = ((bits[nan] >> np.uint32(16)) | np.uint32(0x40)).astype(np.uint16)
    return rounded


def encode(values: Floats, dtype: str) -> bytes:
    """Little-endian bytes of ``values`` in the format's type ``dtype``, rounded once to nearest, ties to even."""
    with np.errstate(over="ignore", under="ignore"):
        match dtype:
            case "BF16":
                return round_bf16(values).astype("<u2").tobytes()
            case "F16":
                return values.astype("<f2").tobytes()
            case "F32":
                return values.astype("<f4").tobytes()
            case "F64":
                return values.astype("<f8").tobytes()
            case _:
                raise ValueError(f"no encoding for {dtype!r}")


def _aligned(files: Sequence[TensorFile], folders: Sequence[Path]) -> dict[str, list[TensorView]]:
    """The corresponding tensors of all checkpoints, under the names of the first."""
    kinds = [model_type(folder) for folder in folders]
    if len(set(kinds)) > 1:
        raise CheckpointError(f"checkpoints of different architectures cannot be merged: {', '.join(kinds)}")
    named = [{canonical(name, kinds[0]): view for name, view in file.items()} for file in files]
    for folder, views in zip(folders[1:], named[1:], strict=True):
        odd = sorted(set(named[0]) ^ set(views))
        if odd:
            where = folders[0] if odd[0] in named[0] else folder
            raise CheckpointError(f"tensor {odd[0]} is in {where} alone: merged checkpoints need the same tensors")
    out: dict[str, list[TensorView]] = {}
    for name, first in files[0].items():
        views = [each[canonical(name, kinds[0])] for each in named]
        for folder, view in zip(folders, views, strict=True):
            if view.shape != first.shape:
                shapes = f"{list(first.shape)} in {folders[0]} and {list(view.shape)} in {folder}"
                raise CheckpointError(f"tensor {name} has shape {shapes}: merged checkpoints need the same shapes")
        out[name] = views
    return out


def _chunks(views: Sequence[TensorView], weights: Sequence[float], dtype: str) -> Iterator[bytes]:
    """The merged tensor's bytes, piece by piece."""
    used = [(view, weight) for view, weight in zip(views, weights, strict=True) if weight != 0]
    if len(used) == 1 and used[0][1] == 1 and used[0][0].dtype == dtype:
        yield bytes(used[0][0].raw())
        return
    for start in range(0, views[0].size, CHUNK):
        stop = min(views[0].size, start + CHUNK)
        total = np.zeros(stop - start)
        for view, weight in used:
            total += weight * view.read(start, stop).astype(np.float64)
        yield encode(total, dtype)


def _out_dtype(name: str, views: Sequence[TensorView], wanted: str) -> str:
    """Type of the merged tensor; a tensor that is no float is copied, and so must be the same everywhere."""
    if all(view.readable for view in views):
        return wanted
    if len({(view.dtype, bytes(view.raw())) for view in views}) > 1:
        raise CheckpointError(f"tensor {name} ({views[0].dtype}) is not a float and differs: it cannot be averaged")
    return views[0].dtype


def _write(
    file: BinaryIO, aligned: Mapping[str, Sequence[TensorView]], weights: Sequence[float], wanted: str, bar: Progress
) -> None:
    dtypes = {name: _out_dtype(name, views, wanted) for name, views in aligned.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, views in aligned.items():
        start, end = end, end + views[0].size * ITEM_BYTES[dtypes[name]]
        header[name] = {"dtype": dtypes[name], "shape": list(views[0].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers expect the data to begin at a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
    bar.start(len(aligned), "tensors")
    for name, views in aligned.items():
        if dtypes[name] == wanted:
            for piece in _chunks(views, weights, wanted):
                file.write(piece)
        else:
            file.write(views[0].raw())
        bar.advance()


def _copy_rest(source: Path, out: Path, dtype: str) -> None:
    """Config, tokenizer and every other small file of the first checkpoint; weights and their index stay behind."""
    for path in sorted(source.iterdir()):
        weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".partial") or path.name.endswith(
            ".index.json"
        )
        if path.is_file() and not weights:
            shutil.copyfile(path, out / path.name)
    config_file = out / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def merge_linear(
    folders_and_weights: Sequence[tuple[Path, float]],
    out: Path,
    dtype: str = "bfloat16",
    progress: Progress | None = None,
) -> None:
    """Write the weighted sum of checkpoints to ``out``, one ``model.safetensors`` with the first one's names.

    Args:
        folders_and_weights: checkpoints in the Hugging Face layout; weights are used as they are, not normalised.
        out: a folder, made if need be; its weights appear by an atomic rename once they are whole.
        dtype: a key of ``DTYPES``. A weight of 1 beside weights of 0 copies the bits, if the type is the same.

    A checkpoint of weight 0 must fit, but does not enter the sum: its NaN stays out of it.

    Raises:
        CheckpointError: a checkpoint is damaged, or tensors, shapes or architectures differ.
        ValueError: no checkpoint, or an unknown ``dtype``.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if not folders_and_weights:
        raise ValueError("nothing to merge")
    folders = [Path(folder) for folder, _ in folders_and_weights]
    aligned = _aligned([open_checkpoint(folder) for folder in folders], folders)
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f"{SINGLE}.partial"
    with partial.open("wb") as file:
        _write(file, aligned, [weight for _, weight in folders_and_weights], DTYPES[dtype], progress or Silent())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(out / SINGLE)
    _copy_rest(folders[0], out, dtype)


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``merge``: ``config["spec"]["weights"]`` by checkpoint name, which are the keys of ``inputs``.

    Raises:
        CheckpointError: checkpoints are damaged or do not fit one another.
    """
    weights: dict[str, float] = {name: float(weight) for name, weight in config["spec"]["weights"].items()}
    merge_linear([(inputs[name].model, weight) for name, weight in weights.items()], out / "model", progress=progress)
    return Result(metrics={"weights": weights})
