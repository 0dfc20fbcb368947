"""Time of CKA: forward passes against analysis, and Gram matrices against the feature form.

``python benchmarks/cka.py [--out FILE]`` prints two tables and writes their numbers as JSON.

1. A tiny model, two input sets of 200 texts, two checkpoints: seconds of the forward passes, of the Gram matrices, and
   of all estimates of the pair (plain, debiased, 20 resamples and 20 subsamples a layer).
2. 200 inputs, 41 layers, width 4,096 (an 8B model), random states: seconds of the Gram matrices of one checkpoint, and
   of all estimates for one pair and for all pairs of three checkpoints. The peer computes CKA from features,
   ||Y'X||^2 / (||X'X|| ||Y'Y||), as published scripts do: one plain estimate and 20 resamples a layer; it is timed on
   two layers and multiplied.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from prismlab.analyse.cka import compare_all
from prismlab.analyse.grams import InputSet, States
from prismlab.analyse.similarity import cka, draw, gram
from prismlab.analyse.states import measure

LAYERS, INPUTS, WIDTH, RESAMPLES, SIZE = 41, 200, 4096, 20, 100
PEER_LAYERS = 2
PASS_FLOPS = 2 * 8.17e9 * 256 * INPUTS
"""Operations of one forward pass over 200 inputs of 256 tokens by 8.17B parameters (2 N a token)."""


def timed(work: Callable[[], Any], times: int = 1) -> tuple[Any, float]:
    """What the work gives, and the least of its seconds."""
    found, seconds = None, float("inf")
    for _ in range(times):
        start = time.perf_counter()
        found = work()
        seconds = min(seconds, time.perf_counter() - start)
    return found, seconds


def feature_cka(x: np.ndarray, y: np.ndarray) -> float:
    """The peer: Kornblith et al. 2019, in float32 products as torch scripts have them."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def tiny() -> dict[str, float]:
    """Seconds of both parts for a llama of width 128 and 4 layers."""
    from prismlab.micro.models import build_model, tiny_config
    from prismlab.micro.text import code_documents, web_documents
    from prismlab.model.checkpoint import save_checkpoint
    from prismlab.model.tokens import build_byte_tokenizer

    texts = {"web": web_documents()[:INPUTS], "code": code_documents()[:INPUTS]}
    with TemporaryDirectory() as folder:
        states: dict[str, States] = {}
        for seed in (0, 1):
            path = Path(folder) / str(seed)
            save_checkpoint(build_model(tiny_config("llama", 128, 4, 258), seed), build_byte_tokenizer(), path)
            states[str(seed)] = measure(path, texts, device="cpu")
    _, seconds = timed(lambda: compare_all(states, resamples=RESAMPLES, resample_size=SIZE), 3)
    forward = sum(one.seconds_forward for one in states.values())
    grams = sum(one.seconds_grams for one in states.values())
    return {"forward": forward, "grams": grams, "estimates": seconds, "share": (grams + seconds) / forward}


def wide() -> dict[str, float]:
    """Seconds at the size of an 8B model, on random states of which checkpoints share a part."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((LAYERS, INPUTS, WIDTH), dtype=np.float32)
    states: dict[str, States] = {}
    features: dict[str, np.ndarray] = {}
    seconds_grams = 0.0
    for name in ("base", "mid", "rl"):
        pooled = shared + rng.standard_normal(shared.shape, dtype=np.float32)
        grams, seconds = timed(lambda pooled=pooled: np.stack([gram(layer) for layer in pooled]), 2)
        seconds_grams += seconds / 3
        states[name] = States({"s": InputSet(grams, "t", ("i",) * INPUTS, 1)}, LAYERS - 1, WIDTH, "", "", 0.0, 0.0)
        features[name] = pooled[:PEER_LAYERS].copy()
    two = {name: states[name] for name in ("base", "mid")}
    _, one_pair = timed(lambda: compare_all(two, resamples=RESAMPLES, resample_size=SIZE), 3)
    _, three_pairs = timed(lambda: compare_all(states, resamples=RESAMPLES, resample_size=SIZE), 3)
    counts = draw(INPUTS, RESAMPLES, SIZE, 0).counts
    chosen = [np.arange(INPUTS), *(np.repeat(np.arange(INPUTS), count) for count in counts)]
    pairs = list(zip(features["base"], features["mid"], strict=True))
    found, peer = timed(lambda: [[feature_cka(x[i], y[i]) for i in chosen] for x, y in pairs])
    ours = [cka(states["base"].sets["s"].grams[k], states["mid"].sets["s"].grams[k]) for k in range(PEER_LAYERS)]
    return {
        "grams_a_checkpoint": seconds_grams,
        "estimates_one_pair": one_pair,
        "estimates_three_pairs": three_pairs,
        "peer_one_pair": peer * LAYERS / PEER_LAYERS,
        "times_faster": peer * LAYERS / PEER_LAYERS / (2 * seconds_grams + one_pair),
        "largest_difference": max(abs(a - row[0]) for a, row in zip(ours, found, strict=True) if a is not None),
        # At a rate that no machine with two cores reaches: 1e12 operations a second.
        "share_of_a_forward_pass_at_1e12_flops": (2 * seconds_grams + one_pair) / (2 * PASS_FLOPS / 1e12),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file")
    out = parser.parse_args().out
    found = {"tiny": tiny(), "wide": wide()}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "numpy": np.__version__}
    for name, part in found.items():
        print(name)
        for key, value in part.items():
            print(f"  {key:40} {value:.6g}")
    if out is not None:
        out.write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
