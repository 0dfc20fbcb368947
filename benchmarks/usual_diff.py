"""The script that people write today to compare two checkpoints: the peer of ``benchmarks/checkpoints.py``.

    python benchmarks/usual_diff.py OLD NEW

It loads both, goes to float32 and compares tensor by tensor: L2 and the share under six relative thresholds.
Prints one JSON line: seconds of loading and comparing (imports apart), and the figures, so that they can be compared.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

THRESHOLDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)


def load(folder: str) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        out |= load_file(file)
    return out


def main(old_folder: str, new_folder: str) -> None:
    began = time.perf_counter()
    old, new = load(old_folder), load(new_folder)
    difference2 = old2 = 0.0
    under = dict.fromkeys(THRESHOLDS, 0)
    elements = 0
    for name, tensor in old.items():
        a, b = tensor.float(), new[name].float()
        difference2 += (b - a).pow(2).sum().item()
        old2 += a.pow(2).sum().item()
        for t in THRESHOLDS:
            under[t] += ((b - a).abs() / a.abs() < t).sum().item()
        elements += a.numel()
    seconds = time.perf_counter() - began
    figures = {"l2": (difference2 / old2) ** 0.5, "under": {str(t): n / elements for t, n in under.items()}}
    print(json.dumps({"seconds": seconds, "elements": elements, **figures}))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(*sys.argv[1:3])
