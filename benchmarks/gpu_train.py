"""Training at true shapes with random weights on one GPU: tokens a second, utilisation, memory beside the plan's.

    python benchmarks/gpu_train.py --models granite-4-micro granite-4-h-micro llama-3.1-8b --out gpu_train.json
    python benchmarks/gpu_train.py --tiny          (tiny models of the same classes, on the CPU: the test)

A few steps of the training loop (bf16, float32 masters, fused AdamW, full activation checkpointing, rows of 8,192
tokens) with plain torch and transformers; which faster kernels were there is told. Utilisation is the model's
operations (forward and backward, nothing counted twice) over the rate of a matrix product measured on the same device
in the same run. A model that does not fit is told as such, with what the plan had said.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import platform
import statistics
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prismlab.cost.hub import HUB_CONFIGS
from prismlab.cost.memory import Setting, memory
from prismlab.cost.names import MODELS
from prismlab.cost.operations import training_operations
from prismlab.cost.shapes import shape_of
from prismlab.micro.models import build_model, tiny_config
from prismlab.study.checkpoints import TrainSpec
from prismlab.train.loop import train
from prismlab.train.model import make_ready
from prismlab.train.monitors import matrix_rate, memory_mb
from prismlab.train.parallel import World

TINY = {"granite-4-micro": "granite4", "granite-4-h-micro": "granite4-h", "llama-3.1-8b": "llama"}
TINY |= {"granite-3.3-8b": "granite", "nemotron-h-8b": "nemotron-h", "mistral-7b": "mistral-swa"}
KERNELS = ("flash_attn", "flash_attn_interface", "mamba_ssm", "causal_conv1d", "kernels", "triton")
GIB = 2**30


class Rows:
    """Random rows, a document each."""

    masked = False

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self._tokens = np.random.default_rng(0).integers(0, vocabulary, (count, length))

    def tokens(self, start: int, stop: int) -> Any:
        return self._tokens[start:stop]

    def documents(self, start: int, stop: int) -> Any:
        return None

    def loss_mask(self, start: int, stop: int) -> Any:
        raise AssertionError("there is nothing to mask")

    def row_domains(self, start: int, stop: int) -> list[str]:
        return ["random"] * (stop - start)


def build(name: str, tiny: bool, length: int, device: torch.device) -> Any:
    """The model with random float32 weights on the device."""
    if tiny:
        return build_model(tiny_config(TINY[name], 32, 4, 258, max_positions=length), 0).to(device)
    known = dict(HUB_CONFIGS[MODELS[name].hub])
    config = AutoConfig.for_model(known.pop("model_type"), **known)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")


def kernels() -> dict[str, Any]:
    """Which faster kernels can be imported, and which ways of attention torch may take."""
    return {name: importlib.util.find_spec(name) is not None for name in KERNELS} | {
        "sdpa_flash": torch.backends.cuda.flash_sdp_enabled(),
        "sdpa_efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "sdpa_cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
    }


def measure(name: str, options: argparse.Namespace, device: torch.device, rate: float) -> dict[str, Any]:
    """One model: ``{parameters, tokens_per_second, mfu, peak_gib, plan_gib, loss_first, loss_last}``, or ``error``.

    ``plan_gib`` is the plan without what it reserves for CUDA itself, which torch's count of a GPU's memory leaves out.
    """
    given = {
        "stage": "midtrain",
        "from": "x",
        "mixture": "x",
        "steps": options.steps,
        "rows": options.rows,
        "seq_len": options.seq_len,
        "micro_rows": 1,
        "precision": "bf16",
        "boundaries": "ignore",
        "checkpointing": options.checkpointing,
        "allow_longer": True,
        "optimizer": {"lr": 1e-5, "schedule": "constant"},
    }
    spec = TrainSpec.model_validate(given).model_dump(mode="json", by_alias=True)
    setting = Setting(
        rows=options.rows,
        micro_rows=1,
        seq_len=options.seq_len,
        checkpointing=options.checkpointing,
        masked=False,
        device=device.type,
    )
    found: dict[str, Any] = {"model": name}
    try:
        model = build(name, options.tiny, options.seq_len, device)
        shape = shape_of(model.config.to_dict())
        found |= {"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}
        plan = memory(shape, setting)
        found["plan_gib"] = (plan.total - (plan.reserved if device.type == "cuda" else 0)) / GIB
        make_ready(model, spec)
        rows = Rows(options.steps * options.rows, options.seq_len, min(shape.vocab, 2**31))
        reports = list(train(model, rows, spec, World(device=device)))
    except torch.cuda.OutOfMemoryError as error:
        return found | {"error": f"out of memory: {str(error)[:200]}", "peak_gib": memory_mb(device) / 1024}
    # The first step compiles kernels and makes the optimizer's state.
    speed = statistics.median(report.tokens_per_second for report in reports[1:])
    operations = training_operations(shape, options.seq_len).model.total / options.seq_len
    return found | {
        "tokens_per_second": speed,
        "mfu": operations * speed / rate,
        "peak_gib": memory_mb(device) / 1024,
        "loss_first": reports[0].loss,
        "loss_last": reports[-1].loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(TINY), default=["granite-4-micro", "granite-4-h-micro"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--checkpointing", default="full")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps: at least 2, since the first one is not counted: it compiles kernels")
    cuda = torch.cuda.is_available()
    if options.tiny:
        options.seq_len = min(options.seq_len, 64)
    elif not cuda:
        parser.error("there is no GPU here; --tiny runs tiny models of the same classes on the CPU")
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    rate = matrix_rate(device, "bf16", None if cuda else 256)
    about = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU",
        "torch": torch.__version__,
        "matrix_rate_tflops": rate / 1e12,
        "kernels": kernels(),
        "seq_len": options.seq_len,
        "checkpointing": options.checkpointing,
        "models": [],
    }
    for name in options.models:
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        found = measure(name, options, device, rate)
        about["models"].append(found)
        print(json.dumps(found), flush=True)
    print(json.dumps({key: value for key, value in about.items() if key != "models"}))
    if options.out:
        options.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
