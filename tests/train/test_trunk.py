"""A longer run on a shorter one's trunk: the bits of a run by itself, and refusals where the two are not one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prismlab.data import build
from prismlab.data.corpus import Corpus, write_corpus
from prismlab.errors import CheckpointError
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.checkpoint import load_tokenizer, save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer, tokenizer_hash
from prismlab.run.step import Artifact, Silent
from prismlab.study.checkpoints import PackingSpec, TrainSpec
from prismlab.study.spec import SourceSpec
from prismlab.study.world import MicroSpec
from prismlab.train import stage
from prismlab.train.boundaries import TrainingRows

torch.set_num_threads(1)

ROWS, LENGTH, LONGEST = 2, 16, 12


def prepare(root: Path, arch: str = "llama") -> None:
    tokenizer = build_byte_tokenizer()
    save_checkpoint(build_model(tiny_config(arch, 32, 2, 258), 0), tokenizer, root / "start" / "model")
    for name, seed in (("corpus", 0), ("other", 1)):
        (root / name).mkdir()
        write_corpus(
            root / name,
            row_source=np.zeros(LONGEST * ROWS, np.int64),
            blocks=[(0, [np.random.default_rng(seed).integers(0, 256, (LONGEST * ROWS, LENGTH))])],
            sources=[{"name": "web", "domain": "web"}],
            seq_len=LENGTH,
            vocab=len(tokenizer),
            tokenizer_hash=tokenizer_hash(load_tokenizer(root / "start" / "model")),
        )


def artifact(kind: str, path: Path) -> Artifact:
    return Artifact(kind=kind, fingerprint="0" * 16, path=path, record={"config": {}, "metrics": {}})


def train(root: Path, name: str, steps: int, corpus: str = "corpus", **more: Any) -> Path:
    """Run the stage as the planner has it; ``schedule``, ``branch`` and ``prefix`` (folder, step) in ``more``."""
    schedule = more.pop("schedule", {"schedule": "constant"})
    given = {
        "stage": "midtrain",
        "from": "base",
        "mixture": "m",
        "steps": steps,
        "rows": ROWS,
        "seq_len": LENGTH,
        "tensorboard": False,
        "optimizer": {"lr": 1e-3, "eps": 1e-8, "warmup": 2, **schedule},
        **more.pop("spec", {}),
    }
    spec = TrainSpec.model_validate(given).model_dump(mode="json", by_alias=True)
    config: dict[str, Any] = {"stage": "midtrain", "spec": spec, "seed": steps}
    inputs = {"start": artifact("base", root / "start"), "corpus": artifact("corpus", root / corpus)}
    if "branch" in more:
        config["branch"] = more["branch"]
    if "prefix" in more:
        inputs["prefix"], config["prefix"] = artifact("train", more["prefix"][0]), {"step": more["prefix"][1]}
    (root / name).mkdir(exist_ok=True)
    stage.run(config, inputs, root / name, Silent())
    return root / name


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def losses(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


@pytest.mark.parametrize(
    ("schedule", "short", "long", "branch"),
    [
        ({"schedule": "constant"}, 5, 9, 5),
        ({"schedule": "wsd", "decay_steps": 3, "final_lr_factor": 0.0}, 7, 12, 4),
    ],
)
def test_a_run_on_a_trunk_is_the_run_by_itself_to_the_last_bit(
    tmp_path: Path, schedule: dict[str, Any], short: int, long: int, branch: int
) -> None:
    prepare(tmp_path)
    whole = {name: train(tmp_path, f"whole-{name}", n, schedule=schedule) for name, n in (("a", short), ("b", long))}
    first = train(tmp_path, "a", short, schedule=schedule, branch=branch)
    second = train(tmp_path, "b", long, schedule=schedule, prefix=(first, branch))
    for name, run in (("a", first), ("b", second)):
        mine, alone = weights(run), weights(whole[name])
        assert all(torch.equal(mine[key], alone[key]) for key in alone)
        assert losses(run) == losses(whole[name])
    assert losses(second)[-1][0] == long
    kept = [path.name for path in (first / "trunk").iterdir()]
    assert kept == [f"step-{branch:08d}"]
    assert not (second / "trunk").exists()


def test_a_hybrid_with_adapters_branches_too(tmp_path: Path) -> None:
    """Adapters begin at random, by a seed that differs between the runs: the trunk's are taken."""
    prepare(tmp_path, "granite4-h")
    spec = {"lora": {"rank": 2, "alpha": 4.0}}
    first = train(tmp_path, "a", 3, branch=3, spec=spec)
    second = train(tmp_path, "b", 5, prefix=(first, 3), spec=spec)
    assert losses(second)[:3] == losses(first)
    again = train(tmp_path, "c", 5, prefix=(first, 3), spec=spec)
    assert all(torch.equal(weights(second)[key], tensor) for key, tensor in weights(again).items())


@pytest.mark.parametrize("how", ["rows", "rate", "damage", "nothing"])
def test_runs_that_are_not_one_are_refused_with_the_remedy(tmp_path: Path, how: str) -> None:
    prepare(tmp_path)
    first = train(tmp_path, "a", 4, branch=None if how == "nothing" else 4)
    if how == "damage":
        part = next((first / "trunk").rglob("*.safetensors"))
        part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="share_prefix: false"):
        train(
            tmp_path,
            "b",
            6,
            "other" if how == "rows" else "corpus",
            prefix=(first, 4),
            spec={"precision": "bf16"} if how == "rate" else {},
        )


def test_what_a_stopped_run_left_of_its_trunk_is_no_part_of_it(tmp_path: Path) -> None:
    """It may be of more processes: their parts would lie in the artifact, or be taken for those of this run."""
    prepare(tmp_path)
    for name in (".partial-00000003", ".dropped-step-00000003"):
        left = tmp_path / "a" / "trunk" / name
        left.mkdir(parents=True)
        (left / "part-00001.safetensors").write_bytes(b"half")
        (left / "part-00001.json").write_text("{}")
    first = train(tmp_path, "a", 3, branch=3)
    files = sorted(str(path.relative_to(first / "trunk")) for path in (first / "trunk").rglob("*") if path.is_file())
    wanted = ("part-00000.json", "part-00000.safetensors", "save.json")
    assert files == [f"step-00000003/{name}" for name in wanted]


@pytest.mark.parametrize("packing", [{}, {"method": "best_fit", "window": 50}])
def test_corpora_of_different_lengths_begin_alike(tmp_path: Path, packing: dict[str, Any]) -> None:
    """What a trunk relies on: rows do not depend on how many come after them."""
    build_byte_tokenizer().save_pretrained(tmp_path / "base" / "model")
    sources = {
        "web": {"micro": {"domain": "science", "form": "worked"}},
        "sums": {"micro": {"domain": "math", "form": "worked"}},
    }
    found = []
    for rows in (24, 60):
        config = {
            "mixture": "mix",
            "weights": {"web": 0.6, "sums": 0.4},
            "max_epochs": 100.0,
            "sources": {
                n: SourceSpec.model_validate(s).model_dump(mode="json", by_alias=True) for n, s in sources.items()
            },
            "micro": MicroSpec(math_min_digits=1, math_max_digits=2, documents=400).model_dump(mode="json"),
            "packing": PackingSpec.model_validate(packing).model_dump(mode="json"),
            "tokens_in_source": {},
            "rows": rows,
            "seq_len": 64,
            "heldout": 0.1,
            "template": "think",
            "seed": 5,
        }
        (tmp_path / str(rows)).mkdir()
        build.run(config, {"tokenizer": artifact("base", tmp_path / "base")}, tmp_path / str(rows), Silent())
        found.append(TrainingRows(Corpus.open(tmp_path / str(rows)), "respect"))
    for part in ("tokens", "documents", "loss_mask"):
        assert np.array_equal(getattr(found[0], part)(0, 24), getattr(found[1], part)(0, 24)), part


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from test_trunk import train
root, two = Path(sys.argv[1]), {"launch": "torchrun", "nproc": 2}
if sys.argv[3] == "short":
    train(root, "short", 3, branch=3, spec=two)
else:
    train(root, "long", 6, prefix=(root / "short", 3), spec=two)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_leave_a_trunk_and_take_it_up(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "two.py").write_text(SCRIPT)
    for part in ("short", "long"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += [str(tmp_path / "two.py"), str(tmp_path), str(Path(__file__).parent), part]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=1800, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr[-2000:]
    alone = losses(train(tmp_path, "alone", 6))
    assert [step for step, _ in losses(tmp_path / "long")] == [step for step, _ in alone]
    assert [loss for _, loss in losses(tmp_path / "long")] == pytest.approx([loss for _, loss in alone], abs=1e-5)
    # What two left, one takes up.
    one = losses(train(tmp_path, "one", 6, prefix=(tmp_path / "short", 3)))
    assert [loss for _, loss in one] == pytest.approx([loss for _, loss in alone], abs=1e-5)
