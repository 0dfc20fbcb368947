"""Stage ``base``: a starting checkpoint, tiny and random or any in the Hugging Face layout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prismlab.errors import CheckpointError
from prismlab.model import hub, remote
from prismlab.model.checkpoint import load_tokenizer, save_checkpoint
from prismlab.model.folder import INDEX, SINGLE, beside_weights, check_link, read_config, weight_files
from prismlab.model.tensors import open_checkpoint
from prismlab.model.tokens import build_byte_tokenizer, tokenizer_hash
from prismlab.run.step import REMOTE_CODE, Artifact, Progress, Result


def _build_tiny(spec: Mapping[str, Any], seed: int, folder: Path) -> None:
    # The one stage that makes the micro world's models; late, so that a checkpoint of another origin needs none of it.
    from prismlab.micro.models import build_model, tiny_config

    tokenizer = build_byte_tokenizer()
    config = tiny_config(spec["arch"], int(spec["width"]), int(spec["layers"]), len(tokenizer))
    save_checkpoint(build_model(config, seed), tokenizer, folder)


def _place(source: Path, target: Path) -> None:
    """A hard link, since checkpoints are large; a copy where the file system has none."""
    real = source.resolve()
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)


def _take(folder: Path, out: Path, *, code: bool) -> None:
    """Bring configuration, weights and tokenizer from ``folder`` to ``out``, and its ``code`` where that is trusted.

    Raises:
        CheckpointError: it is no checkpoint, or its weights are pickled, incomplete or missing.
    """
    weights = weight_files(folder)
    read_config(folder)
    # Every header of it, also that of a second set of weights that is not taken.
    open_checkpoint(folder).close()
    if (folder / INDEX).exists() and weights != [folder / SINGLE]:
        weights.append(folder / INDEX)
    files = beside_weights(folder) + weights
    programs = remote.code_files(folder) if code else []
    if code:
        remote.check_brought(folder)
    for file in files:
        check_link(file)
    out.mkdir(parents=True)
    for file in files:
        _place(file, out / file.name)
    for file in programs:
        shutil.copyfile(file, out / file.name)  # a link would change with a file that is edited where it lies


def _metrics(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    architectures = config.get("architectures")
    if not config.get("model_type") or not architectures:
        raise CheckpointError(f"{folder / 'config.json'}: 'model_type' and 'architectures' are needed")
    with open_checkpoint(folder) as file:
        elements = file.elements
    tokenizer = load_tokenizer(folder)
    return {
        "parameters": elements,
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
        code = bool(spec.get("trust_remote_code"))
        _take(Path(folders[0]) if folders else hub.fetch(spec["checkpoint"], code=code), model, code=code)
    metrics = _metrics(model)
    if found := remote.code_of(model):
        metrics[REMOTE_CODE] = found
        progress.note(f"code of this checkpoint will be run: {', '.join(one['name'] for one in found)}")
    progress.note(f"{metrics['architecture']}, {metrics['parameters']:,} parameters")
    return Result(metrics=metrics)
