"""The whole graph, as a user runs it: from the command line, killed once on the way, to a report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

STUDY = Path(__file__).parents[2] / "studies" / "smoke.yaml"
KINDS = {
    "base", "corpus", "train", "merge", "scoring", "prompts", "rl", "evaluation", "weights", "direction", "states",
    "cka", "behaviour", "trajectory", "landscape", "frontier", "claims", "report",
}  # fmt: skip

pytestmark = pytest.mark.e2e


def prism(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prismlab", *arguments], capture_output=True, text=True, timeout=3600, check=False
    )


def records(out: Path) -> dict[str, tuple[Path, dict]]:
    found = {}
    for file in (out / "artifacts").glob("*/record.json"):
        record = json.loads(file.read_text())
        found[record["name"]] = (file.parent, record)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is killed with its workers once some artifacts are there, and then run to its end."""
    out = tmp_path_factory.mktemp("smoke")
    arguments = [sys.executable, "-m", "prismlab", "run", str(STUDY), "--out", str(out)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 1800
    while len(list(out.glob("artifacts/*/record.json"))) < 6 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in out.glob("artifacts/*/record.json")}
    done = prism("run", str(STUDY), "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    assert before, "nothing was complete when the run was killed"
    assert all(path.stat().st_mtime_ns == at for path, at in before.items()), "a finished artifact was built again"
    return out


def test_every_kind_of_step_is_there(run: Path) -> None:
    assert {record["kind"] for _, record in records(run).values()} == KINDS


def test_scores_are_recomputed_from_rows(run: Path) -> None:
    for name, (path, record) in records(run).items():
        if record["kind"] != "evaluation":
            continue
        rows = pq.read_table(path / "samples.parquet").to_pylist()
        for task, score in record["metrics"]["tasks"].items():
            values = [row["score"] for row in rows if row["task"] == task]
            assert score["value"] == pytest.approx(100 * sum(values) / len(values)), name
            assert score["lo"] <= score["value"] <= score["hi"]


def test_the_merge_is_the_weighted_sum(run: Path) -> None:
    found = records(run)
    base, mid, merged = (
        load_file(found[name][0] / "model" / "model.safetensors")
        for name in ("train/base/s0", "train/mid-mcs/s0", "merge/merged/s0")
    )
    for name in merged:
        expected = 0.15 * base[name].double() + 0.85 * mid[name].double()
        # Half a unit in the last place of bf16 is at most 2^-9 of a normal value.
        assert bool(((merged[name].double() - expected).abs() <= expected.abs() * 2**-8 + 1e-40).all())


def test_the_report_stands_alone(run: Path) -> None:
    (path, _), *_ = [entry for name, entry in records(run).items() if name.startswith("report/")]
    page = (path / "report.html").read_text()
    assert all(f"C{number}" in page for number in range(1, 19))
    assert 'src="http' not in page
    assert 'href="http' not in page.split("<main", 1)[0]


def test_a_second_run_builds_nothing(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.glob("artifacts/*/record.json")}
    assert prism("run", str(STUDY), "--out", str(run)).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in run.glob("artifacts/*/record.json")} == before


def test_a_flipped_byte_is_named(run: Path) -> None:
    path, _ = records(run)["train/mid-mc/s0"]
    weights = path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = prism("check", str(STUDY), "--artifacts", "--out", str(run))
    data[-1] ^= 1
    weights.write_bytes(data)
    assert done.returncode == 2
    assert "model.safetensors" in done.stderr + done.stdout
