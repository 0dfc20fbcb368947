"""Training over processes: who is there, and a model split over them by rows of its tensors (``fully_shard``).

The processes stand on a mesh of ``replicate`` x ``shard``: each of the ``replicate`` sets holds the whole model once,
split over its ``shard`` processes. One process alone is not wrapped at all. Norms, biases and Mamba's A, D and dt are
small and kept in float32, so they are not split: each process has them, and their gradients are averaged in one go.
With ``bf16`` the weights of layers are sent as bf16, which is what autocast would make of them; masters, optimizer and
sums of gradients are float32.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from prismlab.errors import StageError
from prismlab.train.heart import Heart
from prismlab.train.optim import decays

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_heart: list[Heart] = []


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the processes of a step."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def join(cls) -> World:
        """Join the processes that ``torchrun`` started; alone where it did not."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        cuda = torch.cuda.is_available()
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        if size > 1 and not dist.is_initialized():
            store, rank, _ = next(dist.rendezvous("env://"))
            # Small messages about the run itself go through the CPU, whatever the gradients go through.
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(backend, store=dist.PrefixStore("prism", store), rank=rank, world_size=size)
            _heart.append(Heart(store, rank, size))
        return cls(rank=int(os.environ.get("RANK", "0")), size=size, device=device)

    def leave(self) -> None:
        """Tell the others that this process is done and not dead; the last thing of a step."""
        while _heart:
            _heart.pop().stop()

    def agree(self, value: int) -> int:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.int64)
        dist.broadcast(told, 0)
        return int(told)

    def meet(self) -> None:
        """Wait for all."""
        if self.size > 1:
            self.agree(0)
            told = torch.zeros(1)
            dist.all_reduce(told)

    def add(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over processes of a tensor on the CPU, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Processes by what they hold: ``replicate`` copies of the model, each split over ``shard`` processes."""

    replicate: int = 1
    shard: int = 1


def resolve_mesh(given: Mapping[str, int | None] | None, size: int, local: int | None = None) -> Mesh:
    """The mesh of ``size`` processes.

    Args:
        given: ``replicate`` and ``shard`` as far as the user says; the rest follows.
        size: processes of the run.
        local: processes of one machine, by default what ``torchrun`` says. With nothing given, a model is split within
            a machine, where links are fast, and copied between machines.

    Raises:
        StageError: the product is not the number of processes.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", size)) if local is None else local
    replicate, shard = (given or {}).get("replicate"), (given or {}).get("shard")
    if shard is None:
        shard = size // replicate if replicate else local if size % local == 0 else size
    if replicate is None:
        replicate = size // shard
    if replicate < 1 or replicate * shard != size:
        raise StageError(
            f"a mesh of {replicate} replicate x {shard} shard has {replicate * shard} places for {size} processes; "
            "leave 'mesh' out, or give it one whose product is the number of processes"
        )
    return Mesh(replicate=replicate, shard=shard)


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of a causal language model: the longest list of modules in it.

    Raises:
        StageError: there is none, so it is not known how to split the model.
    """
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    if not lists or not max(len(found) for found in lists):
        raise StageError(f"{type(model).__name__} has no list of layers, by which a model is split over processes")
    return list(max(lists, key=len))


class _Within(torch.nn.Module):
    """Whatever is computed with the model, as a module around it: of a split model, what lies in no layer is whole only
    within the outermost module's pass.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


class Parallel:
    """A model as its processes train it.

    Args:
        model: float32 weights, the same in all processes, on ``world.device`` or, of several processes, on the CPU; it
            is split in place, onto the device.
        world: the processes.
        mesh: their mesh.
        precision: ``bf16`` or ``float32``.
    """

    def __init__(self, model: PreTrainedModel, world: World, mesh: Mesh, precision: str) -> None:
        self.model, self._world, self.mesh = model, world, mesh
        self._whole: PreTrainedModel | None = model if world.size == 1 else None
        self._small: list[torch.nn.Parameter] = []
        self._shards: dist.ProcessGroup | None = None
        self._root: Any = None
        if world.size == 1:
            return
        if world.rank == 0:
            whole: Any = copy.deepcopy(model)
            self._whole = whole.to("cpu")
        self._root = self._split(precision)

    def _split(self, precision: str) -> torch.nn.Module:
        grid: DeviceMesh = init_device_mesh(
            self._world.device.type, (self.mesh.replicate, self.mesh.shard), mesh_dim_names=("replicate", "shard")
        )
        self._shards = grid["shard"].get_group()
        self._small = [one for name, one in self.model.named_parameters() if not decays(name, one)]
        small = set(self._small)
        for one in self._small:
            one.data = one.data.to(self._world.device)  # ``fully_shard`` moves those that it splits, and the buffers
        # Inputs keep their type: between layers autocast has float32, as on one process.
        whole = MixedPrecisionPolicy(cast_forward_inputs=False)
        sent = whole
        if precision == "bf16":
            sent = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        for layer in layers_of(self.model):
            fully_shard(layer, mesh=grid, mp_policy=sent, ignored_params=small)
        root = _Within(self.model)
        # Embedding and head: autocast takes embeddings as they are, in float32.
        fully_shard(root, mesh=grid, mp_policy=whole, ignored_params=small)
        return root

    def within(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(model, *arguments)``, where the model may be used in any way; all processes call it."""
        if self._root is None:
            return function(self.model, *arguments)
        return self._root(function, *arguments)

    def settle(self) -> None:
        """To be called after passes without gradients: gives up whole weights that were gathered for them."""
        if self._root is not None:
            self._root.reshard()

    def last_of_step(self, last: bool) -> None:
        """To be called before each forward pass: gradients are summed up here and sent once a step, with the last."""
        if self._root is not None:
            self._root.set_requires_gradient_sync(last)

    def reduce_gradients(self) -> None:
        """Average over processes the gradients that ``fully_shard`` leaves alone, in one message."""
        if self._root is None:
            return
        gradients = [one.grad for one in self._small if one.grad is not None]
        if gradients:
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            flat /= self._world.size
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def clip(self, limit: float) -> float:
        """Clip the gradient's norm, taken over the whole model, to ``limit``; returns what it was."""
        parameters = [one for one in self.model.parameters() if one.grad is not None]
        if self._root is None:
            return float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        gradients: list[Any] = [one.grad for one in parameters]
        split = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
        rest = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        # A process may hold no row of any tensor: an empty norm is 0.
        squares = torch.zeros((), device=self._world.device)
        if split:
            squares += torch.nn.utils.get_total_norm(split) ** 2
        dist.all_reduce(squares, group=self._shards)
        if rest:
            squares += torch.nn.utils.get_total_norm(rest) ** 2
        norm = squares.sqrt()
        factor = torch.clamp(limit / (norm + 1e-6), max=1.0)  # as torch's clip_grad_norm_ has it
        for gradient in [*split, *rest]:
            gradient.mul_(factor)
        return float(norm)

    @property
    def target(self) -> PreTrainedModel:
        """The model that ``whole`` fills, in the first process."""
        assert self._whole is not None
        return self._whole

    def whole(self) -> PreTrainedModel | None:
        """The whole model in float32, gathered in the first process, where it may be written; None in the others.

        All processes have to call it. The model that is returned is filled anew by every call.
        """
        if self._root is None:
            return self.model
        targets = [None] * len(list(self.model.parameters()))
        if self._whole is not None:
            targets = list(self._whole.parameters())
        with torch.no_grad():
            for parameter, target in zip(self.model.parameters(), targets, strict=True):
                full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
                if target is not None:
                    target.copy_(full)
        return self._whole
