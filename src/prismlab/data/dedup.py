"""Duplicates, by datatrove's exact and MinHash deduplication: of each group the first document of the source stays.

Exact: equal 64-bit xxHash of the text. MinHash: word 5-grams of the simplified text (small letters, no punctuation, no
accents; numbers stay, since exercises that differ in them are different ones), 14 buckets of 8 hashes each, so that
two documents are taken for one with probability 1 - (1 - s^8)^14 at a Jaccard similarity s: 0.21 at 0.6, 0.56 at 0.7,
0.92 at 0.8 (Broder 1997; these sizes are datatrove's own). Groups are closed: if a is like b and b like c, one of the
three stays. Documents of fewer than five words have no 5-gram and are compared exactly alone.

Signatures and pairs are on disk and merged from there; in memory are 16 bytes for each document that has a near copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import regex
import xxhash
from datatrove.data import Document as Passed
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.exact_dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    get_sig_dtype,
)
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from prismlab.data.blocks import Drops
from prismlab.data.executors import Phase
from prismlab.errors import DataError

COPY, NEAR = "a copy of an earlier document", "nearly an earlier document"
HASHES = HashConfig(precision=64, hash_fc="xxhash")
MINHASH = MinhashConfig(
    n_grams=5,
    num_buckets=14,
    hashes_per_bucket=8,
    seed=1,
    norm_config=TextNormConfig(norm_numbers=False),
    hash_config=HASHES,
)
SHINGLES = 4096
"""5-grams of which hashes are in memory at a time, so that a book costs no more than a page: 4 MB."""
PAIRS = 2**20
"""Pairs of near copies in memory at a time: about 60 MB."""
_MOST_SHARDS = 65_534
_WORD = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]|\w+")
Stream = Callable[[], list[Any]]
"""The blocks that give the documents of a shard, made anew for each use."""


class Words(WordTokenizer):
    """Runs of letters and digits; of scripts without spaces every letter is a word. Needs no model for a language."""

    def word_tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


def text_hash(text: str) -> int:
    """xxHash (64 bits) of a text's UTF-8. datatrove hashes text itself, which xxhash 4 refuses."""
    return xxhash.xxh64_intdigest(text.encode("utf-8"))


def _bytes(document: Passed) -> bytes:
    return document.text.encode("utf-8")


def _earlier_first(document: Passed) -> int:
    # datatrove keeps the highest priority, then the lowest place in its shard: so shards in order, then places.
    return _MOST_SHARDS + 1 - document.metadata["rank"]


def exact_config() -> ExactDedupConfig:
    """Equal texts; of these the first of the source stays."""
    return ExactDedupConfig(content_getter=_bytes, document_priority=_earlier_first, hash_config=HASHES)


def exact_phases(folder: Path, shards: int, stream: Stream) -> list[Phase]:
    """Find copies; ``exact_filter`` then drops them.

    Raises:
        DataError: there are more shards than priorities.
    """
    if shards > _MOST_SHARDS:
        raise DataError(f"{shards} shards; exact deduplication takes {_MOST_SHARDS}: name several smaller sources")
    signatures, found = folder / "exact" / "signatures", folder / "exact" / "found"
    found.mkdir(parents=True, exist_ok=True)
    return [
        Phase("exact-signatures", [*stream(), ExactDedupSignature(str(signatures), exact_config())], shards),
        Phase("exact-find", [ExactFindDedups(str(signatures), str(found), exact_config(), lines_to_buffer=1000)], 1),
    ]


def exact_filter(folder: Path, drops: Drops | None) -> Any:
    """The block that drops copies, of the very stream that ``exact_phases`` was given."""
    return ExactDedupFilter(str(folder / "exact" / "found"), exact_config(), exclusion_writer=_writer(drops))


def minhash_phases(folder: Path, shards: int, stream: Stream) -> list[Phase]:
    """Find near copies; ``minhash_filter`` then drops them."""
    near = folder / "near"
    signatures = str(near / "signatures")
    (near / "keep").mkdir(parents=True, exist_ok=True)
    buckets = MinhashDedupBuckets(signatures, str(near / "pairs"), config=MINHASH, lines_to_buffer=1000)
    return [
        Phase("near-signatures", [*stream(), NearSignatures(signatures)], shards),
        Phase("near-pairs", [buckets], MINHASH.num_buckets),
        Phase("near-first", [KeepFirst(near)], 1),
    ]


def minhash_filter(folder: Path, drops: Drops | None) -> Any:
    """The block that drops near copies, of the very stream that ``minhash_phases`` was given."""
    return MinhashDedupFilter(str(folder / "near" / "keep"), exclusion_writer=_writer(drops), lines_to_buffer=1000)


def _writer(drops: Drops | None) -> Any:
    return drops


class NearSignatures(MinhashDedupSignature):
    """datatrove's signatures, with words and a hash of ours."""

    def __init__(self, output_folder: str) -> None:
        super().__init__(output_folder, MINHASH, language=Words())  # type: ignore[arg-type]
        self._hash_func = text_hash

    def get_signature(self, shingles: np.ndarray[Any, Any]) -> list[list[int]]:
        """The signature of a document, a part of its 5-grams at a time: 112 hashes of each are held at once."""
        found = super().get_signature
        parts = [found(shingles[at : at + SHINGLES]) for at in range(0, len(shingles), SHINGLES)]
        return np.array(parts, np.uint64).min(axis=0).tolist()


def _pairs(files: Sequence[Path]) -> Iterator[np.ndarray[Any, Any]]:
    """Pairs of documents that are nearly the same, uint64 [pairs, 2]: shard in the upper half, place in the lower."""
    for file in files:
        with file.open("rb") as opened:
            while len(found := np.fromfile(opened, "<u4", 4 * PAIRS)):
                halves = found.reshape(-1, 2, 2).astype(np.uint64)
                yield (halves[..., 0] << np.uint64(32)) | halves[..., 1]


def _roots(above: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The end of each chain of links [n]; twice as far at each turn, since a chain may hold a whole source."""
    while not np.array_equal(further := above[above], above):
        above = further
    return above


def first_of_each(files: Sequence[Path]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Groups of near copies, closed over all pairs.

    Args:
        files: of pairs, uint32 [pairs, 4]: shard and place of one, shard and place of the other.

    Returns:
        Documents that are in a pair, rising, and of each the first document of its group: uint64 [n], as ``_pairs``.
    """
    members = np.zeros(0, np.uint64)
    for pairs in _pairs(files):
        members = np.union1d(members, pairs)
    first = np.arange(len(members))
    for pairs in _pairs(files):
        one, other = np.searchsorted(members, pairs).T
        while len(one):
            one, other = first[one], first[other]
            apart = one != other
            one, other = np.minimum(one, other)[apart], np.maximum(one, other)[apart]
            # The later root goes below the earliest that it was paired with; the next round joins that to the rest.
            np.minimum.at(first, other, one)
            first = _roots(first)
    return members, members[first]


class KeepFirst(PipelineStep):
    """Of each group the first document of the source stays; datatrove would keep any one of them, and hold all groups.

    ``pairs/*.dups`` become ``keep/SHARD.remove`` (places to drop, rising) and ``first.npy``, rows [shard, place, shard
    of the first, place of the first].
    """

    type, name = "Dedup", "Prism first of each group"

    def __init__(self, near: Path) -> None:
        super().__init__()
        self.near = near

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Passed]:
        members, first = first_of_each(sorted((self.near / "pairs").glob("*.dups")))
        later = members != first
        halves = np.stack([members[later], first[later]], axis=1).view("<u4").reshape(-1, 2, 2)[..., ::-1]
        rows = halves.reshape(-1, 4).astype(np.int64)
        for shard in np.unique(rows[:, 0]).tolist():
            rows[rows[:, 0] == shard, 1].astype("<u4").tofile(self.near / "keep" / f"{shard:06d}.remove")
        np.save(self.near / "first.npy", rows)
        return
        yield


class Number(PipelineStep):
    """Tells each document its place among those that near copies are looked for in."""

    type, name = "Formatter", "Prism number"

    def run(self, data: Iterable[Passed], rank: int = 0, world_size: int = 1) -> Iterator[Passed]:
        for at, passed in enumerate(data):
            passed.metadata["number"] = at
            yield passed


def copy_note(document: Passed) -> dict[str, Any]:
    """What ``first_of_copies`` needs to find the first copy."""
    return {"hash": text_hash(document.text)}


def number_note(document: Passed) -> dict[str, Any]:
    """What ``first_of_group`` needs to find the document that stayed."""
    return {"number": document.metadata["number"]}


def first_of_copies(folder: Path, shards: int, text_hash: int) -> tuple[int, int]:
    """Shard and place (in the stream that signatures were taken of) of the first document with this hash."""
    dtype = get_sig_dtype(HASHES)
    for shard in range(shards):
        file = folder / "exact" / "signatures" / "0000" / f"{shard:05d}.c4_sig"
        found = np.fromfile(file, dtype) if file.is_file() else np.zeros(0, dtype)
        same = found["doc"][found["hash"] == np.uint64(text_hash)]
        if len(same):
            return shard, int(same.min())
    raise DataError(f"no signature {text_hash:x} in {folder.name}: the work folder is damaged; delete it")


def first_of_group(folder: Path, shard: int, number: int) -> tuple[int, int]:
    """Shard and place of the document that stayed instead of this one."""
    rows = np.load(folder / "near" / "first.npy", allow_pickle=False)
    ((*_, first, place),) = rows[(rows[:, 0] == shard) & (rows[:, 1] == number)].tolist()
    return first, place


def where_is(blocks: Sequence[Any], shard: int, place: int, shards: int) -> str:
    """File and line of the document at a place of a stream."""
    data: Any = None
    for block in blocks:
        data = block.run(data, shard, shards)
    return next(islice(data, place, None)).metadata["where"]
