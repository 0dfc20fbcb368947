"""Configurations of the stages that make checkpoints: training, merging, RL."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from prismlab.study.rl import LoraSpec, VllmSpec
from prismlab.study.running import RunSide
from prismlab.study.spec import LARGEST, Count, Decay, Fraction, Name, Positive, Spec
from prismlab.study.training import ModelSide


class OptimizerSpec(Spec):
    """AdamW and its schedule; defaults are the study's mid-training (table 16)."""

    lr: Positive = 5e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "exponential", "constant", "wsd"] = "cosine"
    """Shape of the decay after the warm-up; ``wsd`` stays at the peak and decays linearly over ``decay_steps``.
    ``exponential`` falls by a fixed factor a step, to ``final_lr_factor`` or 0.01, whichever is larger."""
    decay_steps: Count | None = None
    """Last steps over which ``wsd`` decays; null for a tenth of the run."""
    warmup: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    """Steps of linear warm-up."""
    final_lr_factor: Fraction = 0.1
    """Learning rate at the end, as a share of the peak."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """Decoupled weight decay; never on norms, biases and Mamba's A, D, dt."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay rates of AdamW's moments, below 1."""
    eps: Positive = 1e-10
    """AdamW's epsilon."""
    clip: Positive | None = 1.0
    """Largest gradient norm; null for none."""

    @model_validator(mode="after")
    def _decay_has_its_schedule(self) -> Self:
        if self.decay_steps is not None and self.schedule != "wsd":
            raise ValueError(f"'decay_steps' is for 'schedule: wsd'; {self.schedule} has none")
        return self


def _within_steps(steps: int, warmup: int, snapshots: int) -> None:
    if warmup > steps:
        raise ValueError(f"'optimizer.warmup' of {warmup} steps is longer than the {steps} 'steps' of the run")
    if snapshots > steps:
        raise ValueError(f"{snapshots} 'snapshots' are more than the {steps} 'steps' of the run")


class RLOptimizerSpec(OptimizerSpec):
    """AdamW and its schedule for RL; defaults are the study's (table 21), decay, betas and epsilon are *ours*."""

    lr: Positive = 5e-7
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "exponential", "constant", "wsd"] = "linear"
    """Shape of the decay after the warm-up."""
    final_lr_factor: Fraction = 0.0
    """Learning rate at the end, as a share of the peak."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay; never on norms, biases and Mamba's A, D, dt."""


class PackingSpec(Spec):
    """How documents are laid out in rows."""

    method: Literal["concat", "best_fit"] = "concat"
    """``concat``: one after another, cut at row ends. ``best_fit``: whole documents and padding, as little as may be;
    a document longer than a row is cut into chunks, all full but its last. Needs numba."""
    overlap: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    """Tokens that chunks of one document share, with ``best_fit``; at most half a row."""
    min_tokens: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    """Pass over documents of fewer tokens (counted in the record), for a long-context phase."""
    window: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    """Documents that ``best_fit`` looks at together; more fill rows better and need more memory."""

    @model_validator(mode="after")
    def _overlap_needs_chunks(self) -> PackingSpec:
        if self.overlap and self.method != "best_fit":
            raise ValueError("'overlap' is for 'method: best_fit', which cuts documents into chunks")
        return self

    @property
    def label(self) -> str:
        """What tells corpora apart that differ in packing alone; empty for the default."""
        default = PackingSpec()
        changed = [
            f"{name}{getattr(self, name)}"
            for name in ("overlap", "min_tokens", "window")
            if getattr(self, name) != getattr(default, name)
        ]
        return "-".join([self.method, *changed]) if changed or self.method != default.method else ""


class TrainRun(Spec):
    """What a training reads, how far it goes, and what it keeps."""

    stage: Literal["pretrain", "midtrain", "finetune", "extend"]
    """What this training is called in the report."""
    start: Annotated[str, Field(alias="from")]
    """A base or a checkpoint of this study, or a snapshot of a training (``name@step``)."""
    mixture: Name
    """The mixture to train on."""
    steps: Count
    """Optimizer steps."""
    rows: Count = 128
    """Rows (sequences) a step, over all devices."""
    seq_len: Annotated[int, Field(ge=8, le=LARGEST)] = 8192
    """Tokens a row."""
    packing: PackingSpec = PackingSpec()
    """How documents are laid out in rows."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """AdamW and its schedule."""
    precision: Literal["float32", "bf16"] = "float32"
    """Compute precision; master weights are always float32 and the saved checkpoint bf16."""
    micro_rows: Count | None = None
    """Rows a forward pass on one device; null for all of this device's rows at once."""
    snapshots: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    """Save bf16 weights this many times, evenly spaced, for trajectories."""
    keep_snapshots: bool = True
    """Keep the snapshots; false measures each when it is saved and keeps two at most on disk, none at the end."""
    keep_master: bool = False
    """Also keep the float32 weights as trained, before they are rounded to bf16: shows what the rounding hides."""
    launch: Literal["process", "torchrun"] = "process"
    """``torchrun`` starts ``nproc`` processes of this stage on this machine."""
    nproc: Count = 1
    """Processes under ``torchrun``."""
    tensorboard: bool = True
    """Write TensorBoard event files beside the JSON-lines metrics."""
    wandb: str | None = None
    """W&B project to log to; needs the package and a login."""


class TrainSpec(RunSide, ModelSide, TrainRun):
    """Next-token training on a mixture; ``pretrain``, ``midtrain``, ``finetune`` and ``extend`` name one loop."""

    @model_validator(mode="after")
    def _fits(self) -> TrainSpec:
        _within_steps(self.steps, self.optimizer.warmup, self.snapshots)
        if self.launch == "process" and self.nproc > 1:
            raise ValueError("'nproc' above 1 needs 'launch: torchrun'")
        nproc = self.nproc if self.launch == "torchrun" else None
        if self.mesh is not None and (misfit := self.mesh.misfit(nproc)) is not None:
            raise ValueError(misfit)
        shares = self.nproc // self.context_parallel
        if self.nproc % self.context_parallel:
            raise ValueError(f"'nproc' of {self.nproc} is no multiple of 'context_parallel' {self.context_parallel}")
        if self.rows % shares:
            raise ValueError(f"{self.rows} 'rows' cannot be split over {shares} processes: choose a multiple")
        if self.seq_len % self.context_parallel:
            raise ValueError(
                f"'seq_len' of {self.seq_len} cannot be shared by {self.context_parallel} processes evenly"
            )
        if (self.optimizer.decay_steps or 0) + self.optimizer.warmup > self.steps:
            raise ValueError(f"'warmup' and 'decay_steps' are longer than the {self.steps} 'steps' of the run")
        if self.packing.overlap > self.seq_len // 2:
            raise ValueError(f"'packing.overlap' of {self.packing.overlap} tokens is more than half of 'seq_len'")
        if self.packing.method == "concat" and self.packing.window != PackingSpec().window:
            raise ValueError("'packing.window' is for 'method: best_fit'; concatenation has none")
        return self

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return self.steps * self.rows * self.seq_len


class MergeSpec(Spec):
    """Linear merge of checkpoints of this study."""

    stage: Literal["merge"]
    """The kind of stage."""
    weights: Annotated[dict[Name, float], Field(min_length=2)]
    """Weight per checkpoint; must sum to 1 unless ``allow_any_sum``."""
    allow_any_sum: bool = False
    """Accept weights that do not sum to 1."""
    dtype: Literal["keep", "bfloat16", "float16", "float32"] = "bfloat16"
    """Type of the merged weights; ``keep`` for each tensor's own in the first checkpoint."""
    tokenizer_from: Name | None = None
    """Whose tokenizer is taken; null for the first's, and the others' must give the same ids."""

    @model_validator(mode="after")
    def _sum(self) -> MergeSpec:
        total = sum(self.weights.values())
        if not self.allow_any_sum and abs(total - 1.0) > 1e-6:
            raise ValueError(f"merge weights sum to {total:g}, not 1: mend them or set 'allow_any_sum: true'")
        if self.tokenizer_from is not None and self.tokenizer_from not in self.weights:
            raise ValueError(f"'tokenizer_from' names {self.tokenizer_from!r}, which is not among the 'weights'")
        return self


class RLSpec(Spec):
    """GRPO with verifiable rewards; defaults are the study's (table 21), what it leaves open is marked *ours*."""

    stage: Literal["rl"]
    """The kind of stage."""
    start: Annotated[str, Field(alias="from")]
    """A base or a checkpoint of this study."""
    prompts: Name
    """The prompt set to train on."""
    steps: Count = 1000
    """Optimizer steps."""
    prompts_per_step: Count = 64
    """Prompts a step."""
    samples: Annotated[int, Field(ge=2, le=LARGEST)] = 16
    """Responses per prompt: the group of GRPO."""
    max_new_tokens: Count = 15360
    """Longest response, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus sampling mass."""
    kl_beta: Annotated[float, Field(ge=0.0)] = 0.05
    """Weight of the KL penalty to the reference."""
    reference_mixup: Fraction = 0.6
    """Share of the policy in each soft update of the reference (*ours*)."""
    reference_every: Annotated[int, Field(ge=0, le=LARGEST)] = 64
    """Steps between soft updates of the reference (*ours*); 0 keeps it fixed."""
    epsilon_low: Positive = 0.2
    """Lower clip range (*ours*)."""
    epsilon_high: Positive = 0.272
    """Upper clip range (*ours*)."""
    ratio_cap: Positive | None = 2.0
    """Cap of the trainer-to-sampler probability ratio; null for no correction."""
    no_stop_penalty: Annotated[float, Field(ge=0.0)] = 0.1
    """Taken from the reward of a response without a stop token (*ours*)."""
    repetition_penalty: Annotated[float, Field(ge=0.0)] = 0.1
    """Taken from the reward in proportion to the share of repeated n-grams (*ours*)."""
    repetition_ngram: Annotated[int, Field(ge=2, le=LARGEST)] = 16
    """Tokens in an n-gram of the repetition penalty (*ours*)."""
    optimizer: RLOptimizerSpec = RLOptimizerSpec()
    """AdamW and its schedule; decay, betas and epsilon are *ours*."""
    precision: Literal["float32", "bf16"] = "float32"
    """Compute precision; the saved checkpoint is bf16."""
    lora: LoraSpec | None = None
    """Train low-rank adapters alone; null trains all weights, as the study did."""
    vllm: VllmSpec | None = None
    """Sample with vLLM; null samples with transformers in the processes that train."""
    server: Name | None = None
    """Sample with a token-level HTTP server of ``run.servers``, which takes new weights from disk each step."""
    sharding: Literal["none", "fsdp", "zero3"] = "none"
    """How weights are spread over GPUs; the study used DeepSpeed ZeRO-3. Both need ``vllm``: a model in pieces cannot
    be sampled in the processes that train. Saves within the run are for ``none`` alone."""
    launch: Literal["process", "torchrun"] = "process"
    """``torchrun`` starts ``nproc`` processes of this stage on this machine, each with its share of the prompts."""
    nproc: Count = 1
    """Processes under ``torchrun``."""
    save_every: Count | None = None
    """Steps between saves that a stopped run goes on from; null for so many that they cost at most a twentieth of its
    time, and at most one a minute. Results do not depend on it."""
    snapshots: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    """Save bf16 weights this many times, evenly spaced, for trajectories."""
    keep_snapshots: bool = True
    """Keep the snapshots; false measures each when it is saved and keeps two at most on disk, none at the end."""
    keep_master: bool = False
    """Also keep the float32 weights as trained, before they are rounded to bf16: shows what the rounding hides."""
    tensorboard: bool = True
    """Write TensorBoard event files beside the JSON-lines metrics."""
    wandb: str | None = None
    """W&B project to log to; needs the package and a login."""

    @model_validator(mode="after")
    def _fits(self) -> RLSpec:
        _within_steps(self.steps, self.optimizer.warmup, self.snapshots)
        if self.launch == "process" and self.nproc > 1:
            raise ValueError("'nproc' above 1 needs 'launch: torchrun'")
        if self.prompts_per_step % self.nproc:
            raise ValueError(
                f"{self.prompts_per_step} 'prompts_per_step' cannot be split over {self.nproc} processes: a multiple"
            )
        return self

    @model_validator(mode="after")
    def _engines_fit(self) -> RLSpec:
        if self.sharding != "none" and self.vllm is None:
            raise ValueError(f"'sharding: {self.sharding}' needs 'vllm': a model in pieces is not sampled in process")
        if self.sharding == "zero3" and self.keep_master:
            raise ValueError("'keep_master' goes without 'sharding: zero3', which gives back bf16 weights: take fsdp")
        if self.vllm is not None and self.server is not None:
            raise ValueError("'vllm' and 'server' exclude one another: name one sampler")
        if self.lora is not None and (self.sharding != "none" or self.server is not None):
            raise ValueError("'lora' goes without 'sharding' and 'server'")
        if self.lora is not None and self.kl_beta > 0 and self.reference_every:
            raise ValueError("with 'lora' the reference is the start without adapters: set 'reference_every: 0'")
        if self.server is not None and (self.temperature != 1.0 or self.top_p != 1.0) and self.ratio_cap is not None:
            raise ValueError("a 'server' tells log-probabilities at temperature 1: set 'ratio_cap: null' or sample so")
        return self


CheckpointSpec = Annotated[TrainSpec | MergeSpec | RLSpec, Field(discriminator="stage")]
