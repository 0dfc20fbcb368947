"""What a user calls a checkpoint: folders, slips, and model ids from a cache without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prismlab.errors import CheckpointError, MissingExtra
from prismlab.model.hub import fetch, resolve, revision

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_folder_is_itself_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "owner/name", "owner/name@v1", "a=0.5", "with space"):
        (tmp_path / name).mkdir(parents=True)
        assert resolve(name) == Path(name)
        assert resolve(tmp_path / name) == tmp_path / name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/plain") == tmp_path / "plain"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs/mid", "no such folder"),  # 'runs' is a folder, so this is a slip in a path and no model id
        ("./mid", "no such folder"),
        ("/nowhere/at/all", "no such folder"),
        ("justaname", "no such folder"),
        ("owner/name/more", "no such folder"),
        ("owner/name@", "no such folder"),
        ("", "no such folder"),  # an unset variable of the shell is not the current folder
        ("own\x1b[31mer/na me", r"own\\x1b\[31mer"),
        ("weights/model.safetensors", "a file; name the checkpoint's folder"),
    ],
)
def test_a_slip_in_a_path_asks_no_server(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=message):
        resolve(text)


def test_a_model_comes_from_the_cache_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "models--owner--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs/1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    # A process of its own: the library reads these variables once, when it is imported.
    code = (
        "from prismlab.errors import CheckpointError\nfrom prismlab.model.hub import resolve, revision\n"
        "for text in ('owner/name', 'owner/name@v1', 'owner/name@v2', 'owner/other'):\n"
        "    try:\n        found = resolve(text)\n        print(found, revision(found))\n"
        "    except CheckpointError as error:\n        print('refused', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path), "HOME": str(tmp_path), "PATH": ""},
    )
    lines = done.stdout.splitlines()
    assert lines[0] == lines[1] == f"{snapshot} {COMMIT}"
    assert len(lines) == 4
    for line, name in zip(lines[2:], ("owner/name@v2", "owner/other"), strict=True):
        assert line.startswith(f"refused the model '{name}' cannot be fetched and is not in the local cache")


def test_a_model_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match="'owner/name@v1' cannot be fetched"):
        fetch("owner/name@v1")
    for wrong in ("not a/model/id", "owner/name@../../main", "own..er/name", "owner/name@"):
        with pytest.raises(CheckpointError, match="neither a folder nor a model id"):
            fetch(wrong)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"prismlab\[hub\]"):
        resolve("owner/name")


def test_only_a_snapshot_of_the_cache_has_a_revision(tmp_path: Path) -> None:
    for name, expected in ((f"snapshots/{COMMIT}", COMMIT), (COMMIT, None), ("snapshots/main", None)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        assert revision(folder) == expected
