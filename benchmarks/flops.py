"""Operations and parameters of the plan beside what torch counts, tiny models of all seven classes; written to JSON.

    python benchmarks/flops.py [--out benchmarks/results/flops.json]

The counter (``torch.utils.flop_counter``) sees every product that is dispatched. Two things it sees beyond the plan are
taken off by formula and shown: pairs that eager attention computes though no query sees them, and what the reference
Mamba scan computes for each head that kernels compute for each group. Nothing here depends on the machine's speed.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cost"))
from test_cost_operations import (  # pyright: ignore[reportMissingImports]
    ROWS,
    SEQ_LEN,
    all_pairs_extra,
    counted,
    model_of,
    reference_scan_extra,
)

from prismlab.cost.hub import CARD_PARAMETERS, HUB_CONFIGS, hub_shape
from prismlab.cost.operations import forward_operations, training_operations
from prismlab.micro.models import ARCHITECTURES


def one(arch: str) -> dict[str, Any]:
    """Counted and planned operations of a tiny model, forward alone and with the backward pass."""
    model, shape = model_of(arch)
    extra = ROWS * (all_pairs_extra(shape, SEQ_LEN) + reference_scan_extra(shape, SEQ_LEN))
    row: dict[str, Any] = {"arch": arch, "parameters": shape.parameters}
    row["parameters_true"] = sum(p.numel() for p in model.parameters())
    planned = {
        "forward": ROWS * forward_operations(shape, SEQ_LEN).total,
        "training": ROWS * training_operations(shape, SEQ_LEN).model.total,
    }
    for name, plan in planned.items():
        more = extra * (1 if name == "forward" else 3)
        found = counted(model, backward=name == "training")
        row[name] = {"counted": found, "beyond": more, "plan": plan, "ratio": (found - more) / plan}
    return row


def main() -> None:
    """Print a table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "flops.json")
    out: Path = parser.parse_args().out
    rows = [one(arch) for arch in ARCHITECTURES]
    print(f"{'class':<12} {'parameters':>10} {'true':>10} {'forward':>9} {'training':>9}   (counted / plan)")
    for row in rows:
        shown = f"{row['forward']['ratio']:>9.5f} {row['training']['ratio']:>9.5f}"
        print(f"{row['arch']:<12} {row['parameters']:>10,} {row['parameters_true']:>10,} {shown}")
    shapes = {name: hub_shape(name) for name in HUB_CONFIGS}
    hub = {name: {"plan": s.parameters, "card": CARD_PARAMETERS[name]} for name, s in shapes.items() if s is not None}
    for name, both in hub.items():
        print(f"{name:<40} {both['plan']:>14,}  card {both['card']:.4g}")
    whole = {"date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__, "tiny": rows, "hub": hub}
    out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
