"""Checkpoints to be merged laid side by side: the same network, the same tensors, the same shapes, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismlab.errors import CheckpointError, shown
from prismlab.model.families import by_canonical, canonical, check_config_fits, tied_head
from prismlab.model.folder import read_config
from prismlab.model.tensors import TensorFile, TensorView, model_type, open_checkpoint

_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "embeddings.weight", "wte.weight", "word_embeddings.weight")


@dataclass(frozen=True)
class Parent:
    """A checkpoint that enters a merge."""

    name: str
    """What the user called it."""
    folder: Path
    weight: float


@dataclass(frozen=True)
class Family:
    """Checkpoints that fit one another."""

    files: list[TensorFile]
    configs: list[dict[str, Any]]
    tensors: dict[str, list[TensorView]]
    """The corresponding tensors of all, under the first's names."""
    head: str | None
    """What was done about tied heads; None if there was nothing to do."""


def _settle_heads(
    named: list[dict[str, TensorView]], files: Sequence[TensorFile], configs: Sequence[Mapping[str, Any]], kind: str
) -> str | None:
    """One rule for heads tied to the embedding in some checkpoints and not in others; says what was done.

    A stored head that is a tied copy counts as not stored. Where then some store a head and some do not, those without
    one whose config does not deny the tie enter with their embedding, and the merged checkpoint has a head of its own.
    """
    for views, file, config in zip(named, files, configs, strict=True):
        copy = tied_head(file, config)
        if copy is not None:
            del views[canonical(copy, kind)]
    have = [_HEAD in views for views in named]
    if all(have) or not any(have):
        return None
    for views, config in zip(named, configs, strict=True):
        embedding = next((view for name, view in views.items() if name.endswith(_EMBEDDINGS)), None)
        if _HEAD not in views and embedding is not None and config.get("tie_word_embeddings") is not False:
            views[_HEAD] = embedding
    return "tied in some checkpoints: their embedding stands for their head, the merged head is stored apart"


def open_family(parents: Sequence[Parent]) -> Family:
    """Open the checkpoints and see that they fit. A checkpoint of weight 0 must fit, too.

    Raises:
        CheckpointError: one is damaged, or architectures, tensors or shapes differ.
    """
    kinds = [model_type(parent.folder) for parent in parents]
    if len(set(kinds)) > 1:
        listed = ", ".join(f"{parent.name}: {shown(kind, 40)}" for parent, kind in zip(parents, kinds, strict=True))
        raise CheckpointError(f"checkpoints of different architectures cannot be merged ({listed})")
    configs = [read_config(parent.folder) for parent in parents]
    files = [open_checkpoint(parent.folder) for parent in parents]
    for parent in parents:
        check_config_fits(parent.folder)
    named = [by_canonical(file, kinds[0], parent.name) for file, parent in zip(files, parents, strict=True)]
    head = _settle_heads(named, files, configs, kinds[0])
    _same_names(named, parents)
    tensors: dict[str, list[TensorView]] = {}
    for key, view in named[0].items():
        views = [each[key] for each in named]
        _same_shapes(view.name, views, parents)
        # An embedding that stands for a head goes under the head's name.
        tensors[key if view.name in tensors or (key == _HEAD and head) else view.name] = views
    return Family(files, configs, dict(sorted(tensors.items())), head)


def _same_names(named: Sequence[Mapping[str, TensorView]], parents: Sequence[Parent]) -> None:
    for parent, views in zip(parents[1:], named[1:], strict=True):
        odd = sorted(set(named[0]) ^ set(views))
        if odd:
            where, other = (parents[0], parent) if odd[0] in named[0] else (parent, parents[0])
            raise CheckpointError(
                f"tensor {shown(odd[0])} is in {where.name} and not in {other.name} ({len(odd)} tensors so): merged "
                "checkpoints need the same tensors"
            )


def _same_shapes(name: str, views: Sequence[TensorView], parents: Sequence[Parent]) -> None:
    for parent, view in zip(parents, views, strict=True):
        if view.shape != views[0].shape:
            raise CheckpointError(
                f"tensor {shown(name)} has shape {list(views[0].shape)} in {parents[0].name} and {list(view.shape)} in "
                f"{parent.name}: merged checkpoints need the same shapes"
            )


def same_bytes(views: Sequence[TensorView]) -> bool:
    """Whether tensors have one type and the same stored bytes."""
    return len({view.dtype for view in views}) == 1 and all(
        len({bytes(piece) for piece in pieces}) == 1
        for pieces in zip(*(view.raw_chunks(1 << 18) for view in views), strict=True)
    )
