"""torchrun on several machines: its command, and two of them played on this one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_plans import fake, plan_of

from prismlab.errors import SpecError
from prismlab.run.launch import InProcess
from prismlab.run.nodes import follow, torchrun_command
from prismlab.run.runner import Runner
from prismlab.run.store import Store

HERE = Path(__file__).parent
JOB = Path("/runs/x/tmp/train-0.1.job.json")


def test_one_machine_needs_nothing() -> None:
    command = torchrun_command(JOB, 4, {})
    assert command[1:] == [
        *("-m", "torch.distributed.run", "--nproc-per-node", "4", "--standalone"),
        *("-m", "prismlab.run.launch", str(JOB)),
    ]


def test_machines_agree_on_the_port_of_a_step_and_differ_in_rank() -> None:
    given = {"PRISM_NODES": "2", "PRISM_MASTER": "node-7:29000"}
    first, second = torchrun_command(JOB, 8, given), torchrun_command(JOB, 8, given | {"PRISM_NODE_RANK": "1"})
    assert [(a, b) for a, b in zip(first, second, strict=True) if a != b] == [("0", "1")]
    port = int(first[first.index("--master-port") + 1])
    assert 29000 <= port < 29500
    assert first[first.index("--master-addr") + 1] == "node-7"
    other = torchrun_command(JOB.with_name("train-1.1.job.json"), 8, given)
    assert int(other[other.index("--master-port") + 1]) != port


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"PRISM_NODES": "two"}, "PRISM_NODES is 'two'"),
        ({"PRISM_NODES": "0"}, "at least 1"),
        ({"PRISM_NODES": "2"}, "PRISM_MASTER must be host:port"),
        ({"PRISM_NODES": "2", "PRISM_MASTER": "host:99999"}, "PRISM_MASTER must be host:port"),
        ({"PRISM_NODES": "2", "PRISM_MASTER": "host:1000", "PRISM_NODE_RANK": "2"}, "counts from 0"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        torchrun_command(JOB, 1, given)


def test_a_follower_without_a_run_or_a_rank_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="PRISM_NODE_RANK"):
        follow(tmp_path)
    for name, value in (("PRISM_NODES", "2"), ("PRISM_NODE_RANK", "1"), ("PRISM_MASTER", "localhost:29000")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SpecError, match="no run began here"):
        follow(tmp_path, wait=0.0)


def free_base(file: Path) -> int:
    """A first port for ``PRISM_MASTER`` by which the port of the step with this job file is one that nobody has."""
    for base in range(20000 + os.getpid() % 9000, 32000):
        given = {"PRISM_NODES": "2", "PRISM_MASTER": f"127.0.0.1:{base}"}
        command = torchrun_command(file, 1, given)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", int(command[command.index("--master-port") + 1])))
            except OSError:
                continue
            return base
    pytest.fail("no port is free")


def test_two_machines_carry_out_a_step_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two torchruns of one process each, ``--nnodes 2``: the step sees two processes and is recorded once."""
    pytest.importorskip("torch")
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("PRISM_NODES", "2")
    step = fake("wide", entry="fake_stages:ranks")
    plan, store = plan_of(type(step)(**{**step.__dict__, "nproc": 1}), report=False), Store(tmp_path / "run")
    settled = plan.resolve(lambda *_: None)[step.id]
    job = store.building / f"train-{settled.fingerprint}.{os.getpid()}.job.json"  # type: ignore[union-attr]
    monkeypatch.setenv("PRISM_MASTER", f"127.0.0.1:{free_base(job)}")
    follower = subprocess.Popen(
        [sys.executable, "-m", "prismlab.run.nodes", str(store.root)],
        env={**os.environ, "PRISM_NODE_RANK": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with store.lock():
        store.prepare()
        Runner(plan, store, launcher=lambda slots, threads: InProcess()).run()
    (artifact,) = store.all()
    assert store.read(artifact).metrics == {"rank": "0", "size": "2"}
    told, _ = follower.communicate(timeout=600)
    assert follower.returncode == 0
    assert "processes ended with 0" in told
