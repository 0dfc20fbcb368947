"""Tiny stages for tests of the frame: each writes what it was given, so that any mix-up shows in the files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prismlab.errors import EndBranch, StageError
from prismlab.run.step import Artifact, Progress, Result


def run(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Write config and the content of every input; sleep, fail or end the branch where the config asks for it."""
    progress.start(2, "step")
    read = {key: (found.path / "data.json").read_text() for key, found in inputs.items()}
    progress.advance(1, loss=0.5)
    if config.get("counter"):
        with Path(config["counter"]).open("a") as file:
            file.write(f"{config['name']}\n")
    time.sleep(config.get("sleep", 0))
    if config.get("meet"):
        folder, others = Path(config["meet"][0]), config["meet"][1]
        (folder / config["name"]).touch()
        _until(lambda: len(list(folder.iterdir())) >= others)
    if config.get("end"):
        raise EndBranch(config["end"])
    if config.get("fail"):
        raise StageError(config["fail"])
    if config.get("crash"):
        raise ZeroDivisionError(config["crash"])
    if config.get("die"):
        os.kill(os.getpid(), config["die"])
    (out / "deep").mkdir()
    (out / "deep" / "more.bin").write_bytes(bytes(range(256)) * 8)
    if config.get("snapshots"):
        (out / "snapshots" / "step-1").mkdir(parents=True)
        (out / "snapshots" / "step-1" / "w.bin").write_bytes(b"w" * 1000)
    told = {key: value for key, value in config.items() if key not in ("files", "scratch", "counter", "sleep", "meet")}
    (out / "data.json").write_text(json.dumps({"config": told, "read": read}, sort_keys=True))
    progress.advance(1, loss=0.25)
    progress.note("written")
    print("to the log")
    return Result(metrics={"inputs": len(inputs), "pid": os.getpid()}, tokens=10)


def _until(there: Callable[[], bool]) -> None:
    until = time.monotonic() + 300
    while not there():
        if time.monotonic() > until:
            raise TimeoutError("the others did not come")
        time.sleep(0.02)


def pieces(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Four pieces kept in the scratch folder; the process dies once after the piece that ``die_after`` names."""
    scratch = Path(config["scratch"])
    scratch.mkdir(parents=True, exist_ok=True)
    made = 0
    for piece in range(4):
        if (scratch / str(piece)).exists():
            continue
        (scratch / str(piece)).write_text(str(piece * piece))
        made += 1
        if piece == config.get("die_after"):
            os.kill(os.getpid(), 9)
        if piece == config.get("fail_after"):
            raise StageError("not yet")
    (out / "data.json").write_text(json.dumps([(scratch / str(piece)).read_text() for piece in range(4)]))
    return Result(metrics={"made": made})


def ranks(config: Mapping[str, Any], inputs: Mapping[str, Artifact], out: Path, progress: Progress) -> Result:
    """Under torchrun: each process leaves its rank beside the artifact, the first writes it."""
    progress.start(1, "step")
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if config.get("fail") and rank == "1":
        raise StageError(config["fail"])
    if config.get("die") and rank == "1":
        os.kill(os.getpid(), config["die"])
    if rank == "0" and (config.get("fail") or config.get("die")):
        # What the other one tells comes first, as where this one waits for its numbers; of a death nobody tells it.
        if config.get("fail"):
            _until(Path(os.environ["PRISM_FAULT_FILE"]).exists)
        else:
            time.sleep(600)
        raise ConnectionResetError("the other one is gone")
    if rank == "0":
        (out / "data.json").write_text(json.dumps({"size": size}))
    progress.advance()
    return Result(metrics={"rank": rank, "size": size}, tokens=1)
