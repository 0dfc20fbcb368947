"""The documents of a source on their way into a corpus: held-out ones left out, in an order that the seed decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prismlab.data.document import Document
from prismlab.data.packing import Ints
from prismlab.data.sources import Counts, is_heldout, micro_documents, micro_prompt, row_documents
from prismlab.data.spool import Spool
from prismlab.run.step import Progress
from prismlab.seeds import derive_seed


class Origin:
    """One source's documents, from the start whenever they are asked for, always in the same order.

    What is generated and what streams from the hub comes in an order of its own, by the seed. Files are read once,
    written to a spool, and given in one permutation of all their documents.

    Args:
        name: of the source.
        config: of the corpus.
        folder: for the spool.
        progress: told of documents written to the spool.
        cleaned: artifact of the step that cleaned the source, read instead of it.
    """

    def __init__(
        self, name: str, config: Mapping[str, Any], folder: Path, progress: Progress, cleaned: Path | None = None
    ) -> None:
        self.name, self._config, self._folder, self._progress = name, config, folder, progress
        self._cleaned = cleaned
        self._spec: Mapping[str, Any] = config["sources"][name]
        self._met, self._heldout = Counts(), 0
        self._spool: Spool | None = None

    def order(self, what: str, number: int, n: int) -> Ints:
        """A permutation of ``n`` things that depends on the corpus's seed, the source's name and what it is for."""
        names = (number,) if what == "epoch" else (what, number)
        return np.random.default_rng(derive_seed(self._config["seed"], self.name, *names)).permutation(n)

    def prepare(self) -> None:
        """Write the spool, where there is to be one and it is not there yet."""
        if self._spool is None and not self._generated and not self._streams:
            self._progress.start(None, "document")
            self._spool = Spool(self._folder, self._kept, self._counts, self._progress.advance)

    @property
    def _generated(self) -> bool:
        return self._spec.get("micro") is not None and self._cleaned is None

    @property
    def _streams(self) -> bool:
        hub = self._spec.get("hub") is not None and self._cleaned is None
        return hub and self._spec.get("max_documents") is None

    def documents(self) -> Iterator[Document]:
        """The documents, from the first."""
        self.prepare()
        if self._spool is None:
            return self._kept()
        return self._spool.in_order(self.order("documents", 0, len(self._spool)))

    def counts(self) -> Mapping[str, int]:
        """What was met so far: ``heldout_documents``, ``empty_documents``."""
        return self._counts() if self._spool is None else self._spool.counts

    def _counts(self) -> dict[str, int]:
        return {"heldout_documents": self._heldout, "empty_documents": self._met.empty}

    def _kept(self) -> Iterator[Document]:
        self._met, self._heldout = Counts(), 0
        share = float(self._config["heldout"])
        for document in self._read():
            if is_heldout(document.text, share):
                self._heldout += 1
            else:
                yield document

    def _read(self) -> Iterable[Document]:
        config, seed = self._config, derive_seed(self._config["seed"], self.name, 0)
        if self._generated:
            texts = micro_documents(self.name, self._spec, config["micro"], config["template"], seed, self._met)
            prompt = micro_prompt(self._spec, config["template"])
            return (Document(text, prompt) for text in texts)
        files = (config.get("files") or {}).get(self.name)
        shuffle = seed if self._streams else None
        return row_documents(self.name, self._spec, files, config["template"], self._met, shuffle, self._cleaned)
