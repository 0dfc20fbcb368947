"""Memory of training on one device: weights and their optimizer, what the backward pass needs, the loss, buffers.

Activations are what automatic differentiation keeps of each part of a layer as transformers computes it (norms in
float32; products in the compute type), counted tensor by tensor; ``tests/cost`` holds the sums against the tensors that
torch saves. Mamba-2 is counted as the fused kernels keep it (``kernels``) or as the reference path does, which keeps
chunk x chunk scores of every head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prismlab.cost.operations import CHECKPOINTING, narrow_products
from prismlab.cost.shapes import Attention, Mamba, Mlp, Part, Shape

PIECE = 2**26
"""Logits (tokens x vocabulary) of a forward pass above which the loss computes them in pieces of this many."""
RESERVED = {"cuda": 1.5e9, "cpu": 0.5e9}
"""Bytes that a process needs before it has a model: CUDA's context and collectives; torch and transformers loaded."""
COMPUTE = {"float32": 4, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model is trained, as far as its memory depends on it."""

    devices: int = 1
    shard: int = 1
    """Devices that share one copy of weights, gradients and moments; divides ``devices``."""
    rows: int
    """Rows a step, over all devices."""
    micro_rows: int | None = None
    """Rows a forward pass on one device; None for all of the device's rows at once."""
    seq_len: int
    precision: str = "bf16"
    """A key of ``COMPUTE``; master weights, gradients and moments are float32."""
    checkpointing: str = "none"
    """One of ``CHECKPOINTING``."""
    trained: str = "all"
    """``all``, or ``attention`` modules alone."""
    masked: bool = True
    """Whether attention gets an explicit mask, as it does where documents are kept apart: it then holds keys and values
    for every head, and each layer its own copy of the mask in the compute type."""
    context_parallel: int = 1
    """Devices that share a row; they gather its keys and values."""
    device: str = "cuda"
    """``cuda`` or ``cpu``: a key of ``RESERVED``; Mamba's fused kernels are taken to be there on ``cuda``."""

    @property
    def rows_at_once(self) -> int:
        """Rows of one forward pass on one device."""
        return min(self.rows_each, self.micro_rows or self.rows_each)

    @property
    def rows_each(self) -> int:
        """Rows of one device a step."""
        return -(-self.rows * self.context_parallel // self.devices)

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass on one device."""
        return self.rows_at_once * self.seq_len // self.context_parallel

    @property
    def compute(self) -> int:
        """Bytes of a number in the compute type."""
        return COMPUTE[self.precision]

    @property
    def cast(self) -> bool:
        """Whether every product casts its inputs: autocast, which keeps what lies between the layers in float32."""
        return self.precision == "bf16"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device at the peak of a step."""

    weights: float
    """float32 masters."""
    gradients: float
    moments: float
    """AdamW's two."""
    compute: float
    """Weights in the compute type: gathered layers of a sharded model, or the casts of one that is whole."""
    buffers: float
    """Gradients of a layer on their way to the devices that own them."""
    activations: float
    """Kept for the backward pass, and one layer's worth that it works on."""
    loss: float
    """Logits and what the loss keeps of them."""
    reserved: float

    @property
    def total(self) -> float:
        """All of it."""
        state = self.weights + self.gradients + self.moments + self.compute
        return state + self.buffers + self.activations + self.loss + self.reserved


def _norm(hidden: int) -> float:
    """An RMSNorm in float32: its input, its normalised input and their ratio."""
    return 8.0 * hidden + 4


def _attention(part: Attention, hidden: int, setting: Setting) -> float:
    masked = setting.masked or (part.window is not None and part.window < setting.seq_len)
    keys = (part.queries if masked else part.keys) * setting.context_parallel
    inputs = hidden * (3 if setting.cast else 1) + part.queries
    mask = setting.seq_len if masked else 0
    return setting.compute * (inputs + part.queries + 2 * keys + mask) + 4 * part.heads


def _mlp(part: Mlp, hidden: int, setting: Setting, fused: bool) -> float:
    inputs = 2 if setting.cast and part.gated and not fused else 1
    return setting.compute * (inputs * hidden + (4 if part.gated else 2) * part.inner)


def _mamba_kernels(part: Mamba, hidden: int, setting: Setting) -> float:
    """The fused kernel keeps its input and the scan's output, and computes the rest again."""
    return setting.compute * (hidden + part.projected + 2 * part.inner) + 4 * (part.heads + part.groups)


def _mamba_reference(part: Mamba, hidden: int, setting: Setting) -> float:
    """The reference path keeps the chunked scan's operands of every head, products in the compute type."""
    c, heads, state, size = setting.compute, part.heads, part.state, part.head_dim
    if c == 4:
        around = 4 * (part.projected + 2 * part.conv_width + part.inner) + 16 * part.inner
    else:
        around = 2 * 2 * part.conv_width + 8 * part.inner + 20 * part.inner
    scores = part.chunk * heads * (4 + 2 * c)
    operands = heads * (c * (4 * state + 3 * size) + 4 * state)
    chunks = -(-setting.seq_len // part.chunk)
    carried = c * (2 * chunks + 1) * part.inner * state / setting.seq_len
    return c * (hidden + part.inner) + around + scores + operands + carried + 24 * heads


def _part(part: Part, hidden: int, setting: Setting, fused: bool) -> float:
    norm = _norm(hidden)
    if isinstance(part, Attention):
        return norm + _attention(part, hidden, setting)
    if isinstance(part, Mlp):
        return norm + _mlp(part, hidden, setting, fused)
    return norm + (_mamba_kernels if setting.device == "cuda" else _mamba_reference)(part, hidden, setting)


def layer_bytes(shape: Shape, layer: Sequence[Part], setting: Setting) -> float:
    """Bytes a token that one layer keeps for its backward pass, without checkpointing."""
    return sum(_part(part, shape.hidden, setting, shape.fused) for part in layer)


def _activations(shape: Shape, setting: Setting) -> float:
    """Kept activations, and the gradients of one layer's widest tensors while it is gone through backwards."""
    each = [layer_bytes(shape, layer, setting) for layer in shape.layers]
    if setting.checkpointing == "none":
        kept = sum(each)
    elif setting.checkpointing == "full":
        kept = 4.0 * shape.hidden * len(each) + max(each)
    else:
        kept = sum(_products(shape, layer, setting) for layer in shape.layers) + max(each)
    mask = setting.seq_len if setting.masked else 0  # One byte a pair, shared by the layers.
    return setting.tokens * (kept + working_bytes(shape, setting) + mask)


def working_bytes(shape: Shape, setting: Setting) -> float:
    """Bytes a token of the gradients of a layer's widest tensors, and of the last norm."""
    widest = max(_widest(layer) for layer in shape.layers)
    return widest * 3 * setting.compute + 8 * shape.hidden + _norm(shape.hidden)


def _widest(layer: Sequence[Part]) -> int:
    """Width of the largest tensor of a layer, a token."""
    return max(part.queries if isinstance(part, Attention) else part.inner for part in layer)


def _products(shape: Shape, layer: Sequence[Part], setting: Setting) -> float:
    """Bytes a token that selective checkpointing keeps: a layer's input, attention, products as narrow as the model."""
    width, sums = 0, 0
    for part in layer:
        width += narrow_products(part, shape.hidden) + (part.queries if isinstance(part, Attention) else 0)
        sums += part.heads if isinstance(part, Attention) else 0
    return 4.0 * (shape.hidden + sums) + float(setting.compute * width)


def loss_in_pieces(shape: Shape, setting: Setting) -> bool:
    """Whether the loss computes logits in pieces, and again in the backward pass."""
    return setting.tokens * shape.vocab > PIECE


def _loss(shape: Shape, setting: Setting) -> float:
    """In one piece: logits, their float32 form, log-probabilities and their gradient. In pieces: two of a piece, the
    head's weights in the compute type and their float32 gradient, and the hidden states' gradient."""
    c = setting.compute
    if not loss_in_pieces(shape, setting):
        return setting.tokens * shape.vocab * (12.0 if c == 4 else 8.0 + c)
    return 4.0 * 2 * PIECE + (c + 4.0) * shape.embedding + 2.0 * c * setting.tokens * shape.hidden


def memory(shape: Shape, setting: Setting) -> Memory:
    """Bytes on one device at the peak of a training step.

    Raises:
        ValueError: the shard does not divide the devices, or a name is not known.
    """
    if setting.devices % setting.shard:
        raise ValueError(f"a shard of {setting.shard} does not divide {setting.devices} devices")
    if setting.checkpointing not in CHECKPOINTING:
        raise ValueError(f"checkpointing {setting.checkpointing!r} is none of {', '.join(CHECKPOINTING)}")
    trained, c = shape.trained(setting.trained), setting.compute
    largest = max(shape.layer_parameters(layer) for layer in shape.layers)
    compute = buffers = 0.0
    if setting.devices > 1:
        # The layer at work, the next one on its way and the buffer it arrives in. Embedding and head stay gathered in
        # float32 for the whole step, with a cast of the head, and so do their gradients until they are sent.
        compute = c * (3.0 * largest + shape.embedding) + 4.0 * shape.root
        buffers = (2.0 * c + 4.0) * largest + 4.0 * shape.root
        if setting.rows_each > setting.rows_at_once:
            # Gradients of several passes are summed before they are sent: whole, in float32.
            buffers += 4.0 * (trained - min(trained, shape.root))
    elif setting.cast:
        compute = float(c * sum(part.projections(shape.hidden) for part in shape.parts) + c * shape.embedding)
    return Memory(
        weights=4.0 * shape.parameters / setting.shard,
        gradients=4.0 * trained / setting.shard,
        moments=8.0 * trained / setting.shard,
        compute=compute,
        buffers=buffers,
        activations=_activations(shape, setting),
        loss=_loss(shape, setting),
        reserved=RESERVED[setting.device],
    )


@dataclass(frozen=True)
class Change:
    """A setting that fits, and in words what is different from the one that did not."""

    setting: Setting
    words: tuple[str, ...]


def _choices(setting: Setting) -> list[list[tuple[Setting, str]]]:
    """For each thing that may be changed, its values from the present one to the most frugal."""
    shards = [s for s in range(setting.shard, setting.devices + 1) if setting.devices % s == 0]
    shards = [s for s in shards if s == setting.shard or s % setting.shard == 0]
    rows, halves = setting.rows_at_once, [setting.rows_at_once]
    while rows > 1:
        rows = -(-rows // 2)
        halves.append(rows)
    kinds = CHECKPOINTING[CHECKPOINTING.index(setting.checkpointing) :]
    return [
        [(replace(setting, shard=s), f"shard: {s} instead of {setting.shard}") for s in shards],
        [(replace(setting, micro_rows=r), f"micro_rows: {r} instead of {setting.rows_at_once}") for r in halves],
        [(replace(setting, checkpointing=k), f"checkpointing: {k} instead of {setting.checkpointing}") for k in kinds],
    ]


def smallest_change(shape: Shape, setting: Setting, limit: float) -> Change | None:
    """The setting nearest to ``setting`` that needs at most ``limit`` bytes; None where none does.

    Nearest is the fewest things changed; of as many, a larger shard goes before fewer rows a pass, and that before
    checkpointing, which alone costs arithmetic; of each, the least.
    """
    shards, rows, kinds = _choices(setting)
    found: list[tuple[tuple[int, int, int, int], Change]] = []
    for i, (sharded, a) in enumerate(shards):
        for j, (fewer, b) in enumerate(rows):
            for k, (again, c) in enumerate(kinds):
                one = replace(
                    setting, shard=sharded.shard, micro_rows=fewer.micro_rows, checkpointing=again.checkpointing
                )
                if memory(shape, one).total <= limit:
                    words = tuple(text for number, text in ((i, a), (j, b), (k, c)) if number)
                    found.append(((len(words), k, j, i), Change(one, words)))
    return min(found, key=lambda each: each[0])[1] if found else None
