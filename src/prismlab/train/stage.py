"""Stage ``train``: pretraining, mid-training, fine-tuning and extension are one loop under four names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from prismlab.data.corpus import Corpus
from prismlab.errors import CheckpointError, EndBranch
from prismlab.model.checkpoint import load_model, load_tokenizer, save_checkpoint, save_master, save_snapshot
from prismlab.model.tokens import tokenizer_hash
from prismlab.run.step import Artifact, Progress, Result
from prismlab.train.boundaries import TrainingRows
from prismlab.train.keeping import Keeper, how_of, identity, publish
from prismlab.train.logs import MetricsLog
from prismlab.train.loop import Guard, StepReport, train
from prismlab.train.model import make_ready
from prismlab.train.monitors import Alarm, Heldout, Pace, load_texts
from prismlab.train.optim import snapshot_steps
from prismlab.train.parallel import Parallel, World, resolve_mesh
from prismlab.train.resume import seed_all
from prismlab.train.snapshots import Snapshots
from prismlab.train.totals import Totals
from prismlab.train.trunk import Trunk

LOGGED_ROWS = 2000
"""Longer runs log every n-th step, so that a metrics file stays small enough to draw."""
HELDOUT = "heldout.jsonl"
"""Measurements on held-out documents: see ``Heldout.measure``."""
PACE = ("mfu", "memory_mb")
"""Of what ``Pace`` tells, what the record holds."""


def _check_tokenizer(tokenizer: Any, corpus: Corpus, vocab_size: int) -> None:
    if tokenizer_hash(tokenizer) != corpus.tokenizer_hash:
        raise CheckpointError(
            "the corpus was built with another tokenizer than the checkpoint's: set the study's 'tokenizer' to its base"
        )
    if len(tokenizer) > vocab_size:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} tokens, the model's embedding only {vocab_size} rows"
        )


@dataclasses.dataclass
class _Watch:
    """What is measured on held-out documents, and the alarm; nothing without ``monitor``."""

    every: int
    last: int
    world: World = dataclasses.field(default_factory=World)
    heldout: Heldout | None = None
    alarm: Alarm | None = None
    row: Mapping[str, Any] | None = None
    """The last measurement."""

    def after(self, step: int) -> str | None:
        """To be called by all processes after every step; what the alarm says, if this step sets it off.

        Whether it does is for the first process to say: what follows (gathered weights, an end) is done by all or none.
        """
        due = self.heldout is not None and (step % self.every == 0 or step == self.last)
        self.row = self.heldout.measure(step) if self.heldout is not None and due else None
        if self.row is None or self.alarm is None or not self.world.agree(int(self.alarm.due(self.row["general"]))):
            return None
        return self.alarm.set_off(step, self.row["general"])


class _Run:
    """One training in one process: everything around the loop."""

    def __init__(
        self, config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress
    ) -> None:
        self.config, self.inputs, self.out, self.progress = config, inputs, out, progress
        self.spec, self.world = config["spec"], World.join()
        self.chief, self.steps = self.world.rank == 0, int(config["spec"]["steps"])
        seed_all(config["seed"])
        model, self.tokenizer, self.rows = _prepared(config, inputs, self.world)
        self.mesh = resolve_mesh(how_of(config).get("mesh"), self.world.size)
        self.parallel = Parallel(model, self.world, self.mesh, self.spec["precision"])
        same = identity(config, inputs, self.rows.corpus)
        self.keeper = Keeper(config, out, same, self.world, progress)
        self.trunk = Trunk(config, inputs, self.rows, self.world, self.keeper.work)
        self.totals, self.pace = Totals(self.steps), Pace(model, self.spec, self.world)
        self.guard = Guard(self.spec["on_nonfinite"])
        self.watch = self._watch()
        self.snapshots: Snapshots | None = None
        self.log: MetricsLog | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def _watch(self) -> _Watch:
        spec = self.spec.get("monitor")
        if spec is None:
            return _Watch(1, self.steps, self.world)
        texts = load_texts(self.config, self.inputs)
        heldout = Heldout(self.parallel, self.tokenizer, texts, spec, self.world, self.spec["precision"])
        alarm = Alarm(self.spec.get("alarm"), heldout.start["general"])
        return _Watch(int(spec["every"]), self.steps, self.world, heldout, alarm)

    def begin(self, optimizer: torch.optim.Optimizer) -> int:
        """Take up what a stopped run had saved, and open what this one writes; the number of steps done."""
        self.optimizer, saved = optimizer, self.keeper.find()
        if saved is None:
            saved = self.keeper.saved = self.trunk.take_up()
        if saved is not None:
            self.totals.go_on(saved.state["totals"])
            # A save of an earlier version does not tell: then none was passed over.
            self.guard.in_a_row = int(saved.state.get("skipped_in_a_row", 0))
            if self.watch.alarm is not None:
                self.watch.alarm.fired = saved.state["alarm"]
        if self.chief:
            work, how = self.keeper.work, how_of(self.config)
            # Snapshots are taken of the whole model, which of a split one is another object.
            whole = self.parallel.target
            self.snapshots = Snapshots(whole, self.inputs["start"].model, self.config, work)
            if saved is not None:
                self.snapshots.go_on(saved.step, {name: saved.file(name) for name in saved.state["files"]})
            self.log = MetricsLog(
                work,
                tensorboard=how["tensorboard"],
                wandb=how["wandb"],
                name=self.config.get("name", self.spec["stage"]),
                sizes=None if saved is None else saved.state["log"],
                step=None if saved is None else saved.step,
                run=Path(self.config["scratch"]).name if "scratch" in self.config else None,
            )
            if saved is None and self.watch.heldout is not None:
                self.log.log({"step": 0, **self.watch.heldout.start}, HELDOUT)
        first = self.keeper.begin(self.parallel, optimizer)
        self.progress.start(self.steps, "step")
        if first:
            self.progress.advance(first)
        return first

    def reports(self) -> Iterator[StepReport]:
        """The steps that are left, carried out one by one."""
        told = (self.after_step, self.parallel, self.begin, self.guard)
        return train(self.parallel.model, self.rows, self.spec, self.world, *told)

    def after_step(self, step: int) -> None:
        """The loop's hook: snapshots, for which a split model is gathered by all processes."""
        if step not in self.snapshot_steps:
            return
        self.parallel.whole()
        if self.snapshots is not None:
            self.snapshots.after(step)

    @cached_property
    def snapshot_steps(self) -> set[int]:
        return snapshot_steps(self.steps, int(self.spec["snapshots"]))

    def take(self, report: StepReport) -> None:
        """What follows a step: measurements, log, alarm, save, in this order."""
        self.totals.add(report)
        alarm = self.watch.after(report.step)
        self.pace.tick()
        row = self.watch.row
        shown = {"loss": report.loss} | ({} if row is None else {"held-out": row["general"]})
        self.progress.advance(1, **shown)
        every = max(1, self.steps // LOGGED_ROWS)
        if self.log is not None:
            if report.step % every == 0 or report.step in (1, self.steps):
                pace = self.pace.row(report.step, report.tokens_per_second)
                self.log.log(dataclasses.asdict(report) | pace)
            if row is not None:
                self.log.log(row, HELDOUT)
        if alarm is not None:
            self.sound(alarm, report.step)
        assert self.optimizer is not None
        self.trunk.after(report.step, self.parallel, self.optimizer, self.state)
        self.keeper.after(report.step, self.parallel, self.optimizer, self.state, self.files)

    def state(self) -> dict[str, Any]:
        """What a save holds besides tensors; asked of the first process."""
        assert self.log is not None
        fired = None if self.watch.alarm is None else self.watch.alarm.fired
        files = sorted(self.files())
        told = {"log": self.log.sizes(), "totals": self.totals.state(), "alarm": fired, "files": files}
        return told | {"skipped_in_a_row": self.guard.in_a_row}

    def files(self) -> Mapping[str, Path]:
        """Files that a save holds besides its own."""
        return {} if self.snapshots is None else self.snapshots.kept()

    def sound(self, text: str, step: int) -> None:
        """Do what the alarm asks for.

        Raises:
            EndBranch: it asks for a stop.
        """
        assert self.watch.alarm is not None
        self.progress.note(text)
        if self.watch.alarm.action == "save":
            whole = self.parallel.whole()
            if whole is not None:
                save_snapshot(whole, self.keeper.work / "alarm" / f"step-{step:06d}")
        if self.watch.alarm.action == "stop":
            raise EndBranch(text)

    def close(self, *, whole: bool) -> None:
        """Close the log and let saves end; what was written becomes the artifact's."""
        if self.log is not None:
            self.log.close()
        self.keeper.finish(whole=whole)

    def results(self) -> dict[str, Any]:
        """Write the checkpoint; the record's metrics."""
        whole = self.parallel.whole()
        if self.chief and whole is not None:
            assert self.snapshots is not None
            self.snapshots.close()
            publish(self.keeper.work, self.out)
            save_checkpoint(whole, self.tokenizer, self.out / "model")
            if self.spec["keep_master"]:
                save_master(whole, self.out / "master")
        found: dict[str, Any] = self.totals.metrics() | {"mesh": dataclasses.asdict(self.mesh)}
        found["device"] = self.world.device.type
        found |= {
            key: value for key, value in self.pace.row(self.steps, found["tokens_per_second"]).items() if key in PACE
        }
        if self.watch.heldout is not None:
            alarm = self.watch.alarm
            # A run that was stopped behind its last save has no step left after which it would measure.
            end = self.watch.row or self.watch.heldout.measure(self.steps)
            found["monitor"] = {"start": self.watch.heldout.start, "end": dict(end)}
            found["alarm"] = (
                None if alarm is None or alarm.fired is None else {"step": alarm.fired, "action": alarm.action}
            )
        return found


def _prepared(config: Mapping[str, Any], inputs: Mapping[str, Artifact], world: World) -> tuple[Any, Any, TrainingRows]:
    """The model as it starts, its tokenizer, and the rows."""
    spec = config["spec"]
    # Of several processes each has it split from the CPU's memory, a layer at a time: no device ever holds it whole.
    model = load_model(inputs["start"].model, "float32", world.device if world.size == 1 else torch.device("cpu"))
    tokenizer = load_tokenizer(inputs["start"].model)
    corpus = Corpus.open(inputs["corpus"].path)
    embedding: Any = model.get_input_embeddings()
    _check_tokenizer(tokenizer, corpus, embedding.weight.shape[0])
    make_ready(model, spec, world.device)
    return model, tokenizer, TrainingRows(corpus, spec["boundaries"])


def run(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Train from ``inputs['start']`` on ``inputs['corpus']``; see docs/architecture.md for config and outputs."""
    this, spec = _Run(config, inputs, out, progress), config["spec"]
    try:
        for report in this.reports():
            this.take(report)
    except EndBranch:
        # All processes come here at the same step. None may leave before the first has put things in their place.
        this.close(whole=True)
        if this.chief:
            publish(this.keeper.work, out)
        this.world.meet()
        this.world.leave()
        raise
    except BaseException:
        this.close(whole=False)
        raise
    this.close(whole=True)
    metrics = this.results()
    this.world.leave()
    taken = spec["steps"] - (config.get("prefix") or {"step": 0})["step"]
    return Result(metrics=metrics, tokens=taken * spec["rows"] * spec["seq_len"])
