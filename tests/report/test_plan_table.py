"""Plan beside reality: figures of the table against sums done by hand for one tiny training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from synthetic import World, complete

from prismlab.cost.memory import RESERVED, Setting, memory
from prismlab.cost.shapes import shape_of
from prismlab.micro.models import tiny_config
from prismlab.report.plan import plan_and_reality
from prismlab.report.records import Records

SPEC: dict[str, Any] = {"stage": "midtrain", "from": "base", "mixture": "mc", "steps": 50, "rows": 4, "seq_len": 64}
SPEC |= {"precision": "float32", "optimizer": {"lr": 1e-3}, "boundaries": "ignore"}


def trained(
    root: Path, seed: int, metrics: dict[str, Any], config: str | None = None, branch: int | None = None, **spec: Any
) -> Records:
    world: World = complete((seed,), sweeps=False)
    world.inputs.clear()
    world.entries.clear()
    folder = root / f"train-{seed}"
    (folder / "model").mkdir(parents=True)
    text = tiny_config("llama", 32, 2, 258).to_json_string() if config is None else config
    (folder / "model" / "config.json").write_text(text)
    world.study["checkpoints"] = {"mid": {**SPEC, **spec}}
    given = {"spec": {**SPEC, **spec}} | ({} if branch is None else {"branch": branch})
    world.add("train", "mid", seed, metrics, given, folder, checkpoint="mid", start="base")
    return Records(study=world.study, entries=world.entries, arms={}, inputs=world.inputs)


def test_a_row_by_hand(tmp_path: Path) -> None:
    metrics = {"tokens_per_second": 5000.0, "mfu": 0.2, "memory_mb": 600.0, "device": "cpu", "mesh": None}
    records = trained(tmp_path, 0, metrics)
    (table,) = plan_and_reality(records)
    shown = dict(zip(range(len(table.head)), [cell.text for cell in table.rows[0]], strict=True))
    shape = shape_of(json.loads(tiny_config("llama", 32, 2, 258).to_json_string()))
    products = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 96) + 258 * 32
    tokens = 50 * 4 * 64
    operations = 3 * tokens * (2 * products + 4 * 2 * 32 * 65 / 2)
    assert float(shown[1].replace(",", "")) == pytest.approx(operations, rel=0.01)
    # At 20% of the matrix rate it made 5,000 tokens a second, so at the plan's 40% it would make 10,000.
    assert (shown[2], shown[3], shown[4]) == ("20.0%", "10,000", "5,000")
    assert (shown[5], shown[6]) == ("1.3 s", "2.6 s")
    assert shown[8] == "629", "600 MiB"
    assert float(shown[7]) > 450, "a process has its libraries loaded before it has a model"
    assert shown[9] == f"{2 * shape.parameters / 1e6:,.1f}"


def test_what_is_not_known_is_left_open(tmp_path: Path) -> None:
    records = trained(tmp_path, 0, {"tokens_per_second": 5000.0})
    cells = [cell.text for cell in plan_and_reality(records)[0].rows[0]]
    assert cells[2] == cells[3] == cells[5] == cells[8] == "–"
    assert cells[4] == "5,000"


@pytest.mark.parametrize("config", ['{"model_type": "mixtral"}', "no json"])
def test_a_class_without_a_known_cost_has_no_row(tmp_path: Path, config: str) -> None:
    assert plan_and_reality(trained(tmp_path, 0, {"tokens_per_second": 1.0}, config)) == []


def test_adapters_are_not_reckoned_as_if_all_were_trained(tmp_path: Path) -> None:
    assert plan_and_reality(trained(tmp_path, 0, {"tokens_per_second": 1.0}, lora={"r": 8})) == []


@pytest.mark.parametrize(
    ("mesh", "shared"),
    [({"replicate": 2, "shard": 1}, 1), ({"replicate": 1, "shard": 2}, 1), ({"replicate": 1, "shard": 2}, 2)],
)
def test_memory_is_planned_for_the_mesh_that_was(tmp_path: Path, mesh: dict[str, int], shared: int) -> None:
    """Two processes, also where they share their rows: no more devices than there were."""
    metrics = {"tokens_per_second": 5000.0, "device": "cuda", "mesh": mesh}
    records = trained(tmp_path, 0, metrics, rows=512, seq_len=2048, context_parallel=shared)
    shape = shape_of(json.loads(tiny_config("llama", 32, 2, 258).to_json_string()))
    setting = Setting(
        devices=2,
        shard=mesh["shard"],
        rows=512,
        seq_len=2048,
        precision="float32",
        masked=False,
        context_parallel=shared,
    )
    wanted = (memory(shape, setting).total - RESERVED["cuda"]) / 1e6
    assert plan_and_reality(records)[0].rows[0][7].text == f"{wanted:,.0f}"


def test_what_is_kept_for_a_longer_run_is_planned_for(tmp_path: Path) -> None:
    cells = plan_and_reality(trained(tmp_path, 0, {"tokens_per_second": 1.0}, branch=40))[0].rows[0]
    shape = shape_of(json.loads(tiny_config("llama", 32, 2, 258).to_json_string()))
    assert cells[9].text == f"{(2 + 12) * shape.parameters / 1e6:,.1f}"
