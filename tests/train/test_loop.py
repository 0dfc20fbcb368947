"""The loop against a plain re-implementation, its failures, and two processes against one."""

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
from transformers import LlamaConfig, LlamaForCausalLM

from prismlab.errors import StageError
from prismlab.train.loop import World, train
from prismlab.train.loss import row_losses

SPEC: dict[str, Any] = {
    "steps": 4,
    "rows": 4,
    "seq_len": 16,
    "micro_rows": None,
    "precision": "float32",
    "on_nonfinite": "stop",
    "optimizer": {
        "lr": 1e-2,
        "schedule": "constant",
        "warmup": 0,
        "final_lr_factor": 1.0,
        "weight_decay": 0.0,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "clip": None,
    },
}


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


class Rows:
    """Random rows; even rows are of domain a, odd rows of domain b."""

    def __init__(self, n: int, seq_len: int = 16, learned: Any = None) -> None:
        self.data = np.random.default_rng(0).integers(0, 32, (n, seq_len))
        self.masked, self.learned = learned is not None, learned

    def loss_mask(self, start: int, stop: int) -> Any:
        return self.learned[start:stop]

    def tokens(self, start: int, stop: int) -> Any:
        return self.data[start:stop]

    def documents(self, start: int, stop: int) -> Any:
        return None

    def row_domains(self, start: int, stop: int) -> list[str]:
        return ["a" if i % 2 == 0 else "b" for i in range(start, stop)]


def test_loss_is_the_models_own() -> None:
    model, tokens = tiny(), torch.as_tensor(Rows(3).data)
    expected = [model(input_ids=row[None], labels=row[None]).loss.item() for row in tokens]
    assert row_losses(model, tokens).tolist() == pytest.approx(expected, abs=1e-6)


def test_training_equals_a_plain_loop() -> None:
    rows, model, other = Rows(16), tiny(), tiny()
    reports = list(train(model, rows, SPEC, World()))
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for step in range(4):
        batch = torch.as_tensor(rows.tokens(step * 4, step * 4 + 4))
        loss = other(input_ids=batch, labels=batch).loss
        assert reports[step].loss == pytest.approx(loss.item(), abs=1e-5)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5), name


def some_learned(n: int = 16) -> Any:
    """A mask under which rows hold from none to all of their tokens."""
    learned = np.random.default_rng(1).random((n, 16)) < np.linspace(0.1, 1, n)[:, None]
    learned[2] = False
    learned[3] = True
    return learned


@pytest.mark.parametrize("micro", [None, 1, 3])
def test_the_loss_is_the_mean_over_the_tokens_that_are_learned(micro: int | None) -> None:
    learned = some_learned()
    rows, model, other = Rows(16, learned=learned), tiny(), tiny()
    spec = SPEC | {"micro_rows": micro, "steps": 3}
    reports = list(train(model, rows, spec, World()))
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for step in range(3):
        batch = torch.as_tensor(rows.data[step * 4 : step * 4 + 4])
        logs = torch.log_softmax(other(input_ids=batch).logits.double(), dim=-1)
        # Position t - 1 speaks of token t: the sum is taken by hand over the tokens of the mask.
        each = {
            (row, at): -logs[row, at - 1, batch[row, at]]
            for row in range(4)
            for at in range(1, 16)
            if learned[step * 4 + row, at]
        }
        loss = sum(each.values()) / len(each)
        assert reports[step].loss == pytest.approx(loss.item(), abs=1e-5)
        odd = [value.item() for (row, _), value in each.items() if row % 2]
        assert reports[step].domains["b"] == pytest.approx(sum(odd) / len(odd), abs=1e-5)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=5e-5), name


def test_a_mask_that_leaves_all_changes_nothing_but_rounding() -> None:
    plain, masked = tiny(), tiny()
    list(train(plain, Rows(16), SPEC, World()))
    list(train(masked, Rows(16, learned=np.ones((16, 16), bool)), SPEC, World()))
    for a, b in zip(plain.parameters(), masked.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_step_with_nothing_to_learn_is_refused_and_a_domain_without_is_left_out() -> None:
    learned = np.ones((16, 16), bool)
    learned[:4:2] = False
    learned[4:8] = False
    learned[4:8, 0] = True  # The first token of a row is predicted by nothing.
    reports = train(tiny(), Rows(16, learned=learned), SPEC, World())
    assert set(next(reports).domains) == {"b"}
    with pytest.raises(StageError, match="step 2: no token of its rows is learned"):
        next(reports)


def test_micro_batches_change_nothing_but_rounding() -> None:
    whole, parts = tiny(), tiny()
    list(train(whole, Rows(16), SPEC, World()))
    list(train(parts, Rows(16), SPEC | {"micro_rows": 1}, World()))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_domain_losses_average_to_the_loss() -> None:
    report = next(iter(train(tiny(), Rows(16), SPEC, World())))
    assert report.loss == pytest.approx((report.domains["a"] + report.domains["b"]) / 2)
    assert report.tokens == 4 * 16


def test_same_seed_same_bits() -> None:
    first, second = tiny(), tiny()
    list(train(first, Rows(16), SPEC, World()))
    list(train(second, Rows(16), SPEC, World()))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops_and_names_step_and_domain() -> None:
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(
        StageError, match=r"step 1: loss is nan, on the corpus's rows 0 \(a\), 1 \(b\), 2 .*on_nonfinite: skip"
    ):
        list(train(model, Rows(16), SPEC, World()))


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_break(clip: float | None) -> None:
    model = tiny()
    before = [p.detach().clone() for p in model.parameters()]
    model.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    # One step: its loss is finite, and there is no later one that would be NaN.
    spec = {**SPEC, "steps": 1, "optimizer": {**SPEC["optimizer"], "clip": clip}}
    with pytest.raises(StageError, match=r"step 1: the gradient's norm is (inf|nan)"):
        list(train(model, Rows(16), spec, World()))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class Broken(Rows):
    """The rows, of which some are of a token whose embedding is no number."""

    def __init__(self, bad: list[int], n: int = 64) -> None:
        super().__init__(n)
        self.data %= 31
        self.data[bad] = 31


def broken_model() -> LlamaForCausalLM:
    model = tiny()
    with torch.no_grad():
        model.model.embed_tokens.weight[31] = float("nan")
    return model


def test_skipped_steps_change_nothing_and_name_their_rows() -> None:
    model = broken_model()
    before, reports = [], []
    steps = train(model, Broken([5, 6]), SPEC | {"on_nonfinite": "skip"}, World())
    for report in steps:
        reports.append(report)
        before.append([p.detach().clone() for p in model.parameters()])
    assert [report.skipped is None for report in reports] == [True, False, True, True]
    assert "rows 5 (b), 6 (a)" in str(reports[1].skipped)
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(before[0], before[1], strict=True))
    # What comes after is what it would have been without the step, whose rows are left out; the rate is constant.
    other = broken_model()
    rows = Broken([])
    rows.data = np.delete(rows.data, [4, 5, 6, 7], axis=0)
    list(train(other, rows, SPEC | {"steps": 3}, World()))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a[:31] if a.shape[0] == 32 else a, b[:31] if b.shape[0] == 32 else b)


def test_too_many_skipped_steps_in_a_row_stop() -> None:
    spec = SPEC | {"on_nonfinite": "skip", "steps": 16}
    bad = [4 * step for step in range(2, 13)]
    steps = train(broken_model(), Broken(bad), spec, World())
    assert [next(steps).skipped is None for _ in range(12)] == [True] * 2 + [False] * 10
    with pytest.raises(StageError, match=r"step 13: .*the 10 steps before were passed over too"):
        next(steps)
    # One fewer, and it goes on.
    assert len(list(train(broken_model(), Broken(bad[:-1]), spec, World()))) == 16


def test_rows_that_do_not_divide_among_processes_are_refused() -> None:
    with pytest.raises(StageError, match="4 rows a step cannot be split over 3 processes"):
        list(train(tiny(), Rows(16), SPEC, World(size=3)))


SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from test_loop import SPEC, Rows, tiny
from prismlab.train.loop import World, train
world = World.join()
losses = [r.loss for r in train(tiny(), Rows(16), SPEC, world)]
if world.rank == 0:
    open(sys.argv[1], "w").write(json.dumps(losses))
torch.distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    arguments = [str(tmp_path / "losses.json"), str(Path(__file__).parent)]
    done = subprocess.run(
        command + arguments, capture_output=True, text=True, timeout=1800, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone = [r.loss for r in train(tiny(), Rows(16), SPEC, World())]
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(alone, abs=1e-5)
