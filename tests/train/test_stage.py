"""The stage from artifacts to artifacts: snapshots kept or measured, master weights, one process or two."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prismlab.analyse import trajectory
from prismlab.arith import trace
from prismlab.data.corpus import write_corpus
from prismlab.errors import CheckpointError, StageError
from prismlab.model.checkpoint import load_tokenizer, save_checkpoint
from prismlab.model.tokens import tokenizer_hash
from prismlab.run.step import Artifact, Silent
from prismlab.study.checkpoints import TrainSpec
from prismlab.train import stage
from prismlab.train.parallel import World

sys.path.insert(0, str(Path(__file__).parent))
import ranks

torch.set_num_threads(1)

STEPS, ROWS, LENGTH = 6, 4, 16
THRESHOLDS = [0.001, 0.01]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<eos>": 0} | {letter: place for place, letter in enumerate(sorted(ByteLevel.alphabet()), start=1)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def prepare(root: Path) -> Path:
    """``start/model`` and ``corpus`` under ``root``."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    save_checkpoint(LlamaForCausalLM(config), tokenizer, root / "start" / "model")
    (root / "corpus").mkdir()
    write_corpus(
        root / "corpus",
        row_source=np.zeros(STEPS * ROWS, np.int64),
        blocks=[(0, [np.random.default_rng(0).integers(1, 257, (STEPS * ROWS, LENGTH))])],
        sources=[{"name": "web", "domain": "web"}],
        seq_len=LENGTH,
        vocab=len(tokenizer),
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    return root


def artifact(kind: str, path: Path, **metrics: Any) -> Artifact:
    return Artifact(kind=kind, fingerprint="0" * 16, path=path, record={"config": {}, "metrics": metrics})


def configured(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "stage": "midtrain",
        "from": "base",
        "mixture": "mc",
        "steps": STEPS,
        "rows": ROWS,
        "seq_len": LENGTH,
        "tensorboard": False,
        "optimizer": {"lr": 1e-3, "schedule": "constant", "eps": 1e-8},
        **changes,
    }
    spec = TrainSpec.model_validate(given).model_dump(mode="json", by_alias=True)
    measured = {} if spec["keep_snapshots"] else {"thresholds": THRESHOLDS}
    return {"stage": "midtrain", "spec": spec, "seed": 1, **measured}


def train(root: Path, name: str, **changes: Any) -> Path:
    """Run the stage; its artifact's folder."""
    out = root / name
    out.mkdir(exist_ok=True)
    inputs = {"start": artifact("base", root / "start"), "corpus": artifact("corpus", root / "corpus")}
    stage.run(configured(**changes), inputs, out, Silent())
    return out


def path_of(root: Path, run: Path) -> tuple[dict[str, Any], bytes]:
    """Metrics and table of the stage ``trajectory``."""
    out = root / f"path-{run.name}"
    out.mkdir()
    inputs = {"start": artifact("base", root / "start"), "run": artifact("train", run, steps=STEPS)}
    metrics = trajectory.run({"thresholds": THRESHOLDS}, inputs, out, Silent()).metrics
    return dict(metrics), (out / trace.FILE).read_bytes()


def test_measured_snapshots_give_the_path_of_kept_ones_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    kept = train(tmp_path, "kept", snapshots=3)
    assert [p.name for p in sorted((kept / "snapshots").iterdir())] == ["step-000002", "step-000004", "step-000006"]
    there: list[list[str]] = []
    take = trace.Recorder.take

    def watched(self: trace.Recorder, step: int, folder: Path) -> None:
        there.append(sorted(p.name for p in folder.parent.iterdir()))
        take(self, step, folder)

    monkeypatch.setattr(trace.Recorder, "take", watched)
    dropped = train(tmp_path, "dropped", snapshots=3, keep_snapshots=False)
    steps = ["step-000002", "step-000004", "step-000006"]
    assert there == [steps[:1], steps[:2], steps[1:]]
    assert sorted(p.name for p in dropped.iterdir()) == ["metrics.jsonl", "model", "trajectory.parquet"]
    weights = [load_file(run / "model/model.safetensors") for run in (kept, dropped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    (first, table), (second, other) = path_of(tmp_path, kept), path_of(tmp_path, dropped)
    assert first == second
    assert table == other
    assert first["steps"] == [2, 4, 6]
    assert 0 < first["l2"][0] < first["l2"][2]
    assert set(first["components"]) == {"attention", "mlp", "embedding", "norm"}
    assert first["skipped"] == []


def test_without_snapshots_nothing_is_measured(tmp_path: Path) -> None:
    out = train(prepare(tmp_path), "out", keep_snapshots=False)
    assert sorted(p.name for p in out.iterdir()) == ["metrics.jsonl", "model"]


def test_master_weights_round_to_the_checkpoint(tmp_path: Path) -> None:
    out = train(prepare(tmp_path), "out", keep_master=True)
    master, saved = (load_file(out / name / "model.safetensors") for name in ("master", "model"))
    assert set(master) == set(saved)
    assert {tensor.dtype for tensor in master.values()} == {torch.float32}
    assert all(torch.equal(master[name].bfloat16(), saved[name]) for name in saved)
    assert any(not torch.equal(master[name], saved[name].float()) for name in saved)
    assert json.loads((out / "master/config.json").read_text())["dtype"] == "float32"
    assert sorted(p.name for p in (out / "master").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
from test_stage import train
train(Path(sys.argv[1]), "two", snapshots=3, keep_snapshots=False, keep_master=True, launch="torchrun", nproc=2)
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_of_two_processes_the_first_measures(tmp_path: Path) -> None:
    prepare(tmp_path)
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    arguments = [str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(
        command + arguments, capture_output=True, text=True, timeout=1800, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "two"
    assert sorted(p.name for p in out.iterdir()) == ["master", "metrics.jsonl", "model", "trajectory.parquet"]
    found, _ = path_of(tmp_path, out)
    shutil.copytree(out / "model", tmp_path / "again/snapshots/step-000006")
    shutil.copytree(out / "model", tmp_path / "again/model")
    again, _ = path_of(tmp_path, tmp_path / "again")
    assert found["l2"][-1] == again["l2"][-1]
    assert found["equal"][-1] == again["equal"][-1]
    alone, _ = path_of(tmp_path, train(tmp_path, "alone", snapshots=3, keep_snapshots=False))
    # Sums over ranks are added in another order, which bf16 can turn into another neighbour.
    assert found["l2"] == pytest.approx(alone["l2"], rel=0.02)


def test_steps_passed_over_in_a_row_are_counted_on_by_a_run_that_goes_on(tmp_path: Path) -> None:
    ranks.prepare(tmp_path)
    file = tmp_path / "start/model/model.safetensors"
    weights = {
        name: tensor * math.nan if name.endswith("norm.weight") else tensor for name, tensor in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    changes: dict[str, Any] = {"on_nonfinite": "skip", "snapshots": 0, "monitor": None}
    assert ranks.run(tmp_path, "out", 5, **changes) is None
    # Every step is passed over: of a run that began to count anew at its save, of step 4, all 12 would be.
    with pytest.raises(StageError, match=r"step 11: .*the 10 steps before were passed over too"):
        ranks.run(tmp_path, "out", None, **changes)
    assert "going on after step 4" in (tmp_path / "out/notes.txt").read_text()


def test_a_corpus_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path)
    manifest = json.loads((tmp_path / "corpus/manifest.json").read_text())
    (tmp_path / "corpus/manifest.json").write_text(json.dumps({**manifest, "tokenizer": "another"}))
    with pytest.raises(CheckpointError, match="built with another tokenizer than the checkpoint's: set the study's"):
        train(tmp_path, "run")


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "start/model")
    model.resize_token_embeddings(200)
    save_checkpoint(model, load_tokenizer(tmp_path / "start/model"), tmp_path / "start/model")
    with pytest.raises(CheckpointError, match="the tokenizer has 257 tokens, the model's embedding only 200 rows"):
        train(tmp_path, "run")


def test_a_class_that_nobody_has_shown_to_keep_documents_apart_is_refused_unless_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    monkeypatch.setattr("prismlab.model.boundaries.DOCUMENTS_APART", ("granite",))
    with pytest.raises(CheckpointError, match="set 'boundaries: ignore'"):
        train(tmp_path, "respecting")
    train(tmp_path, "ignoring", boundaries="ignore")


@pytest.mark.parametrize("size", [1, 2])
def test_a_model_that_is_split_is_never_whole_on_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Several processes load it into the CPU's memory, made ready for the device to which its parts go."""
    prepare(tmp_path)
    told: list[torch.device] = []
    load, ready = stage.load_model, stage.make_ready

    def loaded(folder: Path, dtype: str, device: torch.device) -> Any:
        told.append(device)
        return load(folder, dtype, torch.device("cpu"))

    def made(model: Any, spec: Any, device: torch.device) -> None:
        told.append(device)
        ready(model, spec, torch.device("cpu"))

    monkeypatch.setattr(stage, "load_model", loaded)
    monkeypatch.setattr(stage, "make_ready", made)
    gpu = torch.device("cuda", 0)
    inputs = {"start": artifact("base", tmp_path / "start"), "corpus": artifact("corpus", tmp_path / "corpus")}
    stage._prepared(configured(), inputs, World(rank=0, size=size, device=gpu))
    assert told == [torch.device("cpu") if size > 1 else gpu, gpu]
