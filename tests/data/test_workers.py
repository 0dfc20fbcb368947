"""What a build costs in memory, and what a killed one leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prismlab.data.document import Document
from prismlab.data.encode import Encoders
from prismlab.model.tokens import Encoder, build_byte_tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("method", ["concat", "best_fit"])
def test_the_peak_of_memory_does_not_grow_with_the_source(tmp_path: Path, method: str) -> None:
    script, peaks = Path(__file__).with_name("peak_of_build.py"), list[float]()
    for megabytes in (15, 45):
        (folder := tmp_path / str(megabytes)).mkdir()
        told = subprocess.run(
            [sys.executable, script, folder, str(megabytes), method], capture_output=True, text=True, check=True
        )
        peaks.append(json.loads(told.stdout)["after"])
    # Three times the source: buffers fill up to their limits, and beyond them nothing but a few bytes a document.
    assert peaks[1] < peaks[0] + 160
    assert peaks[1] < 800


_BUILD = """
import os, signal, sys
from prismlab.data.document import Document
from prismlab.data.encode import Encoders
from prismlab.model.tokens import Encoder, build_byte_tokenizer

if __name__ == "__main__":
    encoders = Encoders(Encoder(build_byte_tokenizer()), 2)
    parts = ([Document(str(at))] for at in range(1000))
    for done, encoded in enumerate(encoders.encode(parts)):
        if done == 6:
            print(*encoders._pool._processes, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
"""


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc to see processes")
def test_workers_end_with_a_killed_build(tmp_path: Path) -> None:
    (tmp_path / "build.py").write_text(_BUILD)
    done = subprocess.run([sys.executable, tmp_path / "build.py"], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    limit = time.monotonic() + 120
    while any(map(_lives, workers)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not any(map(_lives, workers))


def test_parts_come_back_in_their_order_and_the_environment_is_left_alone() -> None:
    before = dict(os.environ)
    parts = [[Document("x" * at)] for at in (5000, 1, 300, 2, 0, 7)]
    with Encoders(Encoder(build_byte_tokenizer()), 2) as encoders:
        found = [encoded.lengths.tolist() for encoded in encoders.encode(parts)]
    assert found == [[5001], [2], [301], [3], [1], [8]]
    assert dict(os.environ) == before
