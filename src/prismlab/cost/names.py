"""The reference study's seven models by short name: where they lie and what is special about each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Known:
    """A model of the reference study."""

    hub: str
    """Id on the hub, as the reference study's tables lead to it; not checked against the hub where this was made."""
    special: str
    """What a training has to know of it."""


MODELS: dict[str, Known] = {
    "granite-3.3-8b": Known(
        hub="ibm-granite/granite-3.3-8b-base",
        special="multipliers on embeddings, residuals, attention and logits; tied embeddings",
    ),
    "granite-4-micro": Known(
        hub="ibm-granite/granite-4.0-micro-base",
        special="dense model of a hybrid class, whose mask gets no positions: needs an explicit mask of documents",
    ),
    "granite-4-h-micro": Known(
        hub="ibm-granite/granite-4.0-h-micro-base",
        special="36 Mamba-2 layers and 4 of attention without positions",
    ),
    "llama-3.1-8b": Known(
        hub="meta-llama/Llama-3.1-8B", special="rotary positions stretched from 8,192; a large vocabulary"
    ),
    "mistral-7b": Known(hub="mistralai/Mistral-7B-v0.1", special="attention sees the last 4,096 tokens alone"),
    "mistral-small-24b": Known(
        hub="mistralai/Mistral-Small-24B-Base-2501", special="heads narrower than its width; a large vocabulary"
    ),
    "nemotron-h-8b": Known(
        hub="nvidia/Nemotron-H-8B-Base-8K",
        special="24 Mamba-2, 24 MLP and 4 attention layers, each its own, no positions; made for 8,192 tokens",
    ),
}


def hub_id(name: str) -> str:
    """The hub id of a model of ``MODELS``, ``@revision`` kept; any other text as it is."""
    short, at, revision = name.partition("@")
    return f"{MODELS[short].hub}{at}{revision}" if short in MODELS else name
