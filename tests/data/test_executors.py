from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove")

from datatrove.executor.slurm import SlurmPipelineExecutor

from prismlab.data import cleaning, executors
from prismlab.data.clean import clean_source
from prismlab.data.sources import cleaned_documents
from prismlab.errors import DataError, MissingExtra
from prismlab.run.step import Silent
from prismlab.study.spec import SourceSpec
from prismlab.study.world import MicroSpec

SBATCH = """#!/bin/sh
# A cluster of one machine: every array task runs at once, in order.
for last; do script="$last"; done
top=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
cp "$script" "$FAKE_LOGS/$(ls "$FAKE_LOGS" | wc -l).sh"
for task in $(seq 0 "$top"); do
  SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here RUN_OFFSET=0 bash "$script" >>"$FAKE_LOGS/log" 2>&1 || exit 1
done
echo "Submitted batch job 17"
"""
SRUN = """#!/bin/sh
while [ "$1" != launch_pickled_pipeline ]; do shift; done
exec "$@"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``sbatch``, ``srun`` and ``scontrol`` that carry out at once what they are given."""
    programs, logs = tmp_path / "bin", tmp_path / "slurm"
    programs.mkdir()
    logs.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", "#!/bin/sh\necho here\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("FAKE_LOGS", str(logs))
    return logs


def config(tmp_path: Path) -> dict[str, Any]:
    files = []
    for at in range(2):
        files.append(tmp_path / f"{at}.jsonl")
        files[-1].write_text("".join(json.dumps({"text": f"text {at} {n}"}) + "\n" for n in range(5)), encoding="utf-8")
    source = SourceSpec(files=["x"], domain="web").model_dump(mode="json", by_alias=True)
    return {
        "source": "s",
        "sources": {"s": source},
        "content": {},
        "micro": MicroSpec().model_dump(mode="json"),
        "template": "think",
        "seed": 0,
        "decontaminate": None,
        "files": {"s": [str(file) for file in files]},
    }


@pytest.mark.slow
def test_slurm_does_what_this_machine_does(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "PART_BYTES", 1)
    asked = config(tmp_path)
    here = clean_source(asked, tmp_path / "here")
    options = {"kind": "slurm", "time": "00:10:00", "partition": "cpu", "sbatch_args": {"account": "lab"}}
    there = clean_source(asked, tmp_path / "there", executor=options)
    assert there == here
    one, two = ([document.text for document in cleaned_documents(tmp_path / name)] for name in ("here", "there"))
    assert one == two
    scripts = [file.read_text() for file in sorted(slurm.glob("*.sh"), key=lambda file: int(file.stem))]
    jobs = [script for script in scripts if "launch_pickled_pipeline" in script]
    names = [line.partition("=")[2] for script in jobs for line in script.splitlines() if "--job-name" in line]
    assert names == ["prism-read", "prism-write", "prism-finish"]
    assert all("#SBATCH --partition=cpu\n" in job and "#SBATCH --account=lab\n" in job for job in jobs)


def test_work_that_is_not_done_yet_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[str, Any]] = []

    def launch(self: Any) -> None:
        launched.append((self.job_name, self.depends and self.depends.job_name))

    monkeypatch.setattr(SlurmPipelineExecutor, "launch_job", launch)
    options = {"kind": "slurm", "time": "1", "partition": "cpu"}
    assert clean_source(config(tmp_path), tmp_path / "w", executor=options) == {"submitted": "read"}
    assert launched == [("prism-read", None)]
    work = cleaning.Work(config(tmp_path), tmp_path / "w")
    executors.run_here(work.reading(), tmp_path / "w", Silent())
    found = clean_source(config(tmp_path), tmp_path / "w", executor=options)
    assert found == {"submitted": "write, finish"}
    assert launched[1:] == [("prism-finish", "prism-write")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cloud"}, "executor 'cloud' is not known; there are local, slurm, ray"),
        ({"kind": "slurm"}, "options of the executor 'slurm': .*'time' and 'partition'"),
        ({"kind": "slurm", "time": "1", "partition": "p", "speed": 9}, "unexpected keyword argument 'speed'"),
    ],
)
def test_wrong_options_are_told(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        clean_source(config(tmp_path), tmp_path / "w", executor=options)


def test_ray_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match="needs the package 'ray'"):
        clean_source(config(tmp_path), tmp_path / "w", executor={"kind": "ray"})


def test_this_machine_leaves_the_terminal_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clean_source({**config(tmp_path)}, tmp_path / "w")
    assert capfd.readouterr() == ("", "")
