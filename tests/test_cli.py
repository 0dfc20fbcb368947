"""The command line: exit codes, two-line errors, and a study of fake stages from ``new`` to ``gc``."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prismlab.cli import main

STUDY = """\
name: tiny
bases: {tiny: {arch: llama, width: 32, layers: 1}}
sources: {math: {micro: {domain: math}}}
mixtures: {all: {weights: {math: 1}}}
checkpoints:
  base: {stage: pretrain, from: tiny, mixture: all, steps: 2, rows: 2, seq_len: 16}
tasks: {addition: {micro: {domain: math}}}
evaluations: {core: {tasks: [addition], items: 4, max_new_tokens: 4}}
"""
FAKE = """
import sys
from prismlab.study import stages
stages.STAGES.update({kind: ("fake_stages:run", version) for kind, (_, version) in stages.STAGES.items()})
from prismlab.cli import main
if __name__ == "__main__":
    main()
"""


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``prism`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["prism", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the study in it, every stage replaced by a fake one, and the working directory there."""
    from prismlab.study import stages

    monkeypatch.syspath_prepend(str(Path(__file__).parent / "run"))
    monkeypatch.chdir(tmp_path)
    for kind, (_, version) in stages.STAGES.items():
        monkeypatch.setitem(stages.STAGES, kind, ("fake_stages:run", version))
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def test_new_then_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "new", "mine.yaml") == 0
    assert call(monkeypatch, "check", "mine.yaml") == 0
    assert "mid[MCS]>rl[MCS]" in capsys.readouterr().out
    assert call(monkeypatch, "new", "mine.yaml") == 2
    assert capsys.readouterr().err == "prism: mine.yaml: is there already; take another name\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "none.yaml"], "prism: none.yaml: cannot be read: No such file or directory"),
        (["run", "bad.yaml"], "prism: bad.yaml: top level: unknown key 'basis'"),
        (["run", "study.yaml", "--until", "trian"], "prism: step: the study has no step 'trian'"),
        (["show", "nothing"], "prism: no artifact or step 'nothing' in runs/"),
        (["gc", "study.yaml", "--out", "nowhere"], "nowhere: no such run folder"),
        (["report", "study.yaml"], "nothing is built yet; 'prism run study.yaml' builds it"),
        (["run", "study.yaml", "--jobs", "0"], "greater than or equal to 1"),
        (["rnu"], "No such command 'rnu'"),
        (["run", "study.yaml", "--out", "study.yaml"], "study.yaml: cannot be made or written: File exists"),
        (["run", "study.yaml", "--out", "study.yaml/deeper"], "deeper: cannot be made or written: Not a directory"),
        (["run", "study.yaml", "--out", "."], "no run folder, it holds 'bad.yaml'; take a new or empty folder with"),
        (["show", ""], "prism: no artifact or step '' in runs/"),
    ],
)
def test_mistakes_exit_with_2(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (home / "bad.yaml").write_text(STUDY.replace("bases:", "basis:"))
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    if error.startswith("prism:"):
        assert error.count("\n") <= 2


def test_a_device_that_is_not_known_is_told_before_the_plan(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (home / "study.yaml").is_file()
    assert call(monkeypatch, "plan", "study.yaml", "--device", "tpu") == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith("prism: device 'tpu' is not known; there are h100")


def test_a_study_from_plan_to_gc(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "plan", "study.yaml") == 0
    text = capsys.readouterr().out
    assert "6 steps, 0 need no building, 6 to build" in text
    assert "trained on: 64 tokens" in text
    assert "time left, one step at a time: 6 unknown" in text
    assert call(monkeypatch, "run", "study.yaml", "--until", "train/base", "--in-process") == 0
    assert call(monkeypatch, "report", "study.yaml") == 0
    assert "2 steps are not in it" not in capsys.readouterr().out
    assert call(monkeypatch, "run", "study.yaml", "--in-process") == 0
    text = capsys.readouterr().out
    assert "where the time went" in text
    assert text.splitlines()[-1].startswith("report: ")
    assert call(monkeypatch, "status", "study.yaml") == 0
    text = capsys.readouterr().out
    assert "6 built" in text
    assert "no run is going on" in text
    assert call(monkeypatch, "show", "train/base") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "train/base/s0"
    assert call(monkeypatch, "check", "study.yaml", "--artifacts") == 0
    capsys.readouterr()
    (home / "study.yaml").write_text(STUDY.replace("steps: 2", "steps: 3"))
    (home / "runs" / "tiny" / "scratch" / "train-0123456789abcdef").mkdir(parents=True)
    assert call(monkeypatch, "gc", "study.yaml") == 0
    listed = capsys.readouterr().out
    assert "train-" in listed
    assert "scratch/train-0123456789abcdef" in listed, "no step of the plan goes on from there"
    assert "could be freed" in listed
    before = len(list((home / "runs" / "tiny" / "artifacts").iterdir()))
    assert call(monkeypatch, "gc", "study.yaml", "--yes") == 0
    after = [path.name.rpartition("-")[0] for path in (home / "runs" / "tiny" / "artifacts").iterdir()]
    assert after == ["base"]
    assert before > 6
    assert list((home / "runs" / "tiny" / "scratch").iterdir()) == []


def test_a_flipped_byte_fails_the_check_of_artifacts(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", "study.yaml", "--in-process") == 0
    victim = next((home / "runs" / "tiny" / "artifacts").glob("train-*/deep/more.bin"))
    victim.write_bytes(b"\x01" + victim.read_bytes()[1:])
    capsys.readouterr()
    assert call(monkeypatch, "check", "study.yaml", "--artifacts") == 2
    assert f"prism: {victim}: not what was written" in capsys.readouterr().err
    assert call(monkeypatch, "run", "study.yaml", "--in-process") == 0
    assert call(monkeypatch, "check", "study.yaml", "--artifacts") == 2, "nothing had to read it, so it is still there"


def test_a_stage_error_is_2_and_a_fault_of_ours_1(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prismlab.study import stages

    (home / "wrong.py").write_text(
        "from prismlab.errors import DataError\n"
        "def mend(config, inputs, out, progress): raise DataError('rows.jsonl:3: no field; add it')\n"
        "def fault(config, inputs, out, progress): raise KeyError('oops')\n"
    )
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.setitem(stages.STAGES, "corpus", ("wrong:mend", 1))
    assert call(monkeypatch, "run", "study.yaml", "--in-process") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "prism: corpus/all-4x16/s0: rows.jsonl:3: no field; add it"
    monkeypatch.setitem(stages.STAGES, "corpus", ("wrong:fault", 1))
    assert call(monkeypatch, "run", "study.yaml", "--in-process") == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "KeyError: 'oops'" in error


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        ("OSError(28, 'No space left on device')", "the disk is full; free some space"),
        ("RuntimeError('I/O error: No space left on device (os error 28)')", "the disk is full; free some space"),
        ("PermissionError(13, 'Permission denied', 'x.bin')", "x.bin: not allowed; take another folder"),
    ],
)
def test_a_place_where_nothing_can_be_written_is_no_fault_of_ours(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: str, message: str
) -> None:
    from prismlab.study import stages

    (home / "wrong.py").write_text(f"def run(config, inputs, out, progress): raise {raised}\n")
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.delitem(sys.modules, "wrong", raising=False)
    monkeypatch.setitem(stages.STAGES, "corpus", ("wrong:run", 1))
    assert call(monkeypatch, "run", "study.yaml", "--in-process") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_an_ended_branch_is_told_once_and_exits_with_0(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prismlab.study import stages

    (home / "ends.py").write_text(
        "from prismlab.errors import EndBranch\n"
        "def run(config, inputs, out, progress): raise EndBranch('nothing to learn')\n"
    )
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.setitem(stages.STAGES, "train", ("ends:run", 1))
    for _ in range(2):
        assert call(monkeypatch, "run", "study.yaml", "--in-process") == 0
        out = capsys.readouterr().out
        assert out.count("\nended train/base/s0: nothing to learn\n") == 1
        assert "\nskipped, for want of what ended: evaluation/core@base/s0\n" in out
        assert "report: " in out.splitlines()[-1]
    assert call(monkeypatch, "report", "study.yaml") == 0
    assert "are not in it" not in capsys.readouterr().err, "what ended needs no other run"


def test_a_report_is_opened_where_there_is_a_browser_and_says_so_where_there_is_none(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert call(monkeypatch, "run", "../study.yaml", "--out", "../run", "--in-process", "--until", "base/tiny") == 0
    asked: list[str] = []
    for works in (True, False):
        monkeypatch.setattr("webbrowser.open", lambda url, works=works: bool(asked.append(url)) or works)
        capsys.readouterr()
        assert call(monkeypatch, "report", "../study.yaml", "--out", "../run", "--open") == 0
        told = capsys.readouterr()
        assert told.out.startswith(str(home / "run" / "artifacts" / "report-"))
        assert ("no browser could be opened here" in told.err) == (not works)
        assert "3 steps are not in it; 'prism run ../study.yaml' builds them" in told.err or not works
    assert asked[0] == Path(told.out.strip()).as_uri()


def test_ctrl_c_says_how_to_go_on(home: Path) -> None:
    script = home / "prism.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent / 'run')!r})\n{FAKE}")
    (home / "sleepy.py").write_text("import time\ndef run(config, inputs, out, progress):\n    time.sleep(600)\n")
    script.write_text(script.read_text().replace('"fake_stages:run"', '"sleepy:run"'))
    process = subprocess.Popen(
        [sys.executable, str(script), "run", "study.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C and hands that down; a user's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    while "started" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.5)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130
    assert error.strip().endswith("prism: stopped; run the same command again to go on")
    assert time.monotonic() - begin < 300, "it waited for the step"
    assert json.loads((home / "runs" / "tiny" / "run.json").read_text())["status"] == "stopped"


def test_version_and_speed_of_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("prism 0.")
    best = 9.0
    for _ in range(5):
        # Seconds of a processor, since others may want it too; with torch it would be more.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-c", "from prismlab.cli import main; main()", "--help"], capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.6


def test_check_warns_of_tasks_that_this_machine_cannot_sample(tmp_path: Path) -> None:
    study = Path(__file__).parents[1] / "studies" / "prism-granite-3.3-8b.yaml"
    variables = {name: value for name, value in os.environ.items() if name != "PRISM_SANDBOX"} | {"PATH": str(tmp_path)}
    command = [sys.executable, "-m", "prismlab", "check", str(study)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    assert "tasks.deepcoder: 'verifier: tests' runs programs; sampling it will stop here: " in done.stdout + done.stderr
