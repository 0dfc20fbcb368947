"""A merged folder is there whole or not at all: taken targets, killed processes, what they leave; files and shards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from prismlab.errors import CheckpointError, SpecError
from prismlab.merge.atomic import built_whole
from prismlab.merge.shards import Slot, arrange, parse_size


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "merged"
    with built_whole(target) as draft:
        (draft / "file").write_text("x")
        assert not target.exists()
        assert draft.parent == target.parent
    assert [path.name for path in target.parent.iterdir()] == ["merged"]
    assert (target / "file").read_text() == "x"


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with built_whole(tmp_path / "merged") as draft:
            (draft / "file").write_text("x")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in ("full", "file", "nowhere"):
        with pytest.raises(CheckpointError, match="name a new folder"), built_whole(tmp_path / name):
            pytest.fail("was begun")
    (tmp_path / "late").mkdir()

    def late() -> None:
        with built_whole(tmp_path / "late") as draft:
            (draft / "file").write_text("x")
            (tmp_path / "late" / "theirs").write_text("x")

    with pytest.raises(CheckpointError, match="nothing is overwritten"):
        late()
    assert [path.name for path in (tmp_path / "late").iterdir()] == ["theirs"]
    assert not list(tmp_path.glob(".*"))


def test_a_killed_run_leaves_no_target_and_the_next_clears_up(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom prismlab.merge.atomic import built_whole\n"
        "with built_whole(Path(sys.argv[1])) as draft:\n"
        "    (draft / 'half').write_bytes(b'x' * 1000)\n    print('begun', flush=True)\n    time.sleep(600)\n"
    )
    target = tmp_path / "merged"
    with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        (left,) = tmp_path.iterdir()
        old = time.time() - 3600
        os.utime(left, (old, old))
        with built_whole(tmp_path / "merged"):  # another run for the same target at the same time
            assert left.is_dir(), "the folder of a running process is its own"
        (tmp_path / "merged").rmdir()
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == [left.name]
    assert left.name.startswith(".merged.unfinished.")
    os.utime(left, (old, old))
    with built_whole(target) as draft:
        (draft / "file").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("2GiB", 2**31), ("1.5kb", 1500), ("700", 700), (42, 42)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "0.1B", "5 parsecs", "1e9", "\x1b[31m", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(SpecError, match="a number and a unit"):
        parse_size(text)


def test_tensors_keep_within_the_size_of_a_file(tmp_path: Path) -> None:
    slots = [Slot(f"t{at}", "BF16", (10, at)) for at in range(1, 8)] + [
        Slot("large", "F32", (100, 10)),
        Slot("none", "F32", (0, 4)),
    ]
    shards = arrange(slots, 200)
    assert sorted(name for shard in shards for name in shard.offsets) == sorted(slot.name for slot in slots)
    sizes = {slot.name: slot.bytes for slot in slots}
    for shard in shards:
        held = sum(sizes[name] for name in shard.offsets)
        assert held <= 200 or set(shard.offsets) <= {"large", "none"}
        assert shard.size == len(shard.header) + held
    assert [shard.file for shard in shards][:1] == [f"model-00001-of-{len(shards):05d}.safetensors"]
    (one,) = arrange(slots, 10**9)
    path = tmp_path / one.file
    path.write_bytes(one.header + bytes(one.size - len(one.header)))
    with safe_open(path, "np") as file:  # the library's own reader takes the header
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys() if sizes[name]} == {  # noqa: SIM118
            slot.name: slot.shape for slot in slots if slot.bytes
        }


@pytest.mark.parametrize("name", ["\u4e00" * 85, "a[b]*?", "n" * 255, ".x"])
def test_any_name_that_a_folder_can_have(name: str, tmp_path: Path) -> None:
    beside = tmp_path / f".{'a[b]'}zz.unfinished.1-2"
    beside.mkdir()
    os.utime(beside, (0, 0))
    with built_whole(tmp_path / name) as draft:
        (draft / "x").write_text("x")
        left = draft.with_name(f"{draft.name}-left")
        left.mkdir()
        os.utime(left, (0, 0))
    assert (tmp_path / name / "x").read_text() == "x"
    (tmp_path / name / "x").unlink()
    with built_whole(tmp_path / name):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, beside.name])


@pytest.mark.parametrize("name", ["n" * 256, "file/x", "file/x/y", "/proc/nothing-here"])
def test_a_place_that_cannot_be_made_is_the_user_s_to_mend(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="name another folder with --out"), built_whole(tmp_path / name):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
