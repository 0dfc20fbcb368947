"""Packed rows against their documents one by one, and against a row that ignores boundaries: every class, float32.

    python benchmarks/boundaries.py

For each tiny model: the largest difference of logits and of gradients (norm of the difference over the gradient's norm)
between packed rows and each document alone, and the largest difference of logits where boundaries are ignored. And what
it costs: processor seconds of a forward and backward pass on packed rows over those of the same rows as one text.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from prismlab.micro.models import ARCHITECTURES, build_model, tiny_config
from prismlab.model.boundaries import Packed, arguments, kernels_know_documents, prepare
from prismlab.train.loss import row_losses

RESULTS = Path(__file__).parent / "results" / "boundaries.json"
LENGTH, ROWS, WIDTH, LAYERS, VOCABULARY, REPEATS = 512, 8, 64, 6, 258, 5


def layout() -> np.ndarray:
    """Documents of rows [8, 512]: log-normal lengths, with a document of one token and a row that is one document."""
    rng = np.random.default_rng(0)
    ids = np.zeros((ROWS, LENGTH), np.int32)
    for row in range(1, ROWS):
        ends = np.cumsum(np.maximum(1, rng.lognormal(4.0, 1.0, LENGTH).astype(int)))
        for end in ends[ends < LENGTH]:
            ids[row, end:] += 1
    ids[1, -1] += 1
    return ids


def documents(ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for row in range(len(ids)):
        for number in np.unique(ids[row]):
            yield row, np.flatnonzero(ids[row] == number)


def gradients(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def agreement(arch: str, ids: np.ndarray, tokens: torch.Tensor) -> dict[str, float]:
    model = build_model(tiny_config(arch, WIDTH, LAYERS, VOCABULARY), 0).train()
    prepare(model)
    packed = Packed.of(ids)
    assert packed is not None
    together = model(input_ids=tokens, use_cache=False, **arguments(model, packed)).logits
    with torch.no_grad():
        ignored = model(input_ids=tokens, use_cache=False).logits
    together.square().mean().backward()
    found, worst, leak = gradients(model), 0.0, 0.0
    model.zero_grad()
    for row, at in documents(ids):
        alone = model(input_ids=tokens[row : row + 1, at], use_cache=False).logits[0]
        (alone.square().sum() / together.numel()).backward()
        worst = max(worst, float((together[row, at] - alone).detach().abs().max()))
        leak = max(leak, float((ignored[row, at] - alone).detach().abs().max()))
    expected = gradients(model)
    return {
        "logits": worst,
        "gradients": float((found - expected).norm() / expected.norm()),
        "logits_if_ignored": leak,
    }


def cost(arch: str, ids: np.ndarray, tokens: torch.Tensor) -> float:
    """Processor seconds on packed rows over those on the same rows as one text, in turn."""
    model = build_model(tiny_config(arch, WIDTH, LAYERS, VOCABULARY), 0).train()
    prepare(model)
    shares = []
    for _ in range(REPEATS):
        took = []
        for packing in (True, False):
            began = time.process_time()
            packed = Packed.of(ids) if packing else None
            row_losses(model, tokens, documents=packed).sum().backward()
            took.append(time.process_time() - began)
        shares.append(took[0] / took[1])
    return statistics.median(shares[1:])


def main() -> None:
    argparse.ArgumentParser(description=str(__doc__).splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    ids = layout()
    tokens = torch.randint(0, 256, ids.shape, generator=torch.Generator().manual_seed(0))
    rows = {}
    for arch in ARCHITECTURES:
        rows[arch] = agreement(arch, ids, tokens) | {"cpu_packed_over_one_text": cost(arch, ids, tokens)}
        print(f"{arch:<12}", *(f"{key} {value:.3g}" for key, value in rows[arch].items()))
    report = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "mamba_kernels": kernels_know_documents(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "rows": ROWS,
        "seq_len": LENGTH,
        "documents": sum(1 for _ in documents(ids)),
        "width": WIDTH,
        "layers": LAYERS,
        "asked_logits": 1e-5,
        "classes": rows,
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
