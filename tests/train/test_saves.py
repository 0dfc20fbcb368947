"""Saves: what comes back, what is noticed, what a full disk and a death at any system call leave."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prismlab.errors import CheckpointError, StageError
from prismlab.train import saves as module
from prismlab.train.saves import Save, Saves, Slice
from prismlab.train.written import write_tensors

CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "link", "unlink", "rmdir")


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight/a": torch.randn(5, 3, generator=generator),
        "weight/b": torch.randn(2, 4, generator=generator).bfloat16(),
        "step/a": torch.tensor(float(seed)),
        "weight/none": torch.zeros(0, 3),
    }


def slices(seed: int) -> dict[str, Slice]:
    return {name: Slice(values=values) for name, values in tensors(seed).items()}


def save(folder: Path, *steps: int, keep: int = 2, notes: list[str] | None = None) -> Saves:
    told = [] if notes is None else notes
    saves = Saves(folder, identity="x", keep=keep, note=told.append)
    for step in steps:
        saves.begin(step, slices(step), state={"log": step}, own_state={"n": step}, own={"rng": torch.tensor([step])})
        saves.wait()
    return saves


def same(found: Save, step: int) -> None:
    for name, values in tensors(step).items():
        assert torch.equal(found.rows(name), values), name
    assert found.state == {"log": step}
    told = found.own(0)
    assert told is not None
    assert told[0] == {"n": step}
    assert told[1]["rng"].tolist() == [step]


def test_what_was_saved_comes_back_and_the_older_ones_go(tmp_path: Path) -> None:
    saves = save(tmp_path / "saves", 1, 2, 3)
    assert saves.steps() == [2, 3]
    found = saves.latest()
    assert found is not None
    assert found.step == 3
    same(found, 3)
    assert found.own(1) is None
    assert sorted(path.name for path in (tmp_path / "saves").iterdir()) == ["step-00000002", "step-00000003"]


def test_files_are_safetensors_that_the_library_reads(tmp_path: Path) -> None:
    given = tensors(0) | {"flags": torch.tensor([True, False]), "long": torch.arange(3)}
    write_tensors(tmp_path / "file.safetensors", given)
    read = load_file(tmp_path / "file.safetensors")
    assert set(read) == set(given)
    assert all(torch.equal(read[name], given[name]) and read[name].dtype == given[name].dtype for name in given)


def test_rows_of_several_parts_are_put_together(tmp_path: Path) -> None:
    whole = torch.arange(35.0).reshape(7, 5)
    writers = [Saves(tmp_path, identity="x", rank=rank, size=3) for rank in range(3)]
    for rank, (start, stop) in enumerate([(0, 3), (3, 6), (6, 7)]):
        piece = Slice(values=whole[start:stop].clone(), start=start, rows=7)
        writers[rank].begin(4, {"w": piece}, state={}, own_state={"rank": rank})
    for writer in writers:
        writer.wait()
    found = writers[0].latest()
    assert found is not None
    assert found.ranks == 3
    for start in range(7):
        for stop in range(start, 8):
            assert torch.equal(found.rows("w", start, stop), whole[start:stop])
    assert [found.own(rank) for rank in range(4)] == [({"rank": 0}, {}), ({"rank": 1}, {}), ({"rank": 2}, {}), None]


def test_rows_that_no_part_holds_are_an_error(tmp_path: Path) -> None:
    saves = Saves(tmp_path, identity="x")
    saves.begin(1, {"w": Slice(values=torch.zeros(2, 2), start=0, rows=3)}, state={})
    saves.wait()
    found = saves.latest()
    assert found is not None
    with pytest.raises(CheckpointError, match="rows 2 to 3 of w are in none"):
        found.rows("w")
    with pytest.raises(CheckpointError, match="holds no v"):
        found.rows("v")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["part-00000.safetensors", "save.json"])
def test_a_damaged_save_is_passed_over_and_told(tmp_path: Path, harm: Callable[[Path], Any], name: str) -> None:
    notes: list[str] = []
    saves = save(tmp_path, 1, 2, notes=notes)
    harm(saves.place(2) / name)
    found = saves.latest()
    assert found is not None
    same(found, 1)
    (note,) = notes
    assert name in note
    assert "going on from the save before" in note
    harm(saves.place(1) / name)
    assert saves.latest() is None
    assert "going on from the start" in notes[-1]


def test_a_save_of_another_run_is_not_taken(tmp_path: Path) -> None:
    save(tmp_path, 1)
    notes: list[str] = []
    assert Saves(tmp_path, identity="y", note=notes.append).latest() is None
    assert "another configuration" in notes[0]


def test_a_damaged_save_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    saves = save(tmp_path, 1, 2)
    flip(saves.place(2) / "part-00000.safetensors")
    save(tmp_path, 2)
    found = saves.latest()
    assert found is not None
    same(found, 2)


@pytest.mark.parametrize(("keep", "damaged"), [(1, [40]), (2, [30, 40])])
def test_damaged_saves_of_later_steps_do_not_displace_new_ones(tmp_path: Path, keep: int, damaged: list[int]) -> None:
    """Saves by the clock come after other steps than before: the new ones lie before the damaged ones."""
    for step in (20, *damaged):
        save(tmp_path, step, keep=9)
    for step in damaged:
        flip(tmp_path / f"step-{step:08d}" / "save.json")
    for step in (23, 27):
        saves = save(tmp_path, step, keep=keep)
        found = saves.latest()
        assert found is not None
        same(found, step)
    assert saves.steps() == [*([27] if keep == 1 else [23, 27]), *damaged]
    save(tmp_path, 41, 42, keep=keep)
    assert saves.steps() == ([42] if keep == 1 else [41, 42])


def test_a_full_disk_stops_with_the_save_before_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves, write, written = save(tmp_path, 1), os.write, 0

    def full(descriptor: int, data: Any) -> int:
        nonlocal written
        if written > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(descriptor, data[:60])  # a disk takes some of it before it is full
        written += done
        return done

    monkeypatch.setattr(os, "write", full)
    saves.begin(2, slices(2), state={})
    with pytest.raises(StageError, match=r"save of step 2 .* disk is full.*the save of step 1 is intact"):
        saves.wait()
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]  # the half save gave its room back
    found = saves.latest()
    assert found is not None
    same(found, 1)


def test_an_error_of_the_thread_comes_out_at_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "saves").write_text("a file")
    saves = Saves(tmp_path / "saves", identity="x")
    saves.begin(1, slices(1), state={})
    with pytest.raises(StageError, match="no save before"):
        saves.begin(2, slices(2), state={})


def test_a_save_that_waits_for_other_processes_is_given_up_at_the_end(tmp_path: Path) -> None:
    saves = Saves(tmp_path, identity="x", size=2)
    saves.begin(1, slices(1), state={})
    saves.close()
    with pytest.raises(StageError, match="given up"):
        saves.wait()
    assert saves.steps() == []


def die_at(folder: Path, call: int, half: bool) -> bool:
    """Save step 3 in a child that dies by SIGKILL just before its ``call``-th system call; whether it came so far.

    Args:
        half: a write that it dies at has written half of its bytes.
    """
    child = os.fork()
    if child == 0:
        count, real = 0, {name: getattr(os, name) for name in CALLS}

        def counted(name: str) -> Callable[..., Any]:
            def run(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == call:
                    if half and name == "write":
                        real["write"](arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return real[name](*arguments, **named)

            return run

        for name in CALLS:
            setattr(os, name, counted(name))
        saves = Saves(folder, identity="x", keep=1)
        saves.sweep()
        count = 0
        saves.begin(3, slices(3), state={"log": 3}, own_state={"n": 3}, own={"rng": torch.tensor([3])})
        saves.wait()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def test_death_at_every_system_call_of_a_save_leaves_a_whole_one(tmp_path: Path) -> None:
    for half in (False, True):
        call, seen = 0, set[int]()
        while True:
            folder, call = tmp_path / f"{half}-{call}", call + 1
            save(folder, 2, keep=1)
            died = die_at(folder, call, half)
            notes: list[str] = []
            saves = Saves(folder, identity="x", note=notes.append)
            saves.sweep()
            found = saves.latest()
            assert found is not None
            assert notes == []  # nothing half is ever taken for a save
            same(found, found.step)
            seen.add(found.step)
            assert not [path for path in folder.iterdir() if path.name.startswith(".")]
            if not died:
                break
        assert call > 25
        assert seen == {2, 3}


def test_nothing_of_a_save_is_pickled(tmp_path: Path) -> None:
    place = save(tmp_path, 1).place(1)
    assert {path.suffix for path in place.iterdir()} == {".json", ".safetensors"}
    assert json.loads((place / "save.json").read_text())["schema"] == module.SCHEMA
