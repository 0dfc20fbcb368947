"""Stage ``rl``: GRPO from a checkpoint on selected prompts, with every response kept as a row.

A stopped run goes on where it was: what was sampled is used, what was judged is not judged again, and weights,
optimizer, reference and random numbers come from the last save (``rl.resume``, ``rl.rollouts``).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prismlab.arith.trace import FILE
from prismlab.data.items import Item
from prismlab.data.templates import get_template
from prismlab.errors import DataError, StageError
from prismlab.model import lora
from prismlab.model.checkpoint import load_model, load_tokenizer, save_checkpoint, save_master
from prismlab.model.generate import Sampler, TransformersSampler, prompt_ids
from prismlab.model.served import TokenSampler
from prismlab.model.wire import Wire
from prismlab.rl.resume import RunSaves, kept_files, rows_so_far, scheduler_state, trainer_state
from prismlab.rl.rewards import Penalties, reward_of
from prismlab.rl.rollouts import Prompt, Rollout, RolloutFiles, rollout_metrics, rows_of, summary
from prismlab.rl.trainer import Trainer, quiet_libraries
from prismlab.rl.whole import Whole
from prismlab.run.step import Artifact, Progress, Result
from prismlab.seeds import derive_seed
from prismlab.train.logs import MetricsLog
from prismlab.train.saves import Save
from prismlab.train.snapshots import LAST, Snapshots, snapshot_steps


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


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that ``torchrun`` started; alone without it."""

    rank: int
    size: int

    @classmethod
    def here(cls) -> Processes:
        """From the environment."""
        return cls(rank=int(os.environ.get("RANK", "0")), size=int(os.environ.get("WORLD_SIZE", "1")))


class Recorder(TrainerCallback):
    """Joins what the responses tell with what the library logs, step by step, and saves snapshots and the run itself.

    Args:
        snapshots: of the model in training; None in every process but the first.
        log: gets every metrics row; None in every process but the first.
        saves: of the run; None where it cannot be saved.
        progress: shown reward and length.
        processes: of the run.
        whole: the policy in one piece, which the snapshots are of.
        due: steps after which there is a snapshot.
        before: metrics rows of the steps that were taken before this process began.
    """

    def __init__(
        self,
        snapshots: Snapshots | None,
        log: MetricsLog | None,
        saves: RunSaves | None,
        progress: Progress,
        processes: Processes,
        whole: Whole,
        due: Set[int] = frozenset(),
        before: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self.trainer: Trainer | None = None
        self.files: RolloutFiles | None = None
        self._snapshots, self._log, self._saves, self._progress = snapshots, log, saves, progress
        self._processes, self._whole, self._due = processes, whole, due
        self._row: dict[str, Any] = {}
        self._began = time.perf_counter()
        for row in before:
            self._keep(row)

    def on_rollout(self, rollout: Rollout) -> None:
        """Keep what the responses of the step that is about to be taken tell."""
        rows = rows_of(rollout)
        if self._processes.size > 1:
            rows = gather_object([{**row, "response": ""} for row in rows])
        self._row = rollout_metrics(rows, rollout.group, rollout.seconds)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step in self._due:
            self._whole.gather(self.trainer)
        if self._snapshots is not None:
            self._snapshots.after(state.global_step)
        if self._saves is not None and state.global_step < state.max_steps and self._saves.due(state.global_step):
            control.should_save = True  # Once this step is logged.

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        trainer = self.trainer
        if self._saves is None or trainer is None:
            return
        # A copy of the rows: a thread writes them while training goes on and adds to them.
        told = {"rows": list(self.rows), "trainer": trainer_state(state)}
        told["scheduler"] = scheduler_state(trainer.lr_scheduler)
        model: Any = trainer.model
        reference: Any = trainer.ref_model
        files = {} if self._snapshots is None else self._snapshots.kept()
        done = self._saves.write(state.global_step, model, trainer.plain_optimizer, reference, told, files)
        if done is not None and self.files is not None:
            self.files.forget(done)

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
            "ratio": logs.get("ratio"),
            "ratio_capped": logs.get("ratio_capped"),
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": logs["grad_norm"],
            "seconds": now - self._began,
        }
        self._began = now
        self._keep(row)

    def _keep(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self._log is not None:
            self._log.log(row)
        reward = row["reward"]
        self._progress.advance(1, reward="no verdict" if reward is None else reward, length=row["length"])


def _notes(metrics: Mapping[str, Any], prompts: int, per_step: int, progress: Progress) -> None:
    if prompts < per_step:
        progress.note(f"{prompts} prompts for {per_step} a step: a step holds some of them more than once")
    if metrics["signal_share"] == 0.0:
        progress.note("no group of responses had different rewards: nothing was learnt but the penalty's pull")
    if metrics["unscored"]:
        progress.note(f"{metrics['unscored']} responses had no verdict and were left out")


def _identity(config: Mapping[str, Any], inputs: Mapping[str, Artifact]) -> str:
    """What makes two runs the same, so that no save of another one is taken up."""
    rest = {key: value for key, value in config.items() if key not in ("files", "scratch")}
    whole = [rest, {key: one.fingerprint for key, one in inputs.items()}]
    return hashlib.blake2b(json.dumps(whole, sort_keys=True).encode(), digest_size=16).hexdigest()


def _link(source: Path, target: Path) -> None:
    """A file or a folder's files also under ``target``; a run's scratch folder stays until the step is complete."""
    for file in [source, *sorted(source.rglob("*"))]:
        place = target / file.relative_to(source)
        if file.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, place)
            except OSError:
                shutil.copyfile(file, place)


def run(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Train ``inputs['start']`` with GRPO on ``inputs['prompts']``; see docs/architecture.md for config and outputs.

    A run without any reward is a result, not an error. On the CPU the same config and inputs give bitwise the same
    weights and responses, however often the run was stopped.

    Raises:
        StageError: loss or gradient is not finite, or the sampler tells no log-probabilities.
        CheckpointError: the start cannot be loaded.
        DataError: there is no prompt.
    """
    with quiet_libraries(), tempfile.TemporaryDirectory(prefix="prism-rl-") as aside:
        scratch = Path(config["scratch"]) if "scratch" in config else Path(aside) / "scratch"
        return _Run(config, inputs, out, scratch, Path(aside), progress).carry_out()


class _Run:
    """One run of the stage in one process."""

    def __init__(
        self,
        config: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        out: Path,
        scratch: Path,
        aside: Path,
        progress: Progress,
    ) -> None:
        # What lies in the folder of another configuration or start is not taken up.
        self.identity = _identity(config, inputs)
        self.scratch = scratch / self.identity[:16]
        self.config, self.out, self.aside = config, out, aside
        self.spec, self.start, self.progress = config["spec"], inputs["start"].model, progress
        self.processes = Processes.here()
        self.chief = self.processes.rank == 0
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        self.model, self.tokenizer = load_model(self.start, "float32", device), load_tokenizer(self.start)
        self.own_configs = copy.deepcopy((self.model.config, self.model.generation_config))
        self.whole = Whole(self.model, self.start, self.spec["sharding"] != "none", self.chief)
        self.prompts = read_prompts(inputs["prompts"].path / "prompts.jsonl", self.tokenizer, config["template"])
        self.files = RolloutFiles(self.scratch / "rollouts", self.processes.rank)

    def carry_out(self) -> Result:
        """Train, write everything, and tell what became of it."""
        saves, save = self._saves()
        snapshots = Snapshots(self.whole.model, self.start, self.config, self.scratch) if self.chief else None
        if snapshots is not None and save is not None:
            snapshots.go_on(save.step, kept_files(save, (LAST, FILE)))
        board = {"tensorboard": self.spec["tensorboard"], "wandb": self.spec["wandb"]}
        log = MetricsLog(self.out, **board, name=self.config.get("name", "rl")) if self.chief else None
        self.progress.start(int(self.spec["steps"]), "step")
        due = snapshot_steps(int(self.spec["steps"]), int(self.spec["snapshots"]))
        before = rows_so_far(save)
        recorder = Recorder(snapshots, log, saves, self.progress, self.processes, self.whole, due, before)
        try:
            trainer = self._train(recorder, save)
            if saves is not None:
                saves.close()
        except BaseException:
            if saves is not None:
                saves.abandon()
            if self.chief:
                self.files.salvage(self.out / "rollouts.parquet")
            raise
        finally:
            if log is not None:
                log.close()
        if self.processes.size > 1:
            torch.distributed.barrier()
        self.whole.gather(trainer)
        tokens = self._write(snapshots) if self.chief else 0
        metrics = summary(recorder.rows)
        _notes(metrics, len(self.prompts), int(self.spec["prompts_per_step"]), self.progress)
        return Result(metrics=metrics, tokens=tokens)

    def _saves(self) -> tuple[RunSaves | None, Save | None]:
        """The run's saves and the one to go on from."""
        if self.spec["sharding"] != "none":
            self.progress.note("a run with 'sharding' keeps no saves: stopped, it begins again")
            return None, None
        rank, size = self.processes.rank, self.processes.size
        every = self.spec["save_every"]
        saves = RunSaves(self.scratch / "saves", self.identity, every, rank, size, self.progress.note)
        save = saves.latest()
        if save is not None and save.step:
            self.progress.note(f"going on from step {save.step}")
        return saves, save

    def _train(self, recorder: Recorder, save: Save | None) -> Trainer:
        """All steps that are left."""
        penalties = Penalties.of(self.spec)
        if self.spec["lora"] is not None:
            torch.manual_seed(derive_seed(self.config["seed"], "adapters"))
            lora.add(self.model, self.spec["lora"])
        sampler, fresh, server = self._sampler()
        trainer = Trainer(
            model=self.model,
            tokenizer=self.tokenizer,
            prompts=self.prompts,
            spec=self.spec,
            seed=self.config["seed"],
            sampler=sampler,
            reward=lambda item, completion: reward_of(item, completion, penalties),
            on_rollout=recorder.on_rollout,
            scratch=self.aside,
            files=self.files,
            fresh=fresh,
            server=server,
        )
        trainer.add_callback(recorder)
        recorder.trainer, recorder.files = trainer, self.files
        if save is None:
            trainer.train()
        else:
            trainer.go_on(save, self.aside)
        return trainer

    def _sampler(self) -> tuple[Sampler | None, Callable[[], None], str | None]:
        """Who samples, what gives it new weights, and where it is reached, as the spec says."""
        if self.spec["vllm"] is not None:
            return None, lambda: None, self.config.get("files", {}).get("server", [None])[0]
        if self.spec["server"] is not None:
            served = TokenSampler(Wire(self.config["files"]["server"][0]), self.tokenizer)
            return served, lambda: self._publish(served), None
        return TransformersSampler(self.model, self.tokenizer), lambda: None, None

    def _publish(self, served: TokenSampler) -> None:
        """Give a server elsewhere the weights of this step, through a folder that it can see too."""
        if self.chief:
            place = self.scratch / "served"
            number = 1 + max((int(old.name) for old in place.glob("*")), default=0)
            save_checkpoint(self.model, self.tokenizer, place / f"{number}")
            served.take_weights(place / f"{number}")
            for old in place.glob("*"):
                if old.name != f"{number}":
                    shutil.rmtree(old)
        if self.processes.size > 1:
            torch.distributed.barrier()

    def _write(self, snapshots: Snapshots | None) -> int:
        """Everything of the artifact but its metrics; returns the tokens that were sampled."""
        model: Any = self.whole.model
        # The library writes its padding token into both; the next stage shall find the start's own.
        model.config, model.generation_config = self.own_configs
        if snapshots is not None:
            snapshots.close()
            for name in ("snapshots", FILE):
                _link(self.scratch / name, self.out / name)
        save_checkpoint(model, self.tokenizer, self.out / "model")
        if self.spec["keep_master"]:
            save_master(model, self.out / "master")
        return self.files.collect(self.out / "rollouts.parquet", int(self.spec["steps"]), self.processes.size)
