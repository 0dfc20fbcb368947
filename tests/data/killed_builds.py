"""Builds of one corpus, each killed by SIGKILL at another point and taken up again; run by ``test_resume.py``.

Prints, as JSON, the hash of all files of a build left alone and of every build that was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from prismlab.data import build as stage
from prismlab.data import cache, shards, supply
from prismlab.data.build import build_corpus
from prismlab.model.tokens import build_byte_tokenizer

TOKENIZER = build_byte_tokenizer()
cache.FIRST_PART, cache.PART_CHARS, cache.LARGEST_PART = 8, 2000, 64
shards.SHARD_BYTES, supply.FIRST_WINDOW = 64 * 2 * 40, 16
stage.check_disjoint = lambda spec: None  # Draws thousands of questions each time, and is tested elsewhere.
POINTS = 20
MOMENTS = 12


def build(root: Path, config: dict, stop_at: int | None) -> int:
    """Build in ``root``; killed just before (odd) or after (even) its ``stop_at // 2``-th rename. Returns renames."""
    real, done = Path.replace, [0]

    def counted(self: Path, target: Path) -> Path:
        if stop_at is not None and 2 * done[0] + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        done[0] += 1
        result = real(self, target)
        if stop_at is not None and 2 * done[0] == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Path.replace = counted  # type: ignore[method-assign]
    out = root / "out"
    out.mkdir(parents=True, exist_ok=True)
    build_corpus(config, TOKENIZER, out, scratch=root / "scratch")
    Path.replace = real  # type: ignore[method-assign]
    return done[0]


def killed(root: Path, config: dict, stop_at: int) -> bool:
    """Whether a build in a process of its own was killed before it was done."""
    child = os.fork()
    if child == 0:
        build(root, config, stop_at)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def killed_at_any_moment(root: Path, config: dict, most: float) -> list[bool]:
    """Whether each of some builds in ``root`` was killed before it was done: once it had had so many seconds of a
    processor, up to ``most``, which are as many on a busy machine."""
    chosen, found = random.Random(0), list[bool]()
    for _ in range(MOMENTS):
        child = os.fork()
        moment = chosen.uniform(0.0, most)
        if child == 0:
            signal.setitimer(
                signal.ITIMER_PROF, max(moment, 1e-6)
            )  # then SIGPROF, which ends a process as SIGKILL does
            build(root, config, None)
            os._exit(0)
        found.append(os.WIFSIGNALED(os.waitpid(child, 0)[1]))
    return found


def digest(root: Path) -> str:
    """Of the names and bytes of all files."""
    found = hashlib.blake2b()
    for file in sorted((root / "out").iterdir()):
        found.update(file.name.encode() + b"\0" + hashlib.blake2b(file.read_bytes()).digest())
    return found.hexdigest()


def main(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    renames = build(folder / "whole", config, None)
    found = {"renames": renames, "whole": digest(folder / "whole"), "killed": []}
    for number in range(POINTS):
        root, point = folder / f"at{number}", 1 + number * 2 * renames // POINTS
        assert killed(root, config, point), f"the build was done before point {point}"
        build(root, config, None)
        found["killed"].append(digest(root))
    again = folder / "again"
    times = 0
    while killed(again, config, 13):  # A shard is three files: fewer would never come by one.
        times += 1
    found |= {"again": digest(again), "times": times}
    begun = time.process_time()
    build(folder / "timed", config, None)
    took = time.process_time() - begun
    at_any_moment = killed_at_any_moment(folder / "moments", config, took / 2)
    build(folder / "moments", config, None)
    found |= {"moments": digest(folder / "moments"), "killed_at_any_moment": sum(at_any_moment)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
