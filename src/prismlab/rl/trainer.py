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
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from prismlab.data.items import Item
from prismlab.errors import MissingExtra, StageError
from prismlab.model.generate import Completion, Sampler, SamplingSettings
from prismlab.rl.logps import response_logps
from prismlab.rl.resume import put_back, put_back_random, told_to_library
from prismlab.rl.rewards import Reward
from prismlab.rl.rollouts import Prompt, Rollout, RolloutFiles
from prismlab.rl.settings import grpo_config
from prismlab.seeds import derive_seed
from prismlab.train.optim import adamw, schedule_factor
from prismlab.verify.answers import WAITS, in_threads

try:
    from datasets import Dataset
    from transformers import PrinterCallback
    from transformers.utils import logging as library_logging
    from trl import GRPOTrainer
except ImportError as error:
    raise MissingExtra("trl", "rl", "a stage 'rl'") from error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from prismlab.train.saves import Save

LIBRARIES = ("trl", "transformers", "accelerate", "datasets")
"""Libraries whose chatter is kept from the user; what matters of it is raised or noted by us."""


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


def without_noise(rewards: Sequence[float | None], group: int) -> list[float | None]:
    """The rewards, but 0 in groups whose rewards are all equal, so that such a group has no advantage at all.

    The library's mean of 16 times 0.9 in float32 is not 0.9, and what the division by a deviation near 0 makes of the
    rest (6e-4) would be a whole step to AdamW where no other group has a signal.
    """
    told: list[float | None] = []
    for at in range(0, len(rewards), group):
        members = rewards[at : at + group]
        equal = len({one for one in members if one is not None}) == 1
        told += [0.0 if equal and one is not None else one for one in members]
    return told


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
            reference is read from there, too. With adapters (peft) the reference is the model without them.
        tokenizer: the model's; it is not changed.
        prompts: what to train on.
        spec: JSON of ``RLSpec``.
        seed: seed of the step; prompts' order and rollouts derive from it.
        sampler: samples from ``model``; None for vLLM, which the library drives.
        reward: judges one response.
        on_rollout: is told every step's responses and rewards, of this process.
        scratch: a folder that may be deleted afterwards.
        files: where responses are kept as soon as they are there, and looked for before anything is sampled.
        fresh: called before anything is sampled, for a sampler elsewhere that needs the new weights.
        server: address of the vLLM server, with ``vllm.mode: server``.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        spec: Mapping[str, Any],
        seed: int,
        sampler: Sampler | None,
        reward: Callable[[Item, Completion], Reward],
        on_rollout: Callable[[Rollout], None],
        scratch: Path,
        files: RolloutFiles | None = None,
        fresh: Callable[[], None] = lambda: None,
        server: str | None = None,
    ) -> None:
        self._prompts, self._sampler, self._reward, self._on_rollout = prompts, sampler, reward, on_rollout
        self._files, self._fresh = files, fresh
        self._ratio_cap: float | None = spec["ratio_cap"]
        self._group = int(spec["samples"])
        self._settings = SamplingSettings(
            max_new_tokens=int(spec["max_new_tokens"]),
            temperature=float(spec["temperature"]),
            top_p=float(spec["top_p"]),
        )
        self._chosen: list[Prompt] = []
        self._completions: list[Completion] = []
        self._sampling_seconds = 0.0
        self._scored: tuple[torch.Tensor, torch.Tensor, None] | None = None
        self._resumed: Save | None = None
        self._sums: dict[str, torch.Tensor] = {}
        steps, optimizer_spec = int(spec["steps"]), spec["optimizer"]
        optimizer = adamw(model, optimizer_spec)
        order = prompt_order(len(prompts), steps * int(spec["prompts_per_step"]), derive_seed(seed, "prompt order"))
        super().__init__(
            model=model,
            reward_funcs=[self._judge],
            args=grpo_config(spec, seed, scratch, int(os.environ.get("WORLD_SIZE", "1")), server),
            # The library wants text and tokenizes it; what it carries here is the index of the prompt.
            train_dataset=Dataset.from_dict({"prompt": [str(index) for index in order]}),
            # The library gives its tokenizer a padding token, which must not reach the saved one.
            processing_class=copy.deepcopy(tokenizer),
            optimizers=(optimizer, LambdaLR(optimizer, lambda step: schedule_factor(step, steps, optimizer_spec))),
        )
        self.remove_callback(PrinterCallback)

    def go_on(self, save: Save, scratch: Path) -> None:
        """Train from where a save was taken."""
        self._resumed = save
        self.train(resume_from_checkpoint=str(told_to_library(save, scratch)))

    @property
    def plain_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without the library's wrapper."""
        wrapped: Any = self.optimizer
        return getattr(wrapped, "optimizer", wrapped)

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """Everything is put back at once, in ``_load_optimizer_and_scheduler``."""

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if self._resumed is not None:
            model: Any = self.model
            put_back(self._resumed, model, self.plain_optimizer, self.lr_scheduler, self.ref_model)

    def _load_rng_state(self, checkpoint: Any) -> None:
        if self._resumed is not None:
            put_back_random(self._resumed, self.args.process_index, self.accelerator.device)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves are ours, written when the library says that one is due."""

    def _send_telemetry(self) -> None:
        """Nothing is reported to anyone."""

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self._chosen = [self._prompts[int(index)] for index in prompts]
        return [list(prompt.ids) for prompt in self._chosen], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, num_generations: int, **rest: Any
    ) -> tuple[list[list[int]], list[list[float] | None] | None]:
        """Sample ``num_generations`` responses to each run of equal prompts; ids and log-probabilities per response."""
        began, step = time.perf_counter(), self.state.global_step + 1
        kept = self._taken_up(step)
        if kept is None and self._sampler is None:
            ids, told = super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **rest)
            kept = self._completed(ids, told)
        elif kept is None:
            kept = self._sample(prompt_ids[::num_generations], num_generations, step)
        if self._files is not None:
            self._files.keep_sampled(step, self._chosen, kept)
        self._completions = kept
        self._sampling_seconds = time.perf_counter() - began
        logps = [completion.sampler_logprobs for completion in kept]
        if self._ratio_cap is not None and any(values is None for values in logps):
            raise StageError("this sampler tells no log-probabilities: set 'ratio_cap: null' or take another sampler")
        return [completion.token_ids for completion in kept], None if self._ratio_cap is None else logps

    def _taken_up(self, step: int) -> list[Completion] | None:
        """What was sampled for a step before the run was stopped; None unless every process still has its share.

        Giving a server new weights, and sampling with vLLM, are done by all processes or by none.
        """
        kept = None if self._files is None else self._files.sampled(step, self._chosen)
        if self.accelerator.num_processes > 1:
            here: Any = self.accelerator.gather(torch.tensor([kept is not None], device=self.accelerator.device))
            return kept if bool(here.all()) else None
        return kept

    def _sample(self, prompts: list[list[int]], n: int, step: int) -> list[Completion]:
        """``n`` responses to each prompt, in a row, from the sampler."""
        assert self._sampler is not None
        # Named by the place in the whole step, so that each process draws what one process would.
        first = self.args.process_index * len(prompts)
        seeds = [derive_seed(self.args.seed, "rollout", step, first + at) for at in range(len(prompts))]
        self._fresh()
        with self.accelerator.autocast():
            try:
                groups = self._sampler.sample(prompts, n, self._settings, seeds)
            except StageError as error:
                raise StageError(f"RL step {step}: {error}; lower 'optimizer.lr'?") from error
        return [completion for group in groups for completion in group]

    def _completed(self, ids: list[list[int]], told: list[list[float]] | None) -> list[Completion]:
        """What vLLM drew, as completions."""
        finished = [bool(row) and row[-1] in self.eos_token_ids for row in ids]
        spoken = [row[:-1] if end else row for row, end in zip(ids, finished, strict=True)]
        tokenizer: Any = self.processing_class
        texts = tokenizer.batch_decode(spoken, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        logps: Sequence[list[float] | None] = told if told is not None else [None] * len(ids)
        return [
            Completion(token_ids=list(row), text=text, logprobs=None, sampler_logprobs=own, finished=end)
            for row, text, own, end in zip(ids, texts, logps, finished, strict=True)
        ]

    def _judge(self, prompts: list[str], **_: Any) -> list[float | None]:
        """The one reward function: None, which leaves a response out of its group, where there is no verdict.

        What the library gets is good for advantages alone, see ``without_noise``; rows and metrics have the rewards.
        """
        step, chosen = self.state.global_step + 1, [self._prompts[int(index)] for index in prompts]
        rewards = None if self._files is None else self._files.judged(step, self._completions)
        kept = rewards is not None
        if rewards is None:
            answers = [(p.item, c) for p, c in zip(chosen, self._completions, strict=True)]
            rewards = in_threads(self._reward, answers, slow=any(p.item.verifier in WAITS for p in chosen))
        rollout = Rollout(
            step=step,
            group=self._group,
            prompts=chosen,
            completions=self._completions,
            rewards=rewards,
            seconds=self._sampling_seconds,
        )
        if self._files is not None and not kept:
            self._files.keep_judged(rollout)
        self._on_rollout(rollout)
        return without_noise([reward.reward for reward in rewards], self._group)

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """trl's loss, on advantages [batch, tokens] that carry the truncated ratio; one forward pass serves both."""
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        keep = inputs["completion_ids"].shape[1]
        scored = self._get_per_token_logps_and_entropies(model, ids, mask, keep, compute_entropy=True)
        advantages = inputs["advantages"].unsqueeze(1)
        # With vLLM the library computes the ratio and applies it itself.
        ratio = inputs.get("importance_sampling_ratio")
        if self._ratio_cap is not None and self._sampler is not None:
            inside = inputs["completion_mask"]
            ratio = truncated_ratio(scored[0], inputs["sampling_per_token_logps"], inside, self._ratio_cap)
            advantages = advantages * ratio
        self._add_up(scored[0].detach(), scored[1], ratio, inputs)
        self._scored = scored
        try:
            return super()._compute_loss(model, {**inputs, "advantages": advantages})
        finally:
            self._scored = None

    def _add_up(
        self, logps: torch.Tensor, entropies: torch.Tensor, ratio: torch.Tensor | None, inputs: Mapping[str, Any]
    ) -> None:
        """Sums over the response tokens of one backward pass, for ``log``."""
        inside = inputs["completion_mask"].bool()
        told = {"tokens": inside, "entropy": entropies}
        if "ref_per_token_logps" in inputs:
            difference = inputs["ref_per_token_logps"] - logps
            told["kl"] = torch.exp(difference) - difference - 1
        if ratio is not None and self._ratio_cap is not None:
            told |= {"ratio": ratio, "ratio_capped": ratio >= self._ratio_cap}
        for name, values in told.items():
            self._sums[name] = self._sums.get(name, 0.0) + values[inside].double().sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The library's log, with means over all response tokens of the step.

        Its own are means over backward passes, in which a token of a pass with few tokens weighs more than another.
        """
        names = sorted(self._sums)
        if names:
            sums: Any = torch.stack([self._sums[name] for name in names])
            if self.accelerator.num_processes > 1:
                sums = self.accelerator.reduce(sums, reduction="sum")
            told = dict(zip(names, sums.tolist(), strict=True))
            tokens = max(1.0, told.pop("tokens"))
            self._metrics["train"].update({name: [value / tokens] for name, value in told.items()})
            self._sums = {}
        super().log(logs, start_time)

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
