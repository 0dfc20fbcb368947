"""Machine code kept on disk: the same results without numba, never from a damaged or an outdated file."""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from prismlab.arith import bounds, kernels, machine
from prismlab.arith.machine import POINTER, WHOLE, Entry

pytest.importorskip("numba")

SOURCE = """
import numba
import numpy as np
from numba import types

FACTOR = 3

def total():
    def entry(values, n):
        found = 0
        for i in range(n):
            found += FACTOR * numba.carray(values, n)[i]
        return found
    return numba.njit(types.int64(types.CPointer(types.int64), types.int64), error_model="numpy")(entry)

def greedy():
    def entry(values, n):
        return len(np.zeros(n)) + values[0]
    return numba.njit(types.int64(types.CPointer(types.int64), types.int64), error_model="numpy")(entry)
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module with two entries that can be imported, and a folder of its own for code."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.delitem(sys.modules, "entries_of_a_test", raising=False)
    (tmp_path / "entries_of_a_test.py").write_text(SOURCE)
    importlib.invalidate_caches()
    machine._loaded.cache_clear()
    yield tmp_path
    machine._loaded.cache_clear()
    sys.modules.pop("entries_of_a_test", None)


def entry(name: str = "total") -> Entry:
    return Entry("entries_of_a_test", name, ("entries_of_a_test",), (POINTER, WHOLE))


def total(values: list[int]) -> int:
    array = np.array(values, np.int64)
    return machine.load(entry())(array.ctypes.data, len(array))


def forget() -> None:
    """As if the process were new."""
    machine._loaded.cache_clear()
    sys.modules.pop("entries_of_a_test", None)


def test_kept_code_is_used_and_nothing_is_compiled_again(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert total([1, 2, 4]) == 21
    (file,) = (written / "kept").iterdir()
    before = file.read_bytes()
    forget()
    monkeypatch.setattr(machine, "build", lambda entry: pytest.fail("compiled again"))
    assert total([1, -5]) == -12
    assert file.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "folder"])
def test_a_damaged_file_is_made_again(written: Path, damage: str) -> None:
    assert total([2]) == 6
    (file,) = (written / "kept").iterdir()
    sound = file.read_bytes()
    at = len(sound) // 2
    damaged = {"cut": sound[:-9], "flipped": sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :], "empty": b""}
    file.unlink()
    if damage == "folder":
        file.mkdir()  # it can be neither read nor replaced
    else:
        file.write_bytes(damaged[damage])
    forget()
    assert total([7]) == 21
    if damage != "folder":
        forget()
        assert machine._read([file]) is not None
        assert [one.name for one in file.parent.iterdir()] == [file.name]  # no draft is left


def test_changed_source_is_compiled_anew(written: Path) -> None:
    assert total([1, 1]) == 6
    (written / "entries_of_a_test.py").write_text(SOURCE.replace("FACTOR = 3", "FACTOR = 5"))
    os.utime(written / "entries_of_a_test.py", (1, 1))  # older than its compiled form: the text decides
    for left in (written / "__pycache__").glob("*"):
        left.unlink()
    importlib.invalidate_caches()
    forget()
    assert total([1, 1]) == 10
    assert len(list((written / "kept").iterdir())) == 2


@pytest.mark.parametrize("name", ["NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT"])
def test_what_numba_is_asked_for_is_part_of_the_key(written: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = machine._key(entry())
    monkeypatch.setenv(name, "another")
    assert machine._key(entry()) != before
    assert machine._key(entry("greedy")) != machine._key(entry())


def test_where_nothing_can_be_written_it_is_compiled_each_time(
    written: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "a file" / "below"))
    assert total([3]) == 9
    assert not (written / "kept").exists()


def test_beside_the_module_or_else_in_the_user_s_cache(
    written: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (written / "__pycache__").write_text("no folder, so nothing can be written below it")
    assert total([1, 2]) == 9
    assert len(list((tmp_path / "cache" / "prismlab").iterdir())) == 1
    (written / "__pycache__").unlink()
    forget()
    machine._write([folder / "x.code" for folder in machine._folders(entry())], "symbol", b"code")
    assert machine._read([written / "__pycache__" / "x.code"]) == ("symbol", b"code")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError("no home")))
    assert machine._folders(entry()) == [written / "__pycache__"]


def test_code_that_needs_numba_is_refused(written: Path) -> None:
    with pytest.raises(RuntimeError, match=r"greedy needs .*NRT_"):
        machine.load(entry("greedy"))
    assert not (written / "kept").exists()


def test_an_error_in_the_code_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = ctypes.CFUNCTYPE(ctypes.c_int32, POINTER, POINTER, POINTER, WHOLE)
    failing = kind(lambda *_: 1)
    monkeypatch.setattr(machine, "_link", lambda symbol, code: ctypes.cast(failing, ctypes.c_void_p).value)
    monkeypatch.setattr(machine, "_read", lambda files: ("", b""))
    machine._loaded.cache_clear()
    numbers = np.ones(1, np.int64)
    with pytest.raises(RuntimeError, match=r"arith\.bounds\.total ended with status 1"):
        machine.load(Entry("prismlab.arith.bounds", "total", ("prismlab.arith.bounds",), (POINTER, WHOLE)))(
            numbers.ctypes.data, 1
        )
    machine._loaded.cache_clear()


def test_the_pass_of_a_new_process_does_without_numba() -> None:
    """Of both entries: after one call here, another process has the same result and never imports numba."""
    program = """
import sys
import numpy as np
from prismlab.arith import kernels
from prismlab.merge.blend import Blend
bits = np.arange(0x3F80, 0x3F80 + 5000).astype(np.uint16)
found = kernels.divergence(bits, bits[::-1], (0.001, 0.01), "numba")
out = np.zeros(64, np.uint8)
strange = Blend([0, 64], ["BF16", "BF16"], [0.25, 0.75], "BF16")(np.full(128, 0x40, np.uint8), 32, out)
print(found.changed, found.ulp, found.equal, strange, out.tolist(), "numba" in sys.modules)
"""
    first, second = (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert second == first.replace("True", "False")
    bits = np.arange(0x3F80, 0x3F80 + 5000).astype(np.uint16)
    wanted = kernels.divergence(bits, bits[::-1], (0.001, 0.01), "numpy")
    assert first.startswith(f"{wanted.changed} {wanted.ulp} {wanted.equal} 0 {[0x40] * 64}")
    assert bounds.DIVERGENCE.sources[0] == bounds.DIVERGENCE.module
