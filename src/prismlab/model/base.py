"""Stage ``base``: a starting checkpoint, tiny and random or any in the Hugging Face layout."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prismlab.errors import CheckpointError, MissingExtra
from prismlab.model.checkpoint import load_tokenizer, save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer, tokenizer_hash
from prismlab.run.step import Artifact, Progress, Result

WANTED = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt")
"""What is taken of a checkpoint: configuration, weights, tokenizer, chat template. Never pickle, never code."""
FOREIGN = "consolidated"
"""How weight files begin that some models carry besides, in their maker's own layout."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def _build_tiny(spec: Mapping[str, Any], seed: int, folder: Path) -> None:
    # The one stage that makes the micro world's models; late, so that a checkpoint of another origin needs none of it.
    from prismlab.micro.models import build_model, tiny_config

    tokenizer = build_byte_tokenizer()
    config = tiny_config(spec["arch"], int(spec["width"]), int(spec["layers"]), len(tokenizer))
    save_checkpoint(build_model(config, seed), tokenizer, folder)


def _download(name: str) -> Path:
    """The folder of a model id with an optional ``@revision`` in the local cache, fetched if it is not there."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "hub", f"the checkpoint {name}") from error
    repo, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(
                repo, revision=revision or None, allow_patterns=list(WANTED), ignore_patterns=[f"{FOREIGN}*"]
            )
        )
    except HFValidationError as error:
        raise CheckpointError(
            f"{name!r} is neither a folder nor a model id ('owner/name', '@revision' optional)"
        ) from error
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise CheckpointError(
            f"the model {name!r} cannot be fetched and is not in the local cache: {error}; check the id, the network "
            "and the login, or name a folder"
        ) from error


def _place(source: Path, target: Path) -> None:
    """A hard link, since checkpoints are large; a copy where the file system has none."""
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


def _take(folder: Path, out: Path) -> None:
    """Bring configuration, weights and tokenizer from ``folder`` to ``out``.

    Raises:
        CheckpointError: it is no checkpoint, or its weights are pickled, incomplete or missing.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json, so not a checkpoint in the Hugging Face layout")
    if not any(folder.glob("*.safetensors")):
        if any(file for pattern in PICKLED for file in folder.glob(pattern)):
            raise CheckpointError(
                f"{folder}: its weights are pickled, and pickle can run code, so it is not read; save the model again "
                "with 'save_pretrained' on a machine where you trust it"
            )
        raise CheckpointError(f"{folder}: no *.safetensors, so there are no weights")
    wanted = {file for pattern in WANTED for file in folder.glob(pattern) if file.suffix != ".safetensors"}
    out.mkdir(parents=True)
    for file in sorted(file for file in wanted | set(_weights(folder)) if file.is_file()):
        _place(file, out / file.name)


def _weights(folder: Path) -> list[Path]:
    """The safetensors files that make up the model: those in its index, where there is one.

    Raises:
        CheckpointError: the index names a file that is not there.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith(FOREIGN))
    names = sorted({str(name) for name in _json(index).get("weight_map", {}).values()})
    lacking = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if lacking or not names:
        shown = f", for example {lacking[0]}" if lacking else ""
        raise CheckpointError(f"{folder}: its index names {len(names)} weight files, {len(lacking)} are missing{shown}")
    return [folder / name for name in names]


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: a JSON object is wanted")
    return values


def count_parameters(files: Iterable[Path]) -> int:
    """Elements of all tensors in safetensors files, from their headers; a tied tensor is stored, and counted, once.

    Raises:
        CheckpointError: a file is not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    total = 0
    for file in files:
        try:
            with safe_open(file, framework="numpy") as opened:
                total += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a readable safetensors file: {error}") from error
    return total


def _metrics(folder: Path) -> dict[str, Any]:
    config = _json(folder / "config.json")
    architectures = config.get("architectures")
    if not config.get("model_type") or not architectures:
        raise CheckpointError(f"{folder / 'config.json'}: 'model_type' and 'architectures' are needed")
    tokenizer = load_tokenizer(folder)
    return {
        "parameters": count_parameters(_weights(folder)),
        "architecture": architectures[0],
        "model_type": config["model_type"],
        "vocab_size": config.get("vocab_size"),
        "tokenizer": tokenizer_hash(tokenizer),
    }


def run(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Make ``out/model``; see docs/architecture.md for config and outputs.

    A checkpoint folder stands in ``config["files"]["checkpoint"]``; without it ``spec["checkpoint"]`` is a model id.

    Raises:
        CheckpointError: the checkpoint cannot be found or used: no safetensors, no tokenizer, a missing shard.
        MissingExtra: a model id without the package ``huggingface_hub``.
    """
    del inputs
    spec, model = config["spec"], out / "model"
    if spec.get("arch") is not None:
        _build_tiny(spec, int(config["seed"]), model)
    else:
        folders = (config.get("files") or {}).get("checkpoint") or []
        _take(Path(folders[0]) if folders else _download(spec["checkpoint"]), model)
    metrics = _metrics(model)
    progress.note(f"{metrics['architecture']}, {metrics['parameters']:,} parameters")
    return Result(metrics=metrics)
