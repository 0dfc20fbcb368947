"""Saves of a training under way, from which it goes on after any death: whole or not there, hashed, any mesh.

    saves/step-00000040/part-00000.safetensors   what process 0 holds: rows of tensors, its random state
    saves/step-00000040/part-00000.json          where each of them belongs, and the file's size and hash
    saves/step-00000040/save.json                written last: step, state, parts, hashes; sealed by its own hash

A tensor that is sharded lies in several parts, each with the rows that it holds, so another number of processes can
read it. A save is written to a folder aside by a thread of each process; the first one waits for all parts, writes
``save.json``, forces the folder to the disk and renames it. Older saves go only after that, so at every instant a
complete one is there. Nothing is pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from prismlab.errors import CheckpointError, StageError, in_a_line, place_trouble, shown
from prismlab.train.written import force_folder, hash_file, keep_also, remove, write_json, write_tensors

SCHEMA = 1
MANIFEST = "save.json"
READERS = 4
"""Threads that hash the files of a save when it is read."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Rows ``start`` to ``start + len(values)`` of a tensor of ``rows`` rows, in memory that nobody else changes."""

    values: torch.Tensor
    start: int = 0
    rows: int | None = None
    """Rows of the whole tensor; None where ``values`` is the whole (and may have no dimension)."""


def _seal(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Save:
    """A complete save, its hashes verified."""

    folder: Path
    manifest: Mapping[str, Any]
    _open: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.manifest["step"])

    @property
    def state(self) -> Mapping[str, Any]:
        """What the first process kept besides tensors."""
        return self.manifest["state"]

    @property
    def ranks(self) -> int:
        """Processes that wrote it."""
        return len(self.manifest["own"])

    def file(self, name: str) -> Path:
        """A file that was kept in the save as it was."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self.manifest["tensors"]

    def _file(self, part: str) -> Any:
        if part not in self._open:
            self._open[part] = safe_open(str(self.folder / part), framework="pt", device="cpu")
        return self._open[part]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of a tensor, put together from whichever parts hold them; None for all.

        Raises:
            CheckpointError: there is no such tensor, or no part holds some of these rows.
        """
        pieces = self.manifest["tensors"].get(name)
        if pieces is None:
            raise CheckpointError(f"{self.folder}: holds no {shown(name)}; the model is not the one that was saved")
        if pieces[0]["rows"] is None:
            return self._file(pieces[0]["file"]).get_tensor(name)
        stop, at, found = int(pieces[0]["rows"]) if stop is None else stop, start, list[torch.Tensor]()
        for piece in sorted(pieces, key=lambda piece: piece["start"]):
            low, high = max(at, piece["start"]), min(stop, piece["stop"])
            if low == at and high > low:
                values = self._file(piece["file"]).get_slice(name)
                found.append(values[low - piece["start"] : high - piece["start"]])
                at = high
        if at < stop:
            raise CheckpointError(f"{self.folder}: rows {at} to {stop} of {shown(name)} are in none of its parts")
        return torch.cat(found) if found else self._file(pieces[0]["file"]).get_slice(name)[0:0]

    def own(self, rank: int) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]] | None:
        """What process ``rank`` kept for itself; None where the save was written by fewer processes."""
        if rank >= self.ranks:
            return None
        file = self._file(f"part-{rank:05d}.safetensors")
        names = self.manifest["own"][rank]["tensors"]
        return self.manifest["own"][rank]["state"], {name: file.get_tensor(f"own/{name}") for name in names}


def read_save(folder: Path, identity: str, *, hashes: bool = True) -> Save:
    """A save, with all its files compared with their ``hashes`` unless another process has done so.

    Raises:
        CheckpointError: it is damaged, incomplete, or of another run; the message says what and where.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sealed, files = manifest["seal"] == _seal(manifest), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / MANIFEST}: cannot be read: {in_a_line(error)}") from error
    if not sealed or manifest.get("schema") != SCHEMA:
        raise CheckpointError(f"{folder / MANIFEST}: damaged (its seal does not fit), or of another version")
    if manifest["identity"] != identity:
        raise CheckpointError(f"{folder}: the save of another configuration, start or corpus")
    with ThreadPoolExecutor(READERS) as readers:
        files = files if hashes else {}
        list(readers.map(lambda known: _check_file(folder / known[0], known[1]), files.items()))
    return Save(folder=folder, manifest=manifest)


def _check_file(path: Path, known: Mapping[str, Any]) -> None:
    try:
        found = hash_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    if found != known:
        raise CheckpointError(f"{path}: not what was written (hash differs)")


@dataclass(kw_only=True)
class _Draft:
    """What a thread has to write."""

    step: int
    tensors: Mapping[str, Slice]
    state: Mapping[str, Any]
    own_state: Mapping[str, Any]
    own: Mapping[str, torch.Tensor]
    files: Mapping[str, Path]


class Saves:
    """The saves of one training.

    Args:
        folder: where they lie; survives the process.
        identity: hash of what makes two runs the same; the number of processes is no part of it.
        rank: this process.
        size: processes that save together; they see one folder.
        keep: complete saves that stay, the newest.
        note: told what the user should read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: str,
        rank: int = 0,
        size: int = 1,
        keep: int = 2,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder, self._identity, self._rank, self._size = folder, identity, rank, size
        self._keep, self._note = max(1, keep), note
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._closed = threading.Event()

    def sweep(self) -> None:
        """Delete what a killed process left half written or half deleted; one process calls it, before any save."""
        if self.folder.is_dir():
            for left in sorted(self.folder.iterdir()):
                if left.name.startswith("."):
                    remove(left)

    def steps(self) -> list[int]:
        """Steps of the saves that are there, rising; whether they are intact is not looked at."""
        names = [path.name for path in self.folder.glob("step-*")] if self.folder.is_dir() else []
        return sorted(int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit())

    def place(self, step: int) -> Path:
        """The folder of a save."""
        return self.folder / f"step-{step:08d}"

    def latest(self) -> Save | None:
        """The newest save that is intact; None if there is none. Every damaged one that is passed over is told."""
        for step in reversed(self.steps()):
            try:
                return read_save(self.place(step), self._identity)
            except CheckpointError as error:
                others = any(other < step for other in self.steps())
                self._note(f"{error}; going on from {'the save before' if others else 'the start'}")
        return None

    def begin(
        self,
        step: int,
        tensors: Mapping[str, Slice],
        *,
        state: Mapping[str, Any],
        own_state: Mapping[str, Any] | None = None,
        own: Mapping[str, torch.Tensor] | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> None:
        """Write a save in the background; waits for the one before, if that is still being written.

        Args:
            step: optimizer steps done.
            tensors: what this process holds, by name; copies, since training goes on meanwhile.
            state: JSON of the first process.
            own_state: JSON of this process alone, such as its random state.
            own: tensors of this process alone.
            files: files that the first process keeps in the save by another link, so that they outlive their names.

        Raises:
            StageError: the save before failed.
        """
        self.wait()
        draft = _Draft(
            step=step, tensors=tensors, state=state, own_state=own_state or {}, own=own or {}, files=files or {}
        )
        # Before training goes on: it may delete what a file is called now, or put another in its place.
        self._guarded(draft, self._keep_files)
        if self._error is None:
            work = (draft, self._write)
            self._thread = threading.Thread(target=self._guarded, args=work, daemon=True, name=f"save-{step}")
            self._thread.start()

    def wait(self) -> None:
        """Wait until the save under way is complete, as far as this process has a part in it.

        Raises:
            StageError: it failed. The save before is intact.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Let a save that waits for other processes go; for the way out after an error."""
        self._closed.set()

    def _guarded(self, draft: _Draft, work: Callable[[Path, _Draft], None]) -> None:
        aside = self.folder / f".partial-{draft.step:08d}"
        try:
            work(aside, draft)
        except OSError as error:
            trouble = place_trouble(error) or f"{in_a_line(error)}"
            self._error = self._failed(draft.step, trouble, error)
            if error.errno in (errno.ENOSPC, errno.EDQUOT) and aside.is_dir():
                remove(aside)
        except BaseException as error:
            self._error = error

    def _failed(self, step: int, trouble: str, error: BaseException) -> StageError:
        there = [one for one in self.steps() if one != step]
        rest = f"the save of step {there[-1]} is intact" if there else "there is no save before it"
        failed = StageError(f"the save of step {step} could not be written: {trouble}; {rest}, the run stops here")
        failed.__cause__ = error
        return failed

    def _keep_files(self, aside: Path, draft: _Draft) -> None:
        aside.mkdir(parents=True, exist_ok=True)
        for name, path in draft.files.items():
            keep_also(path, aside / name)

    def _write(self, aside: Path, draft: _Draft) -> None:
        name = f"part-{self._rank:05d}"
        tensors = {key: piece.values for key, piece in draft.tensors.items()}
        tensors |= {f"own/{key}": values for key, values in draft.own.items()}
        known = write_tensors(aside / f"{name}.safetensors", tensors)
        pieces = {
            key: {"start": one.start, "stop": one.start + one.values.shape[0], "rows": one.rows}
            if one.rows is not None
            else {"start": 0, "stop": 0, "rows": None}
            for key, one in draft.tensors.items()
        }
        about = {"file": known, "pieces": pieces, "own": {"state": draft.own_state, "tensors": sorted(draft.own)}}
        write_json(aside / f"{name}.json", about)
        if self._rank == 0:
            self._publish(aside, draft)

    def _parts(self, aside: Path) -> list[dict[str, Any]]:
        """What each process says of its part, once all have written theirs."""
        wanted = [aside / f"part-{rank:05d}.json" for rank in range(self._size)]
        while not all(path.is_file() for path in wanted):
            if self._closed.is_set():
                raise StageError("a save was given up, since the run ended before all its parts were written")
            time.sleep(0.02)
        return [json.loads(path.read_text(encoding="utf-8")) for path in wanted]

    def _publish(self, aside: Path, draft: _Draft) -> None:
        told = self._parts(aside)
        tensors: dict[str, list[dict[str, Any]]] = {}
        for rank, part in enumerate(told):
            for name, piece in part["pieces"].items():
                tensors.setdefault(name, []).append({"file": f"part-{rank:05d}.safetensors", **piece})
        files = {f"part-{rank:05d}.safetensors": part["file"] for rank, part in enumerate(told)}
        files |= {name: hash_file(aside / name) for name in draft.files}
        manifest: dict[str, Any] = {"schema": SCHEMA, "step": draft.step, "identity": self._identity}
        manifest |= {"state": dict(draft.state), "own": [part["own"] for part in told]}
        manifest |= {"tensors": tensors, "files": files}
        write_json(aside / MANIFEST, manifest | {"seal": _seal(manifest)})
        force_folder(aside)
        place = self.place(draft.step)
        if place.exists():
            remove(place)  # one that was passed over as damaged; this run has come to its step again
        aside.rename(place)
        force_folder(self.folder)
        # Later ones were passed over as damaged, or this run would be behind them: they keep no place from a whole one.
        for old in [step for step in self.steps() if step <= draft.step][: -self._keep]:
            remove(self.place(old))
