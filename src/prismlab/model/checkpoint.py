"""Checkpoints in and out: Hugging Face folders, safetensors and JSON only, saved in bf16 as released models are."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as _bars

from prismlab.errors import CheckpointError, in_a_line, shown
from prismlab.model import lora, remote
from prismlab.model.families import by_canonical, check_config_fits
from prismlab.model.folder import CONFIG, read_config
from prismlab.model.tensors import FLOATS, model_type, open_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_bars.disable_progress_bar()
# A bar for each file read or written would tear the one bar that a run shows.

FEW = 1_000_000
"""Elements that do no harm if the library makes them up before it tells that they are missing."""
MAX_LABELS = 100_000
"""Most labels of a config: for each the library makes two entries when it reads it."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def _silent() -> Generator[None]:
    """Keeps the library from telling of what it loads: a report of many coloured lines, with names out of the files.

    What is in it (missing, unexpected and mismatched tensors) is an error here, told in a line.
    """
    before = _bars.get_verbosity()
    _bars.set_verbosity_error()
    try:
        yield
    finally:
        _bars.set_verbosity(before)


def load_model(folder: Path, dtype: str = "float32", device: torch.device | None = None) -> PreTrainedModel:
    """The causal language model in ``folder``, in evaluation mode.

    Args:
        folder: a Hugging Face folder with config and safetensors; pickled weights are refused, and so is code that it
            brings, unless the study trusts it (`prismlab.model.remote`).
        dtype: a key of ``DTYPES``; weights are converted when they are read.
        device: where the weights go; None for the first GPU, or the CPU where there is none.

    Raises:
        CheckpointError: no such folder, no safetensors, or weights that do not fit the configuration.
    """
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    check_loadable(folder)
    trust = remote.runs(folder)
    try:
        # The library's types do not tell that output_loading_info makes it return a pair.
        with _silent():
            pair: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=DTYPES[dtype],
                use_safetensors=True,
                trust_remote_code=trust,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused beneath, by name
            )
        model, loaded = pair
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded: {in_a_line(error)}") from error
    if trust:
        remote.check_ran(folder, model)
    # A missing tensor would be filled with random numbers by the library: the worst of silent fallbacks.
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if loaded.get(problem):
            some = ", ".join(shown(key) for key in sorted(loaded[problem], key=str)[:3])
            raise CheckpointError(f"{folder}: {problem.replace('_', ' ')} in the weights, for example {some}")
    if device is None:
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return model.to(device).eval()


def check_loadable(folder: Path) -> None:
    """Refuse what ``load_model`` cannot load, as far as headers and small files tell; no weight is read.

    That is a config that describes no model, or one with more weights than are stored, a tensor under two names, and
    integers where the model has floats, which the library would convert as if they were the weights.

    The library would make up what is missing, of whatever size the config asks for. So the model is first built without
    memory (on the device ``meta``).

    Raises:
        CheckpointError: one of these.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    _check_config(folder)
    check_config_fits(folder)
    remote.check_runs(folder)
    kind, trust = model_type(folder), remote.runs(folder)
    with open_checkpoint(folder) as file:
        stored, views = file.elements, by_canonical(file, kind, str(folder))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        with _silent(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    except Exception as error:  # a config is a stranger's, and the library's code falls over it in every way there is
        raise CheckpointError(
            f"{folder / 'config.json'}: describes no causal language model: {type(error).__name__}: {in_a_line(error)}"
        ) from error
    promised = sum(parameter.numel() for parameter in model.parameters())
    # A tensor or two may be missing: that is told further on, by name.
    if promised > 2 * stored + FEW:
        raise CheckpointError(
            f"{folder / 'config.json'}: describes a model of {promised:,} parameters, the weights hold {stored:,}; "
            "take the config that was saved with these weights"
        )
    held = model.state_dict()
    for name, view in views.items():
        if not view.readable and name in held and held[name].is_floating_point():
            raise CheckpointError(
                f"{folder}: tensor '{shown(view.name)}' is {view.dtype}, where the model has floats; convert it to one "
                f"of {', '.join(FLOATS)}"
            )


def _check_config(folder: Path) -> None:
    """Refuse a config over which the library would fall, or fill the memory, before it is given to it."""
    kind = model_type(folder)
    _check_labels(folder)
    if read_config(folder).get("quantization_config") is not None:
        raise CheckpointError(
            f"{folder / CONFIG}: 'quantization_config' says that the weights of this {shown(kind, 40)} are quantised, "
            "which are not loaded here; take the checkpoint that they were made of, or save them as bfloat16"
        )


def _check_labels(folder: Path) -> None:
    labels = read_config(folder).get("num_labels")
    if isinstance(labels, int) and labels > MAX_LABELS:
        raise CheckpointError(
            f"{folder / CONFIG}: 'num_labels' is {labels:,}, at most {MAX_LABELS:,} are taken: the library makes names "
            "for all; a language model has none, so take the key out"
        )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``.

    Raises:
        CheckpointError: none is there, or it has no end-of-sequence token, without which no response can end.
    """
    from transformers import AutoTokenizer

    try:
        if (Path(folder) / CONFIG).is_file():
            _check_labels(Path(folder))
        with _silent():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception for a file that it cannot use
        raise CheckpointError(f"{folder}: no tokenizer can be loaded: {in_a_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{folder}: the tokenizer has no end-of-sequence token; set 'eos_token' in its config")
    return tokenizer


def _converted(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state dict in ``dtype``, adapters merged in; tied tensors stay tied, so that they are written once."""
    done: dict[tuple[int, torch.Size], torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    held = lora.merged_state(model) if lora.has_adapters(model) else model.state_dict()
    for name, tensor in held.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key not in done:
            wanted = dtype if tensor.is_floating_point() else tensor.dtype
            done[key] = tensor.detach().to("cpu", wanted).contiguous()
        state[name] = done[key]
    return state


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: str = "bfloat16"
) -> None:
    """Write ``model`` and ``tokenizer`` to ``folder`` in the Hugging Face layout, weights rounded to ``dtype``."""
    _save_weights(model, folder, dtype)
    tokenizer.save_pretrained(folder)


def save_master(model: PreTrainedModel, folder: Path) -> None:
    """Write the float32 weights of ``model`` as they are, and its config, under ``save_checkpoint``'s names.

    There is no tokenizer beside them: it lies with the checkpoint.
    """
    _save_weights(model, folder, "float32")


def _save_weights(model: PreTrainedModel, folder: Path, dtype: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=_converted(model, DTYPES[dtype]))
    config_file = folder / "config.json"
    config: dict[str, Any] = json.loads(config_file.read_text())
    config["dtype"] = dtype
    # Whether the cache is used is a matter of the program that loads the model, and training switches it off.
    config["use_cache"] = True
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_snapshot(model: PreTrainedModel, folder: Path, dtype: str = "bfloat16") -> None:
    """Write the weights alone to ``folder/model.safetensors``, tied tensors once, under the names of the state dict."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    kept: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in _converted(model, DTYPES[dtype]).items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept[name] = tensor
    partial = folder / "model.safetensors.partial"
    save_file(kept, partial, metadata={"format": "pt"})
    partial.replace(folder / "model.safetensors")
