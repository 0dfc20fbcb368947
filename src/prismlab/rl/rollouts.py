"""Responses of a run on disk, each step's as soon as it is sampled and again when it is judged, and what they tell.

    rollouts/step-000012.0.sampled.parquet   what process 0 sampled for step 12: token ids, log-probabilities, text
    rollouts/step-000012.0.judged.parquet    the rows of ``ROLLOUT_SCHEMA``

A run that is killed takes up what lies there in place of sampling and judging again, so that no response is lost and
none is there twice; what was sampled is dropped once a save holds the weights that it made. Files are written aside and
renamed. At the end the judged rows of all steps become ``rollouts.parquet``.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prismlab.data.items import Item
from prismlab.errors import StageError
from prismlab.model.generate import Completion
from prismlab.rl.rewards import Reward

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

SAMPLED = pa.schema(
    [
        ("item_id", pa.string()),
        ("task", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("sampler_logprobs", pa.list_(pa.float32())),
        ("text", pa.string()),
        ("finished", pa.bool_()),
    ]
)
"""One row a response, in order; log-probabilities are those that the truncated ratio needs, null where not told."""

ROWS_A_GROUP = 8192
"""Rows of a row group of ``rollouts.parquet``: a small run has one."""

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt of RL: its item, its token ids, and how it was scored when it was selected."""

    item: Item
    ids: tuple[int, ...]
    correct: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The responses of one step, of one process.

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


def rows_of(rollout: Rollout) -> list[dict[str, Any]]:
    """The rows of a step's responses, with the columns of ``ROLLOUT_SCHEMA``."""
    return [
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
        for at, (prompt, completion, reward) in enumerate(
            zip(rollout.prompts, rollout.completions, rollout.rewards, strict=True)
        )
    ]


def _write(rows: Sequence[Row], schema: pa.Schema, file: Path) -> None:
    draft = file.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), draft, compression="zstd")
    draft.replace(file)


def _read(file: Path, schema: pa.Schema) -> list[dict[str, Any]] | None:
    """Rows of a file; None where it is not there or torn, as a machine that lost its power may leave it."""
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid):
        return None
    return table.to_pylist() if table.schema.names == schema.names else None


class RolloutFiles:
    """Responses of one process's share of a run.

    Args:
        folder: where they lie; survives the process.
        rank: this process; each writes its own files.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self._folder, self._rank = folder, rank
        folder.mkdir(parents=True, exist_ok=True)

    def _file(self, step: int, what: str) -> Path:
        return self._folder / f"step-{step:06d}.{self._rank}.{what}.parquet"

    def sampled(self, step: int, prompts: Sequence[Prompt]) -> list[Completion] | None:
        """What was sampled for a step; None where nothing was, or for other prompts."""
        rows = _read(self._file(step, "sampled"), SAMPLED)
        wanted = [(prompt.item.task, prompt.item.id) for prompt in prompts]
        if rows is None or [(row["task"], row["item_id"]) for row in rows] != wanted:
            return None
        fields = ("token_ids", "text", "sampler_logprobs", "finished")
        return [Completion(logprobs=None, **{key: row[key] for key in fields}) for row in rows]

    def keep_sampled(self, step: int, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> None:
        """Keep what was sampled for a step, until ``forget``."""
        rows = [
            {
                "item_id": prompt.item.id,
                "task": prompt.item.task,
                "token_ids": one.token_ids,
                "sampler_logprobs": one.sampler_logprobs,
                "text": one.text,
                "finished": one.finished,
            }
            for prompt, one in zip(prompts, completions, strict=True)
        ]
        _write(rows, SAMPLED, self._file(step, "sampled"))

    def judged(self, step: int, completions: Sequence[Completion]) -> list[Reward] | None:
        """The rewards of a step's responses; None where these were not judged."""
        rows = _read(self._file(step, "judged"), ROLLOUT_SCHEMA)
        wanted = [(one.text, len(one.token_ids), one.finished) for one in completions]
        if rows is None or [(row["response"], row["length"], row["finished"]) for row in rows] != wanted:
            return None
        fields = [field.name for field in dataclasses.fields(Reward)]
        return [Reward(**{key: row[key] for key in fields}) for row in rows]

    def keep_judged(self, rollout: Rollout) -> None:
        """Keep the rows of a step to the end of the run."""
        _write(rows_of(rollout), ROLLOUT_SCHEMA, self._file(rollout.step, "judged"))

    def forget(self, step: int) -> None:
        """Drop what was sampled for this step and all before: a save holds what they made."""
        for file in self._folder.glob(f"step-*.{self._rank}.sampled.parquet"):
            if int(file.name[5:11]) <= step:
                file.unlink()

    def judged_steps(self, steps: int, processes: int) -> Iterator[list[dict[str, Any]]]:
        """The rows of each step up to ``steps``, of all processes in their order, for the first process.

        Raises:
            StageError: those of a step are gone; the run's folder was changed from outside.
        """
        for step in range(1, steps + 1):
            rows: list[dict[str, Any]] = []
            for rank in range(processes):
                mine = _read(self._folder / f"step-{step:06d}.{rank}.judged.parquet", ROLLOUT_SCHEMA)
                if mine is None:
                    raise StageError(f"{self._folder}: the responses of step {step} are gone; delete the folder")
                rows += mine
            yield rows

    def collect(self, out: Path, steps: int, processes: int) -> int:
        """Write ``rollouts.parquet`` of all steps; returns the tokens that were sampled."""
        tokens, held = 0, list[dict[str, Any]]()
        with pq.ParquetWriter(out, ROLLOUT_SCHEMA, compression="zstd") as writer:
            for rows in self.judged_steps(steps, processes):
                held += rows
                tokens += sum(row["length"] for row in rows)
                if len(held) >= ROWS_A_GROUP:
                    writer.write_table(pa.Table.from_pylist(held, schema=ROLLOUT_SCHEMA))
                    held = []
            if held:
                writer.write_table(pa.Table.from_pylist(held, schema=ROLLOUT_SCHEMA))
        return tokens

    def salvage(self, out: Path) -> None:
        """Write what was judged until a run failed, so that its last responses can be looked at."""
        files = sorted(self._folder.glob("step-*.judged.parquet"))
        rows = [row for file in files for row in _read(file, ROLLOUT_SCHEMA) or []]
        pq.write_table(pa.Table.from_pylist(rows, schema=ROLLOUT_SCHEMA), out, compression="zstd")


def no_signal(rewards: Sequence[float | None], group: int) -> float:
    """Share of groups whose rewards are all equal and so teach nothing; a response without a verdict has none."""
    groups = [rewards[at : at + group] for at in range(0, len(rewards), group)]
    spread = [{one for one in members if one is not None} for members in groups]
    return sum(len(values) < 2 for values in spread) / len(spread)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def rollout_metrics(rows: Sequence[Row], group: int, seconds: float) -> dict[str, Any]:
    """The part of a metrics row that the responses tell; null where no response has a verdict.

    ``reward_std`` is the population standard deviation over the step's responses, ``length`` the mean in tokens,
    ``truncation`` the share of responses without a stop token, ``penalties`` what was taken on average.

    Args:
        rows: of ``ROLLOUT_SCHEMA``, all of one step; a prompt's responses stand side by side.
        group: responses a prompt.
        seconds: wall time of the sampling.
    """
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    by_domain: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["reward"] is not None:
            by_domain[row["domain"]].append(row)
    return {
        "step": rows[0]["step"],
        "reward": _mean(rewards),
        "reward_std": pstdev(rewards) if rewards else None,
        "rewards": {domain: fmean(row["reward"] for row in mine) for domain, mine in sorted(by_domain.items())},
        "pass": {domain: fmean(row["score"] for row in mine) for domain, mine in sorted(by_domain.items())},
        "format_ok": fmean(row["form_ok"] for row in rows),
        "length": fmean(row["length"] for row in rows),
        "truncation": fmean(not row["finished"] for row in rows),
        "penalties": {name: fmean(row[name] for row in rows) for name in ("no_stop", "repetition")},
        "no_signal": no_signal([row["reward"] for row in rows], group),
        "unscored": sum(row["reward"] is None for row in rows),
        "seconds_sampling": seconds,
    }


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Metrics of a run: ``reward_first`` and ``reward_last`` are means over the first and last tenth of its steps.

    ``signal_share`` is the share of groups whose rewards differ, ``unscored`` the responses without a verdict, which
    no mean counts.
    """
    tenth = max(1, len(rows) // 10)

    def mean(some: Sequence[Row]) -> float | None:
        return _mean([row["reward"] for row in some if row["reward"] is not None])

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
