"""Linear combinations of checkpoints, set in a model that lives in memory; nothing is written to disk.

The plane of the reference study (arXiv 2603.17074) is W(a, b) = base + a (mid - base) + b (RL - mid), that is the
combination (1 - a) base + (a - b) mid + b RL, whose coefficients sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prismlab.errors import CheckpointError, in_a_line, shown
from prismlab.model.checkpoint import load_model
from prismlab.model.families import by_canonical
from prismlab.model.remote import runs
from prismlab.model.tensors import TensorView, model_type, open_checkpoint
from prismlab.model.tokens import tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 1 << 22
"""Elements combined at a time: 32 MB as float64, and as much for what is read."""
SUM_TOLERANCE = 1e-9
"""How far from 1 the coefficients may sum by the rounding of floats."""
FREE = frozenset(
    (
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    )
)
"""Keys of a config that leave the function of the weights as it is; every other must be the same everywhere."""

Tensor = torch.Tensor


@dataclass
class Sources:
    """Checkpoints of one shape, opened to be combined: files, of which nothing is held in memory."""

    folders: tuple[Path, ...]
    views: tuple[Mapping[str, TensorView], ...]
    """Tensors of each by their canonical names."""
    loaded: dict[int, Mapping[str, Tensor]] = field(default_factory=dict[int, Mapping[str, Tensor]])
    """State dicts by place, where a class stores its tensors in another form than it holds them (see `set_weights`)."""


def plane(a: float, b: float) -> tuple[float, float, float]:
    """Coefficients of (base, mid, RL) at W(a, b)."""
    return (1.0 - a, a - b, b)


def line(t: float) -> tuple[float, float]:
    """Coefficients of (start, end) on the straight line between two checkpoints, t from 0 to 1."""
    return (1.0 - t, t)


def _configs_differ(folders: Sequence[Path]) -> None:
    from transformers import AutoConfig

    configs: list[dict[str, Any]] = []
    for folder in folders:
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=runs(folder), local_files_only=True)
        except Exception as error:  # a config is a stranger's, and the library's code falls over it in every way
            raise CheckpointError(f"{folder}: its config cannot be read: {in_a_line(error)}") from error
        configs.append({key: value for key, value in config.to_dict().items() if key not in FREE})
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        for key in sorted(configs[0].keys() | config.keys()):
            one, other = configs[0].get(key), config.get(key)
            if one != other:
                both = f"{shown(one, 80)} in {folders[0]} and {shown(other, 80)} in {folder}"
                raise CheckpointError(
                    f"config key {shown(key)!r} is {both}: the same weights mean two functions there, "
                    "so nothing lies between them"
                )


def _shapes_differ(folders: Sequence[Path], views: Sequence[Mapping[str, TensorView]]) -> None:
    for folder, other in zip(folders[1:], views[1:], strict=True):
        odd = sorted(views[0].keys() ^ other.keys())
        if odd:
            where = folders[0] if odd[0] in views[0] else folder
            raise CheckpointError(
                f"tensor {shown(odd[0])!r} is in {where} alone ({len(odd)} such): combined checkpoints need the same"
            )
        for name, view in views[0].items():
            if view.shape != other[name].shape:
                raise CheckpointError(
                    f"tensor {shown(name)!r} has shape {list(view.shape)} in {folders[0]} and "
                    f"{list(other[name].shape)} in {folder}: combined checkpoints need the same shapes"
                )


def _same_bytes(one: TensorView, other: TensorView) -> bool:
    chunks = zip(one.raw_chunks(), other.raw_chunks(), strict=True)
    return one.dtype == other.dtype and all(x == y for x, y in chunks)


def _fixed_differ(folders: Sequence[Path], views: Sequence[Mapping[str, TensorView]]) -> None:
    """Refuse tensors that are no floats and differ, before a point is sampled."""
    for name, view in views[0].items():
        for folder, other in zip(folders, views, strict=True):
            floats = view.readable and other[name].readable
            if not floats and not _same_bytes(view, other[name]):
                raise CheckpointError(
                    f"tensor {shown(name)!r} is {view.dtype} in {folders[0]} and {other[name].dtype} in {folder}, and "
                    "differs: only floats can be combined"
                )


def open_sources(folders: Sequence[Path]) -> Sources:
    """Open checkpoints and see that they can be combined; headers and small files are read, no weights.

    Raises:
        CheckpointError: one is damaged, or architectures, configs, tensors, shapes or tokenizers differ.
        ValueError: no checkpoint.
    """
    folders = tuple(Path(folder) for folder in folders)
    if not folders:
        raise ValueError("no checkpoint to combine")
    kinds = [model_type(folder) for folder in folders]
    for folder, kind in zip(folders, kinds, strict=True):
        if kind != kinds[0]:
            raise CheckpointError(
                f"{folders[0]} is a {shown(kinds[0], 80)!r} and {folder} a {shown(kind, 80)!r}: "
                "checkpoints of different architectures cannot be combined"
            )
    views = tuple(by_canonical(open_checkpoint(folder), kinds[0], str(folder)) for folder in folders)
    _shapes_differ(folders, views)
    _fixed_differ(folders, views)
    _configs_differ(folders)
    hashes = {tokenizer_hash(folder): folder for folder in reversed(folders)}
    if len(hashes) > 1:
        one, other, *_ = hashes.values()
        raise CheckpointError(
            f"the tokenizers of {one} and {other} differ: a row of the embedding stands for two tokens, "
            "so nothing lies between them"
        )
    return Sources(folders, views)


def _groups(model: PreTrainedModel) -> Iterator[tuple[list[str], Tensor]]:
    """Each tensor of the model's state once, with all names that share it: tied weights have several."""
    shared: dict[tuple[int, torch.Size, tuple[int, ...]], tuple[list[str], Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        # Empty tensors all lie at address 0 and share nothing.
        key = (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride())
        shared.setdefault(key, ([], tensor))[0].append(name)
    yield from shared.values()


def _same(one: TensorView, other: TensorView) -> bool:
    """Whether two tensors of one file hold the same numbers."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return all(
        bool(((x == y) | ((x != x) & (y != y))).all())
        for x, y in zip(one.chunks(CHUNK), other.chunks(CHUNK), strict=True)
    )


def _stored(sources: Sources, names: Sequence[str]) -> str | None:
    """Under which of the names of a tied tensor the files hold it; None under none.

    Raises:
        CheckpointError: under several, with different numbers, which one tensor cannot hold.
    """
    kept = [name for name in names if name in sources.views[0]]
    for folder, views in zip(sources.folders, sources.views, strict=True):
        for name in kept[1:]:
            if not _same(views[kept[0]], views[name]):
                raise CheckpointError(
                    f"{folder}: {shown(kept[0])!r} and {shown(name)!r} differ, but its config ties them "
                    "('tie_word_embeddings'); correct the config or leave one of them out"
                )
    return kept[0] if kept else None


def _held_otherwise(model: PreTrainedModel, sources: Sources) -> bool:
    """Whether the class holds its tensors in another form than the files do, for example experts in one stack."""
    held = {name: tensor for names, tensor in _groups(model) for name in names}
    files = sources.views[0]
    if any(name not in held or tuple(held[name].shape) != view.shape for name, view in files.items()):
        return True
    return any(not any(name in files for name in names) for names, _ in _groups(model))


def _state(sources: Sources, place: int) -> Mapping[str, Tensor]:
    """One checkpoint's state as the library brings it into the class, in float32 on the CPU, kept for the next call."""
    if place not in sources.loaded:
        sources.loaded[place] = load_model(sources.folders[place], "float32", torch.device("cpu")).state_dict()
    return sources.loaded[place]


def _fill(target: Tensor, pieces: Sequence[tuple[float, Any]], size: int) -> None:
    """Set ``target`` to the weighted sum of its sources.

    Args:
        target: a live tensor of ``size`` elements, on any device.
        pieces: coefficient and a function (start, stop) -> the source's elements in row-major order.
        size: elements.
    """
    flat = target.view(-1) if target.is_contiguous() else None
    whole = flat if flat is not None else torch.empty(size, dtype=target.dtype, device=target.device)
    for start in range(0, size, CHUNK):
        stop = min(size, start + CHUNK)
        if len(pieces) == 1 and pieces[0][0] == 1.0:
            whole[start:stop].copy_(pieces[0][1](start, stop))
            continue
        total = torch.zeros(stop - start, dtype=torch.float64, device=target.device)
        for coefficient, read in pieces:
            total.add_(read(start, stop).to(target.device, torch.float64), alpha=coefficient)
        whole[start:stop].copy_(total)
    if flat is None:
        target.copy_(whole.view(target.shape))


def _reader(sources: Sources, place: int, name: str, from_files: bool) -> Any:
    if from_files:
        view = sources.views[place][name]
        return lambda start, stop: torch.from_numpy(view.read(start, stop))
    tensor = _state(sources, place)[name].reshape(-1)
    return lambda start, stop: tensor[start:stop]


def _checked(sources: Sources, coefficients: Sequence[float]) -> list[tuple[int, float]]:
    """(place, coefficient) of the sources that take part."""
    if len(coefficients) != len(sources.folders):
        raise ValueError(f"{len(sources.folders)} checkpoints need as many coefficients, not {len(coefficients)}")
    if not all(map(math.isfinite, coefficients)) or abs(math.fsum(coefficients) - 1) > SUM_TOLERANCE:
        raise ValueError(f"coefficients {list(coefficients)} do not sum to 1")
    return [(place, float(c)) for place, c in enumerate(coefficients) if c != 0]


@torch.no_grad()
def set_weights(model: PreTrainedModel, sources: Sources, coefficients: Sequence[float]) -> None:
    """Set a live model's weights to a linear combination of checkpoints, tensor by tensor.

    Sums are float64, rounded to the model's own type. A coefficient of 1 beside zeros copies: the model is then bit
    for bit what ``load_model`` makes of that checkpoint. A checkpoint of coefficient 0 stays out of the sum, with its
    NaN. Weights that are tied are set once; buffers that a checkpoint does not hold are left alone.

    The files are read piece by piece. Only where the class holds its tensors in another form than the files (experts
    that are stacked on loading) are the checkpoints loaded by the library, in float32, and kept in ``sources.loaded``.

    Args:
        model: of the sources' architecture, as ``load_model`` makes it of one of them; any device, any float type.
        sources: from ``open_sources``.
        coefficients: one a checkpoint; they sum to 1.

    Raises:
        CheckpointError: a tensor of the model is in no file, or one that is no float differs between checkpoints.
        ValueError: the number of coefficients is wrong, or they do not sum to 1.
    """
    used = _checked(sources, coefficients)
    from_files = not _held_otherwise(model, sources)
    for names, target in _groups(model):
        name = _stored(sources, names) if from_files else names[0]
        if name is None:
            raise CheckpointError(f"{sources.folders[0]}: no tensor {shown(names[0])!r}, which the model needs")
        if not target.is_floating_point():
            _copy_fixed(target, sources, name, from_files)
            continue
        pieces = [(coefficient, _reader(sources, place, name, from_files)) for place, coefficient in used]
        _fill(target, pieces, target.numel())


def _copy_fixed(target: Tensor, sources: Sources, name: str, from_files: bool) -> None:
    """See that a tensor that is no float is the same everywhere; the model has it already."""
    for place, folder in enumerate(sources.folders):
        state = _state(sources, place) if not from_files else None
        same = (
            torch.equal(state[name], target.cpu())
            if state is not None
            else bytes(sources.views[place][name].raw()) == target.cpu().contiguous().numpy().tobytes()
        )
        if not same:
            raise CheckpointError(f"tensor {shown(name)!r} is no float and differs in {folder}: nothing lies between")
