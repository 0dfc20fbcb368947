"""``prism data sources`` and ``prism data clean``: the study's sources by recipe, and one source cleaned by itself."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prismlab.data.recipes import recipes
from prismlab.errors import SpecError, shown
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
    """
    from prismlab.data.clean import clean_source

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
