"""Mean-pooled hidden states of one checkpoint on sets of inputs, kept as Gram matrices (stage ``states``).

One pass a checkpoint serves every comparison: ``prismlab.analyse.cka`` makes all pairs from what is kept here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from prismlab.analyse.grams import MOST_INPUTS, InputSet, States, hash_ids, hash_texts, save
from prismlab.analyse.similarity import FEWEST, gram
from prismlab.errors import CheckpointError, StageError
from prismlab.run.step import Artifact, Json, Progress, Result, Silent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Batch = Literal["padded", "equal", "one"]
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

BATCH_TOKENS = 8192
"""Most tokens of a forward pass, padding counted."""
STATES_BYTES = 1 << 30
"""Most bytes of the hidden states of a forward pass: those of all layers are alive together."""


def batches(lengths: Sequence[int], how: Batch = "padded", most_tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Indices of inputs in batches, the longest inputs first.

    Args:
        lengths: tokens of each input, none 0.
        how: ``padded``: neighbours in length, as many as fit when all are as long as the longest; ``equal``: of one
            length; ``one``: one input each.
        most_tokens: of a batch, padding counted; an input longer than this has a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    found: list[list[int]] = []
    for index in order:
        last = found[-1] if found and how != "one" else None
        fits = last is not None and (len(last) + 1) * lengths[last[0]] <= most_tokens
        if last is not None and fits and (how == "padded" or lengths[last[0]] == lengths[index]):
            last.append(index)
        else:
            found.append([index])
    return found


def _hidden(model: PreTrainedModel, ids: Sequence[Sequence[int]], layers: int) -> Sequence[torch.Tensor]:
    """Hidden states of a batch, ``layers`` + 1 of [batch, longest, width].

    Shorter inputs are filled up on the right, where neither causal attention nor a Mamba layer lets a real token look;
    so no mask is needed, and none can switch on another code path. They are filled with their own last token, since a
    product with a masked place is 0 only if that place is finite.
    """
    import torch

    longest = max(map(len, ids))
    tokens = torch.tensor([[*one, *[one[-1]] * (longest - len(one))] for one in ids], device=model.device)
    try:
        with torch.inference_mode():
            found = model.base_model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
    except torch.cuda.OutOfMemoryError as error:
        raise StageError(
            f"the GPU's memory is too small for a batch of {len(ids)} x {longest} tokens: take batches of one input, "
            "fewer tokens an input, or the CPU"
        ) from error
    if found is None or len(found) != layers + 1:
        count = 0 if found is None else len(found)
        raise CheckpointError(f"{type(model).__name__} gives {count} hidden states, not {layers + 1}")
    return found


def pooled_states(
    model: PreTrainedModel,
    ids: Sequence[Sequence[int]],
    batch: Batch = "padded",
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Hidden states, averaged over the tokens of each input: [layers + 1, inputs, width].

    Layer 0 is the output of the embedding, layer k that of block k; the last is after the final norm, as the library
    gives it. However inputs are put in batches, each is averaged over its own tokens alone.

    Args:
        model: a causal language model in evaluation mode.
        ids: token ids of each input, none empty.
        batch: see ``batches``; all three give the same states but for rounding.
        batch_tokens: most tokens of a forward pass; fewer are taken where the hidden states would need over 1 GiB.

    Raises:
        CheckpointError: the model gives another number of states than it has layers, or one that is not finite, or it
            has no embedding for a token.
        StageError: the GPU's memory is too small.
    """
    import torch

    progress = progress or Silent()
    layers, width = int(model.config.num_hidden_layers), int(model.config.hidden_size)
    embedding: Any = model.get_input_embeddings()
    rows = int(embedding.weight.shape[0])
    largest = max(max(one) for one in ids)
    if largest >= rows:
        raise CheckpointError(f"the tokenizer gives token {largest}, but the embedding has {rows} rows: no pair")
    fitting = STATES_BYTES // (width * (layers + 1) * model.dtype.itemsize)
    pooled = np.empty((layers + 1, len(ids), width), dtype=np.float32)
    for indices in batches([len(one) for one in ids], batch, min(batch_tokens, fitting)):
        for layer, state in enumerate(_hidden(model, [ids[index] for index in indices], layers)):
            means = [state[row, : len(ids[index])].float().mean(dim=0) for row, index in enumerate(indices)]
            pooled[layer, indices] = torch.stack(means).cpu().numpy()
        progress.advance(len(indices))
    if not np.isfinite(pooled).all():
        raise CheckpointError("a hidden state is NaN or infinite: the checkpoint is damaged or its training diverged")
    return pooled


def choose_device(device: Device) -> torch.device:
    """The device of a name; ``auto`` is the first GPU, or the CPU where there is none.

    Raises:
        StageError: ``cuda`` where there is no GPU.
    """
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise StageError("device 'cuda': this machine has no GPU that torch can use; take 'cpu' or 'auto'")
    return torch.device("cuda", 0) if there and device != "cpu" else torch.device("cpu")


def choose_dtype(folder: Path, dtype: Dtype, device: torch.device) -> str:
    """The type of the forward passes; ``auto`` is float32 on a CPU and the checkpoint's own type on a GPU."""
    if dtype != "auto":
        return dtype
    if device.type == "cpu":
        return "float32"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: its config.json cannot be read: {error}") from error
    own = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return own if own in ("bfloat16", "float16") else "float32"


def _ids(tokenizer: PreTrainedTokenizerBase, name: str, texts: Sequence[str], most: int, folder: Path) -> Any:
    """Token ids of texts. One without tokens is an error: leaving it out would unpair the checkpoints."""
    if not FEWEST <= len(texts) <= MOST_INPUTS:
        raise StageError(f"input set {name}: {len(texts)} inputs, and CKA takes {FEWEST} to {MOST_INPUTS} of them")
    found = [tokenizer(text, truncation=True, max_length=most)["input_ids"] for text in texts]
    empty = sum(not one for one in found)
    if empty:
        raise StageError(f"input set {name}: {empty} inputs have no tokens under the tokenizer of {folder}")
    return found


def measure(
    folder: Path,
    texts: Mapping[str, Sequence[str]],
    *,
    max_tokens: int = 256,
    batch: Batch = "padded",
    batch_tokens: int = BATCH_TOKENS,
    dtype: Dtype = "auto",
    device: Device = "auto",
    progress: Progress | None = None,
) -> States:
    """Run one checkpoint over sets of inputs and keep the Gram matrices of its mean-pooled hidden states.

    Args:
        folder: a checkpoint in the Hugging Face layout, with its tokenizer.
        texts: the inputs of each set, 4 to 2,000 a set.
        max_tokens: an input is cut to this many tokens.
        batch: how inputs are put in batches (``batches``).
        batch_tokens: most tokens of a forward pass, padding counted.
        dtype: type of the weights and states; ``auto`` is float32 on a CPU and the checkpoint's own on a GPU.
        device: ``auto`` is the first GPU, or the CPU where there is none.
        progress: advances by an input.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or a state is not finite.
        StageError: too few or too many inputs, an input without tokens, no GPU where one is asked for, or too small a
            one.
    """
    from prismlab.model.checkpoint import load_model, load_tokenizer

    where = choose_device(device)
    tokenizer = load_tokenizer(folder)
    ids = {name: _ids(tokenizer, name, some, max_tokens, folder) for name, some in texts.items()}
    model = load_model(folder, dtype=choose_dtype(folder, dtype, where), device=where)
    sets: dict[str, InputSet] = {}
    seconds = [0.0, 0.0]
    for name, some in texts.items():
        try:
            pooled, forward = _timed(lambda name=name: pooled_states(model, ids[name], batch, batch_tokens, progress))
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        grams, grammed = _timed(lambda pooled=pooled: np.stack([gram(layer) for layer in pooled]))
        hashes = tuple(hash_ids(one) for one in ids[name])
        sets[name] = InputSet(grams, hash_texts(some), hashes, sum(map(len, ids[name])))
        seconds = [seconds[0] + forward, seconds[1] + grammed]
    return States(
        sets=sets,
        layers=int(model.config.num_hidden_layers),
        width=int(model.config.hidden_size),
        dtype=str(model.dtype).removeprefix("torch."),
        device=where.type,
        seconds_forward=seconds[0],
        seconds_grams=seconds[1],
    )


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def _texts(config: Mapping[str, Json], inputs: Mapping[str, Artifact], name: str, progress: Progress) -> list[str]:
    """Held-out documents of one source; the runner gives the paths of its files, if any, under ``files``."""
    from prismlab.data.sources import heldout_texts

    asked = int(config["spec"]["inputs"])
    files = (config.get("files") or {}).get(name)
    share, source = float(config["heldout"]), config["sources"][name]
    cleaned = inputs[name].path if name in inputs else None
    found = heldout_texts(name, source, config["micro"], files, config["template"], share, asked, cleaned)
    found = [text for text in found if text.strip()]
    if len(found) < FEWEST:
        raise StageError(
            f"source {name} has {len(found)} held-out documents, and CKA needs at least {FEWEST}: raise 'heldout' or "
            "give it more documents"
        )
    if len(found) < asked:
        progress.note(f"{name}: {len(found)} held-out documents, where {asked} were asked for")
    return found


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``states``: see the house plan for its config, inputs and metrics.

    Fewer documents than asked for are used as they are; ``inputs`` in the metrics is the number used.

    Raises:
        StageError: a source has fewer than 4 held-out documents.
        CheckpointError: the checkpoint cannot be loaded.
    """
    spec = config["spec"]
    texts = {name: _texts(config, inputs, name, progress) for name in spec["sources"]}
    progress.start(sum(map(len, texts.values())), "inputs")
    states = measure(
        inputs["checkpoint"].model,
        texts,
        max_tokens=int(spec["max_tokens"]),
        batch=spec["batch"],
        dtype=spec["dtype"],
        progress=progress,
    )
    save(states, out)
    sets = {
        name: {"inputs": found.inputs, "asked": int(spec["inputs"]), "tokens": found.tokens, "texts": found.texts}
        for name, found in states.sets.items()
    }
    facts = {key: value for key, value in vars(states).items() if key != "sets"}
    return Result(metrics={"sets": sets, **facts})
