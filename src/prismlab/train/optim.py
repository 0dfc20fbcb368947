"""AdamW's parameter groups and the learning-rate schedules, used by training and by RL alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

EXPONENTIAL_FLOOR = 0.01
"""An exponential cannot reach 0: a final factor below this decays to it instead. The reference study names neither."""

_NO_DECAY_PARTS = ("norm", "A_log", "dt_bias")


def decays(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether weight decay applies: not on norms, biases (any vector) and Mamba's A, D and dt.

    The depthwise convolution's kernel, a matrix with one row a channel, decays; so do the embeddings.
    """
    return parameter.ndim >= 2 and not any(part in name for part in _NO_DECAY_PARTS)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW: parameters with ``weight_decay`` and parameters without. Tied parameters come once."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]


def schedule_factor(step: int, total: int, spec: Mapping[str, Any]) -> float:
    """Learning rate of ``step`` (0-based) out of ``total``, as a share of the peak.

    Args:
        step: the optimizer step that is about to be taken, from 0.
        total: number of steps of the run.
        spec: JSON of ``OptimizerSpec``; ``warmup`` steps rise linearly and end at the peak, after which the decay runs
            to ``final_lr_factor`` at the last step. With w the decay's progress from 0 to 1 and f the final factor:
            cosine is f + (1 - f)(1 + cos(pi w))/2, linear is 1 - (1 - f) w, exponential is max(f, 0.01)^w. Of
            warmup-stable-decay (``wsd``) the last d = ``decay_steps`` steps fall in d equal parts from the peak,
            1 - (1 - f) k/d at the k-th of them, and the steps before know nothing of the total.
    """
    warmup, final = int(spec["warmup"]), float(spec["final_lr_factor"])
    if step < warmup:
        return (step + 1) / warmup
    if spec["schedule"] == "wsd":
        decay = total - stable_steps(total, spec)
        return 1.0 - (1.0 - final) * max(0, step + 1 - (total - decay)) / decay
    progress = (step - warmup) / max(1, total - warmup - 1)
    progress = min(1.0, progress)
    match spec["schedule"]:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - (1.0 - final) * progress
        case "cosine":
            return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        case "exponential":
            return max(final, EXPONENTIAL_FLOOR) ** progress
        case other:
            raise ValueError(f"unknown schedule {other!r}")


def stable_steps(total: int, spec: Mapping[str, Any]) -> int:
    """Steps at the beginning of a run of ``total`` whose learning rate does not depend on ``total``: those before the
    decay of ``wsd`` (a tenth of the run where ``decay_steps`` is null), all of ``constant``, else those of the warm-up.
    """
    if spec["schedule"] == "constant":
        return total
    if spec["schedule"] != "wsd":
        return min(total, int(spec["warmup"]))
    decay = spec.get("decay_steps") or max(1, round(total / 10))
    return max(0, total - int(decay))


def adamw(model: torch.nn.Module, spec: Mapping[str, Any]) -> torch.optim.AdamW:
    """AdamW at the peak learning rate of ``spec`` (JSON of ``OptimizerSpec``); the caller sets each step's rate."""
    return torch.optim.AdamW(
        parameter_groups(model, float(spec["weight_decay"])),
        lr=float(spec["lr"]),
        betas=(float(spec["betas"][0]), float(spec["betas"][1])),
        eps=float(spec["eps"]),
        # One kernel for all parameters: on a small model the loop over tensors would cost more than the arithmetic.
        fused=True,
    )


def snapshot_steps(steps: int, snapshots: int) -> set[int]:
    """Steps (1-based, the last one included) after which a snapshot is saved: ``snapshots`` of them, evenly spaced."""
    return {round(k * steps / snapshots) for k in range(1, snapshots + 1)} - {0} if snapshots else set()
