"""Items as trees of tokens: what the choices of an item share is the trunk, what each has of its own a branch.

A forward pass runs whole items one after another in a single row, so that every token is computed once and none is
padding; each token is told its place in its own text. Attention goes item by item: the trunk looks at itself, a branch
at the trunk and at itself, and nothing else. So each token sees what it would see if its text were run alone.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from prismlab.evaluate.encoded import Tokens, shared_beginning
from prismlab.model import shared
from prismlab.model.boundaries import mamba_mixers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "prismlab_trees"
"""By which the library knows this attention."""
CLASSES = ("llama", "mistral", "granite", "granitemoehybrid", "qwen2", "qwen3")
"""Model types whose attention hands queries, keys and further arguments to the library's interface unchanged."""


@dataclass(frozen=True)
class Tree:
    """The distinct texts of one item."""

    trunk: tuple[int, ...]
    """Tokens that all texts begin with; may be empty."""
    branches: tuple[tuple[int, ...], ...]
    """What follows in each text, none empty; no branches where all texts are the trunk alone."""

    @property
    def tokens(self) -> int:
        """How many tokens are run."""
        return len(self.trunk) + sum(map(len, self.branches))

    @property
    def starts(self) -> list[int]:
        """Place of each branch's first token, the trunk's being 0."""
        return list(accumulate(map(len, self.branches[:-1]), initial=len(self.trunk))) if self.branches else []


@dataclass(frozen=True, slots=True)
class Planted:
    """An item as a tree, and what of its texts is scored."""

    tree: Tree
    item: int
    scored: list[tuple[int, np.ndarray[Any, Any], tuple[int, ...]]]
    """Of each distinct choice its place among the item's, the places in the tree of the tokens that predict its scored
    ones, and these."""


def planted(item: int, choices: Sequence[Tokens]) -> Planted:
    """The tree of an item's choices; ``item`` is a number that the caller knows it by."""
    distinct: dict[Tokens, int] = {}
    for place, choice in enumerate(choices):
        distinct.setdefault(choice, place)
    trunk = shared_beginning(choices)
    rests = [choice.ids[trunk:-1] for choice in distinct]
    tree = Tree(choices[0].ids[:trunk], tuple(rest for rest in rests if rest))
    starts = iter(tree.starts)
    scored: list[tuple[int, np.ndarray[Any, Any], tuple[int, ...]]] = []
    for (choice, place), rest in zip(distinct.items(), rests, strict=True):
        start = next(starts) if rest else 0
        before = np.arange(choice.first, trunk)
        behind = np.arange(start + max(0, choice.first - trunk), start + len(rest))
        scored.append((place, np.concatenate([before, behind]), choice.ids[choice.first + 1 :]))
    return Planted(tree, item, scored)


@dataclass(frozen=True)
class _Laid:
    """Where a tree lies in the row."""

    trunk: slice
    branches: list[slice]
    mask: torch.Tensor | None
    """What the longest branch may look at, as summands [its tokens, trunk and its tokens]; None without trunk or
    branches."""


def window_of(model: PreTrainedModel) -> float:
    """How many tokens a text may have to be run so: those that attention looks back, itself included."""
    config: Any = model.config
    window = getattr(config, "sliding_window", None)
    return math.inf if window is None or not getattr(config, "use_sliding_window", True) else int(window)


def fits(model: PreTrainedModel) -> bool:
    """Whether a model can be run so: a class known to hand on its arguments, without recurrent state, on a CPU.

    On a GPU many small attention calls are slower than few large ones, and this was never measured there.
    """
    config: Any = model.config
    return (
        config.model_type in CLASSES
        and not mamba_mixers(model)
        and shared.fixed_rotations(model)  # else items of one pass would change one another
        and config._attn_implementation in ("sdpa", "eager")
        and model.device.type == "cpu"
        and "logits_to_keep" in inspect.signature(type(model).forward).parameters
    )


def _laid(trees: Sequence[Tree], dtype: torch.dtype) -> list[_Laid]:
    found: list[_Laid] = []
    at = 0
    for tree in trees:
        trunk, mask = len(tree.trunk), None
        if trunk and tree.branches:
            longest = max(map(len, tree.branches))
            mask = torch.full((longest, trunk + longest), -math.inf, dtype=dtype).triu(trunk + 1)
        places = zip(tree.starts, tree.branches, strict=True)
        branches = [slice(at + start, at + start + len(branch)) for start, branch in places]
        found.append(_Laid(slice(at, at + trunk), branches, mask))
        at += tree.tokens
    return found


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    trees: Sequence[_Laid] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The library's interface: ``query`` [1, heads, tokens, size]; returns [1, tokens, heads, size]."""
    del attention_mask
    if trees is None:
        raise TypeError(f"{type(module).__name__} does not hand 'trees' on to its attention")
    heads, tokens, size = query.shape[1:]
    out = query.new_empty(1, tokens, heads, size)
    given: dict[str, Any] = {"scale": scaling, "enable_gqa": key.shape[1] < heads}
    for tree in trees:
        at = tree.trunk
        if at.stop > at.start:
            asked, keys, values = (part[:, :, at] for part in (query, key, value))
            out[:, at] = scaled_dot_product_attention(asked, keys, values, is_causal=True, **given).transpose(1, 2)
        for branch in tree.branches:
            keys, values = key[:, :, branch], value[:, :, branch]
            if tree.mask is None:
                found = scaled_dot_product_attention(query[:, :, branch], keys, values, is_causal=True, **given)
            else:
                keys, values = (torch.cat([a[:, :, at], b], dim=2) for a, b in ((key, keys), (value, values)))
                mask = tree.mask[: branch.stop - branch.start, : keys.shape[2]]
                found = scaled_dot_product_attention(query[:, :, branch], keys, values, attn_mask=mask, **given)
            out[:, branch] = found.transpose(1, 2)
    return out, None


AttentionInterface.register(NAME, _attention)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, up to 62 MiB, where it would hand it back and fault each page in again.

    Its threshold rises to the size of a large block once one is freed (mallopt(3), M_MMAP_THRESHOLD, at most 32 MiB).
    Nothing is written to this block, so that it takes no memory; elsewhere than in glibc this does nothing.
    """
    block = torch.empty(31 * 2**20, dtype=torch.uint8)
    del block


def attending(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Within it the model attends by trees, in every thread, and is good for ``logits_of`` alone."""
    return shared.attending(model, NAME)


def logits_of(model: PreTrainedModel, trees: Sequence[Tree], wanted: torch.Tensor) -> torch.Tensor:
    """Logits [len(wanted), vocabulary] that a model gives behind some of the tokens.

    Args:
        model: one that ``fits``, within ``attending``; no text of a tree is longer than its ``window_of``.
        trees: run side by side; none sees another.
        wanted: places of tokens, int64: trees one after another, each its trunk and then its branches.
    """
    ids: list[int] = []
    positions: list[torch.Tensor] = []
    for tree in trees:
        trunk = len(tree.trunk)
        ids += tree.trunk
        positions.append(torch.arange(trunk))
        for branch in tree.branches:
            ids += branch
            positions.append(torch.arange(trunk, trunk + len(branch)))
    given: dict[str, Any] = {"trees": _laid(trees, model.dtype), "logits_to_keep": wanted}
    out = model(input_ids=torch.tensor([ids]), position_ids=torch.cat(positions)[None], use_cache=False, **given)
    return out.logits[0]
