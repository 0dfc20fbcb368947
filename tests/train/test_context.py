"""Rows shared by two processes against one: logits, loss and gradients, documents across the cut; hybrids refused."""

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

from prismlab.errors import CheckpointError, StageError
from prismlab.micro.models import build_model, tiny_config
from prismlab.model import boundaries
from prismlab.model.boundaries import Packed
from prismlab.model.checkpoint import save_checkpoint
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.train.context import ATTENTION, attach, share_rows
from prismlab.train.loop import World, train
from prismlab.train.loss import row_losses

torch.set_num_threads(1)

DENSE = ("llama", "mistral-swa", "granite", "granite4")
LENGTH, ROWS, STEPS = 192, 2, 3
SPEC: dict[str, Any] = {
    "steps": STEPS,
    "rows": ROWS,
    "seq_len": LENGTH,
    "micro_rows": 1,
    "precision": "float32",
    "on_nonfinite": "stop",
    "context_parallel": 1,
    "optimizer": {
        "lr": 1e-3,
        "schedule": "constant",
        "warmup": 0,
        "final_lr_factor": 1.0,
        "weight_decay": 0.1,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "clip": 1.0,
    },
}


def tiny(arch: str, layers: int = 2) -> Any:
    return build_model(tiny_config(arch, 32, layers, 258), 0).train()


class Rows:
    """Random rows of documents, one of which lies across the middle, and some tokens without a loss."""

    masked = True

    def __init__(self, rows: int = ROWS * STEPS) -> None:
        rng = np.random.default_rng(0)
        self.data = rng.integers(0, 256, (rows, LENGTH))
        self.ids = np.zeros((rows, LENGTH), np.int32)
        self.ids[0, 40:] = 1
        self.ids[0, 150:] = 2
        self.ids[1::2, 96:] = 1
        self.learned = rng.random((rows, LENGTH)) < 0.8

    def tokens(self, start: int, stop: int) -> Any:
        return self.data[start:stop]

    def loss_mask(self, start: int, stop: int) -> Any:
        return self.learned[start:stop]

    def documents(self, start: int, stop: int) -> Any:
        return self.ids[start:stop]

    def row_domains(self, start: int, stop: int) -> list[str]:
        return ["a"] * (stop - start)


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from test_context import DENSE, LENGTH, SPEC, Rows, tiny
from prismlab.model.boundaries import Packed, document_mask, window_of
from prismlab.train.context import attach, share_rows, shared_row_losses
from prismlab.train.loop import World, train
from prismlab.train.model import checkpoint_activations
out, world = Path(sys.argv[1]), World.join()
context = share_rows(world.rank, world.size, 2)
rows, part = Rows(), LENGTH // 2
first, found = world.rank * part, {}
tokens, packed = torch.as_tensor(rows.tokens(0, 2)), Packed.of(rows.documents(0, 2))
for arch in DENSE:
    model = tiny(arch)
    attach(model)
    mask = document_mask(packed.ids, window_of(model), first, part)
    span = slice(first, first + part)
    given = {"attention_mask": mask, "position_ids": packed.positions[:, span], "context": context}
    found[f"{arch}/logits"] = model(input_ids=tokens[:, span], use_cache=False, **given).logits.detach()
    for large in (2**26, 258 * 7):
        model.zero_grad()
        losses = shared_row_losses(model, tokens, torch.as_tensor(rows.loss_mask(0, 2)), packed, context, large)
        losses.sum().backward()
        found[f"{arch}/losses/{large}"] = losses.detach()
        for name, parameter in model.named_parameters():
            found[f"{arch}/{large}/{name}"] = parameter.grad.clone()
save_file({key: value.contiguous() for key, value in found.items()}, out / f"{world.rank}.safetensors")
told = {}
for arch in DENSE[:2]:
    model = tiny(arch)
    attach(model)
    checkpoint_activations(model, "full")
    told[arch] = [report.loss for report in train(model, Rows(), SPEC | {"context_parallel": 2}, world)]
if world.rank == 0:
    (out / "losses.json").write_text(json.dumps(told))
world.leave()
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes computed."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "two.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(folder / "two.py"), str(folder), str(Path(__file__).parent)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


needs_processes = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


@needs_processes
@pytest.mark.parametrize("arch", DENSE)
def test_logits_losses_and_gradients_are_those_of_one_process(arch: str, two: Path) -> None:
    rows, model = Rows(), tiny(arch)
    boundaries.prepare(model)
    tokens, packed = torch.as_tensor(rows.tokens(0, 2)), Packed.of(rows.documents(0, 2))
    assert packed is not None
    halves = [load_file(two / f"{rank}.safetensors") for rank in (0, 1)]
    logits = model(input_ids=tokens, use_cache=False, **boundaries.arguments(model, packed)).logits
    shared = torch.cat([half[f"{arch}/logits"] for half in halves], dim=1)
    torch.testing.assert_close(shared, logits.detach(), atol=1e-5, rtol=0)
    losses = row_losses(model, tokens, torch.as_tensor(rows.loss_mask(0, 2)), packed)
    losses.sum().backward()
    for large in (2**26, 258 * 7):
        for half in halves:
            torch.testing.assert_close(half[f"{arch}/losses/{large}"], losses.detach(), atol=1e-5, rtol=0)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            together = sum(half[f"{arch}/{large}/{name}"] for half in halves)
            torch.testing.assert_close(together, parameter.grad, atol=1e-5, rtol=0, msg=name)
    # The parts must differ: a process that had computed all of it would pass the sum with half a gradient each.
    name = "model.layers.1.self_attn.k_proj.weight"
    assert not torch.allclose(halves[0][f"{arch}/{2**26}/{name}"], halves[1][f"{arch}/{2**26}/{name}"], rtol=0.1)


@needs_processes
@pytest.mark.parametrize("arch", DENSE[:2])
def test_training_on_shared_rows_is_training(arch: str, two: Path) -> None:
    model = tiny(arch)
    boundaries.prepare(model)
    alone = [report.loss for report in train(model, Rows(), SPEC, World())]
    assert json.loads((two / "losses.json").read_text())[arch] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("arch", ["granite4-h", "nemotron-h"])
def test_hybrids_are_refused_with_the_reason(arch: str) -> None:
    with pytest.raises(CheckpointError, match=r"Mamba layers, which carry a state along the row.*context_parallel: 1"):
        attach(tiny(arch, 4))


@torch.no_grad()
def test_without_a_context_the_model_is_as_before(tmp_path: Path) -> None:
    model, tokens = tiny("llama").eval(), torch.as_tensor(Rows().tokens(0, 2))
    before = model(input_ids=tokens, use_cache=False).logits
    padding = torch.ones_like(tokens)
    padding[0, 100:] = 0
    padded = model(input_ids=tokens, attention_mask=padding, use_cache=False).logits
    attach(model)
    assert model.config._attn_implementation == ATTENTION
    assert torch.equal(model(input_ids=tokens, use_cache=False).logits, before)
    assert torch.equal(model(input_ids=tokens, attention_mask=padding, use_cache=False).logits, padded)
    save_checkpoint(model, build_byte_tokenizer(), tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text(), "a checkpoint does not ask for attention of ours"


def test_processes_that_cannot_share_are_refused() -> None:
    assert share_rows(0, 1, 1) is None
    with pytest.raises(StageError, match="3 processes cannot share rows by 2"):
        share_rows(0, 3, 2)
