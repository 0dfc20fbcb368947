"""Tiny configurations of the architecture classes of the study's seven models.

Each keeps what makes its family what it is (grouped-query attention, Granite's multipliers, Mamba-2 layers and where
they stand, gated or squared-ReLU MLPs, tied or untied embeddings) at a width that a laptop trains in minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from prismlab.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

EOS_ID, PAD_ID = 256, 257
"""Of the byte tokenizer (`prismlab.model.tokens`)."""
SLIDING_WINDOW = 128
"""Tokens that `mistral-swa` looks back; the true model's is 4,096 of 32,768."""
ROPE_THETA = 10_000.0


def _heads(width: int) -> tuple[int, int, int]:
    """Attention heads, key-value heads and head size: four heads where the width allows, two per key-value head."""
    size = next((s for s in (64, 32, 16, 8) if width % s == 0 and width // s >= 4), 8)
    heads = width // size
    return heads, heads // 2 if heads % 2 == 0 else heads, size


def _common(width: int, vocab_size: int, max_positions: int) -> dict[str, Any]:
    heads, kv_heads, _ = _heads(width)
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": max_positions,
        # Keeps the scale of activations through a matrix at this width (variance 1 / fan-in). The families' own 0.02
        # does that at a width of about 2,500; at 128 it would shrink each matrix's output fourfold and slow learning.
        "initializer_range": 1.0 / math.sqrt(width),
        "bos_token_id": None,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
    }


def _dense(width: int, layers: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "intermediate_size": 3 * width,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
    }


def _granite_scales(width: int) -> dict[str, Any]:
    """Granite's multipliers: the published models' own, but for what goes with the width."""
    return {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 1.0 / _heads(width)[2],
        # 16 at width 4,096, like Granite-3.3. With tied embeddings a token's own logit grows with the root of the
        # width at this initialisation; scaled so, it starts at 4 at every width, as in the true model (about 5).
        "logits_scaling": math.sqrt(width) / 4,
    }


def _llama(width: int, layers: int, common: dict[str, Any]) -> PreTrainedConfig:
    from transformers import LlamaConfig

    return LlamaConfig(**common, **_dense(width, layers), tie_word_embeddings=False)


def _mistral(width: int, layers: int, common: dict[str, Any]) -> PreTrainedConfig:
    from transformers import MistralConfig

    return MistralConfig(**common, **_dense(width, layers), sliding_window=None, tie_word_embeddings=False)


def _mistral_swa(width: int, layers: int, common: dict[str, Any]) -> PreTrainedConfig:
    from transformers import MistralConfig

    return MistralConfig(**common, **_dense(width, layers), sliding_window=SLIDING_WINDOW, tie_word_embeddings=False)


def _granite(width: int, layers: int, common: dict[str, Any]) -> PreTrainedConfig:
    from transformers import GraniteConfig

    return GraniteConfig(**common, **_dense(width, layers), **_granite_scales(width), tie_word_embeddings=True)


def _mamba_size(width: int) -> tuple[int, int, int]:
    """Mamba-2 heads, head size and state size; the inner width is twice the model's."""
    size = 32 if width % 16 == 0 and width >= 64 else 16
    return 2 * width // size, size, 32


def _granite_hybrid(width: int, layer_types: list[str], common: dict[str, Any], rope: bool) -> PreTrainedConfig:
    from transformers import GraniteMoeHybridConfig

    heads, size, state = _mamba_size(width)
    dense = _dense(width, len(layer_types))
    if not rope:
        del dense["rope_parameters"]
    return GraniteMoeHybridConfig(
        **common,
        **dense,
        **_granite_scales(width),
        tie_word_embeddings=True,
        num_local_experts=0,
        num_experts_per_tok=0,
        shared_intermediate_size=3 * width,
        position_embedding_type="rope" if rope else None,
        layer_types=layer_types,
        mamba_n_heads=heads,
        mamba_d_head=size,
        mamba_d_state=state,
        mamba_n_groups=1,
        mamba_chunk_size=64,
    )


def _granite4(width: int, layers: int, common: dict[str, Any]) -> PreTrainedConfig:
    return _granite_hybrid(width, ["full_attention"] * layers, common, rope=True)


def _granite4_h(width: int, layers: int, common: dict[str, Any]) -> PreTrainedConfig:
    """Mamba layers with attention at layers 5, 15, ... as in the true model; in the middle where there are fewer.

    No positional embedding: the true hybrid has none, order comes from its Mamba layers.
    """
    _need_layers("granite4-h", layers, 2)
    attention = {at for at in range(layers) if at % 10 == 5} or {layers // 2}
    types = ["full_attention" if at in attention else "linear_attention" for at in range(layers)]
    return _granite_hybrid(width, types, common, rope=False)


def _nemotron_h(width: int, layers: int, common: dict[str, Any]) -> PreTrainedConfig:
    """Mixers and MLPs in turn, each a layer; every sixth mixer is attention (or the middle one), the others Mamba."""
    from transformers import NemotronHConfig

    _need_layers("nemotron-h", layers, 3)
    heads, size, state = _mamba_size(width)
    mixers = (layers + 1) // 2
    attention = {at for at in range(mixers) if at % 6 == 3} or {mixers // 2}
    types: list[str] = []
    for mixer in range(mixers):
        types += ["full_attention" if mixer in attention else "linear_attention", "mlp"]
    return NemotronHConfig(
        **common,
        layers_block_type=types[:layers],
        head_dim=_heads(width)[2],
        intermediate_size=4 * width,
        mlp_hidden_act="relu2",
        mamba_num_heads=heads,
        mamba_head_dim=size,
        ssm_state_size=state,
        n_groups=1,
        expand=2,
        chunk_size=64,
        tie_word_embeddings=False,
    )


def _need_layers(arch: str, layers: int, fewest: int) -> None:
    if layers < fewest:
        raise SpecError(f"{arch} with {layers} layers: at least {fewest} are needed to hold each kind of layer it has")


_ARCHITECTURES: dict[str, Callable[[int, int, dict[str, Any]], Any]] = {
    "llama": _llama,
    "mistral": _mistral,
    "mistral-swa": _mistral_swa,
    "granite": _granite,
    "granite4": _granite4,
    "granite4-h": _granite4_h,
    "nemotron-h": _nemotron_h,
}
ARCHITECTURES = tuple(_ARCHITECTURES)


def tiny_config(arch: str, width: int, layers: int, vocab_size: int, max_positions: int = 2048) -> PreTrainedConfig:
    """The configuration of a tiny model.

    Args:
        arch: one of ``ARCHITECTURES``.
        width: hidden size, a multiple of 8, at least 16.
        layers: layers as the family counts them (Nemotron-H counts a mixer and an MLP as two).
        vocab_size: rows of the embedding; ids 256 and 257 end and pad.
        max_positions: longest sequence.

    Raises:
        SpecError: no such architecture, a width that does not fit, or too few layers for its kinds of layer.
    """
    if arch not in _ARCHITECTURES:
        raise SpecError(f"architecture {arch!r} is not known; there are {', '.join(ARCHITECTURES)}")
    if width < 16 or width % 8:
        raise SpecError(f"width {width}: a multiple of 8, at least 16, is needed")
    return _ARCHITECTURES[arch](width, layers, _common(width, vocab_size, max_positions))


def build_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A model with random float32 weights that depend on the configuration and the seed alone, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval()
