"""Parts of RL's configuration: how it samples, what it trains, and what is asked about it afterwards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prismlab.study.spec import LARGEST, Count, Name, Positive
from prismlab.study.world import Spec


class LoraSpec(Spec):
    """Train low-rank adapters in place of all weights; the saved checkpoint has them merged in (*ours*)."""

    rank: Count = 16
    """Rank of an adapter."""
    alpha: Positive = 32.0
    """Adapters are scaled by alpha / rank."""
    targets: list[str] | None = None
    """Names of the modules that get an adapter; null for every linear layer but the head."""


class VllmSpec(Spec):
    """Sample with vLLM on GPUs, through trl (*ours*); needs the package."""

    mode: Literal["colocate", "server"] = "colocate"
    """``colocate`` on the GPUs that train, ``server`` in processes that ``trl vllm-serve`` started."""
    gpu_memory: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Share of a GPU's memory for vLLM, with ``colocate``."""
    tensor_parallel: Count = 1
    """GPUs that a model is split over, with ``colocate``."""
    max_model_length: Count | None = None
    """Longest prompt and response together, in tokens, with ``colocate``; null for the model's own."""
    sleep: bool = False
    """Free vLLM's memory while training, with ``colocate``."""
    server: Name | None = None
    """Name of the server in ``run.servers``, with ``server``."""

    @model_validator(mode="after")
    def _server_named(self) -> VllmSpec:
        if (self.mode == "server") != (self.server is not None):
            raise ValueError("'server' is the name of a server in 'run.servers': with 'mode: server', and only there")
        return self


class FrontierSpec(Spec):
    """What RL did to its own prompts, by how often its start solved them."""

    checkpoints: list[Name] | None = None
    """RL checkpoints; null for all."""
    prompts: Count | None = None
    """Most prompts a run that are sampled, at random; null for all that it was trained on."""
    samples: Annotated[int, Field(ge=2, le=LARGEST)] = 16
    """Samples a prompt by which the prompts are put in groups (0 correct, 1 correct, more)."""
    fresh: Annotated[int, Field(ge=2, le=LARGEST)] = 64
    """Samples a prompt of the start (drawn anew) and of the RL checkpoint, which are compared; pass@k up to this k."""
