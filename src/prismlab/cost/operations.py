"""Floating-point operations of a model: matrix products, attention over the context, the Mamba-2 scan, the head.

A multiplication and an addition count as two. What is counted is what the mathematics asks for: of attention the pairs
that a query may see (causal, inside its window and, where documents are kept apart, its document), of the scan the four
products of its chunked form (Dao and Gu 2024, section 6) over whole chunks. Norms, activations, rotations and the
optimizer are left out: they are bound by memory, not by arithmetic. The backward pass of a product is two products of
its size, one for the input and one for the weight (so training is three forward passes; Kaplan et al. 2020, section
2.1, without their neglect of attention), and what is computed again in it is counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prismlab.cost.shapes import Attention, Mamba, Part, Shape


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Operations by what they are spent on."""

    linear: float = 0.0
    """Projections of attention, Mamba and MLP parts."""
    attention: float = 0.0
    """Scores and weighted sums over the context."""
    scan: float = 0.0
    """Mamba's convolution and scan."""
    head: float = 0.0
    """From the last hidden state to logits."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.linear + self.attention + self.scan + self.head

    def __add__(self, other: Operations) -> Operations:
        """Sum by part."""
        return Operations(
            linear=self.linear + other.linear,
            attention=self.attention + other.attention,
            scan=self.scan + other.scan,
            head=self.head + other.head,
        )

    def times(self, factor: float) -> Operations:
        """Every part multiplied."""
        return Operations(
            linear=self.linear * factor,
            attention=self.attention * factor,
            scan=self.scan * factor,
            head=self.head * factor,
        )


def causal_pairs(tokens: int, window: int | None = None) -> int:
    """Pairs of a query and a key it sees, in one document of ``tokens``: the sum over t of min(t, window)."""
    seen = tokens if window is None else min(window, tokens)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen


def attended_pairs(seq_len: int, window: int | None = None, documents: Sequence[int] | None = None) -> int:
    """Pairs in a row: of its documents' lengths where attention keeps to them, else of the row as one document.

    Raises:
        ValueError: the documents do not fill the row.
    """
    if documents is None:
        return causal_pairs(seq_len, window)
    if sum(documents) != seq_len or min(documents, default=0) < 1:
        raise ValueError(f"documents of {sum(documents)} tokens in all do not make a row of {seq_len}")
    return sum(causal_pairs(length, window) for length in documents)


def _scan(part: Mamba, seq_len: int) -> float:
    """Convolution and chunked scan of one row.

    A chunk of Q positions takes C B^T a group (2 Q Q N), its product with the inputs a head (2 Q Q P), the chunk's
    state and its read-out a head (2 Q N P each); the states are carried on from chunk to chunk (2 N P).
    """
    chunk, heads = part.chunk, part.heads
    chunks = -(-seq_len // chunk)
    inside = 2.0 * chunk * chunk * (part.groups * part.state + heads * part.head_dim)
    state = (4.0 * chunk + 2.0) * heads * part.state * part.head_dim
    return chunks * (inside + state) + 2.0 * part.conv * part.conv_width * seq_len


def _part(part: Part, hidden: int, seq_len: int, documents: Sequence[int] | None) -> Operations:
    linear = 2.0 * part.projections(hidden) * seq_len
    if isinstance(part, Attention):
        pairs = attended_pairs(seq_len, part.window, documents)
        return Operations(linear=linear, attention=4.0 * part.queries * pairs)
    return Operations(linear=linear, scan=_scan(part, seq_len) if isinstance(part, Mamba) else 0.0)


def forward_operations(shape: Shape, seq_len: int, documents: Sequence[int] | None = None) -> Operations:
    """Operations of a forward pass over one row of ``seq_len`` tokens, logits of every position included.

    Args:
        shape: the model.
        seq_len: tokens of the row.
        documents: lengths of its documents, where attention does not cross them; None for one document. The scan costs
            the same either way.

    Raises:
        ValueError: the documents do not fill the row.
    """
    total = Operations(head=2.0 * shape.embedding * seq_len)
    for part in shape.parts:
        total += _part(part, shape.hidden, seq_len, documents)
    return total


def token_operations(shape: Shape, context: float) -> float:
    """Operations to sample one token with a key-value cache, when ``context`` tokens lie behind it."""
    total = 2.0 * shape.embedding
    for part in shape.parts:
        total += 2.0 * part.projections(shape.hidden)
        if isinstance(part, Attention):
            total += 4.0 * part.queries * (context if part.window is None else min(context, part.window))
        elif isinstance(part, Mamba):
            # The state decays, takes in B x and is read out by C: about 3 multiplications and 2 additions an element.
            total += 5.0 * part.inner * part.state + 2.0 * part.conv * part.conv_width
    return total


CHECKPOINTING = ("none", "selective", "full")
"""What of the layers' activations is kept for the backward pass: all; attention and the products that are no wider than
the model; each layer's input."""


def outputs(part: Part, hidden: int) -> list[tuple[int, int]]:
    """Width of a part's products with weights, what they read and what they give; the last one writes its output."""
    if isinstance(part, Attention):
        return [(hidden, part.queries), (hidden, part.keys), (hidden, part.keys), (part.queries, hidden)]
    if isinstance(part, Mamba):
        return [(hidden, part.projected), (part.inner, hidden)]
    return [*[(hidden, part.inner)] * (2 if part.gated else 1), (part.inner, hidden)]


def narrow_products(part: Part, hidden: int) -> int:
    """Numbers a token that a part's products with weights give, of those no wider than the model."""
    return sum(out for _, out in outputs(part, hidden) if out <= hidden)


def _layers_again(shape: Shape, seq_len: int, forward: Operations, checkpointing: str) -> float:
    """What of the layers is computed again; what writes a layer's output is not, since nothing behind needs it."""
    if checkpointing == "none":
        return 0.0
    products = [outputs(part, shape.hidden) for part in shape.parts]
    if checkpointing == "selective":
        spared = sum(into * out for part in products for into, out in part if out <= shape.hidden)
        return forward.linear + forward.scan - 2.0 * spared * seq_len
    last = [outputs(layer[-1], shape.hidden)[-1] for layer in shape.layers]
    spared = sum(into * out for into, out in last)
    return forward.linear + forward.attention + forward.scan - 2.0 * spared * seq_len


@dataclass(frozen=True, kw_only=True)
class TrainingOperations:
    """Operations of training on one row."""

    model: Operations
    """Forward and backward, by which model FLOPs utilisation is reckoned (Chowdhery et al. 2022, appendix B)."""
    again: float
    """Computed a second time to save memory: layers by activation checkpointing, the head by a loss in chunks."""

    @property
    def total(self) -> float:
        """What the device computes."""
        return self.model.total + self.again


def training_operations(
    shape: Shape,
    seq_len: int,
    documents: Sequence[int] | None = None,
    *,
    checkpointing: str = "none",
    loss_chunks: bool = False,
    trained: str = "all",
) -> TrainingOperations:
    """Operations of forward and backward pass over one row.

    Args:
        shape: the model.
        seq_len: tokens of the row.
        documents: as in ``forward_operations``.
        checkpointing: one of ``CHECKPOINTING``.
        loss_chunks: whether the loss computes logits in chunks, and a second time in the backward pass.
        trained: ``all``, or ``attention`` modules alone: then the other matrices' gradients are not computed, while the
            gradient still passes through every layer.

    Raises:
        ValueError: the documents do not fill the row.
    """
    forward = forward_operations(shape, seq_len, documents)
    mine = 2.0 * seq_len * sum(p.projections(shape.hidden) for p in shape.parts if isinstance(p, Attention))
    again = _layers_again(shape, seq_len, forward, checkpointing) + (forward.head if loss_chunks else 0.0)
    model = forward.times(3.0)
    if trained == "attention":
        model = Operations(
            linear=2.0 * forward.linear + mine,
            attention=model.attention,
            scan=model.scan,
            head=2.0 * forward.head,
        )
    return TrainingOperations(model=model, again=again)
