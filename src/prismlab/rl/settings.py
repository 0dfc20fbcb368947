"""trl's settings for a study's: every one that the reference study names, and the engines for GPUs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prismlab.cost.rl import rows_a_pass
from prismlab.errors import MissingExtra

try:
    from trl import GRPOConfig
except ImportError as error:
    raise MissingExtra("trl", "rl", "a stage 'rl'") from error

CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in dataclasses.fields(GRPOConfig)}
)
"""The library renamed this setting: recompute activations in the backward pass, on by default, here on GPUs only."""

FIXED: dict[str, Any] = {
    "loss_type": "dapo",
    "scale_rewards": "group",
    "num_iterations": 1,
    # The penalty is the plain k3 estimate, without a ratio before it.
    "use_bias_correction_kl": False,
    "mask_truncated_completions": False,
    "router_aux_loss_coef": 0.0,
    # The sampler has no dropout, so the trainer has none either, or the ratio of the two would be noise.
    "disable_dropout": True,
    # The order of prompts is ours, see ``trainer.prompt_order``.
    "shuffle_dataset": False,
    # Read for the reference alone: it goes where the policy is, not spread over all devices.
    "model_init_kwargs": {"device_map": None},
    "fp16": False,
    # Every weight takes part in every pass; looking for others costs time in each.
    "ddp_find_unused_parameters": False,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
    "remove_unused_columns": False,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "log_completions": False,
    "report_to": [],
    # Saves are ours, see ``rl.resume``.
    "save_strategy": "no",
    "disable_tqdm": True,
}
"""Settings of every run. What the library would default to something else is explicit."""

FSDP: dict[str, Any] = {
    "version": 2,
    "reshard_after_forward": True,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "state_dict_type": "FULL_STATE_DICT",
    "cpu_ram_efficient_loading": True,
}
"""PyTorch's fully sharded data parallelism, as ``examples/accelerate/fsdp2.yaml`` has it for ``accelerate launch``."""

ZERO3: dict[str, Any] = {
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "bf16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
}
"""DeepSpeed ZeRO-3, which the reference study used; the same as ``examples/accelerate/zero3.json``."""


def vllm_settings(spec: Mapping[str, Any], server: str | None) -> dict[str, Any]:
    """trl's settings for sampling with vLLM, the truncated importance ratio among them; empty without ``vllm``.

    Args:
        spec: JSON of ``RLSpec``.
        server: address of the server that ``vllm.server`` names.
    """
    vllm, cap = spec["vllm"], spec["ratio_cap"]
    if vllm is None:
        return {}
    settings: dict[str, Any] = {
        "use_vllm": True,
        "vllm_mode": vllm["mode"],
        "vllm_importance_sampling_correction": cap is not None,
        # The library's defaults are "sequence_mask" and 3: another estimator than the study's.
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": cap,
    }
    if vllm["mode"] == "server":
        return {**settings, "vllm_server_base_url": server}
    return {
        **settings,
        "vllm_gpu_memory_utilization": vllm["gpu_memory"],
        "vllm_tensor_parallel_size": vllm["tensor_parallel"],
        "vllm_max_model_length": vllm["max_model_length"],
        "vllm_enable_sleep_mode": vllm["sleep"],
    }


def sharding_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """trl's settings for weights spread over GPUs; empty for ``sharding: none``."""
    if spec["sharding"] == "fsdp":
        return {"fsdp": True, "fsdp_config": dict(FSDP)}
    return {"deepspeed": ZERO3} if spec["sharding"] == "zero3" else {}


def run_settings(spec: Mapping[str, Any], seed: int, rows: int, total: int) -> dict[str, Any]:
    """trl's settings that follow from an ``RLSpec`` in JSON, besides ``FIXED`` and the engines'.

    Args:
        spec: JSON of ``RLSpec``.
        seed: seed of the step.
        rows: responses a backward pass of one process.
        total: responses a step of one process.
    """
    cuda = torch.cuda.is_available()
    soft = spec["kl_beta"] > 0 and spec["reference_every"] > 0
    clip = spec["optimizer"]["clip"]
    return {
        "seed": seed,
        "max_steps": int(spec["steps"]),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": total // rows,
        "num_generations": int(spec["samples"]),
        "max_completion_length": int(spec["max_new_tokens"]),
        "temperature": float(spec["temperature"]),
        "top_p": float(spec["top_p"]),
        "epsilon": float(spec["epsilon_low"]),
        "epsilon_high": float(spec["epsilon_high"]),
        "beta": float(spec["kl_beta"]),
        "sync_ref_model": soft,
        "ref_model_mixup_alpha": float(spec["reference_mixup"]),
        "ref_model_sync_steps": int(spec["reference_every"]) if soft else 1,
        "learning_rate": float(spec["optimizer"]["lr"]),
        "lr_scheduler_type": "constant",  # The schedule is ours, handed over with the optimizer.
        "max_grad_norm": math.inf if clip is None else float(clip),
        "bf16": spec["precision"] == "bf16",
        "use_cpu": not cuda,
        CHECKPOINTING: cuda,
    }


def grpo_config(
    spec: Mapping[str, Any], seed: int, scratch: Path, processes: int = 1, server: str | None = None
) -> GRPOConfig:
    """trl's settings for an ``RLSpec`` in JSON.

    Args:
        spec: JSON of ``RLSpec``.
        seed: seed of the step.
        scratch: a folder for what the library insists on writing; nothing in it is kept.
        processes: over which a step's prompts are split.
        server: address of the vLLM server, with ``vllm.mode: server``.
    """
    total = int(spec["prompts_per_step"]) * int(spec["samples"]) // processes
    rows = rows_a_pass(total, int(spec["max_new_tokens"]))
    config = GRPOConfig(
        output_dir=str(scratch),
        **FIXED,
        **run_settings(spec, seed, rows, total),
        **vllm_settings(spec, server),
        **sharding_settings(spec),
    )
    # One process trains on one device; several visible ones would make the library wrap the model in DataParallel.
    config._n_gpu = min(1, config.n_gpu)
    return config
