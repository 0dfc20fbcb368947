"""A model made ready for training as its spec says: context, which weights move, what is computed twice."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from prismlab.errors import CheckpointError
from prismlab.model import boundaries, lora
from prismlab.model.families import FAMILIES, locate
from prismlab.train import context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_attention_math.default,
}


def make_ready(model: PreTrainedModel, spec: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Change ``model`` in place into what ``spec`` (JSON of ``TrainSpec``) trains.

    Args:
        model: as it was loaded.
        spec: how it is trained.
        device: where it will be trained; None for where it lies.

    Raises:
        CheckpointError: rows longer than the model's context without a word on how, a class that cannot be trained so.
        MissingExtra: ``lora`` without the package peft.
    """
    device = model.device if device is None else device
    extend_context(model, int(spec["seq_len"]), spec["rope"], spec["allow_longer"])
    if spec["boundaries"] == "respect":
        boundaries.prepare(model, device)
    if int(spec["context_parallel"]) > 1:
        context.attach(model)
    elif (chosen := attention_for(spec, device)) is not None:
        model.set_attn_implementation(chosen)
    keep_dt(model, device)
    if spec["train"] == "attention":
        attention_alone(model)
    if spec["lora"] is not None:
        lora.add(model, spec["lora"])
    checkpoint_activations(model, spec["checkpointing"])
    if spec["compile"]:
        for layer in layers(model):
            layer.compile()


def attention_for(spec: Mapping[str, Any], device: torch.device) -> str | None:
    """The implementation of attention that ``spec`` means on a device; None for the model's own."""
    if spec["attention"] != "auto":
        return str(spec["attention"])
    masked_on_gpu = device.type == "cuda" and spec["boundaries"] == "respect" and importlib.util.find_spec("triton")
    return "flex_attention" if masked_on_gpu else None


def layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The layers of a model, those that transformers can compute anew in the backward pass."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def extend_context(model: PreTrainedModel, seq_len: int, rope: Mapping[str, Any] | None, allow_longer: bool) -> None:
    """Make ``model`` take rows of ``seq_len`` tokens, as far as the study says how; config and rotary tables change.

    Raises:
        CheckpointError: the rows are longer than the context and nothing is said, the scaling is too small, or
            ``rope`` for a model without rotary positions.
    """
    config: Any = model.config
    own = int(getattr(config, "max_position_embeddings", None) or seq_len)
    if rope is not None:
        _set_rope(model, seq_len, own, rope)
    elif seq_len > own and not allow_longer:
        raise CheckpointError(
            f"rows of {seq_len} tokens are longer than the model's context of {own}; say how with 'rope' (theta or "
            "scaling), or set 'allow_longer: true' to train on them as they are"
        )
    if hasattr(config, "max_position_embeddings"):  # a class without positions may not have it
        config.max_position_embeddings = max(seq_len, int(config.max_position_embeddings or 0))


def _set_rope(model: PreTrainedModel, seq_len: int, own: int, rope: Mapping[str, Any]) -> None:
    config: Any = model.config
    tables = [(name, module) for name, module in model.named_modules() if hasattr(module, "inv_freq")]
    if not tables or not isinstance(getattr(config, "rope_parameters", None), dict):
        raise CheckpointError(
            f"rope: {type(model).__name__} has no rotary positions; leave 'rope' out, and set 'allow_longer: true' for "
            f"rows longer than its {own} tokens"
        )
    new = dict(config.rope_parameters)
    if rope["theta"] is not None:
        new["rope_theta"] = float(rope["theta"])
    if rope["scaling"] is not None:
        reach = int(own * rope["factor"])
        if reach < seq_len:
            raise CheckpointError(
                f"rope: {rope['factor']:g} times the context of {own} is {reach} tokens, fewer than the rows' "
                f"{seq_len}; set 'factor' to {seq_len / own:g} or more"
            )
        kept = {key: new[key] for key in ("rope_theta", "partial_rotary_factor") if key in new}
        new = {**kept, "rope_type": rope["scaling"], "factor": float(rope["factor"])}
        if rope["scaling"] == "yarn":
            new["original_max_position_embeddings"] = own
        config.max_position_embeddings = reach
    config.rope_parameters = new
    for name, old in tables:
        parent = model.get_submodule(name.rpartition(".")[0])
        kind: Any = type(old)
        setattr(parent, name.rpartition(".")[2], kind(config=config).to(model.device))


def keep_dt(model: PreTrainedModel, device: torch.device) -> None:
    """Have Mamba's scan in float32 under bf16 compute where no kernel does it, time steps included.

    The plain implementation rounds ``dt`` and its bias to the type of the projection before it, and what is rounded
    there is an exponent. Kernels add the bias in float32 themselves.
    """
    if not boundaries.kernels_know_documents(device):
        for mixer in boundaries.mamba_mixers(model):
            projection: Any = mixer.in_proj
            projection.register_forward_hook(lambda module, given, out: out.float())


def attention_alone(model: PreTrainedModel) -> None:
    """Leave the projections of attention alone trainable.

    Raises:
        CheckpointError: the class is not known by the names of its tensors, or has no attention.
    """
    kind = str(model.config.model_type)
    if kind not in FAMILIES:
        raise CheckpointError(f"train: attention: the class {kind!r} is none of {', '.join(sorted(FAMILIES))}")
    chosen = 0
    for name, parameter in model.named_parameters():
        is_attention = locate(name, kind).component == "attention"
        parameter.requires_grad_(is_attention)
        chosen += is_attention
    if not chosen:
        raise CheckpointError(f"train: attention: no tensor of {type(model).__name__} is one of attention's")


def _policy(width: int) -> Any:
    def choose(state: Any, operation: Any, *given: Any, **named: Any) -> CheckpointPolicy:
        del state, named
        narrow = operation in _PRODUCTS and int(given[-1].shape[-1]) <= width
        return CheckpointPolicy.MUST_SAVE if narrow or operation in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE

    return choose


def checkpoint_activations(model: PreTrainedModel, mode: str) -> None:
    """Which activations are kept for the backward pass.

    Args:
        model: changed in place.
        mode: ``none``: all are kept; ``full``: a layer's input alone; ``selective``: besides it what attention gives
            and every product no wider than the model, which cost most to compute for what they take to keep.

    Raises:
        CheckpointError: the class cannot compute its layers anew.
    """
    if mode == "none":
        return
    if not model.supports_gradient_checkpointing:
        raise CheckpointError(f"{type(model).__name__} cannot compute activations anew; set 'checkpointing: none'")
    how: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        policy = _policy(int(model.config.get_text_config().hidden_size))
        how["context_fn"] = lambda: create_selective_checkpoint_contexts(policy)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
