"""The runner: order, reuse, damage, ended branches, errors, workers, torchrun, kills."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_plans import diamond, end_state, fake, plan_of, prepared

from prismlab.errors import StoreError
from prismlab.run.launch import InProcess, WorkerPool
from prismlab.run.progress import LineDisplay
from prismlab.run.runner import Runner, StepCrashed, StepFailed, Summary, priorities
from prismlab.run.store import Store
from prismlab.study.steps import Plan

HERE = Path(__file__).parent


def run_in_process(plan: Plan, root: Path, **options: object) -> Summary:
    return Runner(plan, prepared(root), launcher=lambda slots, threads: InProcess(), **options).run()  # type: ignore[arg-type]


def built(summary: Summary) -> list[str]:
    return [step["id"] for step in summary.steps if step["built"]]


def record_of(root: Path, step: str) -> dict[str, object]:
    found = [json.loads(path.read_text()) for path in root.glob("artifacts/*/record.json")]
    return next(record for record in found if record["name"] == step)


def test_builds_everything_once_and_then_nothing(tmp_path: Path) -> None:
    counter = tmp_path / "calls"
    plan = diamond(**{name: {"counter": str(counter)} for name in "abcd"})
    first = run_in_process(plan, tmp_path)
    assert counter.read_text().split()[0] == "a"
    assert sorted(counter.read_text().split()) == ["a", "b", "c", "d"]
    again = run_in_process(plan, tmp_path)
    assert len(built(first)) == 5
    assert built(again) == []
    assert sorted(counter.read_text().split()) == ["a", "b", "c", "d"]
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "complete"


def test_record_has_what_the_contract_names(tmp_path: Path) -> None:
    run_in_process(diamond(), tmp_path)
    record = record_of(tmp_path, "train/b/s0")
    names = "schema kind version name fingerprint config inputs seed threads versions git started seconds "
    names += "peak_memory_mb tokens metrics files status"
    assert set(names.split()) <= set(record)
    a = record_of(tmp_path, "train/a/s0")
    assert record["inputs"] == {"train/a/s0": {"kind": "train", "fingerprint": a["fingerprint"]}}
    assert record["tokens"] == 10
    assert record["config"] == {"name": "b", "seed": 1}, "paths never enter the recorded configuration"


def test_peak_memory_is_the_steps_own_not_the_processes(tmp_path: Path) -> None:
    run_in_process(diamond(), tmp_path)
    before = record_of(tmp_path, "train/d/s0")["peak_memory_mb"]
    if before is None:
        pytest.skip("this system has no /proc/self/clear_refs")
    block = bytearray(os.urandom(1)) * 300_000_000
    del block
    run_in_process(plan_of(fake("later"), report=False), tmp_path)
    after = record_of(tmp_path, "train/later/s0")["peak_memory_mb"]
    assert isinstance(before, float)
    assert isinstance(after, float)
    assert after < before + 150


def test_a_changed_configuration_rebuilds_it_and_what_follows_only(tmp_path: Path) -> None:
    run_in_process(diamond(), tmp_path)
    changed = run_in_process(diamond(c={"rate": 2}), tmp_path)
    assert built(changed) == ["train/c/s0", "train/d/s0", "report/test"]


def test_a_flipped_byte_is_noticed_by_the_reader_and_rebuilt(tmp_path: Path) -> None:
    run_in_process(diamond(), tmp_path)
    before = end_state(tmp_path)
    store = Store(tmp_path)
    folder = next(path for path in store.all() if store.read(path).record["name"] == "train/a/s0")
    victim = folder / "deep" / "more.bin"
    victim.write_bytes(b"\xff" + victim.read_bytes()[1:])
    lines = io.StringIO()
    summary = run_in_process(diamond(b={"rate": 2}), tmp_path, display=LineDisplay(lines))
    assert "train/a/s0" in built(summary)
    assert "train/a/s0: moved to " in lines.getvalue()
    assert "complete  report/test (5/5, " in lines.getvalue(), "a step that is built anew is not counted twice"
    assert (tmp_path / "damaged" / f"{folder.name}.0" / "deep" / "more.bin").read_bytes()[0] == 255
    assert {name: end_state(tmp_path)[name] for name in before} == before


def test_a_damaged_record_and_a_damaged_report_are_rebuilt(tmp_path: Path) -> None:
    run_in_process(diamond(), tmp_path)
    store = Store(tmp_path)
    by_name = {str(store.read(path).record["name"]): path for path in store.all()}
    record = by_name["train/b/s0"] / "record.json"
    record.write_text(record.read_text().replace('"tokens": 10', '"tokens": 11'))
    (by_name["report/test"] / "data.json").write_text("{}")
    assert built(run_in_process(diamond(), tmp_path)) == ["train/b/s0", "report/test"]
    assert built(run_in_process(diamond(), tmp_path)) == []


def test_an_ended_branch_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    plan = diamond(b={"end": "no prompt was solved"})
    summary = run_in_process(plan, tmp_path)
    states = {step["id"]: step["status"] for step in summary.steps}
    assert states == {
        "train/a/s0": "complete",
        "train/b/s0": "ended",
        "train/c/s0": "complete",
        "train/d/s0": "skipped",
        "report/test": "complete",
    }
    reason = "train/b/s0 ended: no prompt was solved"
    record = record_of(tmp_path, "train/b/s0")
    assert (record["status"], record["reason"]) == ("ended", "no prompt was solved")
    report = record_of(tmp_path, "report/test")
    assert report["inputs"]["train/d/s0"] == {"missing": reason}  # type: ignore[index]
    missing = {entry["key"]: entry.get("missing") for entry in report["config"]["entries"]}  # type: ignore[index]
    assert missing == {"train/a/s0": None, "train/b/s0": reason, "train/c/s0": None, "train/d/s0": reason}
    again = run_in_process(plan, tmp_path)
    assert built(again) == [], "an ended branch is not tried again"


def test_an_error_stops_new_steps_and_the_message_names_the_step(tmp_path: Path) -> None:
    plan = plan_of(fake("a", fail="loss is not finite"), *(fake(f"z{i}", ("train/a/s0",)) for i in range(3)))
    with pytest.raises(StepFailed, match=r"^train/a/s0: loss is not finite$"):
        run_in_process(plan, tmp_path)
    state = json.loads((tmp_path / "run.json").read_text())
    assert state["status"] == "failed"
    assert list((tmp_path / "artifacts").iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_our_own_fault_keeps_its_traceback_in_the_log(tmp_path: Path) -> None:
    with pytest.raises(StepCrashed) as caught:
        run_in_process(plan_of(fake("a", crash="oh")), tmp_path)
    assert "ZeroDivisionError: oh" in caught.value.detail
    assert "ZeroDivisionError: oh" in (tmp_path / "logs" / "train_a_s0.log").read_text()


def test_running_steps_end_before_an_error_is_raised(tmp_path: Path) -> None:
    plan = plan_of(fake("slow", sleep=0.6), fake("bad", fail="no", sleep=0.1), fake("never", ("train/bad/s0",)))
    store = prepared(tmp_path)
    with pytest.raises(StepFailed, match="train/bad/s0: no"):
        Runner(plan, store, jobs=2).run()
    assert record_of(tmp_path, "train/slow/s0")["status"] == "complete"


def test_workers_are_reused_run_side_by_side_and_log(tmp_path: Path) -> None:
    (tmp_path / "met").mkdir()
    # Each step waits until three have begun, which one at a time never would.
    plan = plan_of(*(fake(f"n{i}", meet=[str(tmp_path / "met"), 3]) for i in range(6)), report=False)
    store = prepared(tmp_path / "run")
    pids: set[object] = set()
    Runner(plan, store, jobs=3).run()
    for i in range(6):
        pids.add(record_of(tmp_path / "run", f"train/n{i}/s0")["metrics"]["pid"])  # type: ignore[index]
    assert len(pids) == 3
    assert os.getpid() not in pids
    assert (tmp_path / "run" / "logs" / "train_n0_s0.log").read_text() == "to the log\n"


def test_processes_and_order_do_not_change_the_end_state(tmp_path: Path) -> None:
    run_in_process(diamond(), tmp_path / "one")
    Runner(diamond(), prepared(tmp_path / "two"), jobs=2).run()
    assert end_state(tmp_path / "one") == end_state(tmp_path / "two")


def test_a_killed_worker_is_reported_with_a_remedy(tmp_path: Path) -> None:
    plan = plan_of(fake("a", die=int(signal.SIGKILL)))
    with pytest.raises(StepFailed, match=r"train/a/s0: its process was killed by SIGKILL; most likely memory ran out"):
        Runner(plan, prepared(tmp_path), jobs=1).run()


@pytest.mark.parametrize("how", ["die_after", "fail_after"])
def test_a_stopped_step_finds_what_it_kept_and_the_end_is_the_same(how: str, tmp_path: Path) -> None:
    step = fake("a", entry="fake_stages:pieces", **{how: 1})
    plan = plan_of(step, report=False)
    with pytest.raises(StepFailed):
        Runner(plan, prepared(tmp_path), jobs=1).run()
    scratch = Store(tmp_path).scratches
    assert [path.name for path in scratch.iterdir()] == [f"train-{plan.resolve(lambda *_: None)[step.id].fingerprint}"]  # type: ignore[union-attr]
    assert sorted(path.name for path in next(scratch.iterdir()).iterdir()) == ["0", "1"]
    with Store(tmp_path).lock():
        pass  # The folder is one of ours: a run may still take it.
    Runner(plan, prepared(tmp_path), jobs=1).run()
    assert record_of(tmp_path, step.id)["metrics"] == {"made": 2}
    artifact = Store(tmp_path).read(next(Store(tmp_path).all()))
    assert json.loads((artifact.path / "data.json").read_text()) == ["0", "1", "4", "9"]
    assert set(artifact.record["files"]) == {"data.json"}
    assert list(scratch.iterdir()) == []
    other = fake("a", entry="fake_stages:pieces", other=1)
    summary = run_in_process(plan_of(other, report=False), tmp_path)
    assert built(summary) == [other.id]
    assert record_of_metrics(tmp_path) == [{"made": 2}, {"made": 4}], "another configuration starts from nothing"


def record_of_metrics(root: Path) -> list[dict[str, int]]:
    found = [json.loads(path.read_text())["metrics"] for path in root.glob("artifacts/*/record.json")]
    return sorted(found, key=lambda metrics: metrics["made"])


def test_dropped_snapshots_are_made_again_for_a_trajectory_only(tmp_path: Path) -> None:
    run = fake("run", snapshots=1)
    run_in_process(plan_of(run, report=False), tmp_path)
    store = Store(tmp_path)
    artifact = store.read(next(store.all()))
    store.drop(artifact, "snapshots/")
    reader = fake("reader", (run.id,))
    assert built(run_in_process(plan_of(run, reader, report=False), tmp_path)) == ["train/reader/s0"]
    trajectory = fake("t", kind="trajectory")
    trajectory = type(trajectory)(**{**trajectory.__dict__, "inputs": {"run": run.id}})
    summary = run_in_process(plan_of(run, reader, trajectory, report=False), tmp_path)
    assert built(summary) == ["train/run/s0", "trajectory/t/s0"]
    assert (artifact.path / "snapshots" / "step-1" / "w.bin").exists()
    assert not (tmp_path / "damaged").exists()


def test_what_another_version_made_is_called_so(tmp_path: Path) -> None:
    """An artifact of the same step with another fingerprint is not 'not built yet'."""
    old = fake("a", note="old")
    run_in_process(plan_of(old, report=False), tmp_path)
    summary = run_in_process(plan_of(fake("a", note="new"), fake("b")), tmp_path, only=("report",))
    reasons = {step["id"]: step.get("reason", "") for step in summary.steps}
    assert reasons["train/a/s0"].startswith("not built for this version of the study")
    assert reasons["train/b/s0"] == "not built yet"
    told = record_of(tmp_path, "report/test")["inputs"]["train/a/s0"]["missing"]  # type: ignore[index]
    assert told.startswith("train/a/s0 is not built for this version of the study")


def test_only_some_kinds_may_be_built(tmp_path: Path) -> None:
    whole = diamond()
    run_in_process(Plan(name="test", steps=whole.steps[:1], arms={}), tmp_path)
    summary = run_in_process(whole, tmp_path, only=("claims", "report"))
    assert built(summary) == ["report/test"]
    assert record_of(tmp_path, "report/test")["inputs"]["train/d/s0"] == {"missing": "train/b/s0 is not built yet"}  # type: ignore[index]
    folder = next(path for path in Store(tmp_path).all() if path.name.startswith("train"))
    (folder / "data.json").write_text("{}")
    changed = plan_of(*whole.steps[:-1], fake("extra"))
    with pytest.raises(StoreError, match=r"'prism run' builds it again"):
        run_in_process(changed, tmp_path, only=("claims", "report"))


def test_the_longest_chain_comes_first() -> None:
    plan = plan_of(
        fake("short"), fake("long"), fake("next", ("train/long/s0",)), fake("eval", kind="evaluation"), report=False
    )
    assert priorities(plan) == {"train/short/s0": 20, "train/long/s0": 40, "train/next/s0": 20, "evaluation/eval/s0": 8}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, None),
        ({"fail": "rank one is unwell"}, "train/wide/s0: rank one is unwell"),
        (
            {"die": 9},
            r"of its 2 processes here, process 1 \(pid \d+\) was killed by SIGKILL; most likely memory ran out",
        ),
    ],
)
def test_torchrun_starts_processes_and_the_first_one_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, object], message: str | None
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    step = fake("wide", entry="fake_stages:ranks", **told)
    step = type(step)(**{**step.__dict__, "nproc": 2})
    plan = plan_of(step, report=False)
    if message is not None:
        with pytest.raises(StepFailed, match=message):
            run_in_process(plan, tmp_path)
        return
    run_in_process(plan, tmp_path)
    record = record_of(tmp_path, "train/wide/s0")
    assert record["metrics"] == {"rank": "0", "size": "2"}
    assert list((tmp_path / "tmp").iterdir()) == []


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = [{here!r}]
from fake_plans import diamond
from prismlab.run.runner import Runner
from prismlab.run.store import Store
if __name__ == "__main__":
    store = Store(Path(sys.argv[1]))
    with store.lock():
        store.prepare()
        Runner(diamond(**{{n: {{"sleep": 0.12}} for n in "abcd"}}), store, jobs=2).run()
"""


def _alive_below(root: Path) -> list[int]:
    """Processes whose command line or open log names the run folder."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                target = str((entry / "fd" / "1").readlink())
            except OSError:
                continue
            if str(root) in target:
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_at_any_moment_and_run_again_the_end_is_the_same(tmp_path: Path) -> None:
    script = tmp_path / "study.py"
    script.write_text(KILLED.format(here=str(HERE)))
    whole = tmp_path / "whole"
    subprocess.run([sys.executable, str(script), str(whole)], check=True, capture_output=True)
    expected = end_state(whole)
    dice = random.Random(7)
    for number in range(5):
        root = tmp_path / f"run{number}"
        process = subprocess.Popen([sys.executable, str(script), str(root)], stderr=subprocess.DEVNULL)
        time.sleep(dice.uniform(0.2, 1.1))
        process.kill()
        process.wait()
        deadline = time.monotonic() + 120
        while _alive_below(root) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _alive_below(root) == [], "workers outlive a killed run"
        finished = {path.parent.name: path.read_bytes() for path in root.glob("artifacts/*/record.json")}
        subprocess.run([sys.executable, str(script), str(root)], check=True, capture_output=True)
        assert end_state(root) == expected
        after = {path.parent.name: path.read_bytes() for path in root.glob("artifacts/*/record.json")}
        assert {name: after[name] for name in finished} == finished, "finished artifacts are reused as they were"
        assert list((root / "tmp").iterdir()) == []


def test_pool_survives_being_closed_with_kill(tmp_path: Path) -> None:
    pool = WorkerPool(2, 1, tmp_path)
    pool.close(kill=True)
    assert pool.slots == 2
