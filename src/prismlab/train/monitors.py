"""What is watched while a model trains: held-out loss, distance to the start, speed, memory, time left."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from prismlab.cost.operations import training_operations
from prismlab.cost.shapes import shape_of
from prismlab.data.sources import heldout_texts
from prismlab.errors import DataError, SpecError, StageError
from prismlab.model.generate import prompt_ids
from prismlab.run.step import Artifact
from prismlab.train.parallel import Parallel, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 50
"""Steps whose median gives the time left, so that it does not jump with one slow step."""
BATCH_LOGITS = 2**25
"""Logits of a forward pass over held-out documents, unless one document alone needs more."""


def load_texts(config: Mapping[str, Any], inputs: Mapping[str, Artifact]) -> dict[str, list[str]]:
    """Held-out documents of the sources that ``spec.monitor`` names, the same that evaluations score."""
    spec, found = config["spec"]["monitor"], dict[str, list[str]]()
    for name in spec["heldout"]:
        files = [Path(path) for path in config.get("files", {}).get(name, [])]
        cleaned = inputs[name].path if name in inputs else None
        source, share = config["sources"][name], float(config["heldout"])
        most = int(spec["documents"])
        found[name] = heldout_texts(name, source, config["micro"], files, config["template"], share, most, cleaned)
    return found


@dataclass(frozen=True)
class _Batch:
    """Documents side by side, the shorter ones filled up behind their end, where a causal model cannot look."""

    documents: list[int]
    """Their places among all documents."""
    ids: torch.Tensor
    """[documents, longest]."""
    scored: torch.Tensor
    """Whether place t + 1 is a document's own token, bool [documents, longest - 1]."""
    rows: torch.Tensor
    columns: torch.Tensor
    """Places (row, t) at which distributions are compared, int64 [places]."""


def _score(model: PreTrainedModel, batch: _Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Total nll of each document, float64 [documents], and log-probabilities [places, vocabulary], float32."""
    logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none").double()
    return (losses * batch.scored).sum(dim=1), logits[batch.rows, batch.columns].log_softmax(dim=-1)


class Heldout:
    """Measures a model in training on held-out documents, spread over its processes.

    Args:
        parallel: the model, as it starts.
        tokenizer: the model's.
        texts: documents of each source.
        spec: JSON of ``MonitorSpec``.
        world: the processes.
        precision: as in training.

    Raises:
        DataError: a document has fewer than two tokens.
    """

    def __init__(
        self,
        parallel: Parallel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Mapping[str, Sequence[str]],
        spec: Mapping[str, Any],
        world: World,
        precision: str,
    ) -> None:
        self._parallel, self._world, self._precision = parallel, world, precision
        self._general = list(spec["general"]) or list(texts)
        self._sources = [name for name, documents in texts.items() for _ in documents]
        ids = [prompt_ids(tokenizer, text)[: int(spec["tokens"])] for one in texts.values() for text in one]
        short = [name for name, one in zip(self._sources, ids, strict=True) if len(one) < 2]
        if short:
            raise DataError(
                f"source {short[0]}: a held-out document has fewer than two tokens, so nothing is predicted"
            )
        self._tokens = [len(one) - 1 for one in ids]
        vocabulary = int(parallel.model.config.get_text_config().vocab_size)
        places = self._chosen(int(spec["kl_positions"]))
        self._places = len(places)
        self._batches = self._batched(ids, max(1, BATCH_LOGITS // (vocabulary * max(map(len, ids)))), places)
        self.start = self._nll(keep=True)
        """Losses before the first step, as ``measure`` gives them."""

    def _chosen(self, wanted: int) -> list[tuple[int, int]]:
        """Evenly spread places (document, t) of the general text."""
        every = [
            (document, at)
            for document, (source, tokens) in enumerate(zip(self._sources, self._tokens, strict=True))
            if source in self._general
            for at in range(tokens)
        ]
        count = min(wanted, len(every))
        return [every[k * len(every) // count] for k in range(count)]

    def _batched(self, ids: Sequence[Sequence[int]], size: int, places: Sequence[tuple[int, int]]) -> list[_Batch]:
        order = sorted(range(len(ids)), key=lambda at: len(ids[at]))
        batches: list[_Batch] = []
        for first in range(0, len(order), size):
            documents = order[first : first + size]
            longest = max(len(ids[at]) for at in documents)
            rows = [[*ids[at], *[ids[at][0]] * (longest - len(ids[at]))] for at in documents]
            mine = [(documents.index(document), at) for document, at in places if document in documents]
            lengths = torch.tensor([[len(ids[at])] for at in documents])
            tensors = (
                torch.tensor(rows),
                torch.arange(1, longest)[None] < lengths,
                torch.tensor([row for row, _ in mine], dtype=torch.int64),
                torch.tensor([at for _, at in mine], dtype=torch.int64),
            )
            batches.append(_Batch(documents, *(one.to(self._world.device) for one in tensors)))
        return batches

    def _nll(self, *, keep: bool = False) -> dict[str, Any]:
        """Losses by source and the distance to the start; with ``keep`` this is the start."""
        size, model = self._world.size, self._parallel.model
        # Every process has to go through the model as often as the others; who has no batch left does one for nothing.
        turns = -(-len(self._batches) // size)
        mine = [turn * size + self._world.rank for turn in range(turns)]
        sums = torch.zeros(len(self._sources), dtype=torch.float64)
        distance = torch.zeros(1, dtype=torch.float64)
        cast = torch.autocast(self._world.device.type, torch.bfloat16) if self._precision == "bf16" else nullcontext()
        if keep:
            self._start_logps: list[torch.Tensor] = []
        was_training = model.training
        model.eval()
        with torch.no_grad(), cast:
            for turn, number in enumerate(mine):
                batch = self._batches[number % len(self._batches)]
                nll, logps = self._parallel.within(_score, batch)
                if keep:
                    self._start_logps.append(logps)
                if number < len(self._batches):
                    sums[batch.documents] = nll.cpu()
                    start = self._start_logps[turn]
                    distance += (start.exp() * (start - logps)).sum(dim=1).double().sum().cpu()
        self._parallel.settle()
        model.train(was_training)
        return self._row(self._world.add(sums).tolist(), float(self._world.add(distance)))

    def _row(self, sums: Sequence[float], distance: float) -> dict[str, Any]:
        losses: dict[str, float] = {}
        for name in dict.fromkeys(self._sources):
            mine = [at for at, source in enumerate(self._sources) if source == name]
            losses[name] = sum(sums[at] for at in mine) / sum(self._tokens[at] for at in mine)
        general = statistics.fmean(losses[name] for name in self._general)
        kl = distance / self._places if self._places else None
        return {"heldout": losses, "general": general, "kl": kl}

    def measure(self, step: int) -> dict[str, Any]:
        """``{step, heldout: {source: loss}, general, kl}``; all processes call it, all get the same.

        A loss is the mean over a source's tokens, nats a token; ``general`` the mean over the general sources; ``kl``
        the mean over places of KL(start || now), the sum over tokens of p_start (log p_start - log p_now), in nats.
        """
        return {"step": step, **self._nll()}


class Alarm:
    """Sets off once, when general text is forgotten by more than is allowed.

    Args:
        spec: JSON of ``AlarmSpec``; None for no alarm.
        start: mean loss on general text before the first step.
    """

    def __init__(self, spec: Mapping[str, Any] | None, start: float) -> None:
        self._spec, self._start = spec, start
        self.fired: int | None = None
        """The step at which it was set off."""

    @property
    def action(self) -> str:
        """What is to be done."""
        return str(self._spec["action"]) if self._spec is not None else "warn"

    def due(self, general: float) -> bool:
        """Whether this measurement sets it off; one that is no number does."""
        if self._spec is None or self.fired is not None:
            return False
        return not general - self._start <= self._spec["heldout_loss_up"]

    def set_off(self, step: int, general: float) -> str:
        """Set it off at ``step``; what is to be told."""
        assert self._spec is not None
        self.fired = step
        return (
            f"retention alarm at step {step}: the loss on general held-out text is {general:.4f}, "
            f"{general - self._start:.4f} above the start's; {self._spec['heldout_loss_up']:g} are allowed"
        )


def matrix_rate(device: torch.device, precision: str, size: int | None = None) -> float:
    """Operations a second of a product of two square matrices, the best of three: what the device can do at all."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    size = size or (8192 if device.type == "cuda" else 512)
    # Random numbers: of equal ones a GPU makes faster work. From a generator of their own: a training's stay untouched.
    own = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=own).to(kind) for _ in range(2))
    best = 0.0
    for _ in range(4):  # the first one warms up
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2.0 * size**3 / (time.perf_counter() - began))
    return best


def memory_mb(device: torch.device) -> float:
    """Most memory that was in use: the device's, or without one this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


class Pace:
    """Speed, utilisation, memory and the time left of a training.

    Args:
        model: its config tells what a row costs; a class without known cost has no utilisation.
        spec: JSON of ``TrainSpec``.
        world: the processes.
    """

    def __init__(self, model: PreTrainedModel, spec: Mapping[str, Any], world: World) -> None:
        self._spec, self._world = spec, world
        self._steps: deque[float] = deque(maxlen=WINDOW)
        self._last = time.perf_counter()
        self._rate, self._token = matrix_rate(world.device, str(spec["precision"])), None
        length = int(spec["seq_len"])
        try:
            shape = shape_of(model.config.to_dict())
        except (SpecError, StageError):
            return
        if spec.get("lora") is None:
            trained = str(spec.get("train", "all"))
            self._token = training_operations(shape, length, trained=trained).model.total / length

    def tick(self) -> None:
        """A step is done, with all that belongs to it."""
        now = time.perf_counter()
        self._steps.append(now - self._last)
        self._last = now

    def row(self, step: int, tokens_per_second: float) -> dict[str, float | None]:
        """``{mfu, memory_mb, seconds_left}``: the model's operations over the devices' matrix rate (attention as if a
        row were one document), most memory in use, and the median step times the steps left.
        """
        mfu = None if self._token is None else self._token * tokens_per_second / (self._rate * self._world.size)
        left = statistics.median(self._steps) * (int(self._spec["steps"]) - step) if self._steps else None
        return {"mfu": mfu, "memory_mb": memory_mb(self._world.device), "seconds_left": left}
