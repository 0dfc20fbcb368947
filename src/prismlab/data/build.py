"""Stage ``corpus``: tokenise sources, mix them by tokens and pack them into rows in training order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prismlab.data.corpus import write_corpus
from prismlab.data.mixture import normalised, row_counts, schedule
from prismlab.data.packing import EpochStream, Tokens, pack
from prismlab.data.sources import Counts, documents, is_heldout
from prismlab.errors import DataError
from prismlab.micro.world import check_disjoint
from prismlab.model.checkpoint import load_tokenizer
from prismlab.model.tokens import Encoder, tokenizer_hash
from prismlab.run.step import Artifact, Progress, Result
from prismlab.seeds import derive_seed
from prismlab.study.world import MicroSpec

FIRST_BATCH, LARGEST_BATCH = 32, 1024
"""Documents tokenised at a time: few at first, so that a small corpus does not read a whole source."""


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    size, held = FIRST_BATCH, list[str]()
    for text in texts:
        held.append(text)
        if len(held) == size:
            yield held
            held, size = [], min(2 * size, LARGEST_BATCH)
    if held:
        yield held


class _Source:
    """One source on its way into a corpus."""

    def __init__(self, name: str, rows: int, config: Mapping[str, Any], encoder: Encoder) -> None:
        self.name, self.rows, self.seq_len = name, rows, int(config["seq_len"])
        self.spec: Mapping[str, Any] = config["sources"][name]
        self.domain = self.spec.get("domain") or (self.spec.get("micro") or {}).get("domain")
        self._config, self._encoder, self.counts = config, encoder, Counts()
        self.heldout = 0
        self.stream = EpochStream(
            name,
            self._pass,
            self._order,
            needed=rows * self.seq_len,
            max_epochs=float(config["max_epochs"]),
            # What streams from the hub may be larger than memory: it is read again rather than kept.
            keep=self.spec.get("hub") is None,
        )

    def _order(self, epoch: int, documents: int) -> list[int]:
        seed = derive_seed(self._config["seed"], self.name, epoch)
        return np.random.default_rng(seed).permutation(documents).tolist()

    def _texts(self, epoch: int) -> Iterator[str]:
        config = self._config
        files = (config.get("files") or {}).get(self.name)
        seed = derive_seed(config["seed"], self.name, epoch)
        counts = self.counts if epoch == 0 else None
        for text in documents(self.name, self.spec, config["micro"], files, config["template"], seed, counts):
            if not is_heldout(text, float(config["heldout"])):
                yield text
            elif epoch == 0:
                self.heldout += 1

    def _pass(self, epoch: int) -> Iterator[Tokens]:
        for batch in _batches(self._texts(epoch)):
            yield from self._encoder.encode(batch)

    def blocks(self, progress: Progress) -> Iterator[Tokens]:
        """The source's rows, in blocks."""
        for block in pack(self.stream, self.rows, self.seq_len):
            yield block
            progress.advance(len(block))

    def summary(self, share: float, total: int) -> dict[str, Any]:
        """What the manifest and the record say about the source; ``epochs`` is None before the first pass ends."""
        stats, tokens = self.stream.stats, self.rows * self.seq_len
        return {
            "domain": self.domain,
            "weight": share,
            "rows": self.rows,
            "tokens": tokens,
            "share": self.rows / total,
            "documents": stats.documents,
            "epochs": None if stats.epoch_tokens is None else tokens / stats.epoch_tokens,
            "heldout_documents": self.heldout,
            "empty_documents": self.counts.empty,
            "left_over_tokens": stats.tokens_drawn - tokens,
        }


def run(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Build a corpus of ``rows`` rows of ``seq_len`` tokens; see docs/architecture.md for config and outputs.

    Raises:
        DataError: a source is broken, empty or would be repeated more often than ``max_epochs``.
        CheckpointError: the tokenizer cannot be used.
    """
    tokenizer = load_tokenizer(inputs["tokenizer"].model)
    encoder = Encoder(tokenizer)
    shares = normalised(config["weights"])
    unknown = sorted(set(shares) - set(config["sources"]))
    if unknown:
        raise DataError(
            f"mixture {config['mixture']!r} names sources that the study does not have: {', '.join(unknown)}"
        )
    if any(
        (config["sources"][name].get("micro") or {}).get("domain") in ("math", "code", "science") for name in shares
    ):
        check_disjoint(MicroSpec.model_validate(config["micro"]))
    rows, seq_len = int(config["rows"]), int(config["seq_len"])
    chosen = schedule(shares, rows)
    counts = row_counts(chosen, len(shares)).tolist()
    sources = [_Source(name, count, config, encoder) for name, count in zip(shares, counts, strict=True)]
    progress.start(rows, "row")
    described: list[dict[str, Any]] = [{"name": source.name, "domain": source.domain} for source in sources]

    def blocks() -> Iterator[tuple[int, Iterator[Tokens]]]:
        for at, source in enumerate(sources):
            if source.rows:
                yield at, source.blocks(progress)
            described[at].update(source.summary(shares[source.name], rows))

    write_corpus(
        out,
        row_source=chosen,
        blocks=blocks(),
        sources=described,
        seq_len=seq_len,
        vocab=encoder.vocab,
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    for source in sources:
        if source.counts.empty:
            progress.note(f"source {source.name!r}: {source.counts.empty} empty documents skipped")
    by_name = {entry["name"]: {key: value for key, value in entry.items() if key != "name"} for entry in described}
    return Result(metrics={"tokens": rows * seq_len, "sources": by_name}, tokens=rows * seq_len)
