"""torchrun on one machine or on several: the command of each, and what the further machines do.

Several machines share the run's folder. The first one carries out ``prism run`` with ``PRISM_NODES`` (their number) and
``PRISM_MASTER`` (``host:port`` of the first) in its environment; each of the others, with its ``PRISM_NODE_RANK`` (from
1) besides, follows it:

    python -m prismlab.run.nodes RUN_FOLDER

A follower looks for the job files that the first machine writes for steps under ``torchrun``, starts its share of each
step's processes, and ends when nobody holds the run's lock any more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

from prismlab.errors import SpecError
from prismlab.run.lock import holder

PORTS = 500
"""Ports behind the first one that steps are spread over, so that two at a time do not meet on one."""
LOOK = 0.5
"""Seconds between looks for a job."""
JOBS = "*.job.json"


def _number(environment: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise SpecError(f"{name} is {text[:40]!r}: a whole number of at least {least} is wanted")
    return int(text)


def torchrun_command(file: Path, nproc: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The command that starts this machine's processes for a job file.

    Args:
        file: the job file; its name picks the port, so that all machines agree.
        nproc: processes on each machine.
        environment: ``PRISM_NODES``, ``PRISM_NODE_RANK`` and ``PRISM_MASTER``; none of them on one machine alone.

    Raises:
        SpecError: one of them is missing or makes no sense.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(nproc)]
    program = ["-m", "prismlab.run.launch", str(file)]
    nodes = _number(environment, "PRISM_NODES", 1, 1)
    if nodes == 1:
        return [*launcher, "--standalone", *program]
    host, _, port = environment.get("PRISM_MASTER", "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 - PORTS:
        raise SpecError("PRISM_NODES is above 1, so PRISM_MASTER must be host:port of the first machine")
    rank = _number(environment, "PRISM_NODE_RANK", 0, 0)
    if rank >= nodes:
        raise SpecError(f"PRISM_NODE_RANK is {rank}: it counts from 0, and PRISM_NODES is {nodes}")
    place = ["--master-addr", host, "--master-port", str(int(port) + zlib.crc32(file.name.encode()) % PORTS)]
    return [*launcher, "--nnodes", str(nodes), "--node-rank", str(rank), *place, *program]


def follow(root: Path, wait: float = 300.0) -> int:
    """Take part in every step under torchrun that the run in ``root`` starts; returns how many there were.

    Args:
        root: the run's folder.
        wait: seconds to wait for the run to begin.

    Raises:
        SpecError: the environment does not say which machine this is, or no run began.
    """
    if _number(os.environ, "PRISM_NODES", 1, 1) < 2 or "PRISM_NODE_RANK" not in os.environ:
        raise SpecError("a further machine needs PRISM_NODES above 1, PRISM_NODE_RANK and PRISM_MASTER")
    done: set[str] = set()
    until, begun = time.monotonic() + wait, False
    while True:
        held = holder(root / "lock") is not None
        begun = begun or held
        if not held and (begun or time.monotonic() > until):
            break
        for file in sorted((root / "tmp").glob(JOBS)):
            if file.name not in done and _whole(file):
                done.add(file.name)
                _take_part(file)
        time.sleep(LOOK)
    if not begun:
        raise SpecError(f"{root}: no run began here within {wait:.0f} s; start 'prism run' on the first machine")
    return len(done)


def _whole(file: Path) -> bool:
    """Whether a job file is there and written to its end."""
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _take_part(file: Path) -> None:
    job = json.loads(file.read_text(encoding="utf-8"))["job"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
    code = subprocess.run(torchrun_command(file, int(job["nproc"])), env=environment, check=False).returncode
    print(f"{job['id']}: this machine's processes ended with {code}", flush=True)


def main() -> int:
    """``python -m prismlab.run.nodes RUN_FOLDER``."""
    if len(sys.argv) != 2:
        print("usage: python -m prismlab.run.nodes RUN_FOLDER", file=sys.stderr)
        return 2
    try:
        follow(Path(sys.argv[1]))
    except SpecError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
