"""The files of a checkpoint folder: which are its weights, which may be read at all, and JSON read within bounds.

Three rules hold for every file, whoever made the folder:

- Only regular files are read, never a pipe, a device or a socket, and never pickle.
- A link is followed only if it stays in the folder, or if the folder is a snapshot of the hub's cache
  (``models--<owner>--<name>/snapshots/<revision>``) and the link leads into the repository's ``blobs`` or, from there,
  into those that all repositories of the cache share (``blobs`` beside the repository).
- ``model.safetensors`` goes before an index, as in transformers; an index beside it must name the same tensors (see
  `prismlab.model.tensors.open_checkpoint`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from prismlab.errors import CheckpointError, shown
from prismlab.run.step import trusted

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000
"""Longest safetensors header, and longest index, in bytes: the format's own limit."""
MAX_JSON = 16_000_000
"""Longest ``config.json`` in bytes; a true one has a few thousand."""
BESIDE = ("*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")
"""What is taken of a checkpoint beside its weights: config, tokenizer, chat template. Never pickle; code only where the
study trusts it (`prismlab.model.remote`)."""
PICKLED = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl")
OTHER_WEIGHTS = ("*.gguf", "*.ggml", "*.h5", "*.msgpack", "*.onnx", "*.npz")
"""Weights in other programs' formats."""
ADAPTER = "adapter_config.json"
"""Beside it lies an adapter of peft, which transformers would put into the model that it loads."""
POINTER = b"version https://git-lfs"
"""How the small file begins that Git LFS leaves in place of a large one that was not fetched."""


def check_link(path: Path) -> None:
    """Refuse a link that leads out of its checkpoint (see the rule at the top of this module).

    Raises:
        CheckpointError: it leads elsewhere, nowhere or in a circle.
    """
    if not path.is_symlink():
        return
    try:
        folder, real = path.parent.resolve(), path.resolve(strict=True)
        repository = folder.parent.parent
        blobs = [place.joinpath("blobs").resolve() for place in (repository, repository.parent)]
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: a link that leads to no file") from error
    cached = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    if not (cached and any(real.is_relative_to(place) for place in blobs)) and not real.is_relative_to(folder):
        raise CheckpointError(
            f"{path}: a link that leads out of the checkpoint's folder (links are followed within the folder and, in "
            "the hub's cache, into 'blobs'); put the file itself here, or name the folder in which it lies"
        )


def open_regular(path: Path) -> tuple[int, int]:
    """Open a regular file for reading: (descriptor, size in bytes).

    Raises:
        CheckpointError: it is missing, unreadable, not a regular file, or a link that leads out of its checkpoint.
    """
    check_link(path)
    try:
        # A pipe without a writer would block for ever without O_NONBLOCK; on a regular file the flag does nothing.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) == errno.EMFILE:
            reason = f"{reason}; allow more with 'ulimit -n', or name fewer checkpoints"
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path}: not a regular file")
    return descriptor, status.st_size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in pairs:
        if name in out:
            raise ValueError(f"the key '{shown(name)}' stands twice")
        out[name] = value
    return out


def parse_json(text: bytes, path: Path, what: str) -> dict[str, Any]:
    """The JSON object in ``text``; a key that stands twice is refused, since readers differ on which one counts.

    Raises:
        CheckpointError: it is no sound JSON, no object, or nested too deeply.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the {what} is not sound JSON: {shown(error, 300)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: the {what} is a JSON {type(value).__name__}, not an object")
    return value


def read_json(path: Path, what: str, limit: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file of at most ``limit`` bytes.

    Raises:
        CheckpointError: the file cannot be read, is longer, or holds no JSON object.
    """
    descriptor, size = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if size > limit:
            raise CheckpointError(f"{path}: {size} bytes are too long for a checkpoint's {what} (limit {limit})")
        return parse_json(file.read(size), path, what)


def check_no_adapter(folder: Path) -> None:
    """Refuse an adapter of peft, alone or beside a model: weights would be one thing in the files, another when loaded.

    Raises:
        CheckpointError: there is one.
    """
    if os.path.lexists(folder / ADAPTER):
        raise CheckpointError(
            f"{folder}: holds an adapter ({ADAPTER}), which is no part of the weights beside it; load it with peft, "
            "save the model after 'merge_and_unload', and name that folder (or take the adapter out of this one)"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder.

    Raises:
        CheckpointError: there is none, it is no JSON object, or an adapter lies beside it.
    """
    path = Path(folder) / CONFIG
    check_no_adapter(Path(folder))
    if not path.exists() and not path.is_symlink():
        raise CheckpointError(f"{folder}: no config.json, so not a checkpoint in the Hugging Face layout")
    return read_json(path, "config")


def read_index(folder: Path) -> dict[str, str]:
    """The shard of each tensor by the folder's index, every shard there and named as a file of this very folder.

    Raises:
        CheckpointError: the index is not sound, a shard's name leads elsewhere, or shards are missing.
    """
    path = Path(folder) / INDEX
    placed = read_json(path, "index", MAX_HEADER).get("weight_map")
    if not isinstance(placed, dict):
        raise CheckpointError(f"{path}: 'weight_map' is missing, or no object")
    shards: set[str] = set()
    for shard in placed.values():
        if not isinstance(shard, str) or shard not in shards:
            _check_shard(path, shard)
            shards.add(shard)
    lacking = [shard for shard in sorted(shards) if not os.path.lexists(Path(folder) / shard)]
    if lacking:
        raise CheckpointError(
            f"{path}: of {len(shards)} weight files that it names {len(lacking)} are missing: "
            f"{', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}; fetch the checkpoint again"
        )
    return placed


def _check_shard(path: Path, shard: object) -> None:
    plain = isinstance(shard, str) and shard.isprintable() and len(shard) < 256 and "\\" not in shard
    if not plain or Path(str(shard)).name != shard or not str(shard).endswith(".safetensors"):
        raise CheckpointError(f"{path}: shard '{shown(shard)}' is not the name of a .safetensors file in this folder")


def _found(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    return sorted({file.name for pattern in patterns for file in folder.glob(pattern)})


def unread_weights(folder: Path) -> list[str]:
    """Names of safetensors files in a folder that ``weight_files`` leaves out: no index names them."""
    read = {path.name for path in weight_files(folder)}
    if SINGLE in read and os.path.lexists(Path(folder) / INDEX):
        read |= set(read_index(folder).values())
    return [name for name in _found(Path(folder), ("*.safetensors",)) if name not in read]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model: ``model.safetensors``, else the shards that the index names.

    Raises:
        CheckpointError: no such folder, neither of them, an adapter, only pickled weights or such of another format, or
            a fault of the index.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    check_no_adapter(folder)
    if os.path.lexists(folder / SINGLE):
        return [folder / SINGLE]
    if os.path.lexists(folder / INDEX):
        return [folder / shard for shard in sorted(set(read_index(folder).values()))]
    if shards := _found(folder, ("*.safetensors",)):
        raise CheckpointError(
            f"{folder}: holds {shown(shards[0])}{' and others' if len(shards) > 1 else ''}, but neither {SINGLE} nor "
            f"{INDEX}, which would say what belongs to the model; fetch the index, or save the model again"
        )
    if pickled := _found(folder, PICKLED):
        raise CheckpointError(
            f"{folder}: its weights are pickled ({shown(pickled[0])}), and pickle can run code, so it is not read; "
            "save the model again with 'save_pretrained' on a machine where you trust it"
        )
    other = _found(folder, OTHER_WEIGHTS)
    held = f"its weights are in {shown(other[0])}, which is not read" if other else "so there are no weights"
    raise CheckpointError(
        f"{folder}: neither {SINGLE} nor {INDEX}, {held}; name a folder that 'save_pretrained' of transformers wrote"
    )


def code_hash(path: Path) -> str:
    """BLAKE2b (128 bits, hexadecimal) of a file of code.

    Raises:
        CheckpointError: it is no regular file, leads out of its folder, cannot be read or is longer than ``MAX_JSON``.
    """
    descriptor, size = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if size > MAX_JSON:
            raise CheckpointError(f"{path}: {size} bytes are too long for a checkpoint's code (limit {MAX_JSON})")
        return hashlib.blake2b(file.read(), digest_size=16).hexdigest()


def beside_weights(folder: Path) -> list[Path]:
    """Files of ``BESIDE`` in ``folder`` without the index, and code that the step under way may run, sorted; each
    regular and no link that leads elsewhere.

    Raises:
        CheckpointError: one of them is a link that leads out of the checkpoint.
    """
    found = {file for pattern in BESIDE for file in Path(folder).glob(pattern) if not file.name.endswith(".index.json")}
    if allowed := trusted():
        found |= {file for file in Path(folder).glob("*.py") if code_hash(file) in allowed}
    for file in found:
        check_link(file)
    return sorted(file for file in found if file.is_file())
