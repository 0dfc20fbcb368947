"""GRPO: trl's trainer with our sampler, our reward, the truncated importance ratio, and a leaner forward pass.

trl owns the loss (``dapo``: all tokens of the step weigh alike), the advantages (reward minus the group's mean, divided
by the group's standard deviation + 1e-4), the clipping, the KL penalty and the soft updates of the reference. Ours are:

- **Sampling.** Any ``model.generate.Sampler``; trl hands over each prompt ``samples`` times, we sample it once with its
  prefill shared. What is sampled depends on the seed and the step alone.
- **Truncated importance ratio.** Advantages are multiplied, token by token, by min(pi_trainer / pi_sampler, cap), both
  with the sampling temperature (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL").
- **Forward pass.** Without padding, see ``rl.logps``; and the ratio costs no pass of its own.

Each step is strictly on-policy, so the clipped ratio is 1 at the only update and the clip range has no effect.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from prismlab.data.items import Item
from prismlab.errors import MissingExtra, StageError
from prismlab.model.generate import Completion, Sampler, SamplingSettings
from prismlab.rl.logps import response_logps
from prismlab.rl.rewards import Reward
from prismlab.seeds import derive_seed
from prismlab.train.optim import adamw, schedule_factor

try:
    from datasets import Dataset
    from transformers import PrinterCallback
    from transformers.utils import logging as library_logging
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise MissingExtra("trl", "rl", "a stage 'rl'") from error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LIBRARIES = ("trl", "transformers", "accelerate", "datasets")
"""Libraries whose chatter is kept from the user; what matters of it is raised or noted by us."""

TOKENS_A_FORWARD = 65_536
"""Response tokens that one backward pass may hold; more are split by gradient accumulation."""


CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in dataclasses.fields(GRPOConfig)}
)
"""The library renamed this setting: recompute activations in the backward pass, on by default, here on GPUs only."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt of RL: its item, its token ids, and how it was scored when it was selected."""

    item: Item
    ids: tuple[int, ...]
    correct: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The responses of one step.

    Attributes:
        step: the optimizer step that they are for, from 1.
        group: responses a prompt; they stand side by side.
        prompts: the prompt of each response.
        completions: the responses.
        rewards: the reward of each response.
        seconds: wall time of the sampling.
    """

    step: int
    group: int
    prompts: Sequence[Prompt]
    completions: Sequence[Completion]
    rewards: Sequence[Reward]
    seconds: float


def prompt_order(prompts: int, wanted: int, seed: int) -> list[int]:
    """Indices of prompts in training order: random passes over all prompts, each one once a pass, cut to ``wanted``."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < wanted:
        order.extend(rng.permutation(prompts).tolist())
    return order[:wanted]


def truncated_ratio(trainer: torch.Tensor, sampler: torch.Tensor, mask: torch.Tensor, cap: float) -> torch.Tensor:
    """min(exp(trainer - sampler), cap) per token [batch, tokens], without gradient; min(1, cap) outside the mask.

    Args:
        trainer: log-probabilities of the sampled tokens under the model in training [batch, tokens].
        sampler: the same under the distribution they were sampled from.
        mask: 1 on response tokens, 0 on padding.
        cap: largest ratio.
    """
    difference = (trainer.detach() - sampler) * mask
    return torch.exp(difference).clamp(max=cap)


def rows_a_pass(total: int, max_new_tokens: int) -> int:
    """Rows a backward pass: the largest divisor of ``total`` that keeps to ``TOKENS_A_FORWARD`` tokens, at least 1."""
    fitting = max(1, TOKENS_A_FORWARD // max_new_tokens)
    return max(rows for rows in range(1, total + 1) if total % rows == 0 and rows <= fitting)


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
    # The order of prompts is ours, see ``prompt_order``.
    "shuffle_dataset": False,
    # Read for the reference alone: it goes where the policy is, not spread over all devices.
    "model_init_kwargs": {"device_map": None},
    "fp16": False,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
    "remove_unused_columns": False,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "log_completions": False,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}
"""Settings of every run. What the library would default to something else is explicit."""


def grpo_config(spec: Mapping[str, Any], seed: int, scratch: Path) -> GRPOConfig:
    """trl's settings for an ``RLSpec`` in JSON, besides ``FIXED``.

    Args:
        spec: JSON of ``RLSpec``.
        seed: seed of the step.
        scratch: a folder for what the library insists on writing; nothing in it is kept.
    """
    total = int(spec["prompts_per_step"]) * int(spec["samples"])
    rows = rows_a_pass(total, int(spec["max_new_tokens"]))
    cuda = torch.cuda.is_available()
    soft = spec["kl_beta"] > 0 and spec["reference_every"] > 0
    clip = spec["optimizer"]["clip"]
    settings = {
        **FIXED,
        "output_dir": str(scratch),
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
        "max_grad_norm": math.inf if clip is None else float(clip),
        "bf16": spec["precision"] == "bf16",
        "use_cpu": not cuda,
        CHECKPOINTING: cuda,
    }
    config = GRPOConfig(**settings)
    # One process trains on one device; several visible ones would make the library wrap the model in DataParallel.
    config._n_gpu = min(1, config.n_gpu)
    return config


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep warnings, log lines and progress bars of ``LIBRARIES`` from the user; ours and torch's still show."""
    bars = library_logging.is_progress_bar_enabled()
    library_logging.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for name in LIBRARIES:
            warnings.filterwarnings("ignore", module=rf"{name}(\..*)?")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            if bars:
                library_logging.enable_progress_bar()
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class Trainer(GRPOTrainer):
    """See the top of this module.

    Args:
        model: float32 weights on the device that they are trained on, read from the folder ``model.config`` names: the
            reference is read from there, too.
        tokenizer: the model's; it is not changed.
        prompts: what to train on.
        spec: JSON of ``RLSpec``.
        seed: seed of the step; prompts' order and rollouts derive from it.
        sampler: samples from ``model``.
        reward: judges one response.
        on_rollout: is told every step's responses and rewards.
        scratch: a folder that may be deleted afterwards.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        spec: Mapping[str, Any],
        seed: int,
        sampler: Sampler,
        reward: Callable[[Item, Completion], Reward],
        on_rollout: Callable[[Rollout], None],
        scratch: Path,
    ) -> None:
        self._prompts, self._sampler, self._reward, self._on_rollout = prompts, sampler, reward, on_rollout
        self._ratio_cap: float | None = spec["ratio_cap"]
        self._group = int(spec["samples"])
        self._settings = SamplingSettings(
            max_new_tokens=int(spec["max_new_tokens"]),
            temperature=float(spec["temperature"]),
            top_p=float(spec["top_p"]),
        )
        self._completions: list[Completion] = []
        self._sampling_seconds = 0.0
        self._scored: tuple[torch.Tensor, torch.Tensor, None] | None = None
        steps, optimizer_spec = int(spec["steps"]), spec["optimizer"]
        optimizer = adamw(model, optimizer_spec)
        order = prompt_order(len(prompts), steps * int(spec["prompts_per_step"]), derive_seed(seed, "prompt order"))
        super().__init__(
            model=model,
            reward_funcs=[self._judge],
            args=grpo_config(spec, seed, scratch),
            # The library wants text and tokenizes it; what it carries here is the index of the prompt.
            train_dataset=Dataset.from_dict({"prompt": [str(index) for index in order]}),
            # The library gives its tokenizer a padding token, which must not reach the saved one.
            processing_class=copy.deepcopy(tokenizer),
            optimizers=(optimizer, LambdaLR(optimizer, lambda step: schedule_factor(step, steps, optimizer_spec))),
        )
        self.remove_callback(PrinterCallback)

    def _send_telemetry(self) -> None:
        """Nothing is reported to anyone."""

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self._prompts[int(index)].ids) for index in prompts], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int, **_: Any
    ) -> tuple[list[list[int]], list[list[float] | None] | None]:
        """Sample ``num_generations`` responses to each run of equal prompts; ids and log-probabilities per response."""
        began = time.perf_counter()
        seed = derive_seed(self.args.seed, "rollout", self.state.global_step)
        with self.accelerator.autocast():
            try:
                groups = self._sampler.sample(prompt_ids[::num_generations], num_generations, self._settings, seed)
            except StageError as error:
                raise StageError(f"RL step {self.state.global_step + 1}: {error}; lower 'optimizer.lr'?") from error
        self._completions = [completion for group in groups for completion in group]
        self._sampling_seconds = time.perf_counter() - began
        logps = [completion.sampler_logprobs for completion in self._completions]
        if self._ratio_cap is not None and any(values is None for values in logps):
            raise StageError("this sampler tells no log-probabilities: set 'ratio_cap: null' or take another sampler")
        ids = [completion.token_ids for completion in self._completions]
        return ids, None if self._ratio_cap is None else logps

    def _judge(self, prompts: list[str], **_: Any) -> list[float | None]:
        """The one reward function: None, which leaves a response out of its group, where there is no verdict."""
        chosen = [self._prompts[int(index)] for index in prompts]
        rewards = [self._reward(p.item, c) for p, c in zip(chosen, self._completions, strict=True)]
        self._on_rollout(
            Rollout(
                step=self.state.global_step + 1,
                group=self._group,
                prompts=chosen,
                completions=self._completions,
                rewards=rewards,
                seconds=self._sampling_seconds,
            )
        )
        return [reward.reward for reward in rewards]

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """trl's loss, on advantages [batch, tokens] that carry the truncated ratio; one forward pass serves both."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        keep = inputs["completion_ids"].shape[1]
        scored = self._get_per_token_logps_and_entropies(model, ids, mask, keep, compute_entropy=True)
        advantages = inputs["advantages"].unsqueeze(1)
        if self._ratio_cap is not None:
            sampled = inputs["sampling_per_token_logps"]
            advantages = advantages * truncated_ratio(scored[0], sampled, inputs["completion_mask"], self._ratio_cap)
        self._scored = scored
        try:
            return super()._compute_loss(model, {**inputs, "advantages": advantages})
        finally:
            self._scored = None

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        compute_entropy: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Log-probabilities and entropies of the last ``logits_to_keep`` tokens [batch, logits_to_keep], 0 on padding.

        Both are of the distribution at the sampling temperature; entropies have no gradient.
        """
        if self._scored is not None:
            return self._scored
        with self.accelerator.autocast():
            logps, entropies = response_logps(model, input_ids, attention_mask, logits_to_keep, self.temperature)
        return logps, entropies, None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One backward pass.

        Raises:
            StageError: its loss is not finite; the weights are still those of the step before.
        """
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise StageError(
                f"RL step {self.state.global_step + 1}: loss is {loss.item()}; lower 'optimizer.lr' or raise 'kl_beta'"
            )
        return loss
