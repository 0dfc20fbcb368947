"""The store: what a flipped byte, a lost file, a second run and a kill do to it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from fake_plans import prepared

from prismlab.errors import StoreError
from prismlab.run.store import Store

RECORD = {"kind": "train", "fingerprint": "ab12", "status": "complete", "metrics": {1: 2, "x": 0.1}, "config": {}}


def build(store: Store, content: bytes = b"weights") -> Path:
    draft = store.draft("train", "ab12")
    (draft / "model").mkdir()
    (draft / "model" / "w.bin").write_bytes(content)
    (draft / "snapshots" / "step-1").mkdir(parents=True)
    (draft / "snapshots" / "step-1" / "w.bin").write_bytes(b"early")
    return store.commit(draft, RECORD).path


def test_record_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    folder = build(store)
    record = json.loads((folder / "record.json").read_text())
    assert folder == tmp_path / "artifacts" / "train-ab12"
    assert record["files"] == {
        "model/w.bin": {"bytes": 7, "blake2b": hashlib.blake2b(b"weights", digest_size=32).hexdigest()},
        "snapshots/step-1/w.bin": {"bytes": 5, "blake2b": hashlib.blake2b(b"early", digest_size=32).hexdigest()},
    }
    assert record["schema"] == 1
    found = store.find("train", "ab12")
    assert found is not None
    store.verify(found)
    assert list(store.building.iterdir()) == []


def test_every_single_flipped_byte_is_noticed(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    folder = build(store)
    for name in ("model/w.bin", "record.json"):
        path = folder / name
        whole = path.read_bytes()
        for position in range(0, len(whole), 1 if name == "model/w.bin" else 37):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            with pytest.raises(StoreError, match=str(path)):
                store.verify(store.read(folder))
        path.write_bytes(whole)
    store.verify(store.read(folder))


@pytest.mark.parametrize("spoil", ["cut", "longer", "gone"])
def test_a_file_cut_lengthened_or_gone_is_named(tmp_path: Path, spoil: str) -> None:
    store = prepared(tmp_path)
    path = build(store) / "model" / "w.bin"
    if spoil == "gone":
        path.unlink()
    else:
        path.write_bytes(b"weight" if spoil == "cut" else b"weights!")
    artifact = store.find("train", "ab12")
    assert artifact is not None
    with pytest.raises(StoreError, match=str(path)):
        store.verify(artifact)


def test_a_folder_without_a_record_is_no_artifact(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    (build(store) / "record.json").unlink()
    assert store.find("train", "ab12") is None


def test_building_again_moves_the_old_one_aside(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    build(store, b"old")
    folder = build(store, b"new")
    assert (folder / "model" / "w.bin").read_bytes() == b"new"
    assert (store.damaged / "train-ab12.0" / "model" / "w.bin").read_bytes() == b"old"


def test_dropped_snapshots_leave_an_intact_artifact(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    folder = build(store)
    artifact = store.find("train", "ab12")
    assert artifact is not None
    assert store.drop(artifact, "snapshots/") == 5
    after = store.find("train", "ab12")
    assert after is not None
    store.verify(after)
    assert not (folder / "snapshots").exists()
    assert (folder / "model" / "w.bin").exists()
    assert list(after.record["dropped"]) == ["snapshots/step-1/w.bin"]
    assert store.drop(after, "snapshots/") == 0
    build(store)
    assert not store.damaged.exists(), "an artifact whose snapshots were dropped is replaced, not kept as damaged"


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    (store.draft("rl", "cd34") / "half.bin").write_bytes(b"half")
    (tmp_path / "tmp.99999").mkdir()
    store.prepare()
    assert list(store.building.iterdir()) == []
    assert not (tmp_path / "tmp.99999").exists()


def test_leftovers_of_a_run_of_the_same_process_id_are_removed(tmp_path: Path) -> None:
    """In a container every run may have the same one; what could not be deleted then lies under its name."""
    store = prepared(tmp_path)
    (store.draft("rl", "cd34") / "half.bin").write_bytes(b"half")
    for number in (os.getpid(), 0):
        (tmp_path / f"tmp.{number}").mkdir()
        (tmp_path / f"tmp.{number}" / "older.bin").write_bytes(b"older")
    store.prepare()
    assert list(store.building.iterdir()) == []
    assert list(tmp_path.glob("tmp.*")) == []


def test_a_metric_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    draft = store.draft("train", "ab12")
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.commit(draft, {**RECORD, "metrics": {"loss": float("nan")}})
    assert store.find("train", "ab12") is None


HOLD = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from prismlab.run.store import Store
    with Store(Path(sys.argv[1])).lock():
        print("held", flush=True)
        time.sleep(600)
    """
)


def test_a_second_run_stops_and_names_the_holder_and_a_dead_holder_is_followed(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        begin = time.monotonic()
        with pytest.raises(StoreError, match=rf"in use by process {holder.pid} on .*, started 20\d\d-"), store.lock():
            pytest.fail("two runs hold one lock")
        assert time.monotonic() - begin < 300, "it waited for the holder"
        holder.kill()
    assert f'"pid": {holder.pid}' in (tmp_path / "lock").read_text(), "the dead holder's name is still in the file"
    with store.lock():
        assert f'"pid": {os.getpid()}' in (tmp_path / "lock").read_text()


def test_asking_who_holds_the_lock_writes_nothing_and_keeps_no_run_away(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    assert store.holder() is None
    assert not store.root.exists()
    with store.lock():
        told = store.holder()
        assert told is not None
        assert f"process {os.getpid()}" in told
    text = (store.root / "lock").read_text()
    assert store.holder() is None
    assert (store.root / "lock").read_text() == text
    with (store.root / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.1, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
        with store.lock():
            pass


def test_somebody_elses_folder_is_no_run_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "mine.txt").write_text("mine")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StoreError, match=r"no run folder, it holds 'thesis.tex'; take a new"), store.lock():
        pytest.fail("took a folder that is not ours")
    assert store.hash_cache is None
    (tmp_path / "lock").write_text("not JSON")
    with pytest.raises(StoreError, match="no run folder"), store.lock():
        pytest.fail("took a folder that is not ours")
    assert (tmp_path / "tmp" / "mine.txt").exists()
    (tmp_path / "lock").unlink()
    (tmp_path / "thesis.tex").unlink()
    with store.lock():
        store.prepare()
    (tmp_path / "notes.txt").write_text("put there later")
    with store.lock():
        assert store.hash_cache == tmp_path / "hashes.json"
    (tmp_path / "artifacts" / "thesis").mkdir()
    assert list(store.all()) == [], "what is not called like an artifact is none, so gc leaves it alone"
