"""Bits per byte of held-out documents: the general ability that should survive mid-training and RL.

Bytes, not tokens, so that checkpoints with different tokenizers can be compared. Each document stands on its own,
behind the token that documents follow in training, and is scored up to the model's last position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from prismlab.errors import DataError, StageError
from prismlab.model.generate import prompt_ids
from prismlab.run.step import Progress
from prismlab.stats import bootstrap_ratio

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("document", pa.int32()),
        ("bytes", pa.int64()),
        ("tokens", pa.int32()),
        ("nll", pa.float64()),
    ]
)
"""Columns of ``text.parquet``: place of the document, its scored bytes and tokens, their total nll in nats."""

BATCH_LOGITS = 2**25
"""Logits a forward pass (128 MiB in float32), unless one document alone needs more."""


def fitting(tokenizer: PreTrainedTokenizerBase, text: str, most: int) -> tuple[list[int], int]:
    """Token ids of the longest beginning of ``text`` that has at most ``most`` of them, and its length in characters.

    The text is cut, not the tokens: a token may end within a character, and then no number of bytes would be right.
    """
    ids = prompt_ids(tokenizer, text)
    if len(ids) <= most:
        return ids, len(text)
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if len(prompt_ids(tokenizer, text[:middle])) <= most:
            fits = middle
        else:
            too_long = middle
    return prompt_ids(tokenizer, text[:fits]), fits


def _starts_outside(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether the first token stands before the text, so that every token of the text is predicted."""
    return bool(ids) and ids[0] in (tokenizer.eos_token_id, tokenizer.bos_token_id)


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Places of documents of like length, at most ``tokens`` tokens a batch with padding, unless one alone has more."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[place] > tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@torch.no_grad()
def document_nll(model: PreTrainedModel, documents: Sequence[Sequence[int]], progress: Progress | None) -> list[float]:
    """Total nll in nats of each document's tokens but its first.

    Shorter rows of a batch are padded at their end, where a causal model cannot look, recurrent or not; no mask needed.
    """
    nll = [0.0] * len(documents)
    vocabulary = int(model.config.get_text_config().vocab_size)
    for batch in _batches([len(ids) for ids in documents], BATCH_LOGITS // vocabulary):
        longest = max(len(documents[i]) for i in batch)
        rows = [[*documents[i], *[documents[i][0]] * (longest - len(documents[i]))] for i in batch]
        ids = torch.tensor(rows, device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").double()
        for place, row in zip(batch, losses, strict=True):
            nll[place] = float(row[: len(documents[place]) - 1].sum())
        if progress is not None:
            progress.advance(len(batch))
    return nll


def score_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    texts: Sequence[str],
    progress: Progress | None = None,
    most: int = 4096,
) -> list[dict[str, Any]]:
    """One row of ``SCHEMA`` a document.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        source: name for the rows.
        texts: whole documents; of a long one the beginning is scored that fits the positions and ``most``.
        progress: advanced by one a document; the caller has called ``start``.
        most: tokens of a document, a start token included; a bound on memory, too.

    Raises:
        DataError: nothing of a document can be scored.
        StageError: the model's loss is not finite.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or most
    documents: list[list[int]] = []
    sizes: list[int] = []
    for place, text in enumerate(texts):
        ids, characters = fitting(tokenizer, text, min(positions, most))
        size = len(text[:characters].encode())
        if not _starts_outside(tokenizer, ids):
            # The first token is context only, so its bytes are not scored either.
            size -= len(cast("str", tokenizer.decode(ids[:1])).encode())
        if len(ids) < 2 or size < 1:
            raise DataError(f"source {source}: held-out document {place} has no text that could be scored")
        documents.append(ids)
        sizes.append(size)
    nll = document_nll(model, documents, progress)
    if not all(map(math.isfinite, nll)):
        raise StageError(f"source {source}: the loss of a held-out document is not finite; the checkpoint is broken")
    return [
        {"source": source, "document": place, "bytes": size, "tokens": len(ids) - 1, "nll": value}
        for place, (size, ids, value) in enumerate(zip(sizes, documents, nll, strict=True))
    ]


def bits_per_byte(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Any]:
    """``{bits_per_byte, lo, hi, documents, bytes}`` of one source's rows: total nll / ln 2 / total bytes.

    The interval resamples documents, each with its nll and its bytes (ratio estimator).
    """
    bits = [row["nll"] / math.log(2) for row in rows]
    sizes = [row["bytes"] for row in rows]
    interval = bootstrap_ratio(bits, sizes, seed=seed)
    found = {
        "bits_per_byte": interval.value,
        "lo": interval.lo,
        "hi": interval.hi,
        "documents": len(rows),
        "bytes": sum(sizes),
    }
    return found if interval.reason is None else {**found, "reason": interval.reason}


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of ``SCHEMA`` to a Parquet file."""
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA), path, compression="zstd")
