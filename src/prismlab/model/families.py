"""Which part of a network a tensor belongs to, by its name, for the architecture classes of the study.

A name is first brought to one spelling (`canonical`): Nemotron-H is saved under ``backbone.`` and held in memory under
``model.``, and a granitemoehybrid with experts is saved under other names than it is held. Nemotron-H calls every mixer
``mixer``; what is inside it (``in_proj``, ``q_proj``, ``up_proj``) tells Mamba, attention and MLP apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prismlab.errors import CheckpointError, shown
from prismlab.model.folder import CONFIG, read_config
from prismlab.model.tensors import TensorView, open_checkpoint

Component = Literal["attention", "mlp", "mamba", "embedding", "norm", "head", "other"]

COMPONENTS: tuple[Component, ...] = ("attention", "mlp", "mamba", "embedding", "norm", "head", "other")

SUBCOMPONENTS: tuple[str, ...] = (
    "attention.q",
    "attention.k",
    "attention.v",
    "attention.o",
    "mlp.gate",
    "mlp.up",
    "mlp.down",
    "mlp.router",
    "mlp.latent",
    "mamba.in_proj",
    "mamba.out_proj",
    "mamba.conv1d",
    "mamba.A",
    "mamba.dt",
    "mamba.D",
    "embedding",
    "head",
    "norm",
)
"""In the order in which tables show them; ``other`` tensors stand under their own names."""


@dataclass(frozen=True)
class Location:
    """Where a tensor lies."""

    layer: int | None
    """Index of the layer; None outside the layers."""
    component: Component
    """Coarse part."""
    subcomponent: str
    """Fine part: one of ``SUBCOMPONENTS``, of a fused tensor its parts joined by ``+``, else the tensor's own name."""
    splits: tuple[str, ...] = ()
    """Sub-components of a fused tensor, equal shares of the last axis but one, in order; empty if it is not fused."""


_SELF_ATTENTION: tuple[tuple[str, str], ...] = (
    (r"self_attn\.([qkvo])_proj\.(?:weight|bias)", r"attention.\1"),
    (r"(?:input|post_attention)_layernorm\.weight", "norm"),
)
_DENSE = (*_SELF_ATTENTION, (r"mlp\.(gate|up|down)_proj\.(?:weight|bias)", r"mlp.\1"))
_QWEN3 = (*_DENSE, (r"self_attn\.[qk]_norm\.weight", "norm"))
_MAMBA = (
    (r"(?:mamba|mixer)\.(in_proj|out_proj|conv1d)\.(?:weight|bias)", r"mamba.\1"),
    (r"(?:mamba|mixer)\.dt_bias", "mamba.dt"),
    (r"(?:mamba|mixer)\.A_log", "mamba.A"),
    (r"(?:mamba|mixer)\.D", "mamba.D"),
    (r"(?:mamba|mixer)\.norm\.weight", "norm"),
)
_GRANITE_HYBRID = (
    *_SELF_ATTENTION,
    *_MAMBA,
    (r"shared_mlp\.input_linear\.weight", "mlp.gate+mlp.up"),
    (r"shared_mlp\.output_linear\.weight", "mlp.down"),
    (r"block_sparse_moe\.experts\.gate_up_proj", "mlp.gate+mlp.up"),
    (r"block_sparse_moe\.experts\.down_proj", "mlp.down"),
    (r"block_sparse_moe\.router\.weight", "mlp.router"),
)
_NEMOTRON_H = (
    *_MAMBA,
    (r"norm\.weight", "norm"),
    (r"mixer\.([qkvo])_proj\.(?:weight|bias)", r"attention.\1"),
    (r"mixer\.(up|down)_proj\.(?:weight|bias)", r"mlp.\1"),
    (r"mixer\.(?:experts|shared_experts)\.(?:\d+\.)?(up|down)_proj(?:\.(?:weight|bias))?", r"mlp.\1"),
    (r"mixer\.gate\.(?:weight|e_score_correction_bias)", "mlp.router"),
    (r"mixer\.fc[12]_latent_proj\.(?:weight|bias)", "mlp.latent"),
)
_LAYER_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "llama": _DENSE,
    "mistral": _DENSE,
    "granite": _DENSE,
    "qwen2": _DENSE,
    "qwen3": _QWEN3,
    "granitemoehybrid": _GRANITE_HYBRID,
    "nemotron_h": _NEMOTRON_H,
}
_COMPILED = {
    family: tuple((re.compile(pattern), target) for pattern, target in rules) for family, rules in _LAYER_RULES.items()
}
_OUTSIDE: dict[str, str] = {
    "model.embed_tokens.weight": "embedding",
    "model.embeddings.weight": "embedding",
    "model.norm.weight": "norm",
    "model.norm_f.weight": "norm",
    "lm_head.weight": "head",
}
_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.(.+)")

MOST_BLOCKS = 65_536
"""Most matrices (experts) that a fused tensor may stack."""

FAMILIES = frozenset(_LAYER_RULES)
"""Values of ``model_type`` whose every tensor is known."""

DOCUMENTS_APART = ("llama", "mistral", "granite", "granitemoehybrid", "nemotron_h", "qwen2", "qwen3")
"""Values of ``model_type`` whose packed and unpacked logits are tested to agree (tests/model/test_boundaries.py)."""

_ON_DISK: dict[str, tuple[tuple[re.Pattern[str], str], ...]] = {
    "nemotron_h": ((re.compile(r"^backbone\."), "model."),),
    "granitemoehybrid": (
        (re.compile(r"block_sparse_moe\.input_linear\.weight$"), "block_sparse_moe.experts.gate_up_proj"),
        (re.compile(r"block_sparse_moe\.output_linear\.weight$"), "block_sparse_moe.experts.down_proj"),
        (re.compile(r"block_sparse_moe\.router\.layer\.weight$"), "block_sparse_moe.router.weight"),
    ),
}


def canonical(name: str, model_type: str) -> str:
    """``name`` as the model holds it in memory, whichever way the file was written."""
    for pattern, replacement in _ON_DISK.get(model_type, ()):
        name = pattern.sub(replacement, name)
    return name


def by_canonical(file: Mapping[str, TensorView], model_type: str, label: str) -> dict[str, TensorView]:
    """The tensors of a checkpoint by their canonical names.

    Args:
        file: the tensors by their names in the files.
        model_type: of the checkpoint.
        label: what to call it in an error.

    Raises:
        CheckpointError: two names are those of one tensor, of which one would hide the other.
    """
    out: dict[str, TensorView] = {}
    for name, view in file.items():
        key = canonical(name, model_type)
        if key in out:
            raise CheckpointError(
                f"{label}: '{shown(name)}' and '{shown(out[key].name)}' are two names of one tensor; delete one"
            )
        out[key] = view
    return out


def _component(subcomponent: str) -> Component:
    head = subcomponent.partition(".")[0]
    for component in COMPONENTS:
        if component == head:
            return component
    raise ValueError(f"no component for {subcomponent!r}")


def _located(layer: int | None, subcomponent: str) -> Location:
    splits = tuple(subcomponent.split("+")) if "+" in subcomponent else ()
    return Location(layer, _component(subcomponent), subcomponent, splits)


def locate(name: str, model_type: str) -> Location:
    """Where the tensor ``name`` of a ``model_type`` network lies.

    Args:
        name: the tensor's name, as saved or as held in memory.
        model_type: ``model_type`` of the checkpoint's config.

    Returns:
        The location. A name that is not known, or a ``model_type`` outside ``FAMILIES``, gives the component ``other``
        with the tensor's own name as sub-component: such tensors are compared one by one.
    """
    name = canonical(name, model_type)
    match = _LAYER.fullmatch(name)
    layer = int(match[1]) if match else None
    if model_type in FAMILIES:
        if match is None and name in _OUTSIDE:
            return _located(None, _OUTSIDE[name])
        for pattern, target in _COMPILED[model_type] if match else ():
            found = pattern.fullmatch(match[2]) if match else None
            if found:
                return _located(layer, found.expand(target))
    return Location(layer, "other", name)


def flat_ranges(shape: Sequence[int], location: Location) -> list[tuple[str, list[tuple[int, int]]]]:
    """The sub-components of a tensor and where each lies in its row-major elements.

    Args:
        shape: of the tensor.
        location: of the tensor.

    Returns:
        ``(sub-component, [(start, stop), ...])`` in order; a tensor that is not fused is one range. Equal shares of the
        last axis but one: a matrix [2n, m] has its first n rows and its last n rows.

    Raises:
        ValueError: a fused tensor's axis cannot be shared out equally, or it has more than ``MOST_BLOCKS`` blocks.
    """
    if not location.splits:
        return [(location.subcomponent, [(0, math.prod(shape))])]
    shares = len(location.splits)
    # A header may claim any number of blocks, of an empty tensor even without the bytes for them.
    if len(shape) < 2 or shape[-2] % shares or math.prod(shape[:-2]) > MOST_BLOCKS:
        raise ValueError(f"shape {list(shape)} cannot be shared out among {', '.join(location.splits)}")
    block = shape[-2] * shape[-1]
    share = block // shares
    starts = [block * k for k in range(math.prod(shape[:-2]))]
    return [
        (name, [(start + share * k, start + share * (k + 1)) for start in starts])
        for k, name in enumerate(location.splits)
    ]


_EMBEDDINGS = ("embed_tokens.weight", "embeddings.weight", "wte.weight", "word_embeddings.weight")
_LAYER_LISTS = ("layers_block_type", "layer_types", "hybrid_override_pattern")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTHS = ("hidden_size", "n_embd", "d_model")
_EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts")
_NUMBER = re.compile(r"(.*?)\.(\d{1,6})\.")


def tied_head(file: Mapping[str, TensorView], config: Mapping[str, Any]) -> str | None:
    """The name of a stored head that is a tied copy of the stored embedding, which counts once; None if there is none.

    The rule is that of transformers: the config does not say ``tie_word_embeddings: false``, both are stored, and their
    bytes are equal (both are read, until they differ). A head that differs is a tensor of its own.

    Args:
        file: the tensors of a checkpoint.
        config: its ``config.json``.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    if config.get("tie_word_embeddings") is False:
        return None
    head = next((name for name in file if name.endswith("lm_head.weight")), None)
    embedding = next((name for name in file if name.endswith(_EMBEDDINGS)), None)
    if head is None or embedding is None:
        return None
    a, b = file[head], file[embedding]
    same = (a.dtype, a.shape) == (b.dtype, b.shape) and all(
        x == y for x, y in zip(a.raw_chunks(), b.raw_chunks(), strict=True)
    )
    return head if same else None


def _promised(config: Mapping[str, Any], keys: Iterable[str]) -> int:
    """The largest count under ``keys``; the length of what is a list or a text; 0 where there is none."""
    values = [config.get(key) for key in keys]
    sizes = [len(value) for value in values if isinstance(value, (list, str))]
    return max(sizes + [value for value in values if isinstance(value, int)], default=0)


def check_config_fits(folder: Path) -> None:
    """Refuse a ``config.json`` that promises more than the weight files hold, before a model is allocated for it.

    Compared are what decides how many modules are made and how many weights a library would make up: layers with those
    that the tensors' names tell, vocabulary times width, and experts times width, with the number of all elements.

    Raises:
        CheckpointError: config or weights cannot be read, or do not fit.
    """
    config = read_config(folder)
    if isinstance(inner := config.get("text_config"), dict):
        config = {**config, **inner}
    with open_checkpoint(folder) as file:
        elements, names = file.elements, list(file)
    found = len({match.groups() for match in map(_NUMBER.match, names) if match}) or len(names)
    # Nemotron-H goes by its list of layers and ignores the number where there is one.
    listed = config.get("model_type") == "nemotron_h" and _promised(config, _LAYER_LISTS)
    layers = _promised(config, _LAYER_LISTS if listed else (*_LAYERS, *_LAYER_LISTS))
    width = max(1, _promised(config, _WIDTHS))
    wanted = {
        "layers": (layers, found, "layers"),
        "vocabulary times width": (_promised(config, ("vocab_size",)) * width, elements, "elements"),
        "experts times width": (_promised(config, _EXPERTS) * width, elements, "elements"),
    }
    for what, (promised, held, unit) in wanted.items():
        if promised > held:
            raise CheckpointError(
                f"{Path(folder) / CONFIG}: promises {promised:,} ({what}), but the weights hold {held:,} {unit}; take "
                "the config that was saved with these weights"
            )
