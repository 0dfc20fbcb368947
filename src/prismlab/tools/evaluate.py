"""``prism eval``: a suite of benchmarks put to a checkpoint, from local files, with rows, intervals and resumption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prismlab.errors import CheckpointError, DataError, SpecError, shown
from prismlab.evaluate.suite_base import Wish
from prismlab.evaluate.suites import SUITES
from prismlab.study.stages import STAGES
from prismlab.tools import show

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from prismlab.evaluate.asked import Answers, Asked
    from prismlab.evaluate.suite_base import Suite
    from prismlab.run.step import Progress

__all__ = ["Place", "Wish", "evaluate", "list_suites"]

DTYPES = ("float32", "bfloat16", "float16")
SCHEMA = 1
VERSION = STAGES["evaluation"][1]
"""Of what judges: rows of another version are neither gone on with nor compared."""
PLAN, RECORD, PARTS, LOCK = "plan.json", "record.json", "parts", "lock"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where items come from, where the model runs, and where results go."""

    source: Path | None = None
    """Folder of benchmark files."""
    include: tuple[Path, ...] = ()
    """Folders with the user's own tasks of lm-evaluation-harness."""
    exclude: Path | None = None
    """Ids of items that stand in training data."""
    device: str = "auto"
    dtype: str = "float32"
    out: Path | None = None


def list_suites(as_json: bool = False) -> None:
    """Show every suite and benchmark, with what is known of it."""
    record = {"suites": {name: asdict(suite) for name, suite in SUITES.items()}}
    tables = [
        show.Table(
            head=["benchmark", "metric", "licence", "source", "items", "shots"],
            rows=[
                [
                    one.name,
                    one.metric,
                    one.licence,
                    one.source,
                    show.NONE if one.items is None else f"{one.items:,}",
                    str(one.shots),
                ]
                for one in suite.benchmarks
            ],
            title=f"{suite.name}: {suite.title}",
            note=suite.note,
            words=4,
        )
        for suite in SUITES.values()
    ]
    show.emit("eval", record, tables, title="Suites", as_json=as_json)


def files_in(source: Path | None) -> list[Path]:
    """Files with items in and below a folder; none without one.

    Raises:
        DataError: there is no such folder.
    """
    from prismlab.evaluate.sets import SET_SUFFIXES

    if source is None:
        return []
    if not source.is_dir():
        raise DataError(f"{shown(source, 200)}: no such folder; 'prism eval fetch SUITE --to DIR' makes one")
    return [file for file in sorted(source.rglob("*")) if file.is_file() and file.name.lower().endswith(SET_SUFFIXES)]


def read_excluded(path: Path | None) -> frozenset[tuple[str, str]]:
    """(task, item) of items that stand in training data: lines ``task/item``, or a ``hits.parquet`` of cleaning.

    Raises:
        DataError: the file cannot be read, or a line is no id.
    """
    if path is None:
        return frozenset()
    from prismlab.data.rows import read_lines

    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(path, columns=["task", "item"]).to_pylist()
        except (OSError, pa.ArrowException, KeyError) as error:
            raise DataError(f"{path}: no table with the columns 'task' and 'item': {shown(error)}") from error
        return frozenset((str(row["task"]), str(row["item"])) for row in rows)
    found: set[tuple[str, str]] = set()
    for number, line in read_lines(path):
        task, slash, item = line.strip().partition("/")
        if line.strip() and not (slash and task and item):
            raise DataError(f"{path}:{number}: {shown(line, 60)!r} is no id; 'task/item' a line is wanted")
        if line.strip():
            found.add((task, item))
    return frozenset(found)


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise SpecError(f"--device {shown(name, 20)}: auto, cpu or cuda, and cuda only where there is a GPU")
    return torch.device(name)


class Held:
    """A checkpoint folder whose tokenizer and model are loaded when they are needed."""

    def __init__(self, folder: Path, place: Place) -> None:
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: no config.json, so not a checkpoint in the Hugging Face layout")
        self.folder, self.place = folder, place
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def tokenizer(self) -> PreTrainedTokenizerBase:
        from prismlab.model.checkpoint import load_tokenizer

        self._tokenizer = self._tokenizer or load_tokenizer(self.folder)
        return self._tokenizer

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from prismlab.model.checkpoint import load_model

        tokenizer = self.tokenizer()
        return load_model(self.folder, self.place.dtype, _device(self.place.device)), tokenizer

    def content(self) -> list[dict[str, str]]:
        """Hashes of its files."""
        from prismlab.study.content import FileHashes

        return FileHashes().checkpoint(self.folder.resolve())


def held_checkpoint(name: str, place: Place) -> Held:
    """The checkpoint that a user names.

    Raises:
        CheckpointError: there is none.
    """
    from prismlab.model.hub import resolve

    return Held(resolve(name), place)


def write_record(out: Path, record: Mapping[str, Any]) -> None:
    """Write how rows were made beside them, where 'prism gate' looks for it."""
    draft = out / f"{RECORD}.tmp"
    draft.write_text(json.dumps({"schema": SCHEMA, **record}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(out / RECORD)


def config_of(asked: Asked, place: Place, excluded: frozenset[tuple[str, str]]) -> dict[str, Any]:
    """All that decides the numbers besides the checkpoint: what gates compare."""
    return {
        "suite": asked.suite.name,
        "benchmarks": asked.facts(),
        "template": asked.wish.template,
        "seed": asked.wish.seed,
        "dtype": place.dtype,
        "version": VERSION,
        "excluded": excluded_fact(excluded) if excluded else None,
    }


def excluded_fact(excluded: frozenset[tuple[str, str]]) -> dict[str, Any]:
    """How many items are left out, and a hash of which."""
    digest = hashlib.blake2b("\n".join(sorted("/".join(key) for key in excluded)).encode(), digest_size=16)
    return {"items": len(excluded), "hash": digest.hexdigest()}


@contextmanager
def claimed(out: Path, config: Mapping[str, Any], checkpoint: Sequence[Mapping[str, str]]) -> Iterator[Path]:
    """The folder for what is judged below ``out``, which is this evaluation's, and this process's alone in the block.

    Raises:
        SpecError: it is another evaluation's, or holds something else.
        StoreError: another process judges there.
    """
    from prismlab.run.lock import locked

    ours = {LOCK, PLAN, Path(PLAN).with_suffix(".tmp").name}
    # Looked at before the lock, which would make the folder.
    if out.is_dir() and not (out / PLAN).is_file() and {file.name for file in out.iterdir()} - ours:
        raise SpecError(f"{out}: not empty, and not an evaluation's folder; name a new one with --out")
    with locked(out / LOCK):
        yield _claim(out, config, checkpoint)


def _claim(out: Path, config: Mapping[str, Any], checkpoint: Sequence[Mapping[str, str]]) -> Path:
    from prismlab.evaluate.retention import differing

    plan = {"schema": SCHEMA, "config": dict(config), "checkpoint": list(checkpoint)}
    file = out / PLAN
    if file.is_file():
        try:
            old = cast("dict[str, Any]", json.loads(file.read_text(encoding="utf-8")))
            unlike = differing(old["config"], config, ("what lies there", "this run"))
            other = old["checkpoint"] != plan["checkpoint"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SpecError(f"{file}: cannot be read ({shown(error, 80)}); name another folder with --out") from error
        if other or unlike:
            why = "of another checkpoint" if other else f"made otherwise: {unlike[0]}"
            raise SpecError(f"{out}: holds an evaluation {why}; name another folder with --out")
    else:
        draft = file.with_suffix(".tmp")
        draft.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
        draft.replace(file)
    return out / PARTS


def evaluate(checkpoint: str, suite: str, wish: Wish, place: Place, *, as_json: bool = False) -> dict[str, Any]:
    """Judge a checkpoint by a suite, show the scores, and write rows below ``place.out``.

    Args:
        checkpoint: a folder or a model id (``@revision``).
        suite: name of a suite, or a suite file (``NAME.yaml``): what stands under ``suite`` in a study.
        wish: what of it.
        place: items, device, results. A stopped evaluation goes on in the same folder.
        as_json: JSON on standard output instead of tables.

    Raises:
        SpecError: an option is wrong, or the folder holds another evaluation.
        StoreError: another process judges in that folder.
        DataError: a set is missing or broken.
        CheckpointError: no model or tokenizer can be loaded.
        StageError: the weights are broken, or an item does not fit the model.
    """
    if place.dtype not in DTYPES:
        raise SpecError(f"--dtype {shown(place.dtype, 20)}: one of {', '.join(DTYPES)}")
    show.check_out(place.out)
    from prismlab.tools.suite_file import SUFFIXES, chosen_suite, read_suite

    if suite.endswith(SUFFIXES):
        chosen, wish, place, files = read_suite(Path(suite), wish, place)
    else:
        chosen, files = chosen_suite(suite, wish, place), files_in(place.source)
    excluded = read_excluded(place.exclude)
    if any(one.kind == "harness" for one in chosen.benchmarks):
        from prismlab.tools.eval_harness import through_harness

        return through_harness(checkpoint, chosen, wish, place, files, as_json=as_json)
    from prismlab.evaluate.asked import answer, ask, metrics_of
    from prismlab.study.world import MicroSpec

    held = held_checkpoint(checkpoint, place)
    # Before anything is read: without a tokenizer nothing can be judged.
    asked = ask(chosen, wish, files, MicroSpec().model_dump(mode="json"), held.tokenizer())
    config = config_of(asked, place, excluded)
    _known(excluded, asked)
    with nullcontext() if place.out is None else claimed(place.out, config, held.content()) as keep:
        with show.progress(f"eval {chosen.name}") as progress:
            _tell_costs(asked, held.tokenizer(), progress)
            answers = answer(asked, held.load, keep, progress)
        metrics = metrics_of(asked, answers, excluded)
        record = {"checkpoint": str(held.folder), "config": config, "metrics": metrics}
        _emit(record, asked, answers, excluded, place.out, as_json)
    return record


def _tell_costs(asked: Asked, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> None:
    """Before anything is judged: how much is asked, and how to ask less."""
    from prismlab.evaluate.asked import costs

    for line in costs(asked, tokenizer):
        progress.note(line)
    choices = ",".join(dict.fromkeys(one.name for one in asked.choices))
    without = f"; without it: --tasks {choices}" if choices and asked.sampled else ""
    if asked.sampled:
        progress.note(f"sampling takes longest: --limit, --samples and --max-new-tokens shorten it{without}")


def _known(excluded: frozenset[tuple[str, str]], asked: Asked) -> None:
    """Refuse a list of items of which none is asked: it is meant for another suite."""
    if len(asked.check_excluded(excluded)) == len(excluded) > 0:
        raise SpecError(
            f"--exclude: none of its {len(excluded)} ids is asked; ids are 'benchmark/item', as in the rows"
        )


def _emit(
    record: dict[str, Any],
    asked: Asked,
    answers: Answers,
    excluded: frozenset[tuple[str, str]],
    out: Path | None,
    as_json: bool,
) -> None:
    if out is not None:
        kept = [row for row in answers.rows if (row["task"], row["item_id"]) not in excluded]
        write_record(out, record)
    else:
        kept = []

    def parquet() -> Mapping[str, pa.Table]:
        import pyarrow as pa

        from prismlab.evaluate import judged
        from prismlab.score import SCHEMA as ROWS

        tables = {"samples": pa.Table.from_pylist(kept, schema=ROWS)}
        if answers.choices:
            tables["choices"] = pa.Table.from_pylist(answers.choices, schema=judged.SCHEMA)
        return tables

    tables, notes = summary_tables(record["metrics"], record["config"], asked.suite)
    title = f"{asked.suite.name}: {record['checkpoint']}"
    show.emit("eval", record, tables, title=title, notes=notes, parquet=parquet, out=out, as_json=as_json)


def _interval(score: Mapping[str, Any]) -> list[str]:
    value = show.NONE if score["value"] is None else f"{score['value']:.2f}"
    span = show.NONE if score["lo"] is None else f"{score['lo']:.2f} to {score['hi']:.2f}"
    return [value, span]


def summary_tables(
    metrics: Mapping[str, Any], config: Mapping[str, Any], suite: Suite
) -> tuple[list[show.Table], list[str]]:
    """Scores by benchmark, then what they add up to; truncation where responses were sampled."""
    sampled = any("sampling" in facts for facts in config["benchmarks"].values())
    rows: list[list[str]] = []
    for name, score in metrics["tasks"].items():
        facts = config["benchmarks"][name]
        told = score["truncation"] is not None and "sampling" in facts
        cut = [f"{score['truncation']:.1f}" if told else show.NONE] if sampled else []
        shots = [str(facts.get("shots", 0))]
        rows.append([shown(name, 40), facts["metric"], *_interval(score), f"{score['items']:,}", *shots, *cut])
    cut_head = ["cut (%)"] if sampled else []
    head = ["benchmark", "metric", "score", "95% interval", "items", "shots", *cut_head]
    tables = [show.Table(head=head, rows=rows, title=suite.title, words=2)]
    groups = {f"at {length} tokens": score for length, score in metrics.get("lengths", {}).items()}
    groups |= metrics["domains"] if len(metrics["domains"]) > 1 else {}
    sums = [[shown(name, 40), *_interval(score)] for name, score in (groups | {"average": metrics["average"]}).items()]
    if len(rows) > 1:
        tables.append(show.Table(head=["mean of", "score", "95% interval"], rows=sums, words=1))
    return tables, _notes(metrics, config, suite)


def _notes(metrics: Mapping[str, Any], config: Mapping[str, Any], suite: Suite) -> list[str]:
    notes: list[str] = []
    for name, told in metrics.get("contaminated", {}).items():
        notes.append(
            f"{shown(name, 40)}: {told['items']} items stand in training data and are left out; with them the score is "
            f"{show.digits(told['score']['value'], 4)}."
        )
    for name, score in metrics["tasks"].items():
        if score["unscored"]:
            notes.append(f"{shown(name, 40)}: {score['unscored']} of {score['samples']} samples have no verdict.")
    for name, told in metrics.get("instructions", {}).items():
        value, span = _interval(told["all"])
        notes.append(f"{shown(name, 40)}: of single instructions {value} ({span}) are followed.")
    for name, facts in config["benchmarks"].items():
        for kind, count in facts.get("not_scorable", {}).items():
            notes.append(f"{shown(name, 40)}: {count} items are not asked, no rule can judge them ({shown(kind, 40)}).")
    whole = {one.name: one.items for one in suite.benchmarks}
    part = [n for n, f in config["benchmarks"].items() if whole.get(n) and f["items"] < (whole.get(n) or 0)]
    if part:
        notes.append(f"Not all items: {', '.join(part)}. Scores of a part cannot be laid beside published ones.")
    return [*notes, *([f"Suite: {suite.note}."] if suite.note else [])]
