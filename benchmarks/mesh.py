"""Two processes against one: the losses of every step, on both meshes of two, in float32 and in bf16.

    python benchmarks/mesh.py --out benchmarks/results/mesh.json

Tiny models of three classes (dense, and both hybrids) are trained for 50 steps on the same rows by one process, and by
two as 1 x 2 (one copy, split) and 2 x 1 (two copies), over gloo. Told is the largest difference of a step's loss. In
float32 only the order of sums differs; in bf16 a sum in another order may round to a neighbour, and the difference
grows along the run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prismlab.micro.models import build_model, tiny_config
from prismlab.model import boundaries
from prismlab.train.loop import train
from prismlab.train.parallel import Mesh, Parallel, World

LAYERS = {"llama": 2, "granite4-h": 3, "nemotron-h": 4}
MESHES = {"1x2": Mesh(replicate=1, shard=2), "2x1": Mesh(replicate=2, shard=1)}
ROWS, LENGTH = 4, 24


class Rows:
    """Random rows of two documents each, no two of them alike, so that an order that is not the corpus's would show."""

    masked = True

    def __init__(self, steps: int) -> None:
        rng = np.random.default_rng(0)
        self._tokens = rng.integers(0, 256, (steps * ROWS, LENGTH))
        self._cut = rng.integers(2, LENGTH - 2, steps * ROWS)

    def tokens(self, start: int, stop: int) -> Any:
        return self._tokens[start:stop]

    def documents(self, start: int, stop: int) -> Any:
        return (np.arange(LENGTH) >= self._cut[start:stop, None]).astype(np.int32)

    def loss_mask(self, start: int, stop: int) -> Any:
        return np.arange(LENGTH) != self._cut[start:stop, None]

    def row_domains(self, start: int, stop: int) -> list[str]:
        return ["web"] * (stop - start)


def spec(steps: int, precision: str) -> dict[str, Any]:
    return {
        "steps": steps,
        "rows": ROWS,
        "seq_len": LENGTH,
        "micro_rows": 1,
        "precision": precision,
        "on_nonfinite": "stop",
        "optimizer": {
            "lr": 1e-3,
            "schedule": "cosine",
            "warmup": 5,
            "final_lr_factor": 0.1,
            "weight_decay": 0.1,
            "betas": [0.9, 0.95],
            "eps": 1e-8,
            "clip": 1.0,
            "decay_steps": None,
        },
    }


def losses(arch: str, precision: str, steps: int, world: World, mesh: Mesh) -> list[list[float]]:
    """Loss and gradient norm of each step."""
    model = build_model(tiny_config(arch, 32, LAYERS[arch], 258), 0)
    boundaries.prepare(model)
    parallel = Parallel(model, world, mesh, precision)
    reports = train(model, Rows(steps), spec(steps, precision), world, parallel=parallel)
    return [[report.loss, report.grad_norm] for report in reports]


def worker(steps: int, precisions: list[str], out: Path) -> None:
    """Under torchrun: every model on both meshes; the first process writes the losses."""
    torch.set_num_threads(1)
    world = World.join()
    found = {
        f"{arch} {precision} {name}": losses(arch, precision, steps, world, mesh)
        for arch in LAYERS
        for precision in precisions
        for name, mesh in MESHES.items()
    }
    if world.rank == 0:
        out.write_text(json.dumps(found))
    world.leave()


def measure(steps: int, precisions: list[str]) -> dict[str, dict[str, float]]:
    """By model, precision and mesh: largest difference of a step's loss, of its gradient's norm (relative), first and
    last loss of one process.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "losses.json"
        script = [str(Path(__file__).resolve()), "--steps", str(steps), "--precisions", *precisions, "--out", str(out)]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*launcher, *script], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-4000:])
        two: dict[str, list[list[float]]] = json.loads(out.read_text())
    found: dict[str, dict[str, float]] = {}
    for arch in LAYERS:
        for precision in precisions:
            one = np.asarray(losses(arch, precision, steps, World(), Mesh()))
            for name in MESHES:
                other = np.asarray(two[f"{arch} {precision} {name}"])
                found[f"{arch} {precision} {name}"] = {
                    "steps": len(other),
                    "loss": float(np.abs(other - one)[:, 0].max()),
                    "norm": float((np.abs(other - one) / one)[:, 1].max()),
                    "first": float(one[0, 0]),
                    "last": float(one[-1, 0]),
                }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if "LOCAL_RANK" in os.environ:
        worker(options.steps, options.precisions, options.out)
        return
    torch.set_num_threads(1)
    found = measure(options.steps, options.precisions)
    for name, row in found.items():
        print(f"{name:26} loss {row['loss']:.1e}  norm {row['norm']:.1e}  ({row['first']:.3f} to {row['last']:.3f})")
    if options.out:
        about = {
            "date": date.today().isoformat(),
            "device": f"{platform.machine()}, CPU, gloo",
            "torch": torch.__version__,
            "differences": found,
        }
        options.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
