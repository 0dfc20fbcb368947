"""Stage ``rl``: GRPO from a checkpoint on selected prompts, with every response kept as a row."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prismlab.data.items import Item
from prismlab.data.templates import get_template
from prismlab.errors import DataError, StageError
from prismlab.model.checkpoint import load_model, load_tokenizer, save_checkpoint, save_master
from prismlab.model.generate import TransformersSampler, prompt_ids
from prismlab.rl.rewards import Penalties, Reward, reward_of
from prismlab.rl.trainer import Prompt, Rollout, Trainer, quiet_libraries
from prismlab.run.step import Artifact, Progress, Result
from prismlab.train.logs import MetricsLog
from prismlab.train.snapshots import Snapshots

ROLLOUT_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("item_id", pa.string()),
        ("task", pa.string()),
        ("domain", pa.string()),
        ("sample", pa.int32()),
        ("reward", pa.float64()),
        ("form_ok", pa.bool_()),
        ("score", pa.float64()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("no_stop", pa.float64()),
        ("repetition", pa.float64()),
        ("length", pa.int32()),
        ("finished", pa.bool_()),
        ("correct_before", pa.int32()),
        ("samples_before", pa.int32()),
        ("response", pa.string()),
    ]
)
"""One row a response. ``no_stop`` and ``repetition`` are what was taken from the reward; ``correct_before`` of
``samples_before`` is how the prompt was scored when it was selected; reward and score are null without a verdict."""

ROWS_A_GROUP = 8192
"""Rows that are gathered before a row group is written."""


def read_prompts(file: Path, tokenizer: Any, template: str) -> list[Prompt]:
    """The prompts that the stage ``prompts`` wrote, as token ids.

    Raises:
        DataError: there is none.
    """
    shape = get_template(template)
    prompts: list[Prompt] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        correct, samples = row.pop("correct"), row.pop("samples")
        item = Item.from_json(row)
        ids = tuple(prompt_ids(tokenizer, shape.prompt(item.question)))
        prompts.append(Prompt(item=item, ids=ids, correct=correct, samples=samples))
    if not prompts:
        raise DataError(f"{file}: holds no prompt, so there is nothing to train on")
    return prompts


class Rollouts:
    """Writes ``rollouts.parquet``; rows are gathered, so that a small run has one row group."""

    def __init__(self, file: Path) -> None:
        self._writer = pq.ParquetWriter(file, ROLLOUT_SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, rollout: Rollout) -> None:
        """One row a response of this step."""
        judged = zip(rollout.prompts, rollout.completions, rollout.rewards, strict=True)
        for at, (prompt, completion, reward) in enumerate(judged):
            self._rows.append(
                {
                    "step": rollout.step,
                    "item_id": prompt.item.id,
                    "task": prompt.item.task,
                    "domain": prompt.item.domain,
                    "sample": at % rollout.group,
                    **dataclasses.asdict(reward),
                    "length": len(completion.token_ids),
                    "finished": completion.finished,
                    "correct_before": prompt.correct,
                    "samples_before": prompt.samples,
                    "response": completion.text,
                }
            )
        if len(self._rows) >= ROWS_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=ROLLOUT_SCHEMA))
            self._rows = []

    def close(self) -> None:
        """Write what is gathered and end the file."""
        self._flush()
        self._writer.close()


def no_signal(rewards: Sequence[Reward], group: int) -> float:
    """Share of groups whose rewards are all equal and so teach nothing; a response without a verdict has none."""
    groups = [rewards[at : at + group] for at in range(0, len(rewards), group)]
    spread = [{one.reward for one in members if one.reward is not None} for members in groups]
    return sum(len(values) < 2 for values in spread) / len(spread)


def rollout_metrics(rollout: Rollout) -> dict[str, Any]:
    """The part of a metrics row that the responses tell; null where no response has a verdict.

    ``reward_std`` is the population standard deviation over the step's responses, ``length`` the mean in tokens, and
    ``truncation`` the share of responses without a stop token.
    """
    rewards = [one.reward for one in rollout.rewards if one.reward is not None]
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for prompt, one in zip(rollout.prompts, rollout.rewards, strict=True):
        if one.score is not None:
            scores[prompt.item.domain].append(one.score)
    return {
        "step": rollout.step,
        "reward": fmean(rewards) if rewards else None,
        "reward_std": pstdev(rewards) if rewards else None,
        "pass": {domain: fmean(values) for domain, values in sorted(scores.items())},
        "format_ok": fmean(one.form_ok for one in rollout.rewards),
        "length": fmean(len(completion.token_ids) for completion in rollout.completions),
        "truncation": fmean(not completion.finished for completion in rollout.completions),
        "no_signal": no_signal(rollout.rewards, rollout.group),
        "unscored": sum(one.reward is None for one in rollout.rewards),
        "seconds_sampling": rollout.seconds,
    }


class Recorder(TrainerCallback):
    """Joins what the responses tell with what the library logs, step by step, and saves snapshots.

    Args:
        snapshots: of the model in training.
        rollouts: gets every response.
        log: gets every metrics row.
        progress: shown reward and length.
    """

    def __init__(self, snapshots: Snapshots, rollouts: Rollouts, log: MetricsLog, progress: Progress) -> None:
        self.rows: list[dict[str, Any]] = []
        self.tokens = 0
        self._snapshots, self._rollouts, self._log, self._progress = snapshots, rollouts, log, progress
        self._row: dict[str, Any] = {}
        self._began = time.perf_counter()

    def on_rollout(self, rollout: Rollout) -> None:
        """Keep the responses of the step that is about to be taken."""
        self._row = rollout_metrics(rollout)
        self._rollouts.add(rollout)
        self.tokens += sum(len(completion.token_ids) for completion in rollout.completions)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._snapshots.after(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """One metrics row a step.

        Raises:
            StageError: the gradient's norm is not finite, so neither are the weights.
        """
        if logs is None or "grad_norm" not in logs:
            return  # The library's summary at the end of the run.
        if not math.isfinite(logs["grad_norm"]):
            raise StageError(
                f"RL step {state.global_step}: the gradient's norm is {logs['grad_norm']}; lower 'optimizer.lr'"
            )
        now = time.perf_counter()
        row = {
            **self._row,
            "entropy": logs["entropy"],
            "kl": logs.get("kl"),
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": logs["grad_norm"],
            "seconds": now - self._began,
        }
        self._began = now
        self.rows.append(row)
        self._log.log(row)
        reward = row["reward"]
        self._progress.advance(1, reward="no verdict" if reward is None else reward, length=row["length"])


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics of a run: ``reward_first`` and ``reward_last`` are means over the first and last tenth of its steps.

    ``signal_share`` is the share of groups whose rewards differ, ``unscored`` the responses without a verdict, which
    no mean counts.
    """
    tenth = max(1, len(rows) // 10)

    def mean(some: Sequence[Mapping[str, Any]]) -> float | None:
        rewards = [row["reward"] for row in some if row["reward"] is not None]
        return fmean(rewards) if rewards else None

    return {
        "reward_first": mean(rows[:tenth]),
        "reward_last": mean(rows[-tenth:]),
        "reward_mean": mean(rows),
        "steps": len(rows),
        "signal_share": 1.0 - fmean(row["no_signal"] for row in rows),
        "unscored": sum(row["unscored"] for row in rows),
        "seconds_sampling": sum(row["seconds_sampling"] for row in rows),
        "seconds_update": sum(row["seconds"] - row["seconds_sampling"] for row in rows),
    }


def _notes(metrics: Mapping[str, Any], prompts: int, per_step: int, progress: Progress) -> None:
    if prompts < per_step:
        progress.note(f"{prompts} prompts for {per_step} a step: a step holds some of them more than once")
    if metrics["signal_share"] == 0.0:
        progress.note("no group of responses had different rewards: nothing was learnt but the penalty's pull")
    if metrics["unscored"]:
        progress.note(f"{metrics['unscored']} responses had no verdict and were left out")


def train(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], spec: Mapping[str, Any], seed: int, recorder: Recorder
) -> None:
    """Train ``model`` in place, all steps of ``spec`` (JSON of ``RLSpec``), from ``seed`` alone."""
    penalties = Penalties.of(spec)
    with tempfile.TemporaryDirectory(prefix="prism-rl-") as scratch:
        trainer = Trainer(
            model=model,
            tokenizer=tokenizer,
            prompts=prompts,
            spec=spec,
            seed=seed,
            sampler=TransformersSampler(model, tokenizer),
            reward=lambda item, completion: reward_of(item, completion, penalties),
            on_rollout=recorder.on_rollout,
            scratch=Path(scratch),
        )
        trainer.add_callback(recorder)
        trainer.train()


def run(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Train ``inputs['start']`` with GRPO on ``inputs['prompts']``; see docs/architecture.md for config and outputs.

    A run without any reward is a result, not an error. On the CPU the same config and inputs give bitwise the same
    weights and responses.

    Raises:
        StageError: loss or gradient is not finite, or the sampler tells no log-probabilities.
        CheckpointError: the start cannot be loaded.
        DataError: there is no prompt.
    """
    with quiet_libraries():
        return _run(config, inputs, out, progress)


def _run(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    spec, folder = config["spec"], inputs["start"].model
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    model, tokenizer = load_model(folder, "float32", device), load_tokenizer(folder)
    own_configs = copy.deepcopy((model.config, model.generation_config))
    prompts = read_prompts(inputs["prompts"].path / "prompts.jsonl", tokenizer, config["template"])
    rollouts = Rollouts(out / "rollouts.parquet")
    log = MetricsLog(out, tensorboard=spec["tensorboard"], wandb=spec["wandb"], name=config.get("name", "rl"))
    snapshots = Snapshots(model, folder, config, out)
    recorder = Recorder(snapshots, rollouts, log, progress)
    progress.start(int(spec["steps"]), "step")
    try:
        train(model, tokenizer, prompts, spec, config["seed"], recorder)
    finally:
        rollouts.close()
        log.close()
    # The library writes its padding token into both; the next stage shall find the start's own.
    model.config, model.generation_config = own_configs
    snapshots.close()
    save_checkpoint(model, tokenizer, out / "model")
    if spec["keep_master"]:
        save_master(model, out / "master")
    metrics = summary(recorder.rows)
    _notes(metrics, len(prompts), int(spec["prompts_per_step"]), progress)
    return Result(metrics=metrics, tokens=recorder.tokens)
