"""``prism data build``: one corpus from a mixture, by the functions that the stages ``clean`` and ``corpus`` call."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismlab.data.build import build_corpus
from prismlab.data.clean import clean_source, forget
from prismlab.data.files import make_folder, whole
from prismlab.errors import SpecError
from prismlab.model.checkpoint import load_tokenizer
from prismlab.model.hub import resolve
from prismlab.model.tokens import build_byte_tokenizer, tokenizer_hash
from prismlab.study.stages import STAGES
from prismlab.tools.show import NONE, Table, count, digits, percent, print_tables, progress

BYTES = "bytes"
"""Stands for the tokenizer of tiny models, whose tokens are bytes."""
KEPT = ("dropped.parquet", "hits.parquet", "quarantine.jsonl", "metrics.json")
"""What stays of the cleaning of a source, beside the corpus."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One corpus."""

    corpus: Mapping[str, Any]
    """Configuration of the step, with ``files``."""
    cleaning: Mapping[str, Mapping[str, Any]]
    """Of each source that is cleaned first the configuration of that step, with ``files``."""
    tokenizer: str
    """A folder, a model id or ``bytes``."""
    file: str
    """Where it is from, for people."""

    def request(self) -> dict[str, Any]:
        """What makes two builds the same, as JSON; where files lie is none of it."""

        def bare(config: Mapping[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in config.items() if key != "files"}

        cleaning = {source: bare(config) for source, config in self.cleaning.items()}
        # Work of other code must not be mixed with that of this one.
        versions = {kind: STAGES[kind][1] for kind in ("clean", "corpus")}
        return {"corpus": bare(self.corpus), "cleaning": cleaning, "tokenizer": self.tokenizer, "versions": versions}


def tokenizer_named(name: str) -> Any:
    """The tokenizer that a user names: ``bytes``, a folder or a model id.

    Raises:
        CheckpointError: there is none, or it cannot be used.
        MissingExtra: a model id without the package ``huggingface_hub``.
    """
    return build_byte_tokenizer() if name == BYTES else load_tokenizer(resolve(name))


def _begin(wanted: Wanted, out: Path) -> bool:
    """Make the folder ready; whether there is something left to do.

    Raises:
        SpecError: something else is there.
    """
    note = out / "build.json"
    if not note.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise SpecError(f"{out}: not empty, and not an unfinished build; take another folder with --out")
        make_folder(out)
        with whole(note) as draft:
            draft.write_text(json.dumps({"file": wanted.file, **wanted.request()}, indent=1) + "\n", encoding="utf-8")
        return True
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SpecError(f"{note}: not JSON ({error}); delete the folder and build again") from error
    if {key: value for key, value in known.items() if key != "file"} != json.loads(json.dumps(wanted.request())):
        raise SpecError(
            f"{out}: holds the build of another mixture, budget, tokenizer, version or of other files; take another "
            "folder with --out, or delete this one"
        )
    return not (out / "metrics.json").is_file()


def build(wanted: Wanted, out: Path, *, workers: int, as_json: bool) -> None:
    """Build a corpus; the same call goes on where it was stopped, and does nothing where all is there.

    Args:
        wanted: the corpus.
        out: a new folder, or one where this very build was begun.
        workers: processes at a time; the corpus does not depend on it.
        as_json: print the metrics as JSON instead of the table.

    Raises:
        SpecError: ``out`` holds something else.
        DataError, CheckpointError, MissingExtra: as of the stages.
    """
    tokenizer = tokenizer_named(wanted.tokenizer)
    if _begin(wanted, out):
        _work(wanted, tokenizer, out, workers)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    if as_json:
        sys.stdout.write(f"{json.dumps(metrics, indent=1)}\n")
    else:
        _show(metrics, out)


def _work(wanted: Wanted, tokenizer: Any, out: Path, workers: int) -> None:
    work, cleaned = out / "work", dict[str, Path]()
    cleaning: dict[str, Any] = {}
    for source, config in wanted.cleaning.items():
        cleaned[source] = work / "clean" / source
        with progress(f"clean {source}") as told:
            cleaning[source] = clean_source(config, cleaned[source], told, workers)
    if any(config.get("decontaminate") for config in wanted.cleaning.values()):
        forget()
    with progress("build") as told:
        result = build_corpus(
            wanted.corpus, tokenizer, out, scratch=work / "corpus", progress=told, workers=workers, cleaned=cleaned
        )
    for source, folder in cleaned.items():
        (out / "sources" / source).mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out / "sources" / source / name)
    # Written last: with it the build is done.
    with whole(out / "metrics.json") as draft:
        metrics = {**result.metrics, "cleaning": cleaning, "tokenizer": tokenizer_hash(tokenizer)}
        draft.write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(work, ignore_errors=True)


def _lost(cleaning: Mapping[str, Any] | None) -> str:
    if cleaning is None:
        return NONE
    return f"{sum(cleaning['dropped'].values()) + sum(cleaning['bad'].values()):,}"


def _items(cleaning: Mapping[str, Any] | None) -> str:
    found = (cleaning or {}).get("contamination")
    return NONE if not found else f"{found['documents']['exact']:,}"


def _show(metrics: Mapping[str, Any], out: Path) -> None:
    head = ("source", "domain", "asked %", "is %", "tokens", "rows", "documents", "epochs", "dropped", "hold items")
    rows = []
    for name, one in metrics["sources"].items():
        cleaning = metrics["cleaning"].get(name)
        epochs = NONE if one["epochs"] is None else digits(one["epochs"])
        shares = [f"{100 * one['weight']:.2f}", f"{100 * one['share']:.2f}"]
        numbers = [count(one["tokens"]), f"{one['rows']:,}", f"{one['documents']:,}", epochs]
        rows.append([name, one["domain"], *shares, *numbers, _lost(cleaning), _items(cleaning)])
    size, padding = metrics["tokens"], metrics["padding"]
    notes = [
        f"{size:,} tokens and {padding:,} of padding ({percent(size / (size + padding))}% full) in {out}",
        f"'prism data show {out}' shows rows, 'prism data stats {out}' writes a page",
    ]
    print_tables([Table(head=head, rows=rows, words=2)], notes)
