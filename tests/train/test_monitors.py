"""Held-out loss and distance against plain computations, the alarm and what it does, speed, a run that goes on."""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prismlab.errors import DataError, EndBranch
from prismlab.micro.models import build_model, tiny_config
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.train.monitors import Alarm, Heldout, Pace, matrix_rate
from prismlab.train.parallel import Mesh, Parallel, World

sys.path.insert(0, str(Path(__file__).parent))
import ranks

TEXTS = {"web": ["A short one.", "And one that is a good deal longer than it."], "code": ["x = 1\n", "def f(): pass"]}
SPEC = {"general": ["web"], "tokens": 40, "kl_positions": 1000}


def heldout(model: Any, **changes: Any) -> Heldout:
    parallel = Parallel(model, World(), Mesh(), "float32")
    return Heldout(parallel, build_byte_tokenizer(), TEXTS, SPEC | changes, World(), "float32")


def tiny(arch: str = "llama") -> Any:
    return build_model(tiny_config(arch, 32, 2 if arch == "llama" else 4, 258), 0)


def moved(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def plain(model: Any, start: Any, source: str) -> tuple[float, float]:
    """Mean loss and mean KL(start || now) of a source's tokens, a document at a time, in float64."""
    tokenizer = build_byte_tokenizer()
    losses, distances = [], []
    for text in TEXTS[source]:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]][: SPEC["tokens"]]])  # type: ignore[misc]
        with torch.no_grad():
            logs, old = (one(input_ids=ids).logits[0, :-1].double().log_softmax(-1) for one in (model, start))
        losses += (-logs.gather(1, ids[0, 1:, None])[:, 0]).tolist()
        distances += (old.exp() * (old - logs)).sum(-1).tolist()
    return sum(losses) / len(losses), sum(distances) / len(distances)


@pytest.mark.parametrize("arch", ["llama", "nemotron-h"])
def test_losses_and_distance_are_those_of_one_document_at_a_time(arch: str) -> None:
    model = tiny(arch)
    start = copy.deepcopy(model)
    watch = heldout(model)
    assert watch.start["kl"] == pytest.approx(0, abs=1e-12)
    moved(model)
    row = watch.measure(7)
    assert row["step"] == 7
    for source in TEXTS:
        assert row["heldout"][source] == pytest.approx(plain(model, start, source)[0], abs=1e-5)
        assert watch.start["heldout"][source] == pytest.approx(plain(start, start, source)[0], abs=1e-5)
    assert row["general"] == row["heldout"]["web"]
    # All places of the general text were asked for, so the estimate is the mean itself.
    assert row["kl"] == pytest.approx(plain(model, start, "web")[1], abs=1e-5)
    assert row["kl"] > 0.001


def test_measuring_changes_neither_the_mode_nor_a_generator() -> None:
    model = tiny()
    watch = heldout(model)
    model.train()
    before = torch.get_rng_state()
    assert watch.measure(1)["heldout"] == watch.start["heldout"]
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_of_one_document_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    together = heldout(tiny())
    monkeypatch.setattr("prismlab.train.monitors.BATCH_LOGITS", 1)
    alone = heldout(tiny())
    assert alone.start["general"] == pytest.approx(together.start["general"], abs=1e-6)
    assert heldout(tiny(), kl_positions=0).start["kl"] is None


def test_a_document_that_predicts_nothing_is_refused() -> None:
    parallel = Parallel(tiny(), World(), Mesh(), "float32")
    with pytest.raises(DataError, match=r"source web: .* fewer than two tokens"):
        Heldout(parallel, build_byte_tokenizer(), {"web": [""]}, SPEC, World(), "float32")


def test_the_alarm_sets_off_once_and_only_above_what_is_allowed() -> None:
    alarm = Alarm({"heldout_loss_up": 0.5, "action": "warn"}, 2.0)
    assert not alarm.due(2.5)
    assert alarm.due(2.5001)
    assert alarm.due(math.nan)
    assert "step 2" in alarm.set_off(2, 2.5001)
    assert alarm.fired == 2
    assert not alarm.due(9.0)
    assert not Alarm(None, 2.0).due(math.inf)


@pytest.mark.parametrize("action", ["warn", "save", "stop"])
def test_what_the_alarm_does(tmp_path: Path, action: str) -> None:
    ranks.prepare(tmp_path)
    changes = {"alarm": {"heldout_loss_up": 0.05, "action": action}, "keep_snapshots": True}
    changes |= {"optimizer": {"lr": 1.0, "eps": 1e-8}}  # a rate at which any model breaks
    if action == "stop":
        with pytest.raises(EndBranch, match="retention alarm at step 4"):
            ranks.run(tmp_path, "out", None, **changes)
    else:
        metrics = ranks.run(tmp_path, "out", None, **changes).metrics
        assert metrics["alarm"] == {"step": 4, "action": action}
        assert metrics["monitor"]["end"]["general"] > metrics["monitor"]["start"]["general"] + 0.05
        assert metrics["monitor"]["start"]["kl"] == pytest.approx(0, abs=1e-9)
    out = tmp_path / "out" / "out"
    assert "retention alarm at step 4" in (tmp_path / "out/notes.txt").read_text()
    rows = [json.loads(line) for line in (out / "heldout.jsonl").open()]
    assert [row["step"] for row in rows] == ([0, 4] if action == "stop" else [0, 4, 8, 12])
    assert (out / "model").exists() == (action != "stop")
    kept = out / "alarm/step-000004/model.safetensors"
    assert kept.exists() == (action == "save")
    if action == "save":
        snapshot = load_file(out / "snapshots/step-000004/model.safetensors")
        assert all(torch.equal(tensor, snapshot[name]) for name, tensor in load_file(kept).items())


def test_a_stopped_run_ends_as_an_undisturbed_one_to_the_last_bit(tmp_path: Path) -> None:
    ranks.prepare(tmp_path)
    ranks.run(tmp_path, "whole", None)
    for stop in (3, 7, None):  # behind saves, in between, and to the end
        ranks.run(tmp_path, "parts", stop)
    files = sorted(path.relative_to(tmp_path / "whole/out") for path in (tmp_path / "whole/out").rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path / "parts/out") for path in (tmp_path / "parts/out").rglob("*.*"))
    timed = ("tokens_per_second", "mfu", "memory_mb", "seconds_left")
    for file in files:
        ours, theirs = ((tmp_path / name / "out" / file).read_bytes() for name in ("whole", "parts"))
        if file.name == "metrics.jsonl":
            logs = [[json.loads(line) for line in one.splitlines()] for one in (ours, theirs)]
            assert all(0 < row["mfu"] < 1 and row["memory_mb"] > 0 and row["seconds_left"] >= 0 for row in logs[1])
            kept = [[{k: v for k, v in row.items() if k not in timed} for row in log] for log in logs]
            assert kept[0] == kept[1]
        elif file.suffix != ".txt":
            assert ours == theirs, file
    saves = [tmp_path / name / "scratch/saves/step-00000012/part-00000.safetensors" for name in ("whole", "parts")]
    assert saves[0].read_bytes() == saves[1].read_bytes()  # weights, moments, step counts, random state


def test_rows_on_held_out_text_stand_once_after_two_stops(tmp_path: Path) -> None:
    """The second run saves before it measures: that save has to know the length of a log it has not written to yet."""
    ranks.prepare(tmp_path)
    monitor = {"heldout": ["text"], "every": 5, "documents": 3, "tokens": 24, "kl_positions": 8}
    ranks.run(tmp_path, "whole", None, monitor=monitor)
    for stop in (3, 5, None):  # goes on from 2, saves at 4, measures at 5, goes on from 4
        ranks.run(tmp_path, "parts", stop, monitor=monitor)
    rows = [(tmp_path / name / "out/heldout.jsonl").read_text() for name in ("whole", "parts")]
    assert [json.loads(line)["step"] for line in rows[0].splitlines()] == [0, 5, 10, 12]
    assert rows[1] == rows[0]


def test_a_run_stopped_behind_its_last_save_records_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks.prepare(tmp_path)
    changes = {"alarm": {"heldout_loss_up": 0.05, "action": "warn"}, "optimizer": {"lr": 1.0, "eps": 1e-8}}
    wanted = ranks.run(tmp_path, "whole", None, **changes).metrics

    def stop(self: Any) -> None:
        raise ranks.Stopped

    with monkeypatch.context() as patch:
        patch.setattr(ranks.stage._Run, "results", stop)
        assert ranks.run(tmp_path, "parts", None, **changes) is None
    assert (tmp_path / "parts/scratch/saves/step-00000012").is_dir()
    found = ranks.run(tmp_path, "parts", None, **changes).metrics
    assert {key: found.get(key) for key in ("monitor", "alarm", "loss_last", "steps")} == {
        key: wanted[key] for key in ("monitor", "alarm", "loss_last", "steps")
    }
    rows = [(tmp_path / name / "out/heldout.jsonl").read_text() for name in ("whole", "parts")]
    assert rows[1] == rows[0]


def test_clocks_that_jump_move_neither_saves_nor_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks.prepare(tmp_path)
    now, jumps = time.time, iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: now() + 1e6 * (-1) ** next(jumps))
    ranks.run(tmp_path, "out", None, save={"every_minutes": 1000.0})
    assert not list((tmp_path / "out/scratch").glob("saves/step-*"))
    rows = [json.loads(line) for line in (tmp_path / "out/out/metrics.jsonl").open()]
    assert all(0 <= row["seconds_left"] < 600 for row in rows)
    assert rows[-1]["seconds_left"] == 0


def test_utilisation_is_operations_over_what_the_device_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prismlab.train.monitors.matrix_rate", lambda *_: 1e12)
    model = tiny()
    spec = {"steps": 10, "seq_len": 16, "precision": "float32", "lora": None, "train": "all"}
    row = Pace(model, spec, World()).row(1, 1000.0)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    # Forward 2 a weight and token, backward twice that; scores and mixing 4 a channel and pair, 8.5 pairs a token.
    attention = 2 * 4 * 32 * 17 / 2
    assert row["mfu"] == pytest.approx(1000.0 * 3 * (2 * matrices + attention) / 1e12, rel=1e-6)
    assert Pace(model, spec | {"lora": {"r": 4}}, World()).row(1, 1.0)["mfu"] is None


def test_the_matrix_rate_is_one_that_a_product_reaches() -> None:
    rate = matrix_rate(torch.device("cpu"), "float32", 256)
    assert 1e8 < rate < 1e14
