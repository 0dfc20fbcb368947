"""Parts of RL's configuration: its prompts, how it samples, what it trains, and what is asked about it afterwards."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prismlab.study.spec import LARGEST, Count, Name, Positive
from prismlab.study.world import Spec


class ScoringSpec(Spec):
    """Candidate prompts, sampled and scored by one checkpoint."""

    by: str
    """The checkpoint that samples; the study took one mid-trained model for all."""
    tasks: Annotated[list[Name], Field(min_length=1)]
    """Tasks whose training split gives the candidates."""
    candidates: Count = 256
    """Candidate prompts per task."""
    samples: Annotated[int, Field(ge=2, le=LARGEST)] = 16
    """Samples a prompt."""
    max_new_tokens: Count = 15360
    """Longest response, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus sampling mass."""
    server: Name | None = None
    """Sample over HTTP with a server of ``run.servers``; null samples in process. What a server does not tell (token
    ids, log-probabilities) is null in the rows."""


class PromptSpec(Spec):
    """RL prompts, selected from scored candidates by their number of correct samples."""

    scoring: Name
    """Which scored candidates."""
    tasks: Annotated[list[Name], Field(min_length=1)]
    """Tasks (and so domains) that the prompts come from."""
    mix: Literal["unbalanced", "balanced"] = "unbalanced"
    """``balanced`` brings each task to ``per_task`` with a random subset of prompts solved 0 times."""
    min_correct: Annotated[int, Field(ge=0, le=LARGEST)] = 1
    """Fewest correct samples of a chosen prompt."""
    max_correct: Annotated[int, Field(ge=0, le=LARGEST)] | None = None
    """Most correct samples of a chosen prompt; null for all but every sample."""
    overrides: dict[Name, tuple[int, int]] = {}
    """Per task ``[min, max]`` correct; the study took math with exactly 1 of 16: ``[1, 1]``."""
    per_task: Count | None = None
    """At most this many prompts a task (at random by seed); null for all, required by ``balanced``."""
    randomise: list[Name] = []
    """Tasks whose prompts get an instruction at random by seed, one of several wordings (*ours*); the study did so with
    science in its balanced mix."""

    @model_validator(mode="after")
    def _balanced(self) -> PromptSpec:
        if self.mix == "balanced" and self.per_task is None:
            raise ValueError("'mix: balanced' needs 'per_task', the number of prompts that each task is brought to")
        return self


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
