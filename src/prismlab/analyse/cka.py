"""Linear CKA per layer between two checkpoints, on mean-pooled hidden states of held-out documents (stage ``cka``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prismlab.analyse.similarity import FEWEST, gram, resample_indices, similarity
from prismlab.errors import CheckpointError, StageError
from prismlab.run.step import Artifact, Json, Progress, Result, Silent
from prismlab.seeds import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 8192
"""Most tokens of a forward pass."""

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("layer", pa.int64()),
        ("cka", pa.float64()),
        ("std", pa.float64()),
        ("debiased", pa.float64()),
        ("debiased_std", pa.float64()),
        ("inputs", pa.int64()),
    ]
)


def equal_batches(lengths: Sequence[int], most_tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Indices in batches of equal length, so that no padding can touch a state (Mamba layers carry it along)."""
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(length, []).append(index)
    batches: list[list[int]] = []
    for length, indices in sorted(by_length.items()):
        size = max(1, most_tokens // length)
        batches += [indices[start : start + size] for start in range(0, len(indices), size)]
    return batches


def pooled_states(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], progress: Progress | None = None
) -> NDArray[np.float32]:
    """Hidden states, averaged over the tokens of each input: [layers + 1, inputs, width].

    Layer 0 is the output of the embedding, layer k that of block k; the last is after the final norm, as the library
    gives it.

    Args:
        model: a causal language model in evaluation mode.
        ids: token ids of each input, none empty.

    Raises:
        CheckpointError: the model gives another number of states than it has layers, or one that is not finite.
    """
    import torch

    progress = progress or Silent()
    layers = int(model.config.num_hidden_layers)
    pooled = np.empty((layers + 1, len(ids), int(model.config.hidden_size)), dtype=np.float32)
    for batch in equal_batches([len(one) for one in ids]):
        tokens = torch.tensor([list(ids[index]) for index in batch], device=model.device)
        with torch.inference_mode():
            states = model(input_ids=tokens, output_hidden_states=True, use_cache=False, logits_to_keep=1).hidden_states
        if states is None or len(states) != layers + 1:
            count = 0 if states is None else len(states)
            raise CheckpointError(f"{type(model).__name__} gives {count} hidden states, not {layers + 1}")
        for layer, state in enumerate(states):
            pooled[layer, batch] = state.float().mean(dim=1).cpu().numpy()
        progress.advance(len(batch))
    if not np.isfinite(pooled).all():
        raise CheckpointError("a hidden state is NaN or infinite: the checkpoint is damaged or its training diverged")
    return pooled


def compare(
    a: NDArray[np.floating], b: NDArray[np.floating], resamples: int, resample_size: int, seed: int
) -> dict[str, Json]:
    """Similarity of every layer of two sets of states over the same inputs.

    Args:
        a: states [layers + 1, inputs, width].
        b: states [layers + 1, inputs, width of b].
        resamples: number of resamples for the spreads.
        resample_size: inputs a resample.
        seed: of the resamples, which are the same for every layer.

    Returns:
        ``layers`` (a list of layer, cka, std, debiased, debiased_std), ``min`` over layers and its ``min_layer``,
        ``debiased_min``, ``final`` (the last layer's cka), ``inputs``. Null where the states do not vary.

    Raises:
        CheckpointError: the numbers of layers differ.
        StageError: fewer than 4 inputs.
    """
    if len(a) != len(b):
        raise CheckpointError(f"{len(a) - 1} and {len(b) - 1} layers: CKA by layer needs equally deep checkpoints")
    n = a.shape[1]
    if n < FEWEST:
        raise StageError(f"{n} inputs are too few for CKA; it needs at least {FEWEST}")
    draws = resample_indices(n, resamples, resample_size, seed)
    layers: list[dict[str, Any]] = []
    for index, (x, y) in enumerate(zip(a, b, strict=True)):
        found = similarity(gram(x), gram(y), draws)
        layers.append({"layer": index, **vars(found)})
    known = [(row["cka"], row["layer"]) for row in layers if row["cka"] is not None]
    debiased = [row["debiased"] for row in layers if row["debiased"] is not None]
    least = min(known) if known else (None, None)
    return {
        "layers": layers,
        "min": least[0],
        "min_layer": least[1],
        "debiased_min": min(debiased) if debiased else None,
        "inputs": n,
        "final": layers[-1]["cka"],
    }


def _texts(config: Mapping[str, Json], name: str) -> list[str]:
    """Held-out documents of one source; the runner gives the paths of its files, if any, under ``files``."""
    from prismlab.data.sources import heldout_texts

    source = config["sources"][name]
    share, wanted = float(config["heldout"]), int(config["spec"]["inputs"])
    files = config.get("files", {}).get(name)
    return heldout_texts(name, source, config["micro"], files, config["template"], share, wanted)


def _states(
    folder: Path, texts: Mapping[str, Sequence[str]], max_tokens: int, progress: Progress
) -> dict[str, NDArray[np.float32]]:
    """Pooled states of every source. A text without tokens is an error: leaving it out would unpair the checkpoints."""
    from prismlab.model.checkpoint import load_model, load_tokenizer

    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype="float32")
    states: dict[str, NDArray[np.float32]] = {}
    for name, documents in texts.items():
        ids = [tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"] for text in documents]
        empty = sum(not one for one in ids)
        if empty:
            raise StageError(
                f"source {name}: {empty} held-out documents have no tokens under the tokenizer of {folder}"
            )
        states[name] = pooled_states(model, ids, progress)
    return states


def run(config: Mapping[str, Json], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Stage ``cka``: see the house plan for its config, inputs and metrics.

    Fewer documents than asked for are used as they are; ``inputs`` in the metrics is the number used.

    Raises:
        StageError: a source has fewer than 4 held-out documents.
        CheckpointError: a checkpoint cannot be loaded, or the two are not equally deep.
    """
    spec = config["spec"]
    texts: dict[str, list[str]] = {}
    for name in spec["sources"]:
        texts[name] = [text for text in _texts(config, name) if text.strip()]
        if len(texts[name]) < int(spec["inputs"]):
            progress.note(f"{name}: {len(texts[name])} held-out documents, where {spec['inputs']} were asked for")
        if len(texts[name]) < FEWEST:
            raise StageError(
                f"source {name} has {len(texts[name])} held-out documents, and CKA needs at least {FEWEST}: "
                "raise 'heldout' or give it more documents"
            )
    progress.start(2 * sum(map(len, texts.values())), "inputs")
    a, b = (_states(inputs[key].model, texts, int(spec["max_tokens"]), progress) for key in ("a", "b"))
    resamples, size = int(spec["resamples"]), int(spec["resample_size"])
    sets: dict[str, Json] = {}
    for name in texts:
        seed = derive_seed(config["seed"], "cka", name)
        sets[name] = {**compare(a[name], b[name], resamples, size, seed), "asked": int(spec["inputs"])}
    rows = [{"source": name, "inputs": s["inputs"], **layer} for name, s in sets.items() for layer in s["layers"]]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), out / "layers.parquet")
    return Result(metrics={"sets": sets})
