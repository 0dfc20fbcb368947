"""What a training is made of at a step, taken out and put back: weights, optimizer, random state.

The schedule is a function of the step and the rows of a step are a function of the step, so the step alone stands for
both. Tensors are taken as this process holds them, sharded or whole.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor, Shard

from prismlab.errors import CheckpointError
from prismlab.train.saves import Save, Slice


def _held(tensor: torch.Tensor) -> tuple[torch.Tensor, int, int] | None:
    """This process's rows of a tensor as (rows, first, rows of the whole); None where it is not split.

    Rows are dealt out as ``torch.chunk`` does: equal shares rounded up, so that the last processes may have none.
    """
    if not isinstance(tensor, DTensor):
        return None
    local = tensor.to_local()
    splits = [dim for dim, placement in enumerate(tensor.placements) if placement.is_shard()]
    if not splits:
        return None
    (dim,) = splits
    if tensor.placements[dim] != Shard(0):
        raise CheckpointError(f"a tensor is split by {tensor.placements[dim]}; saves know splits by rows alone")
    mesh, whole = tensor.device_mesh, tensor.shape[0]
    each = -(-whole // mesh.size(dim))
    return local, min(whole, each * mesh.get_local_rank(dim)), whole


def _first_replica(tensor: torch.Tensor, rank: int) -> bool:
    """Whether this process is the one that writes what it holds of a tensor: one of each set of equal copies."""
    if not isinstance(tensor, DTensor):
        return rank == 0
    place = tensor.device_mesh.get_coordinate()
    assert place is not None
    return all(at == 0 for at, kind in zip(place, tensor.placements, strict=True) if not kind.is_shard())


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the CPU's memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach()).contiguous()


def _tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that training changes, by name: weights, and whatever the optimizer keeps of each."""
    for name, parameter in model.named_parameters():
        yield f"weight/{name}", parameter
        for key, value in sorted(optimizer.state.get(parameter, {}).items()):
            yield f"{key}/{name}", value


def capture(model: torch.nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> dict[str, Slice]:
    """Copies of what this process has to write of a save.

    Args:
        model: whole, or sharded over processes.
        optimizer: of the model's parameters; its state as far as steps were taken.
        rank: this process.
    """
    found: dict[str, Slice] = {}
    for name, tensor in _tensors(model, optimizer):
        if not _first_replica(tensor, rank):
            continue
        held = _held(tensor)
        if held is None:
            whole = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            found[name] = Slice(values=_copied(whole))
        elif held[0].shape[0]:
            found[name] = Slice(values=_copied(held[0]), start=held[1], rows=held[2])
    return found


def _fill(tensor: torch.Tensor, save: Save, name: str) -> None:
    held = _held(tensor)
    target = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    values = save.rows(name) if held is None else save.rows(name, held[1], held[1] + held[0].shape[0])
    if values.shape != target.shape:
        raise CheckpointError(f"{save.folder}: {name} is {list(values.shape)}, the model's is {list(target.shape)}")
    target.detach().copy_(values)


@torch.no_grad()
def restore(model: torch.nn.Module, optimizer: torch.optim.Optimizer, save: Save) -> None:
    """Put a save's weights and optimizer state in place, each process its own rows, whatever mesh wrote them.

    Raises:
        CheckpointError: the save is of another model, or of another optimizer.
    """
    for name, parameter in model.named_parameters():
        _fill(parameter, save, f"weight/{name}")
        optimizer.state.pop(parameter, None)
        if not parameter.requires_grad or not save.has(f"exp_avg/{name}"):
            continue
        state: dict[str, Any] = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        # A fused optimizer counts steps where the parameter is, in float32.
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for key, value in state.items():
            _fill(value, save, f"{key}/{name}")
        optimizer.state[parameter] = state


def seed_all(seed: int) -> None:
    """Seed every generator that ``random_state`` knows: whatever draws from one, a run is the same again."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


def random_state(device: torch.device) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The state of this process's random number generators, as JSON and tensors: torch, numpy, Python."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 (libraries draw from it)
    told = {"python": [version, list(words), gauss], "numpy": [kind, position, has_gauss, cached]}
    tensors = {"rng.torch": torch.get_rng_state(), "rng.numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    return told, tensors


def set_random_state(told: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put back what ``random_state`` gave; a device's state is left alone where the save has none of its kind."""
    version, words, gauss = told["python"]
    random.setstate((version, tuple(words), gauss))
    kind, position, has_gauss, cached = told["numpy"]
    np.random.set_state((kind, tensors["rng.numpy"].numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(tensors["rng.torch"])
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)
