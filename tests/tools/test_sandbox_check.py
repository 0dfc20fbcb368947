"""``prism sandbox check``, and ``prism check`` of a study that runs programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from prismlab.cli import main

STUDY = """\
name: code
bases: {tiny: {arch: llama, width: 32, layers: 1}}
sources: {math: {micro: {domain: math}}}
mixtures: {all: {weights: {math: 1}}}
checkpoints:
  base: {stage: pretrain, from: tiny, mixture: all, steps: 2, rows: 2, seq_len: 16}
tasks: {sums: {files: [sums.jsonl], domain: code, verifier: tests, fields: {question: q, answer: tests}}}
evaluations: {core: {tasks: [sums], items: 1, max_new_tokens: 4}}
"""


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prism", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_without_bwrap_it_says_what_to_do_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PRISM_SANDBOX", raising=False)
    assert call(monkeypatch, "sandbox", "check", "--level", "A") == 2
    assert "apt-get install bubblewrap" in capsys.readouterr().err
    assert call(monkeypatch, "sandbox", "check", "--level", "Q", "--json") == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["levels"][0] == {
        "level": "Q",
        "holds": False,
        "record": None,
        "help": "PRISM_SANDBOX='Q': take A, B or the address of a service (https://...)",
    }


@pytest.mark.usefixtures("level_a")
def test_what_holds_is_told_probe_by_probe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("PRISM_SANDBOX", raising=False)
    assert call(monkeypatch, "sandbox", "check", "--level", "A") == 0
    out = capsys.readouterr().out
    assert "level A: holds, in use" in out
    for probe in ("attempts", "namespaces", "memory of a group", "wall clock"):
        assert probe in out
    assert "not enforced" in out


def test_check_of_a_study_says_when_programs_cannot_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prismlab import commands

    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "sums.jsonl").write_text('{"q": "add", "tests": {"inputs": ["1 2"], "outputs": ["3"]}}\n')
    bare = tmp_path / "bin"
    bare.mkdir()
    monkeypatch.setenv("PATH", str(bare))
    monkeypatch.delenv("PRISM_SANDBOX", raising=False)
    commands._no_sandbox.cache_clear()
    assert call(monkeypatch, "check", str(tmp_path / "study.yaml")) == 0
    said = capsys.readouterr()
    assert "tasks.sums: 'verifier: tests' runs programs" in " ".join((said.out + said.err).split())
    commands._no_sandbox.cache_clear()
    monkeypatch.setattr(
        "prismlab.verify.sandbox.probe.open_sandbox", lambda: type("Box", (), {"close": lambda self: None})()
    )
    assert call(monkeypatch, "check", str(tmp_path / "study.yaml")) == 0
    said = capsys.readouterr()
    assert "runs programs" not in said.out + said.err
    commands._no_sandbox.cache_clear()
