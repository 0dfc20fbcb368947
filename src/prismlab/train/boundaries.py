"""A corpus as the loop reads it: with its document boundaries respected, or ignored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prismlab.data.corpus import Corpus


def document_ids(corpus: Corpus, start: int, stop: int) -> NDArray[np.int32]:
    """Number of each token's document in its row, from 0, int32 [stop - start, seq_len]; padding is one more."""
    begins = np.zeros((stop - start, corpus.seq_len), np.int32)
    for row in range(start, stop):
        begins[row - start, corpus.boundaries(row)] = 1
    # The mark of padding, which begins where the row's tokens end; a full row has none.
    fill = corpus.row_fill[start:stop].astype(np.int64)
    padded = np.flatnonzero(fill < corpus.seq_len)
    begins[padded, fill[padded]] = 1
    begins[:, 0] = 0
    return np.cumsum(begins, axis=1, dtype=np.int32)


@dataclass(frozen=True)
class TrainingRows:
    """The rows of a corpus under a policy of boundaries (``boundaries`` of ``TrainSpec``)."""

    corpus: Corpus
    policy: Literal["respect", "ignore"]
    _last: dict[tuple[int, int], NDArray[np.int32]] = field(
        default_factory=dict[tuple[int, int], NDArray[np.int32]], repr=False, compare=False
    )
    """Documents that were asked for last: a step asks for those of its rows several times over."""

    @property
    def masked(self) -> bool:
        """Whether there is a token on which no loss is taken: with ``respect`` the first of each document."""
        return self.policy == "respect" or self.corpus.masked

    def tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        """Token ids [stop - start, seq_len], in training order."""
        return self.corpus.tokens(start, stop)

    def documents(self, start: int, stop: int) -> NDArray[np.int32] | None:
        """Documents that must not see one another, as ``document_ids``, not to be written to; None where boundaries are
        ignored.
        """
        if self.policy != "respect":
            return None
        if (start, stop) not in self._last:
            ids = document_ids(self.corpus, start, stop)
            self._last.clear()
            self._last[start, stop] = ids
        return self._last[start, stop]

    def loss_mask(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether a loss is taken on each token, bool [stop - start, seq_len]: not on padding and masked prompts, and
        with ``respect`` not on the first token of a document, which nothing of its own document foretells."""
        learned = self.corpus.loss_mask(start, stop)
        ids = self.documents(start, stop)
        if ids is not None:
            learned[:, 1:] &= ids[:, 1:] == ids[:, :-1]
        return learned

    def row_domains(self, start: int, stop: int) -> list[str]:
        """Domain of each of these rows."""
        return self.corpus.row_domains(start, stop)
