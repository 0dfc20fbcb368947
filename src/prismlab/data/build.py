"""Stage ``corpus``: tokenise sources, mix them by tokens and pack them into rows in training order.

A build goes on where it was stopped: in its scratch folder each source has its spool and its tokens, in parts, and the
corpus its shards, each whole or not there. What is done depends on the configuration alone, never on how often it was
stopped or how many processes work.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prismlab.data.cache import TokenCache
from prismlab.data.encode import Encoders
from prismlab.data.files import whole
from prismlab.data.mixture import normalised, row_counts, schedule
from prismlab.data.origin import Origin
from prismlab.data.packing import Ints, pad_rows
from prismlab.data.shards import CONTINUES, Marks, finish, interleaved, shard_done, shard_rows, write_shard
from prismlab.data.supply import BestFit, Concatenated, Supply, Usage
from prismlab.errors import DataError
from prismlab.micro.world import check_disjoint
from prismlab.model.checkpoint import load_tokenizer
from prismlab.model.tokens import Encoder, tokenizer_hash
from prismlab.run.step import Artifact, Progress, Result, Silent
from prismlab.study.world import MicroSpec

PACKING: Mapping[str, Any] = {"method": "concat", "overlap": 0, "min_tokens": 0, "window": 100_000}
"""JSON of the default ``PackingSpec``."""


class _Source:
    """One source on its way into a corpus."""

    def __init__(
        self,
        name: str,
        share: float,
        config: Mapping[str, Any],
        folder: Path,
        encoders: Encoders,
        progress: Progress,
        cleaned: Path | None,
    ) -> None:
        self.name, self.share, self.seq_len = name, share, int(config["seq_len"])
        spec: Mapping[str, Any] = config["sources"][name]
        self.domain = spec.get("domain") or (spec.get("micro") or {}).get("domain")
        self.masked = spec.get("loss") == "answer"
        self.packing = {**PACKING, **(config.get("packing") or {})}
        self.expected = share * int(config["rows"])
        self._max_epochs = float(config["max_epochs"])
        self.origin = Origin(name, config, folder, progress, cleaned)
        self._folder, self._encoders, self._progress = folder, encoders, progress
        self.cache: TokenCache
        self.supply: Supply

    def begin(self) -> None:
        """Take up what an earlier build left."""
        self.cache = TokenCache(
            self._folder,
            self._encoders,
            self.origin.documents,
            self.origin.counts,
            self.packing["min_tokens"],
            self._progress.advance,
        )
        kind = {"concat": Concatenated, "best_fit": BestFit}[self.packing["method"]]
        self.supply = kind(
            self.name,
            self.cache,
            self.origin.order,
            seq_len=self.seq_len,
            packing=self.packing,
            expected=self.expected,
            max_epochs=self._max_epochs,
        )

    def fill(self, start: int, stop: int, at: Ints, tokens: NDArray[Any], pad: int) -> Marks:
        """Put the source's own rows ``start`` to ``stop`` (exclusive) where ``at`` says in ``tokens``, a shard's."""
        layout = self.supply.layout(start, stop)
        inside = layout.places(self.seq_len)
        row, inside = np.divmod(inside, self.seq_len)
        places = at[row] * self.seq_len + inside
        compiled = self.packing["method"] == "best_fit"
        self.cache.gather(layout.document, layout.offset, layout.length, places, tokens, compiled)
        fill, learned = layout.fill(), None
        pad_rows(tokens, at, fill, pad)
        starts = inside.astype(np.uint32) | np.where(layout.offset > 0, CONTINUES, np.uint32(0))
        if self.masked:
            shape, first = (stop - start, self.seq_len), row * self.seq_len + inside
            prompts = np.clip(self.cache.prompts[layout.document] - layout.offset, 0, layout.length)
            # Bytes: prompts never overlap, and a shard has tens of millions of places.
            edges = np.zeros(shape[0] * shape[1] + 1, np.int8)
            np.add.at(edges, first, 1)
            np.add.at(edges, first + prompts, -1)
            answers = (np.cumsum(edges[:-1], dtype=np.int8) == 0).reshape(shape)
            learned = answers & (np.arange(self.seq_len) < fill[:, None])
        return Marks(fill, np.diff(layout.starts), starts, learned)

    def summary(self, usage: Usage, rows: int, tokens: int) -> dict[str, Any]:
        """What the manifest and the record say about the source."""
        met = self.cache.met_until(max(usage.documents + usage.short_documents - 1, 0))
        return {
            "domain": self.domain,
            "weight": self.share,
            "rows": rows,
            "share": usage.tokens / tokens,
            **asdict(usage),
            **met,
        }


def check_epochs(
    shares: Mapping[str, float], sizes: Mapping[str, float], tokens: float, max_epochs: float, mixture: str
) -> None:
    """Refuse a budget before anything is read, where sizes of sources are known.

    Args:
        shares: of tokens, per source.
        sizes: known tokens of sources.
        tokens: of the whole corpus.
        max_epochs: most passes over a source.
        mixture: its name, for the message.

    Raises:
        DataError: a source would be repeated more often than ``max_epochs``.
    """
    for name, share in shares.items():
        if name in sizes and share * tokens > max_epochs * sizes[name]:
            raise DataError(
                f"source {name!r} has {sizes[name]:,.0f} tokens (mixtures.{mixture}.tokens_in_source), "
                f"{share * tokens:,.0f} are needed: {share * tokens / sizes[name]:.3g} epochs, but 'max_epochs' is "
                f"{max_epochs:g}; give it less weight or more text, or raise it"
            )


def _identity(config: Mapping[str, Any], tokenizer: str) -> str:
    """Hash of what a build makes; files count by content where it is known, else by name and size."""
    rest = {key: value for key, value in config.items() if key not in ("files", "scratch")}
    files = {
        name: [[Path(path).name, Path(path).stat().st_size if Path(path).is_file() else 0] for path in paths]
        for name, paths in (config.get("files") or {}).items()
    }
    text = json.dumps({"config": rest, "files": files, "tokenizer": tokenizer}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _take_up(scratch: Path, identity: str) -> None:
    """Make the scratch folder, or see that what lies in it belongs to this build."""
    known = scratch / "build.json"
    if known.is_file():
        if json.loads(known.read_text(encoding="utf-8")) != {"build": identity}:
            raise DataError(
                f"{scratch}: the unfinished build of another configuration; delete the folder, or build elsewhere"
            )
        return
    scratch.mkdir(parents=True, exist_ok=True)
    with whole(known) as draft:
        draft.write_text(json.dumps({"build": identity}) + "\n", encoding="utf-8")


def _shards(
    folder: Path, chosen: NDArray[np.int32], sources: Sequence[_Source], pad: int, vocab: int, progress: Progress
) -> None:
    """Write the shards that are not there yet."""
    folder.mkdir(exist_ok=True)
    seq_len, dtype = sources[0].seq_len, sources[0].cache.dtype
    each, before = shard_rows(seq_len, dtype), np.zeros(len(sources), np.int64)
    masked = any(source.masked for source in sources)
    # One buffer for all shards: memory that is new costs more time than the copying.
    buffer = np.empty((min(each, len(chosen)), seq_len), dtype)
    for number, first in enumerate(range(0, len(chosen), each)):
        part = chosen[first : first + each]
        counts = row_counts(part, len(sources))
        if not shard_done(folder, number):
            tokens, parts = buffer[: len(part)], dict[int, tuple[Ints, Marks]]()
            for at in np.flatnonzero(counts).tolist():
                places = np.flatnonzero(part == at)
                stop = int(before[at] + counts[at])
                parts[at] = places, sources[at].fill(int(before[at]), stop, places, tokens, pad)
            write_shard(folder, number, tokens, interleaved(parts, len(part), seq_len, masked), vocab)
        before += counts
        progress.advance(len(part))


def build_corpus(
    config: Mapping[str, Any],
    tokenizer: Any,
    out: Path,
    *,
    scratch: Path | None = None,
    progress: Progress | None = None,
    workers: int = 1,
    cleaned: Mapping[str, Path] | None = None,
) -> Result:
    """Build a corpus of ``rows`` rows of ``seq_len`` tokens in ``out``.

    Args:
        config: as of the stage ``corpus`` (docs/architecture.md), with ``files`` ({source: [paths]}) and, where sizes
            of sources are known, ``tokens_in_source``.
        tokenizer: of the 'tokenizers' library, with an end-of-sequence token.
        out: an existing folder.
        scratch: what is done is kept here, so that a stopped build goes on; the caller deletes it once ``out`` is
            safe. By default ``out/scratch``, deleted at the end.
        progress: told of tokens, then of rows.
        workers: processes that tokenise; 1 is this one, with the tokenizer's own threads.
        cleaned: per source that was cleaned, the folder with its documents, read instead of the source.

    Raises:
        DataError: a source is broken, empty or would be repeated more often than ``max_epochs``, or the scratch folder
            belongs to another build.
        CheckpointError: the tokenizer cannot be used.
        MissingExtra: packing by best fit without numba.
    """
    progress, own = progress or Silent(), scratch is None
    scratch = out / "scratch" if scratch is None else scratch
    encoder, shares = Encoder(tokenizer), normalised(config["weights"])
    _check(config, shares)
    identity = tokenizer_hash(tokenizer)
    _take_up(scratch, _identity(config, identity))
    pad = encoder.eos if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    with Encoders(encoder, workers) as encoders:
        sources = [
            _Source(name, share, config, scratch / "sources" / name, encoders, progress, (cleaned or {}).get(name))
            for name, share in shares.items()
        ]
        chosen, described = _mixed(sources, config, progress)
        progress.start(len(chosen), "row")
        _shards(scratch / "shards", chosen, sources, pad, encoder.vocab, progress)
        for source in sources:
            source.cache.close()
    manifest = finish(
        scratch / "shards",
        out,
        row_source=chosen,
        sources=[{"name": name, **summary} for name, summary in described.items()],
        seq_len=int(config["seq_len"]),
        vocab=encoder.vocab,
        tokenizer_hash=identity,
        more={"pad": pad, "packing": sources[0].packing},
    )
    if own:
        shutil.rmtree(scratch)
    for name, summary in described.items():
        if summary["empty_documents"]:
            progress.note(f"source {name!r}: {summary['empty_documents']} empty documents skipped")
    tokens, padding = manifest["tokens"], manifest["padding"]
    return Result(metrics={"tokens": tokens, "padding": padding, "sources": described}, tokens=tokens + padding)


def _mixed(
    sources: Sequence[_Source], config: Mapping[str, Any], progress: Progress
) -> tuple[NDArray[np.int32], dict[str, dict[str, Any]]]:
    """Read as much of each source as its share needs: the source of each row, and what is told of each source."""
    rows = int(config["rows"])
    for source in sources:
        source.origin.prepare()
    progress.start(rows * int(config["seq_len"]), "token")
    for source in sources:
        source.begin()
        source.supply.ensure(source.expected)
    sizes = [source.supply.size for source in sources] if sources[0].packing["method"] == "best_fit" else None
    chosen = schedule({source.name: source.share for source in sources}, rows, sizes)
    counts = row_counts(chosen, len(sources)).tolist()
    for source, count in zip(sources, counts, strict=True):
        source.supply.ensure(count)
    usage = [source.supply.usage(count) for source, count in zip(sources, counts, strict=True)]
    tokens = sum(one.tokens for one in usage)
    each = zip(sources, usage, counts, strict=True)
    return chosen, {source.name: source.summary(used, count, tokens) for source, used, count in each}


def _check(config: Mapping[str, Any], shares: Mapping[str, float]) -> None:
    unknown = sorted(set(shares) - set(config["sources"]))
    if unknown:
        raise DataError(
            f"mixture {config['mixture']!r} names sources that the study does not have: {', '.join(unknown)}"
        )
    if any(
        (config["sources"][name].get("micro") or {}).get("domain") in ("math", "code", "science") for name in shares
    ):
        check_disjoint(MicroSpec.model_validate(config["micro"]))
    tokens = int(config["rows"]) * int(config["seq_len"])
    sizes = config.get("tokens_in_source") or {}
    check_epochs(shares, sizes, tokens, float(config["max_epochs"]), str(config["mixture"]))


def run(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """The stage; see docs/architecture.md for config and outputs, and ``build_corpus``."""
    scratch = config.get("scratch")
    cleaned = {name: artifact.path for name, artifact in inputs.items() if name != "tokenizer"}
    return build_corpus(
        config,
        load_tokenizer(inputs["tokenizer"].model),
        out,
        scratch=None if scratch is None else Path(scratch),
        progress=progress,
        cleaned=cleaned,
    )
