"""What rounding to the saved format hides of an update: the float32 master weights beside the checkpoint made of them.

Training starts from weights in the saved format (bf16) and works in float32, so master minus start is the update as it
was made, and saved minus start is what is left of it. An element is hidden if the saved weight equals the start's and
the master's does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prismlab.arith import kernels
from prismlab.arith.fold import fold
from prismlab.arith.kernels import Stored, finite, widen
from prismlab.arith.parts import component_order, lay_out
from prismlab.arith.sums import Sums, rising, threshold_key
from prismlab.errors import CheckpointError
from prismlab.run.step import Json, Progress, Silent


@dataclass
class Rounded:
    """Counts of one part of the start, the saved checkpoint and the master weights."""

    saved: Sums
    """Start against saved."""
    master: Sums
    """Start against master."""
    hidden: int = 0
    """Elements equal in the saved weights that moved in the master's."""
    unlike: int = 0
    """Elements whose master does not round to the saved weight."""
    nonfinite: int = 0
    """Elements left out because one of the three is NaN or infinite."""

    def add(self, other: Rounded) -> None:
        """Take in the counts of another part."""
        self.saved.add(other.saved)
        self.master.add(other.master)
        self.hidden += other.hidden
        self.unlike += other.unlike
        self.nonfinite += other.nonfinite


def rounded_to(master: Stored, saved: Stored) -> Stored:
    """``master`` in the type of ``saved``, rounded to nearest, ties to even; no NaN may be in it.

    Raises:
        CheckpointError: the saved type is wider than the master's.
    """
    if saved.dtype == np.uint16:
        if master.dtype == np.uint16:
            return master
        if master.dtype != np.float32:
            raise CheckpointError(f"master weights of type {master.dtype}: float32 is expected beside bfloat16")
        bits = master.view(np.uint32)
        return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
            np.uint16
        )
    wide = widen(master)
    if wide.dtype.itemsize < saved.dtype.itemsize:
        raise CheckpointError(f"master weights of type {wide.dtype} cannot be those of a checkpoint of {saved.dtype}")
    with np.errstate(over="ignore"):  # becomes infinite, which differs from what was saved
        return wide.astype(saved.dtype)


def _visit(old: Stored, new: Stored, master: Stored, levels: tuple[float, ...], kernel: str) -> Rounded:
    sound: NDArray[np.bool_] = finite(old) & finite(new) & finite(master)
    left_out = int(old.size - np.count_nonzero(sound))
    if left_out:
        old, new, master = old[sound], new[sound], master[sound]
    start = widen(old)
    hidden = (start == widen(new)) & (start != widen(master))
    return Rounded(
        kernels.divergence(old, new, levels, kernel),
        kernels.divergence(old, master, levels, kernel),
        int(np.count_nonzero(hidden)),
        int(np.count_nonzero(rounded_to(master, new) != new)),
        left_out,
    )


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def _shares(one: Rounded) -> dict[str, Json]:
    n, saved, master = one.saved.elements, one.saved, one.master
    keys = [threshold_key(t) for t in saved.thresholds]
    return {
        "elements": n,
        "l2_saved": saved.l2,
        "l2_master": master.l2,
        "equal_saved": _share(saved.equal, n),
        "equal_master": _share(master.equal, n),
        "hidden": _share(one.hidden, n),
        "hidden_of_unchanged": _share(one.hidden, saved.equal),
        "changed_saved": {key: _share(count, n) for key, count in zip(keys, saved.changed, strict=True)},
        "changed_master": {key: _share(count, n) for key, count in zip(keys, master.changed, strict=True)},
    }


def rounding(
    old_folder: Path,
    new_folder: Path,
    master_folder: Path,
    thresholds: Sequence[float],
    progress: Progress | None = None,
) -> dict[str, Json]:
    """How much of what looks unchanged in a saved checkpoint is rounding.

    Args:
        old_folder: the start, in the Hugging Face layout.
        new_folder: the checkpoint made from it, as saved.
        master_folder: its weights before they were rounded, under the same names; its config may be missing.
        thresholds: relative changes, above 0.
        progress: told of every tensor.

    Returns:
        Of the whole: ``elements``; ``l2_saved`` and ``l2_master``, ||x - old|| / ||old||; ``equal_saved`` and
        ``equal_master``, shares of elements that equal the start's; ``hidden``, the share of all elements that are
        equal as saved and moved in the master, and ``hidden_of_unchanged``, the same among those equal as saved (null
        where none is); ``changed_saved`` and ``changed_master``, shares beyond each threshold. ``components``: the same
        by component. ``unlike``: elements whose master does not round to the saved weight (0, if these are the master
        weights of this checkpoint). ``skipped``, ``nonfinite`` and ``kernel`` as in the stage ``weights``.

    Raises:
        CheckpointError: weights are damaged or do not correspond, or the master is narrower than what was saved.
    """
    bar, levels = progress or Silent(), rising(thresholds)
    layout = lay_out(
        {"old": Path(old_folder), "new": Path(new_folder), "master": Path(master_folder)}, Path(new_folder)
    )
    kernel = kernels.choose(layout.elements)
    parts: dict[str, Rounded] = {}
    bar.start(len(layout.parts), "tensors")

    def visit(old: Stored, new: Stored, master: Stored) -> Rounded:
        return _visit(old, new, master, levels, kernel)

    for part, found in fold(layout.parts, visit, bar):
        parts.setdefault(part.component, Rounded(Sums(levels), Sums(levels))).add(found)
    whole = Rounded(Sums(levels), Sums(levels))
    for name in component_order(list(parts)):
        whole.add(parts[name])
    return {
        **_shares(whole),
        "components": {name: _shares(parts[name]) for name in component_order(list(parts))},
        "unlike": whole.unlike,
        "skipped": layout.skipped,
        "nonfinite": whole.nonfinite,
        "kernel": kernel,
    }
