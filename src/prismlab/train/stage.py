"""Stage ``train``: pretraining, mid-training, fine-tuning and extension are one loop under four names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from prismlab.data.corpus import Corpus
from prismlab.errors import CheckpointError, StageError
from prismlab.model import boundaries
from prismlab.model.checkpoint import load_model, load_tokenizer, save_checkpoint, save_master
from prismlab.model.tokens import tokenizer_hash
from prismlab.run.step import Artifact, Progress, Result
from prismlab.train.boundaries import TrainingRows
from prismlab.train.logs import MetricsLog
from prismlab.train.loop import StepReport, World, train
from prismlab.train.snapshots import Snapshots

LOGGED_ROWS = 2000
"""Longer runs log every n-th step, so that a metrics file stays small enough to draw."""


def _check_tokenizer(tokenizer: Any, corpus: Corpus, vocab_size: int) -> None:
    if tokenizer_hash(tokenizer) != corpus.tokenizer_hash:
        raise CheckpointError(
            "the corpus was built with another tokenizer than the checkpoint's: set the study's 'tokenizer' to its base"
        )
    if len(tokenizer) > vocab_size:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} tokens, the model's embedding only {vocab_size} rows"
        )


def _log_row(report: StepReport) -> dict[str, Any]:
    return dataclasses.asdict(report)


def _summary(reports: list[StepReport]) -> dict[str, Any]:
    """First and last loss; the last is the mean over the final tenth of the steps, and so is each domain's.

    Steps that were passed over have no loss; they are counted.
    """
    taken = [report for report in reports if report.skipped is None]
    if not taken:
        raise StageError("every step was passed over, since its loss or gradient was no number")
    tail = taken[-max(1, len(taken) // 10) :]
    domains = sorted({domain for report in tail for domain in report.domains})
    return {
        "loss_first": taken[0].loss,
        "loss_last": fmean(report.loss for report in tail),
        "domains": {d: fmean(r.domains[d] for r in tail if d in r.domains) for d in domains},
        "tokens_per_second": fmean(report.tokens_per_second for report in reports),
        "steps": len(reports),
        "skipped_steps": len(reports) - len(taken),
    }


def run(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Train from ``inputs['start']`` on ``inputs['corpus']``; see docs/architecture.md for config and outputs."""
    spec = config["spec"]
    torch.manual_seed(config["seed"])
    world = World.join()
    model = load_model(inputs["start"].model, "float32", world.device)
    tokenizer = load_tokenizer(inputs["start"].model)
    corpus = Corpus.open(inputs["corpus"].path)
    embedding: Any = model.get_input_embeddings()
    _check_tokenizer(tokenizer, corpus, embedding.weight.shape[0])
    if spec["boundaries"] == "respect":
        boundaries.prepare(model)
    rows = TrainingRows(corpus, spec["boundaries"])
    chief = world.rank == 0
    snapshots = Snapshots(model, inputs["start"].model, config, out) if chief else None
    reports: list[StepReport] = []
    every = max(1, spec["steps"] // LOGGED_ROWS)
    progress.start(spec["steps"], "step")
    log = (
        MetricsLog(out, tensorboard=spec["tensorboard"], wandb=spec["wandb"], name=config.get("name", spec["stage"]))
        if chief
        else None
    )
    try:
        for report in train(model, rows, spec, world, snapshots.after if snapshots else lambda step: None):
            reports.append(report)
            progress.advance(1, loss=report.loss)
            if log is not None and (report.step % every == 0 or report.step in (1, spec["steps"])):
                log.log(_log_row(report))
    finally:
        if log is not None:
            log.close()
    if snapshots:
        snapshots.close()
        save_checkpoint(model, tokenizer, out / "model")
        if spec["keep_master"]:
            save_master(model, out / "master")
    return Result(metrics=_summary(reports), tokens=spec["steps"] * spec["rows"] * spec["seq_len"])
