"""Gates in a study: what the planner makes of them, what a stop ends, and the commands' exit codes on what is built."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from built_study import build, write_study
from typer.testing import CliRunner

from prismlab.cli import app
from prismlab.errors import DataError, SpecError
from prismlab.run.step import Silent
from prismlab.study.load import load_study
from prismlab.study.plan import plan_study
from prismlab.study.steps import Plan

MORE = "  after: {stage: midtrain, from: mid, mixture: m, steps: 4, rows: 1, seq_len: 16}"
GATE = "gates: {kept: {evaluation: core, reference: base, checkpoints: [mid, other], margin: 5.0, action: ACTION}}"


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def numbers(lost: float) -> Any:
    """Mid lost a share of its answers in one task; other kept all."""

    def of(checkpoint: str, seed: int) -> Any:
        def items(rate: float) -> list[list[float]]:
            return [[float(i < 400 * rate)] for i in range(400)]

        return {"addition": items(0.8 - (lost if checkpoint == "mid" else 0.0)), "elements": items(0.6)}, [100.0, 110.0]

    return of


def planned(tmp_path: Path, action: str, **changes: str) -> Plan:
    gate = GATE.replace("ACTION", action)
    for old, new in changes.items():
        gate = gate.replace(old, new)
    return plan_study(load_study(write_study(tmp_path / "study.yaml", (0, 1), MORE, gate)), machine_text=lambda: "")


def test_a_gate_is_a_step_of_every_checkpoint_and_seed(tmp_path: Path) -> None:
    plan = planned(tmp_path, "warn")
    gates = [step for step in plan.steps if step.kind == "gate"]
    assert [step.id for step in gates] == [f"gate/kept@{name}/s{seed}" for seed in (0, 1) for name in ("mid", "other")]
    one = gates[0]
    assert one.inputs == {"base": "evaluation/core@base/s0", "new": "evaluation/core@mid/s0"}
    assert one.facts == {"checkpoint": "mid", "reference": "base", "evaluation": "core"}
    assert one.config["spec"] == {"margin": 5.0, "margins": {}, "action": "warn"}
    assert not any(step.waits for step in plan.steps)
    report = next(step for step in plan.steps if step.kind == "report")
    assert one.id in report.inputs


def test_what_is_made_of_a_checkpoint_waits_for_a_gate_that_may_stop_it(tmp_path: Path) -> None:
    steps = {step.id: step for step in planned(tmp_path, "stop").steps}
    order = list(steps)
    assert steps["train/after/s0"].waits == ("gate/kept@mid/s0",)
    assert steps["merge/merge-20/s1"].waits == ("gate/kept@mid/s1",)
    assert steps["train/mid/s0"].waits == ()
    assert order.index("gate/kept@mid/s0") < order.index("train/after/s0")
    assert len(order) == len(planned(tmp_path, "record").steps)


def test_neither_the_action_nor_the_margin_changes_what_is_trained(tmp_path: Path) -> None:
    def fingerprint(*args: Any, **changes: str) -> dict[str, str]:
        found = planned(tmp_path, *args, **changes).resolve(lambda kind, name: None)
        return {
            step: one.fingerprint for step, one in found.items() if not isinstance(one, str) and hasattr(one, "step")
        }

    plain, stopped = fingerprint("record"), fingerprint("stop", **{"margin: 5.0": "margin: 1.0"})
    assert plain["train/after/s0"] == stopped["train/after/s0"]
    assert plain["merge/merge-20/s0"] == stopped["merge/merge-20/s0"]
    assert plain["gate/kept@mid/s0"] != stopped["gate/kept@mid/s0"]


def test_until_takes_the_gate_along(tmp_path: Path) -> None:
    kept = {step.id for step in planned(tmp_path, "stop").until("train/after/s0").steps}
    assert {"gate/kept@mid/s0", "evaluation/core@mid/s0", "evaluation/core@base/s0"} <= kept
    assert "gate/kept@mid/s1" not in kept


def test_a_loss_ends_the_branch_and_the_rest_goes_on(tmp_path: Path) -> None:
    file = write_study(tmp_path / "study.yaml", (0,), MORE, GATE.replace("ACTION", "stop"))
    notes = Notes()
    built = build(file, tmp_path / "run", numbers(0.3), notes=notes)
    gate = built["gate/kept@mid/s0"]
    assert gate.record["status"] == "ended"
    assert gate.record["reason"].startswith(
        "the gate stops what begins from mid against base: regressed addition (-30.0)"
    )
    assert json.loads((gate.path / "gate.json").read_text())["verdict"] == "regressed"
    assert "train/after/s0" not in built
    assert "merge/merge-20/s0" not in built
    assert "evaluation/core@merge-20/s0" not in built
    assert built["gate/kept@other/s0"].metrics["verdict"] == "retained"
    assert {"train/other/s0", "evaluation/core@mid/s0", "claims/judged", "report/judged"} <= set(built)
    missing = {e["key"]: e.get("missing") for e in built["report/judged"].config["entries"]}
    assert missing["train/after/s0"] == missing["gate/kept@mid/s0"]
    assert "regressed addition (-30.0)" in str(missing["train/after/s0"])


@pytest.mark.parametrize(("lost", "verdict"), [(0.05, "undecided"), (0.0, "retained")])
def test_only_a_loss_that_is_shown_stops(tmp_path: Path, lost: float, verdict: str) -> None:
    file = write_study(tmp_path / "study.yaml", (0,), MORE, GATE.replace("ACTION", "stop"))
    notes = Notes()
    built = build(file, tmp_path / "run", numbers(lost), notes=notes)
    assert built["gate/kept@mid/s0"].metrics["verdict"] == verdict
    assert "train/after/s0" in built
    assert any("warning: mid against base: undecided addition (-5.0)" in note for note in notes.notes) == (lost > 0)


def test_a_reference_that_the_gate_may_stop_is_refused(tmp_path: Path) -> None:
    gate = "gates: {kept: {evaluation: core, reference: after, checkpoints: [mid], action: stop}}"
    with pytest.raises(SpecError, match=r"gates\.kept: 'after' is made of 'mid', which this gate may stop"):
        load_study(write_study(tmp_path / "study.yaml", (0,), MORE, gate))
    load_study(write_study(tmp_path / "study.yaml", (0,), MORE, gate.replace("stop", "warn")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("gates")
    file = write_study(root / "study.yaml", (0, 1), "", "")
    build(file, root / "run", numbers(0.3), without=("evaluation/core@merge-60/", "claims/", "report/"))
    return file, root / "run"


def prism(*args: str | Path) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_exit_codes_of_a_gate_on_a_study(run: tuple[Path, Path]) -> None:
    file, root = run

    def gate(*more: str) -> Any:
        return prism("gate", file, "--runs", root, "--reference", "base", *more)

    kept, lost = gate("--checkpoint", "other", "--margin", "5"), gate("--checkpoint", "mid", "--margin", "5")
    assert (kept.exit_code, lost.exit_code) == (0, 4)
    assert "regressed: exit code 4" in lost.stdout
    assert "seed 0" in lost.stdout
    assert "seed 1" in lost.stdout
    assert gate("--checkpoint", "other", "--margin", "0.1").exit_code == 3
    # The loss of one benchmark is not hidden by the other, whatever the other's margin.
    assert gate("--checkpoint", "mid", "--margin", "5", "--margin", "elements=50").exit_code == 4
    assert isinstance(gate("--checkpoint", "merge-60").exception, SpecError)
    assert isinstance(gate("--checkpoint", "mid", "--margin", "nosuch=1").exception, SpecError)
    assert isinstance(prism("gate", file, "--runs", root).exception, SpecError)


def test_a_seed_that_is_not_built_is_named_and_keeps_a_gate_from_passing(tmp_path: Path) -> None:
    """Two seeds were asked for: one alone shows nothing of the other, whichever side lacks it."""
    for without, code in (
        ("evaluation/core@other/s1", 3),
        ("evaluation/core@base/s1", 3),
        ("evaluation/core@other/", 2),
    ):
        root = tmp_path / without.replace("/", "-")
        file = write_study(tmp_path / "study.yaml", (0, 1), "", "")
        build(file, root, numbers(0.3), without=(without, "claims/", "report/"))

        def gate(checkpoint: str, root: Path = root, file: Path = file) -> Any:
            pair = ("--reference", "base", "--checkpoint", checkpoint, "--margin", "5", "--json")
            return prism("gate", file, "--runs", root, *pair)

        found = gate("other")
        if code == 2:
            assert isinstance(found.exception, SpecError)
            continue
        record = json.loads(found.stdout)
        assert (found.exit_code, record["verdict"]) == (code, "undecided")
        assert [one["verdict"] for one in record["compared"]] == ["retained"]
        assert record["missing"] == [f"Seed 1: evaluation 'core' of {without[16:-3]} is not built"]
        assert gate("mid").exit_code == 4  # a loss that is shown is shown
    build(file, tmp_path / "crossed", numbers(0.3), without=("evaluation/core@base/s1", "evaluation/core@other/s0"))
    crossed = prism("gate", file, "--runs", tmp_path / "crossed", "--reference", "base", "--checkpoint", "other")
    assert isinstance(crossed.exception, SpecError)
    assert "no seed has both" in str(crossed.exception)


def test_a_gate_on_files_writes_json(run: tuple[Path, Path], tmp_path: Path) -> None:
    file, root = run
    found = prism("gate", file, "--runs", root, "--reference", "base", "--checkpoint", "mid", "--json")
    record = json.loads(found.stdout)
    assert (record["verdict"], found.exit_code) == ("regressed", 4)
    addition = record["compared"][0]["tasks"]["addition"]
    assert addition["difference"] == pytest.approx(-30.0)
    assert addition["hi"] < -5


def test_claims_on_a_study_ends_well_and_names_what_is_missing(run: tuple[Path, Path]) -> None:
    file, root = run
    found = prism("claims", file, "--runs", root)
    assert found.exit_code == 0
    assert "not tested" in found.stdout
    assert "the study has no arm mid[MCS]" in " ".join(found.stdout.split())
    ledger = json.loads(prism("claims", file, "--runs", root, "--json").stdout)
    assert [claim["id"] for claim in ledger["claims"]] == [f"C{n}" for n in range(1, 19)]
    assert isinstance(prism("claims").exception, SpecError)
    assert isinstance(prism("claims", file, "--reference").exception, SpecError)
    assert isinstance(prism("claims", file, "--runs", root.parent / "none").exception, Exception)


def judged(folder: Path, right: int, config: dict[str, Any] | None, n: int = 400) -> Path:
    """Rows of a suite as 'prism eval' leaves them: one an item, and how they were made beside them."""
    folder.mkdir()

    def row(i: int) -> dict[str, Any]:
        item = {"task": "hellaswag", "item_id": str(i), "problem": str(i), "question": f"q{i}"}
        return {**item, "sample": 0, "score": float(i < right)}

    rows = [row(i) for i in range(n)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    if config is not None:
        (folder / "record.json").write_text(json.dumps({"schema": 1, "config": config, "metrics": {}}))
    return folder / "samples.parquet"


SUITE: dict[str, Any] = {
    "suite": "retention", "benchmarks": {"hellaswag": {"items": 400, "hash": "1f", "metric": "acc_norm", "shots": 0}},
    "template": "think", "seed": 0, "dtype": "float32", "excluded": None,
}  # fmt: skip


def hellaswag(**changes: Any) -> dict[str, Any]:
    return {"benchmarks": {"hellaswag": {**SUITE["benchmarks"]["hellaswag"], **changes}}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"benchmarks": {"hellaswag": {**SUITE["benchmarks"]["hellaswag"], "hash": "2e"}}},
            r"benchmarks\.hellaswag\.hash",
        ),
        (
            {"benchmarks": {"hellaswag": {**SUITE["benchmarks"]["hellaswag"], "shots": 5}}},
            r"hellaswag\.shots is 0 .* 5",
        ),
        ({"temperature": 1.0}, "temperature is null for old, 1.0 for new"),
        ({"excluded": {"items": 3, "hash": "aa"}}, "excluded"),
    ],
)
def test_suites_judged_on_other_items_or_otherwise_are_refused(tmp_path: Path, changed: Any, message: str) -> None:
    old, new = judged(tmp_path / "a", 240, SUITE), judged(tmp_path / "b", 240, {**SUITE, **changed})
    found = prism("gate", "old", "new", "--rows-base", old, "--rows-new", new)
    assert isinstance(found.exception, DataError)
    assert re.search(message, str(found.exception))


def test_suites_judged_alike_are_compared_item_by_item(tmp_path: Path) -> None:
    old, kept = judged(tmp_path / "a", 240, SUITE), judged(tmp_path / "b", 240, SUITE)
    lost, bare = judged(tmp_path / "c", 200, SUITE), judged(tmp_path / "d", 240, None)
    assert prism("gate", old, kept, "--margin", "3").exit_code == 0
    assert prism("gate", old, kept, "--margin", "0.2").exit_code == 3
    found = prism("gate", old, lost, "--margin", "3", "--json")
    assert (found.exit_code, json.loads(found.stdout)["compared"][0]["tasks"]["hellaswag"]["worse"]) == (4, 40)
    trusted = prism("gate", "old", "bare", "--rows-base", old, "--rows-new", bare, "--margin", "3")
    assert trusted.exit_code == 0
    assert "on trust" in " ".join(trusted.stdout.split())
    assert isinstance(prism("gate", old, judged(tmp_path / "e", 240, SUITE, n=399)).exception, DataError)
