"""``prism models``: the study's seven models by name, and what any checkpoint is, from its config alone."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prismlab.cost.hub import HUB_CONFIGS
from prismlab.cost.names import MODELS
from prismlab.cost.shapes import CLASSES, Attention, Mamba, Shape, shape_of
from prismlab.errors import SpecError, shown
from prismlab.model.families import DOCUMENTS_APART
from prismlab.model.folder import read_config
from prismlab.model.tensors import open_checkpoint
from prismlab.tools.show import NONE, Table, count, print_tables


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a model."""

    name: str
    hub: str | None
    model_type: str
    layers: str
    parameters: int | None
    context: int | None
    vocabulary: int | None
    window: int | None
    boundaries: bool
    """Whether documents are kept apart in its rows."""
    special: str


def _layers(shape: Shape) -> str:
    """Layers by kind: ``40``, or ``36 mamba + 4 attention``."""
    if not any(isinstance(part, Mamba) for part in shape.parts):
        return str(len(shape.layers))
    kinds = Counter(type(layer[0]).__name__.lower() for layer in shape.layers)
    return " + ".join(f"{number} {kind}" for kind, number in sorted(kinds.items(), key=lambda one: -one[1]))


def _of(name: str, hub: str | None, config: Mapping[str, Any], special: str, parameters: int | None = None) -> Facts:
    kind = str(config.get("model_type"))
    shape = shape_of(config) if kind in CLASSES and not config.get("num_local_experts") else None
    windows = {part.window for part in shape.parts if isinstance(part, Attention)} - {None} if shape else set()
    vocabulary, context = config.get("vocab_size"), config.get("max_position_embeddings")
    return Facts(
        name=name,
        hub=hub,
        model_type=kind,
        layers=_layers(shape) if shape else shown(config.get("num_hidden_layers", NONE), 20),
        parameters=parameters if parameters is not None else shape.parameters if shape else None,
        context=context if isinstance(context, int) else None,
        vocabulary=vocabulary if isinstance(vocabulary, int) else None,
        window=next(iter(windows), None),
        boundaries=kind in DOCUMENTS_APART,
        special=special,
    )


def known() -> list[Facts]:
    """The seven models, in the order of the study's table."""
    return [_of(name, one.hub, HUB_CONFIGS[one.hub], one.special) for name, one in MODELS.items()]


def of_folder(folder: Path) -> Facts:
    """What the checkpoint in a folder is; no weight is read.

    Raises:
        CheckpointError: it is no checkpoint.
    """
    config = read_config(folder)
    with open_checkpoint(folder) as file:
        elements = file.elements
    return _of(shown(folder.name, 40), None, config, "", elements)


def _find(name: str) -> Facts:
    by_name = {one.name: one for one in known()} | {one.hub: one for one in known()}
    if name in by_name:
        return by_name[name]
    if Path(name).is_dir():
        return of_folder(Path(name))
    raise SpecError(f"{shown(name, 200)}: neither a folder nor one of {', '.join(MODELS)}; 'prism models' lists them")


def models(*, as_json: bool, names: Sequence[str] = ()) -> None:
    """Print what models are: those that are named, by short name, hub id or folder, or the study's seven.

    Raises:
        SpecError: a name is none of them.
        CheckpointError: a folder is no checkpoint.
    """
    chosen = [_find(name) for name in names] if names else known()
    if as_json:
        json.dump([asdict(one) for one in chosen], sys.stdout, indent=2)
        print()
        return
    rows = [
        [
            one.name,
            one.hub or NONE,
            one.model_type,
            one.layers,
            NONE if one.parameters is None else count(one.parameters),
            NONE if one.context is None else f"{one.context:,}",
            "yes" if one.boundaries else "no",
        ]
        for one in chosen
    ]
    head = ("name", "hub id", "class", "layers", "parameters", "context", "documents apart")
    notes = [f"{one.name}: {one.special}" for one in chosen if one.special]
    notes += [
        "'checkpoint: NAME' in a study takes one of these, or any causal language model by folder or "
        "'owner/name@commit'; code that a checkpoint brings runs only under 'trust_remote_code: true'",
    ]
    print_tables([Table(head=head, rows=rows, words=4)], notes)
