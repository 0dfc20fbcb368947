"""``prism data sources`` and ``prism data clean``: the study's sources by recipe, and one source cleaned by itself."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prismlab.data.files import make_folder, whole
from prismlab.data.recipes import recipes
from prismlab.errors import SpecError, shown
from prismlab.study.stages import STAGES
from prismlab.tools.show import NONE, PLAIN_WIDTH, Table, count, print_tables, progress


def sources(*, as_json: bool, names: Sequence[str] = ()) -> None:
    """Print the recipes: name, domain, licence, tokens and place; of those that are named all that is known.

    Raises:
        SpecError: a name is none of them.
    """
    told = {one["name"]: one for one in recipes()}
    for name in names:
        if name not in told:
            raise SpecError(f"recipe {shown(name)!r} is not known; there are {', '.join(told)}")
    chosen = [told[name] for name in names] if names else list(told.values())
    if as_json:
        json.dump(chosen, sys.stdout, indent=2)
        print()
        return
    if names:
        print("\n\n".join(map(_described, chosen)))
        return
    head = ("name", "domain", "use", "licence", "hub", "columns read", "tokens")
    rows = [
        [one["name"], one["domain"], one["use"], one["licence"], _place(one), _read(one), _tokens(one["tokens"])]
        for one in chosen
    ]
    notes = (
        "tokens: table 1 of the reference study, under the Granite-3.3-8B tokenizer, before any filter",
        "'prism data sources NAME' has a source's columns, text form and rule",
    )
    print_tables([Table(head=head, rows=rows, words=6)], notes)


def _tokens(tokens: float | None) -> str:
    return NONE if tokens is None else count(tokens)


def _read(one: Mapping[str, Any]) -> str:
    fields = [*one["fields"].values(), *(field for field, *_ in one["keep"])]
    return ", ".join(dict.fromkeys(field.partition(".")[0] for field in fields))


def _place(one: Mapping[str, Any]) -> str:
    parts = [part for part in (one["config"], one["folder"], one["split"]) if part and part != "train"]
    return " ".join([one["hub"], *(f"[{part}]" for part in parts)])


def _described(one: Mapping[str, Any]) -> str:
    sample = f"{one['sample']:,} rows by the hash of their id" if one["sample"] else "all kept rows"
    rows = [
        ["domain", one["domain"]],
        ["use", {"train": "documents", "rl": "RL questions"}[one["use"]]],
        ["hub", _place(one)],
        ["licence", one["licence"]],
        ["tokens", " ".join(filter(None, [_tokens(one["tokens"]), one["tokens_note"] and f"({one['tokens_note']})"]))],
        ["columns", ", ".join(f"{name}: {kind}" for name, kind in one["columns"].items())],
        ["verified", "yes" if one["verified"] else "no: look at the first rows before a run of record"],
        ["form", one["form"]],
        ["fields", ", ".join(f"{key}: {field}" for key, field in one["fields"].items())],
        ["rule", one["rule"]],
        ["keep", "; ".join(f"{field} {test} {bound!r}" for field, test, bound in one["keep"]) or "every row"],
        ["sample", sample],
    ]
    lines = [f"{one['name']}: {one['title']}"]
    for key, value in rows:
        lines += textwrap.wrap(value, PLAIN_WIDTH, initial_indent=f"  {key:<9} ", subsequent_indent=" " * 12)
    return "\n".join(lines)


def _same_work(config: Mapping[str, Any], out: Path) -> None:
    """See that a folder is new, or holds this very work: what is done there is taken as it is."""
    rest = {key: value for key, value in config.items() if key not in ("files", "scratch")}
    asked = json.loads(json.dumps({"version": STAGES["clean"][1], **rest}))
    note = out / "clean.json"
    if note.is_file():
        try:
            same = json.loads(note.read_text(encoding="utf-8")) == asked
        except ValueError as error:
            raise SpecError(f"{note}: not JSON ({error}); delete the folder and clean again") from error
        if not same:
            raise SpecError(
                f"{out}: holds the work of another source, of other settings or files, or of another version; take "
                "another folder with --out, or delete this one"
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise SpecError(
            f"{out}: not empty, and not the unfinished work of 'data clean'; take another folder with --out"
        )
    make_folder(out)
    with whole(note) as draft:
        draft.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")


def clean(
    config: Mapping[str, Any], out: Path, *, workers: int, executor: Mapping[str, Any] | None, as_json: bool
) -> None:
    """Clean one source into a folder; called again, it goes on where it was stopped.

    Args:
        config: of the step ``clean/SOURCE``, with ``files``.
        out: for the documents and the work.
        workers: processes at a time.
        executor: options for a cluster; None for this machine.
        as_json: print the metrics instead of a table.

    Raises:
        DataError: a file is broken, too many rows are, or no document is left.
        SpecError: ``out`` holds something else, or the work of another configuration, source or version.
    """
    from prismlab.data.clean import clean_source

    _same_work(config, out)
    with progress(f"clean {config['source']}") as told:
        metrics = clean_source(config, out, told, workers, executor)
    if as_json:
        json.dump(metrics, sys.stdout, indent=2)
        print()
        return
    if "submitted" in metrics:
        print(f"handed to the cluster: {metrics['submitted']}; run the same command again when it is done")
        return
    rows = [["rows read", f"{metrics['rows']:,}"]]
    rows += [[f"broken: {reason}", f"-{count_:,}"] for reason, count_ in metrics["bad"].items()]
    rows += [[f"dropped: {reason}", f"-{count_:,}"] for reason, count_ in metrics["dropped"].items()]
    rows += [["empty", f"-{metrics['empty']:,}"], ["documents", f"{metrics['documents']:,}"]]
    notes = [f"{metrics['characters']:,} characters in {out / 'documents'}; examples in {out / 'dropped.parquet'}"]
    print_tables([Table(head=(config["source"], "count"), rows=rows, strong=(len(rows) - 1,))], notes)
