"""``prism data stats``: one page on a corpus, with what was dropped before it and what was found in it."""

from __future__ import annotations

import json
import re
import webbrowser
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismlab.data.corpus import Corpus
from prismlab.data.inspect import ahead, measure
from prismlab.errors import DataError, shown
from prismlab.tools.show import NONE, Table, count, digits, emit, percent

if TYPE_CHECKING:
    from prismlab.report.sections import Drawing

EXAMPLES = 3
"""Examples of each reason for a drop."""
EVIDENCE = 60
"""Hits shown, those that count first."""
EXCERPT = 300
"""Characters of an excerpt."""


@dataclass(frozen=True)
class Cleaning:
    """What is known of the cleaning of one source."""

    metrics: Mapping[str, Any]
    dropped: Sequence[Mapping[str, Any]] = ()
    hits: Sequence[Mapping[str, Any]] = field(default=())


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read ({shown(error, 200)}); build the corpus again") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({shown(error, 200)}); build the corpus again") from error


def cleaning_of(path: Path) -> dict[str, Cleaning]:
    """How each source was cleaned: of a folder of ``prism data build``, or of an artifact, whose inputs are beside it.

    Raises:
        DataError: a file is there and cannot be read.
    """
    folders: dict[str, tuple[Path, Any]] = {}
    if (path / "metrics.json").is_file():
        for name, metrics in _json(path / "metrics.json").get("cleaning", {}).items():
            folders[name] = (path / "sources" / name, metrics)
    elif (path / "record.json").is_file():
        for name, one in _json(path / "record.json").get("inputs", {}).items():
            beside = path.resolve().parent / f"{one.get('kind')}-{one.get('fingerprint')}"
            if one.get("kind") == "clean" and (beside / "record.json").is_file():
                folders[name] = (beside, _json(beside / "record.json")["metrics"])
    return {
        name: Cleaning(metrics, _rows(folder / "dropped.parquet"), _rows(folder / "hits.parquet"))
        for name, (folder, metrics) in folders.items()
    }


def stats(path: Path, *, out: Path | None, verify: bool, open_it: bool, as_json: bool) -> None:
    """Show a corpus as tables and write the page.

    Args:
        path: the corpus.
        out: folder for the page; None for the corpus's own.
        verify: also compare every file with its hash.
        open_it: open the page in a browser.
        as_json: print JSON instead of tables.

    Raises:
        DataError: it is no corpus, or damaged.
        MissingExtra: plotly or jinja2 is not installed.
    """
    corpus = Corpus.open(path)
    if verify:
        corpus.verify()
    cleaning, target = cleaning_of(path), out or path / "stats"
    sources = {str(one["name"]): dict(one) for one in corpus.manifest["sources"]}
    measured, prefix = measure(corpus), ahead(corpus)
    record = {
        "corpus": {key: corpus.manifest[key] for key in ("rows", "seq_len", "tokens", "padding", "vocab", "stream")},
        "packing": corpus.manifest.get("packing"),
        "sources": sources,
        "measured": measured,
        "cleaning": {name: one.metrics for name, one in cleaning.items()},
    }
    emit(
        "data-stats",
        record,
        [_sources(sources, cleaning, measured), *_counts(cleaning)],
        more=[*_examples(cleaning), *_evidence(cleaning)],
        title=f"Corpus {shown(path.resolve().name, 60)}",
        notes=_notes(corpus, prefix, cleaning, verify),
        figures=lambda: _drawings(sources, measured, prefix, cleaning),
        out=target,
        as_json=as_json,
    )
    if open_it:
        webbrowser.open((target / "data-stats.html").resolve().as_uri())


def _notes(corpus: Corpus, prefix: Mapping[str, Any], cleaning: Mapping[str, Cleaning], verified: bool) -> list[str]:
    rows, padding = corpus.n_rows, int(corpus.manifest["padding"])
    full = percent(1 - padding / max(rows * corpus.seq_len, 1))
    packing = (corpus.manifest.get("packing") or {}).get("method", "concat")
    lines = [f"{rows:,} rows of {corpus.seq_len:,} tokens, {full}% full, packed by {packing}"]
    lines.append(f"token stream {corpus.manifest['stream']}" + (", every file compared with its hash" * verified))
    if prefix["most"]:
        source, most = max(prefix["most"].items(), key=lambda pair: pair[1])
        lines.append(f"at no row is a source further than {most:.2f} rows from its share ({shown(source, 60)})")
    looked = [one.metrics["contamination"] for one in cleaning.values() if one.metrics.get("contamination")]
    if looked:
        held = sum(one["documents"]["exact"] for one in looked)
        done = "dropped" if looked[0]["action"] == "drop" else "reported, and still there"
        lines.append(
            f"{looked[0]['items_searched']:,} evaluation items looked for by {looked[0]['n']} words in a row: {held:,} "
            f"documents hold one ({done}); {looked[0]['items_too_short']:,} items are too short to be looked for"
        )
    else:
        lines.append("no evaluation items were looked for: give the study or the mixture file 'decontaminate'")
    return lines


def _sources(
    sources: Mapping[str, Mapping[str, Any]], cleaning: Mapping[str, Cleaning], measured: Mapping[str, Any]
) -> Table:
    head = (
        "source",
        "domain",
        "asked %",
        "is %",
        "tokens",
        "rows",
        "full %",
        "documents",
        "epochs",
        "held out",
        "dropped",
    )
    rows: list[list[str]] = []
    for name, one in sources.items():
        lost = NONE
        if name in cleaning:
            metrics = cleaning[name].metrics
            lost = f"{sum(metrics['dropped'].values()) + sum(metrics['bad'].values()) + metrics['empty']:,}"
        rows.append(
            [
                name,
                str(one["domain"]),
                f"{100 * one['weight']:.2f}",
                f"{100 * one['share']:.2f}",
                count(one["tokens"]),
                f"{one['rows']:,}",
                percent(measured["fill"].get(name)),
                f"{one['documents']:,}",
                "first" if one["epochs"] is None else digits(one["epochs"]),
                f"{one['heldout_documents']:,}",
                lost,
            ]
        )
    note = "epochs: 'first' where the first pass was not over; a source that was not cleaned has no drops"
    return Table(head=head, rows=rows, words=2, title="Sources", note=note)


def _text(value: object) -> str:
    """Text out of a document, in one line."""
    return shown(" ".join(str(value).split()), EXCERPT) if value else NONE


def _name(value: object) -> str:
    """A name of a file or an item, which a narrow column may break behind its marks."""
    return re.sub(r"(?<=[/:_.-])(?=\w)", "\u200b", _text(value))


def _lost(one: Cleaning) -> dict[str, int]:
    return {**one.metrics["bad"], **one.metrics["dropped"]}


def _counts(cleaning: Mapping[str, Cleaning]) -> list[Table]:
    """Drops by reason, and documents by what was found in them."""
    lost = [[name, shown(reason, 80), f"{n:,}"] for name, one in cleaning.items() for reason, n in _lost(one).items()]
    tables = [Table(head=("source", "reason", "rows"), rows=lost, words=2, title="Dropped")] if lost else []
    kinds = ("exact", "near-duplicate", "answer-key", "aside", "clean")
    looked = {name: one.metrics["contamination"] for name, one in cleaning.items() if one.metrics["contamination"]}
    if looked:
        rows = [[name, *(f"{one['documents'][kind]:,}" for kind in kinds)] for name, one in looked.items()]
        tables.append(Table(head=("source", *kinds), rows=rows, title="Documents by evaluation items in them"))
    return tables


def _examples(cleaning: Mapping[str, Cleaning]) -> list[Table]:
    rows: list[list[str]] = []
    for name, one in cleaning.items():
        for reason in _lost(one):
            for row in [row for row in one.dropped if row["reason"] == reason][:EXAMPLES]:
                place = "; ".join(_name(row[key]) for key in ("where", "detail") if row[key])
                rows.append([name, shown(reason, 80), place or NONE, _text(row["excerpt"])])
    if not rows:
        return []
    head = ("source", "reason", "place, and what stays instead", "text")
    note = f"up to {EXAMPLES} examples a reason"
    return [Table(head=head, rows=rows, words=4, title="What was dropped", note=note)]


def _much(hit: Mapping[str, Any]) -> str:
    if not hit["item"]:
        return f"{hit['words']} answers"
    return f"{hit['words']} words ({percent(hit['share'])}%)"


def _evidence(cleaning: Mapping[str, Cleaning]) -> list[Table]:
    found = [(name, hit) for name, one in cleaning.items() for hit in one.hits]
    if not found:
        return []
    order = {"exact": 0, "near-duplicate": 1, "answer-key": 2}
    found.sort(
        key=lambda pair: (not pair[1]["counts"], bool(pair[1]["aside"]), order[pair[1]["kind"]], -pair[1]["share"])
    )
    kinds = Counter("aside" if hit["aside"] else hit["kind"] for _, hit in found)
    rows = [
        [
            name,
            f"{hit['kind']} {hit['part']}, {_much(hit)}" + (f"; aside: {hit['aside']}" if hit["aside"] else ""),
            _name(hit["where"]),
            _name(f"{hit['task']}/{hit['item']}" if hit["item"] else ""),
            _text(hit["text"]),
            _text(hit["item_text"]),
        ]
        for name, hit in found[:EVIDENCE]
    ]
    head = ("source", "found", "document", "item", "span in the document", "span in the item")
    told = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    note = f"{told}; the first {len(rows)} of {len(found)}. words: of the item's part, over all spans"
    return [Table(head=head, rows=rows, words=6, title="Evaluation items in documents", note=note)]


def _drawings(
    sources: Mapping[str, Mapping[str, Any]],
    measured: Mapping[str, Any],
    prefix: Mapping[str, Any],
    cleaning: Mapping[str, Cleaning],
) -> list[Drawing]:
    from prismlab.report import data_page

    domains = {name: str(one["domain"]) for name, one in sources.items()}
    drawn = [
        data_page.shares(sources),
        data_page.prefixes(prefix),
        data_page.lengths(measured, domains),
        data_page.fill(measured, domains),
    ]
    lost = {name: _lost(one) for name, one in cleaning.items()}
    if any(lost.values()):
        drawn.append(data_page.dropped({name: held for name, held in lost.items() if held}))
    looked = {name: one.metrics["contamination"] for name, one in cleaning.items() if one.metrics.get("contamination")}
    seen = {name: one["documents"] for name, one in looked.items()}
    found = {name: held for name, held in seen.items() if any(held[kind] for kind in data_page.FOUND)}
    if found:
        drawn.append(data_page.contamination(found))
    return drawn
