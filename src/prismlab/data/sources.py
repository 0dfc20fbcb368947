"""Documents of a source: the micro world, files, the hub or what a step of cleaning left; and which are held out."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from prismlab.data.document import Document
from prismlab.data.filters import conditions, length_filter, row_filter
from prismlab.data.lines import MAX_LINE, Bad, lines
from prismlab.data.recipes import document_maker
from prismlab.data.rows import TEXT_SUFFIXES, Row, has_suffix, hub_rows, rows_or_bad, without_nul
from prismlab.data.templates import ThinkTemplate, get_template
from prismlab.errors import DataError, shown
from prismlab.micro import text as micro_text
from prismlab.micro import world
from prismlab.micro.retrieval import retrieval_questions
from prismlab.seeds import derive_seed
from prismlab.study.world import MicroSpec

Files = Sequence[str | Path] | None

_MICRO_TEXT = {
    "web": micro_text.web_documents,
    "code-text": micro_text.code_documents,
    "chat": micro_text.chat_documents,
}


@dataclass
class Counts:
    """What was met while documents were read."""

    empty: int = 0
    """Documents with no text, which are skipped."""


def is_heldout(text: str, share: float) -> bool:
    """Whether a document is kept out of training: BLAKE2b of its text, as a fraction of 2**64, is below ``share``."""
    return _rank(text) < share * 2**64


def _rank(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def _is_title(line: str) -> bool:
    """WikiText's first-level heading, `` = Title = ``; deeper ones have more equals signs."""
    inner = line.strip()
    return inner.startswith("= ") and inner.endswith(" =") and not inner.startswith("= =") and len(inner) > 4


def _parting(path: Path) -> Callable[[str], tuple[bool, bool]]:
    """How a text file is parted: for a line, whether a document begins at it, and whether it is part of one."""
    titles = False
    for found in lines(path):
        if isinstance(found, Bad):
            continue
        if not found[1].strip():
            return lambda line: (not line.strip(), bool(line.strip()))
        titles = titles or _is_title(found[1])
    return (lambda line: (_is_title(line), True)) if titles else (lambda line: (True, True))


def texts_or_bad(path: Path) -> Iterator[Document | Bad]:
    """Documents of a txt file (also .gz, .zst), and what is none.

    The rule, taken from the whole file: where there are blank lines, they part documents; else, where there are lines
    like `` = Title = `` (WikiText), each starts a document; else every line is a document. The file is read twice, and
    of it one document is in memory at a time.

    Raises:
        DataError: the file is missing or its compression is broken.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    parting = _parting(path)
    held: list[str] = []
    start, size = 1, 0
    for found in lines(path):
        if isinstance(found, Bad):
            yield found
            continue
        number, line = found
        begins, belongs = parting(line)
        if begins and held:
            yield _joined(path, start, held, size)
            held, size = [], 0
        if not belongs:
            continue
        start = start if held else number
        size += len(line) + 1
        if size <= MAX_LINE or not held:
            held.append(line)
    if held:
        yield _joined(path, start, held, size)


def _joined(path: Path, start: int, held: Sequence[str], size: int) -> Document | Bad:
    if size > MAX_LINE + 1:
        detail = f"the document is longer than {MAX_LINE >> 20} million characters; part it by blank lines"
        return Bad(path.name, start, "document too long", detail, shown(held[0], 80))
    return Document("\n".join(held), where=f"{path.name}:{start}")


def text_documents(path: Path) -> Iterator[str]:
    """Texts of ``texts_or_bad``, each of which must be sound.

    Raises:
        DataError: as there, or a line is not UTF-8 or too long.
    """
    for found in texts_or_bad(path):
        if isinstance(found, Bad):
            raise found.error()
        yield found.text


def entries(spec_json: Mapping[str, Any], files: Files) -> Iterator[Document | Row | Bad]:
    """What files or a hub data set hold, as it comes: text, rows, and what is neither.

    Raises:
        DataError: a file is missing or broken, or the data set cannot be reached.
        MissingExtra: a package for it is not installed.
    """
    if spec_json.get("hub") is not None:
        yield from hub_rows(spec_json["hub"])
    for path in map(Path, files or ()):
        yield from texts_or_bad(path) if has_suffix(path, TEXT_SUFFIXES) else rows_or_bad(path)


def row_documents(
    name: str,
    spec_json: Mapping[str, Any],
    files: Files,
    template: str,
    counts: Counts | None = None,
    shuffle_seed: int | None = None,
    cleaned: str | Path | None = None,
) -> Iterator[Document]:
    """Documents of files, of the hub or of a cleaned source as they come, none kept in memory.

    Held-out ones are among them. Rows that the source's recipe or filters drop are passed over; what a step of cleaning
    does besides (duplicates, contamination, samples) shows in ``cleaned`` alone.

    Args: as of ``documents``; with ``shuffle_seed`` a hub data set is shuffled within a window of 10,000 rows.

    Raises:
        DataError: a file or row is missing or broken (with file and line), or there is no file.
        MissingExtra: a package for it is not installed.
    """
    counts, most = counts or Counts(), spec_json.get("max_documents")
    if cleaned is not None:
        yield from cleaned_documents(cleaned)
        return
    if spec_json.get("hub") is None and not files:
        raise DataError(f"source {name!r}: no file was found; check the paths under 'files'")
    make, why = document_maker(spec_json, get_template(template)), row_filter(conditions(spec_json))
    too = length_filter(spec_json)
    given = 0
    rows = hub_rows(spec_json["hub"], shuffle_seed) if spec_json.get("hub") is not None else entries(spec_json, files)
    for found in rows:
        if most is not None and given >= most:
            return
        if isinstance(found, Bad):
            raise found.error()
        if isinstance(found, Row):
            if why(found) is not None:
                continue
            found = make(found)
        if not found.text.strip():
            counts.empty += 1
        elif too(without_nul(found.where, found.text)) is None:
            given += 1
            yield found


def cleaned_documents(folder: str | Path) -> Iterator[Document]:
    """Documents that a step of cleaning left (``documents/*.parquet`` in its artifact), in the order of the source.

    Raises:
        DataError: a file of it is missing or broken.
    """
    shards = sorted((Path(folder) / "documents").glob("*.parquet"))
    if not shards:
        raise DataError(f"{folder}: no cleaned documents are here")
    for shard in shards:
        for row in rows_or_bad(shard):
            if isinstance(row, Bad):
                raise row.error()
            values = row.values
            yield Document(values["text"], values["prompt"], values["where"], values["id"])


def _task_documents(
    domain: str, form: str, tokens: int | None, seed: int, spec: MicroSpec, template: ThinkTemplate
) -> Iterator[str]:
    """At most ``spec.documents`` distinct documents of the training split, generated as they are asked for."""
    if form == "facts":
        if domain != "science":
            raise DataError(f"micro source: the form 'facts' is for science, not for {domain!r}")
        return islice(world.fact_documents(seed, spec), spec.documents)
    found = (
        world.questions(domain, "train", seed, spec) if tokens is None else retrieval_questions("train", seed, tokens)
    )
    asked = islice(found, spec.documents)
    if form == "worked":
        return (template.worked(one.question, one.chain, one.answer) for one in asked)
    return (template.direct(one.question, one.answer) for one in asked)


def _micro_documents(micro: Mapping[str, Any], spec: MicroSpec, seed: int, template: ThinkTemplate) -> Iterator[str]:
    domain, form = micro["domain"], micro.get("form", "direct")
    if domain in _MICRO_TEXT:
        return iter(_shuffled(list(_MICRO_TEXT[domain]()), seed))
    return _task_documents(domain, form, micro.get("tokens"), seed, spec, template)


def _shuffled(documents: list[str], seed: int) -> list[str]:
    random.Random(seed).shuffle(documents)
    return documents


def _limited(documents: Iterable[str], most: int | None, counts: Counts) -> Iterator[str]:
    """Documents with text, at most ``most`` of them."""
    given = 0
    for document in documents:
        if most is not None and given >= most:
            return
        if document.strip():
            given += 1
            yield document
        else:
            counts.empty += 1


def micro_documents(
    name: str, spec_json: Mapping[str, Any], micro_json: Mapping[str, Any], template: str, seed: int, counts: Counts
) -> Iterator[str]:
    """Documents of a source of the micro world, in an order that the seed decides."""
    seed, shape = derive_seed(seed, "documents", name), get_template(template)
    found = _micro_documents(spec_json["micro"], MicroSpec.model_validate(micro_json), seed, shape)
    return _limited(found, spec_json.get("max_documents"), counts)


def micro_prompt(spec_json: Mapping[str, Any], template: str) -> int:
    """Characters before the answer of each document of a micro source; 0 where all of it is learned."""
    tokens = spec_json["micro"].get("tokens") if spec_json.get("loss") == "answer" else None
    return 0 if tokens is None else int(tokens) + len(get_template(template).prompt(""))


def documents(
    name: str,
    spec_json: Mapping[str, Any],
    micro_json: Mapping[str, Any],
    files: Files,
    template: str,
    seed: int,
    counts: Counts | None = None,
    cleaned: str | Path | None = None,
) -> Iterator[str]:
    """Every document of a source once, in an order that the seed decides; held-out ones are among them.

    Text and files are permuted as a whole (and so held in memory); generated tasks are drawn in random order; a hub
    data set is shuffled within a window of 10,000 rows as it streams. ``max_documents`` takes the first ones of files
    and of the hub before they are permuted, so that the choice does not depend on the seed.

    Args:
        name: name of the source, for messages and seeds.
        spec_json: JSON of its ``SourceSpec``.
        micro_json: JSON of the study's ``MicroSpec``.
        files: paths of a source from files.
        template: name of the study's template.
        seed: decides the order.
        counts: filled in while documents are read.
        cleaned: artifact of the step that cleaned the source, to be read instead of it.

    Raises:
        DataError: a file or row is missing or broken (with file and line), or there is no file.
        MissingExtra: a hub source without the package ``datasets``.
    """
    counts = counts or Counts()
    if spec_json.get("micro") is not None and cleaned is None:
        return micro_documents(name, spec_json, micro_json, template, seed, counts)
    seed = derive_seed(seed, "documents", name)
    streams = spec_json.get("hub") is not None and spec_json.get("max_documents") is None and cleaned is None
    found = row_documents(name, spec_json, files, template, counts, seed if streams else None, cleaned)
    texts = (document.text for document in found)
    return texts if streams else iter(_shuffled(list(texts), seed))


HUB_SCAN = 50_000
"""At most this many rows of a hub source are looked through for held-out documents."""


def heldout_texts(
    name: str,
    source_json: Mapping[str, Any],
    micro_json: Mapping[str, Any],
    files: Files,
    template: str,
    share: float,
    n: int,
    cleaned: str | Path | None = None,
) -> list[str]:
    """Up to ``n`` distinct held-out documents: those with the smallest hashes, whatever the seed and the mixture.

    Of a hub source that was not cleaned only the first ``HUB_SCAN`` documents are looked through.

    Raises:
        DataError: none is held out; the message says how many documents the source has.
    """
    found: dict[str, int] = {}
    total = 0
    if source_json.get("hub") is not None and source_json.get("max_documents") is None:
        source_json = {**source_json, "max_documents": HUB_SCAN}
    if source_json.get("micro") is not None and cleaned is None:
        texts = micro_documents(name, source_json, micro_json, template, 0, Counts())
    else:
        texts = (one.text for one in row_documents(name, source_json, files, template, cleaned=cleaned))
    for document in texts:
        total += 1
        if is_heldout(document, share):
            found[document] = _rank(document)
    if not found:
        raise DataError(
            f"source {name!r}: none of its {total} documents is held out at a share of {share:g}; raise 'heldout' or "
            "give the source more, shorter documents"
        )
    return heapq.nsmallest(n, found, key=lambda text: (found[text], text))
