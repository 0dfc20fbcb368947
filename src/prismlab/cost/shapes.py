"""The shape of a model, as far as its cost depends on it, from the JSON of its ``config.json``.

Serves the seven models of the study (classes llama, mistral, granite, granitemoehybrid with and without Mamba layers,
nemotron_h). A mixture of experts has no shape here: which experts a token takes is not in the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prismlab.errors import SpecError

MAX_LAYERS = 100_000
"""Most layers that are listed: a config out of a strange folder may promise any number."""


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Grouped-query attention: projections of queries, keys, values and of the output."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    """Tokens that a query sees, itself included; None for all before it."""
    bias: bool = False

    @property
    def queries(self) -> int:
        """Width of all heads' queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key-value heads' keys; the values' alike."""
        return self.kv_heads * self.head_dim

    def projections(self, hidden: int) -> int:
        """Elements of the four matrices."""
        return 2 * hidden * (self.queries + self.keys)

    def parameters(self, hidden: int) -> int:
        """Elements of the matrices and, where there are any, biases."""
        return self.projections(hidden) + (self.queries + 2 * self.keys + hidden if self.bias else 0)


@dataclass(frozen=True, kw_only=True)
class Mamba:
    """A Mamba-2 mixer: input projection, depthwise convolution, scan in chunks, gated norm, output projection."""

    heads: int
    head_dim: int
    state: int
    groups: int
    conv: int
    chunk: int
    bias: bool = False
    conv_bias: bool = True

    @property
    def inner(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_dim

    @property
    def conv_width(self) -> int:
        """Channels of the convolution: the heads' inputs, B and C."""
        return self.inner + 2 * self.groups * self.state

    @property
    def projected(self) -> int:
        """Width of the input projection: gate, the convolution's channels, a step size a head."""
        return self.inner + self.conv_width + self.heads

    def projections(self, hidden: int) -> int:
        """Elements of the two matrices."""
        return hidden * (self.projected + self.inner)

    def parameters(self, hidden: int) -> int:
        """Elements of matrices, convolution, A, D, step bias, gated norm and biases."""
        small = self.conv * self.conv_width + 3 * self.heads + self.inner
        small += self.conv_width if self.conv_bias else 0
        return self.projections(hidden) + small + (self.projected + hidden if self.bias else 0)


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """A feed-forward part: up and down projections, and a gate's where ``gated``."""

    inner: int
    gated: bool
    bias: bool = False

    def projections(self, hidden: int) -> int:
        """Elements of the two or three matrices."""
        return (3 if self.gated else 2) * hidden * self.inner

    def parameters(self, hidden: int) -> int:
        """Elements of matrices and biases."""
        return self.projections(hidden) + (self.inner * (2 if self.gated else 1) + hidden if self.bias else 0)


Part = Attention | Mamba | Mlp
"""Each part has a norm of its own before it and a residual connection around it."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A causal language model."""

    hidden: int
    vocab: int
    tied: bool
    """Whether the head is the embedding."""
    layers: tuple[tuple[Part, ...], ...]
    """Parts by layer, as the family counts layers."""
    context: int
    """Longest sequence the model was made for."""
    fused: bool = False
    """Whether the MLP's gate and up projections are one matrix."""

    @property
    def parts(self) -> list[Part]:
        """Parts of all layers."""
        return [part for layer in self.layers for part in layer]

    def layer_parameters(self, layer: Sequence[Part]) -> int:
        """Elements of one layer, norms included."""
        return sum(part.parameters(self.hidden) + self.hidden for part in layer)

    @property
    def embedding(self) -> int:
        """Elements of the embedding; the head has as many, unless it is tied."""
        return self.vocab * self.hidden

    @property
    def root(self) -> int:
        """Elements outside the layers: embedding, head, last norm."""
        return self.embedding * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All elements; tied ones once."""
        return sum(self.layer_parameters(layer) for layer in self.layers) + self.root

    def trained(self, what: str) -> int:
        """Elements that are trained: ``all``, or ``attention`` modules alone."""
        if what == "all":
            return self.parameters
        return sum(part.parameters(self.hidden) for part in self.parts if isinstance(part, Attention))


def _whole(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of ``names`` that the config holds, a positive whole number."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**40:
            raise SpecError(f"config.json: {name!r} is {str(value)[:40]!r}; a positive whole number is needed")
        return value
    if default is None:
        raise SpecError(f"config.json: {names[0]!r} is missing; the model's cost depends on it")
    return default


def _attention(config: Mapping[str, Any], hidden: int) -> Attention:
    heads = _whole(config, "num_attention_heads")
    window = config.get("sliding_window")
    return Attention(
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", default=heads),
        head_dim=_whole(config, "head_dim", "attention_head_dim", default=hidden // heads),
        window=None if window is None else _whole(config, "sliding_window"),
        bias=bool(config.get("attention_bias", False)),
    )


def _dense(config: Mapping[str, Any], hidden: int) -> tuple[tuple[Part, ...], ...]:
    mlp = Mlp(inner=_whole(config, "intermediate_size"), gated=True, bias=bool(config.get("mlp_bias", False)))
    layers = _whole(config, "num_hidden_layers")
    if layers > MAX_LAYERS:
        raise SpecError(f"config.json: 'num_hidden_layers' is {layers:,}; at most {MAX_LAYERS:,} are counted")
    return ((_attention(config, hidden), mlp),) * layers


_KINDS = {
    "full_attention": "attention",
    "attention": "attention",
    "linear_attention": "mamba",
    "mamba": "mamba",
    "mlp": "mlp",
}
_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp"}
"""Nemotron-H's ``hybrid_override_pattern``, a letter a layer."""


def _layer_kinds(config: Mapping[str, Any]) -> list[str]:
    """``attention``, ``mamba`` or ``mlp`` of every layer, by whichever of its names the config has it."""
    pattern = config.get("hybrid_override_pattern")
    given = config.get("layer_types") or config.get("layers_block_type")
    if given is None and isinstance(pattern, str):
        kinds = [_LETTERS.get(letter, letter) for letter in pattern]
    elif isinstance(given, list) and given:
        kinds = [_KINDS.get(str(kind), str(kind)) for kind in given]
    else:
        raise SpecError("config.json: neither 'layer_types' nor 'hybrid_override_pattern' says what the layers are")
    odd = sorted(set(kinds) - {"attention", "mamba", "mlp"})
    if odd:
        raise SpecError(
            f"config.json: layers of kind {odd[0][:40]!r} have no known cost; dense and Mamba-2 layers have"
        )
    return kinds


def _granite_hybrid(config: Mapping[str, Any], hidden: int) -> tuple[tuple[Part, ...], ...]:
    if config.get("num_local_experts"):
        raise SpecError("config.json: a mixture of experts has no known cost; 'num_local_experts: 0' has")
    kinds = _layer_kinds(config)
    mlp = Mlp(inner=_whole(config, "shared_intermediate_size"), gated=True)
    expand, heads = _whole(config, "mamba_expand", default=2), _whole(config, "mamba_n_heads", default=128)
    size = config.get("mamba_d_head", "auto")
    mamba = Mamba(
        heads=heads,
        head_dim=expand * hidden // heads if size in ("auto", None) else _whole(config, "mamba_d_head"),
        state=_whole(config, "mamba_d_state", default=256),
        groups=_whole(config, "mamba_n_groups", default=1),
        conv=_whole(config, "mamba_d_conv", default=4),
        chunk=_whole(config, "mamba_chunk_size", default=256),
        bias=bool(config.get("mamba_proj_bias", False)),
        conv_bias=bool(config.get("mamba_conv_bias", True)),
    )
    attention = _attention(config, hidden)
    return tuple((attention if kind == "attention" else mamba, mlp) for kind in kinds)


def _nemotron(config: Mapping[str, Any], hidden: int) -> tuple[tuple[Part, ...], ...]:
    parts: dict[str, Part] = {
        "attention": _attention(config, hidden),
        "mlp": Mlp(inner=_whole(config, "intermediate_size"), gated=False, bias=bool(config.get("mlp_bias", False))),
        "mamba": Mamba(
            heads=_whole(config, "mamba_num_heads"),
            head_dim=_whole(config, "mamba_head_dim"),
            state=_whole(config, "ssm_state_size"),
            groups=_whole(config, "n_groups", "mamba_n_groups"),
            conv=_whole(config, "conv_kernel", "mamba_d_conv", default=4),
            chunk=_whole(config, "chunk_size", "mamba_chunk_size", default=128),
            bias=bool(config.get("use_bias", False)),
            conv_bias=bool(config.get("use_conv_bias", True)),
        ),
    }
    return tuple((parts[kind],) for kind in _layer_kinds(config))


_FAMILIES = {
    "llama": _dense,
    "mistral": _dense,
    "granite": _dense,
    "granitemoehybrid": _granite_hybrid,
    "nemotron_h": _nemotron,
}
CLASSES = tuple(_FAMILIES)
"""Values of ``model_type`` that have a shape."""


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape of the model whose ``config.json`` holds ``config``.

    Raises:
        SpecError: the class has no known cost (a mixture of experts, an architecture not listed in ``CLASSES``), or a
            number is missing or out of range.
    """
    kind = str(config.get("model_type"))
    if kind not in _FAMILIES:
        raise SpecError(f"config.json: the cost of class {kind[:40]!r} is not known; it is of {', '.join(CLASSES)}")
    hidden = _whole(config, "hidden_size")
    return Shape(
        hidden=hidden,
        vocab=_whole(config, "vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        layers=_FAMILIES[kind](config, hidden),
        context=_whole(config, "max_position_embeddings", default=2048),
        fused=kind == "granitemoehybrid",
    )
