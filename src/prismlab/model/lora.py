"""Low-rank adapters (Hu et al. 2021) inside a live model, and its weights with them merged in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from prismlab.errors import CheckpointError, MissingExtra, shown
from prismlab.model.boundaries import mamba_mixers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"
_BASE, _PARTS = ".base_layer.", ".lora_"


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers that may have an adapter: not the head, and not what leads out of a Mamba mixer, whose
    kernels take that weight past the layer, so that an adapter there would be passed over.
    """
    kept_out = {id(model.get_output_embeddings())} | {id(mixer.out_proj) for mixer in mamba_mixers(model)}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and id(module) not in kept_out
    ]


def add(model: PreTrainedModel, spec: Mapping[str, Any]) -> None:
    """Put adapters beside linear layers of ``model``, in place; they alone are trained.

    Args:
        model: the model; its output does not change, since adapters begin at 0.
        spec: JSON of ``LoraSpec``.

    Raises:
        CheckpointError: ``targets`` names a layer that the model has not, or that may have no adapter.
        MissingExtra: without the package peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtra("peft", "rl", "'lora'") from error
    layers = _linear_layers(model)
    endings = {name.rpartition(".")[2] for name in layers}
    wanted = endings if spec["targets"] is None else set(spec["targets"])
    if unknown := sorted(wanted - endings):
        raise CheckpointError(
            f"lora: no linear layer that may have an adapter is called '{shown(unknown[0], 40)}'; there are "
            f"{', '.join(sorted(endings))}"
        )
    chosen = [name for name in layers if name.rpartition(".")[2] in wanted]
    config = LoraConfig(
        r=int(spec["rank"]), lora_alpha=spec["alpha"], lora_dropout=0.0, target_modules=chosen, bias="none"
    )
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)


def has_adapters(model: torch.nn.Module) -> bool:
    """Whether ``add`` was called on the model."""
    return any(hasattr(module, "get_delta_weight") for module in model.modules())


def merged_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict that the model would have with its adapters merged into the weights; the model stays as it is."""
    state = {
        name.replace(_BASE, "."): tensor.detach() for name, tensor in model.state_dict().items() if _PARTS not in name
    }
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            layer: Any = module
            key = f"{name}.weight"
            state[key] = (state[key].float() + layer.get_delta_weight(ADAPTER).detach().float()).to(state[key].dtype)
    return state
