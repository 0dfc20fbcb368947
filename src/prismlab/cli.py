"""The command ``prism``. Everything heavy is imported when a command needs it: ``prism --help`` answers at once."""

from __future__ import annotations

import atexit
import gc as collector
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from prismlab import cli_data, cli_eval, cli_judge, cli_plan, cli_sandbox, cli_train

app = typer.Typer(
    name="prism",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="Prism: a laboratory for LLM mid-training, from one study file to a report of decided claims.",
    epilog="Examples:  prism new study.yaml  |  prism check study.yaml  |  prism run study.yaml --jobs 2  |  "
    "prism report study.yaml --open",
)


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the signal's number."""


class Kind(StrEnum):
    """Starters of ``prism new``."""

    micro = "micro"
    files = "files"
    hub = "hub"


StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (YAML).")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run folder; default runs/<study's name>.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, max=256, help="CPU threads a step; default the study's own."),
]
Levels = Annotated[
    list[float] | None,
    typer.Option("--threshold", metavar="SHARE", help="Relative change that counts; repeat. Default 0.1% to 10%."),
]


def _version(value: bool) -> None:
    if value:
        from prismlab import __version__

        typer.echo(f"prism {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Prism: a laboratory for LLM mid-training, from one study file to a report of decided claims."""


@app.command(epilog="Example:  prism new study.yaml --kind files")
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    kind: Annotated[
        Kind, typer.Option("--kind", help="micro: generated tasks; files: your own data; hub: a model id.")
    ] = Kind.micro,
) -> None:
    """Write a commented starter study."""
    from prismlab.commands import write_starter

    write_starter(file, kind.value)


@app.command(epilog="Example:  prism check study.yaml --artifacts")
def check(
    study: StudyFile,
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="Also check every built file against its hash.")
    ] = False,
    out: Out = None,
) -> None:
    """Check a study; show its steps, arms and claims."""
    from prismlab.commands import check_study

    check_study(study, artifacts=artifacts, out=out)


app.command(epilog=cli_plan.PLAN)(cli_plan.plan)


@app.command(epilog="Examples:  prism run study.yaml --jobs 2  |  prism run study.yaml --until train/mid-mc")
def run(
    study: StudyFile,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, help="Steps at once; else the study's.")
    ] = None,
    threads: Threads = None,
    out: Out = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="STEP", help="Only this step and what it needs.")
    ] = None,
    in_process: Annotated[bool, typer.Option("--in-process", help="No worker processes: for debugging.")] = False,
) -> None:
    """Build what is missing; after a stop, go on."""
    from prismlab.commands import run_study

    run_study(study, jobs=jobs, threads=threads, out=out, until=until, in_process=in_process)


@app.command(epilog="Example:  prism status study.yaml")
def status(study: StudyFile, out: Out = None, threads: Threads = None) -> None:
    """Show which steps are built, and whether a run is on."""
    from prismlab.commands import show_status

    show_status(study, out=out, threads=threads)


@app.command(epilog="Examples:  prism show train/mid-mc/s0  |  prism show runs/micro/artifacts/train-1f2e3d4c5b6a7988")
def show(
    what: Annotated[str, typer.Argument(metavar="ARTIFACT|STEP", help="A folder, its name, a fingerprint or a step.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Run folder; default all of runs/.")] = None,
) -> None:
    """Print the record of an artifact as JSON."""
    from prismlab.commands import show_record

    show_record(what, out=out)


@app.command(epilog="Example:  prism report study.yaml --open")
def report(
    study: StudyFile,
    out: Out = None,
    threads: Threads = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Build the report from what is there; print its path."""
    from prismlab.commands import build_report

    build_report(study, out=out, threads=threads, open_it=open_it)


@app.command(epilog="Example:  prism gc study.yaml --snapshots --yes")
def gc(
    study: StudyFile,
    out: Out = None,
    threads: Threads = None,
    snapshots: Annotated[bool, typer.Option("--snapshots", help="Also snapshots that nothing still needs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only list.")] = False,
) -> None:
    """List or delete what the plan no longer reaches."""
    from prismlab.commands import collect_garbage

    collect_garbage(study, out=out, threads=threads, snapshots=snapshots, yes=yes)


@app.command(epilog="Examples:  prism diff base mid  |  prism diff base mid rl --by component --out compared")
def diff(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="A B [C ...]", help="Folders or model ids (@revision); A is the old one.")
    ],
    threshold: Levels = None,
    by: Annotated[
        str | None, typer.Option("--by", metavar="PART", help="component, subcomponent, layer or tensor.")
    ] = None,
    svd: Annotated[str | None, typer.Option("--svd", metavar="PATTERN", help="Stable ranks; a regex of names.")] = None,
    master: Annotated[
        Path | None, typer.Option("--master", metavar="FOLDER", help="B's float32 weights: what rounding hides.")
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, max=256, help="CPU threads; default all.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write JSON, Parquet and a page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the tables.")] = False,
) -> None:
    """Compare checkpoints part by part: distance, change, steps."""
    from prismlab.tools.diff import THRESHOLDS
    from prismlab.tools.diff import diff as run_diff

    run_diff(
        checkpoints,
        thresholds=threshold or THRESHOLDS,
        by=by,
        svd=svd,
        master=master,
        device=device,
        threads=threads,
        out=out,
        as_json=as_json,
    )


@app.command(epilog="Examples:  prism cka base mid rl --out compared  |  prism cka a b --inputs notes.txt --n 100")
def cka(
    checkpoints: Annotated[list[str], typer.Argument(metavar="A B [C ...]", help="Folders or model ids (@revision).")],
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--inputs", metavar="FILE", help="Texts: .txt lines, .jsonl, .parquet, .gz; a set each."),
    ] = None,
    field: Annotated[str, typer.Option("--field", metavar="NAME", help="Field of the rows.")] = "text",
    n: Annotated[int, typer.Option("--n", metavar="N", help="Inputs a set.")] = 200,
    max_tokens: Annotated[int, typer.Option("--max-tokens", metavar="N", help="Tokens an input is cut to.")] = 256,
    resamples: Annotated[int, typer.Option("--resamples", metavar="N", help="Resamples for the spread.")] = 20,
    resample_size: Annotated[int, typer.Option("--resample-size", metavar="N", help="Inputs a resample.")] = 100,
    batch: Annotated[str, typer.Option("--batch", metavar="HOW", help="auto (padded), equal (lengths) or 1.")] = "auto",
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", metavar="TYPE", help="auto, float32, bfloat16 or float16.")] = "auto",
    cross: Annotated[bool, typer.Option("--cross", help="Also every layer against every layer.")] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the choice of inputs and of the resamples.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write JSON, Parquet, page; resume.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
) -> None:
    """Compare hidden states of checkpoints, layer by layer."""
    from prismlab.tools.cka import Settings
    from prismlab.tools.cka import cka as compare

    settings = Settings(
        max_tokens=max_tokens,
        resamples=resamples,
        resample_size=resample_size,
        batch=batch,
        device=device,
        dtype=dtype,
        cross=cross,
        seed=seed,
    )
    compare(checkpoints, inputs=inputs or (), field=field, n=n, settings=settings, out=out, as_json=as_json)


@app.command(
    epilog="Examples:  prism merge base=0.15 mid=0.85 --out merged  |  prism merge a=0.5 owner/name@v1=0.5 --out m"
)
def merge(
    sources: Annotated[
        list[str], typer.Argument(metavar="A=WEIGHT B=WEIGHT ...", help="Folders or model ids, each with its weight.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the merged checkpoint: new or empty.")],
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="TYPE", help="keep (the first's), bfloat16, float16, float32 or float64.")
    ] = "keep",
    max_shard_size: Annotated[str, typer.Option("--max-shard-size", metavar="SIZE", help="Of a file.")] = "5GB",
    unnormalised: Annotated[bool, typer.Option("--unnormalised", help="Weights need not sum to 1.")] = False,
    tokenizer_from: Annotated[
        str | None, typer.Option("--tokenizer-from", metavar="A", help="Whose tokenizer, where they differ.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, max=256, help="CPU threads.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
) -> None:
    """Write a weighted sum of checkpoints as a checkpoint."""
    from prismlab.tools.merge import merge as run_merge

    run_merge(
        sources,
        out=out,
        dtype=dtype,
        max_shard_size=max_shard_size,
        unnormalised=unnormalised,
        tokenizer_from=tokenizer_from,
        threads=threads,
        as_json=as_json,
    )


@app.command(epilog="Examples:  prism trajectory START --run FOLDER --out path  |  prism trajectory START SNAP1 SNAP2")
def trajectory(
    start: Annotated[str, typer.Argument(metavar="START", help="Where the run began: a folder or model id.")],
    snapshots: Annotated[
        list[str] | None, typer.Argument(metavar="SNAP", help="Checkpoints of the run, in order.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="FOLDER", help="Instead: a folder with step-* or checkpoint-*.")
    ] = None,
    against: Annotated[
        tuple[str, Path] | None, typer.Option("--against", metavar="START FOLDER", help="A second run to compare.")
    ] = None,
    threshold: Levels = None,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu or cuda.")] = "cpu",
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write JSON, Parquet, page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the tables.")] = False,
) -> None:
    """Measure how a run moves away from its start, step by step."""
    from prismlab.tools.trajectory import trajectory as follow

    levels = threshold or ()
    follow(start, snapshots or (), run=run, against=against, thresholds=levels, device=device, out=out, as_json=as_json)


@app.command(
    epilog="Examples:  prism landscape base mid rl --micro math --grid 5 --out walk  |  prism landscape A B "
    "--task test.jsonl:question=question,answer=answer,verifier=number --items 100"
)
def landscape(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="BASE MID RL", help="Folders or model ids (@revision); or two: A B.")
    ],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="FILE:FIELDS", help="question=F,answer=F,verifier=number|exact|choice."),
    ] = None,
    micro: Annotated[
        list[str] | None, typer.Option("--micro", metavar="TASK", help="Generated: math, code or science.")
    ] = None,
    points: Annotated[int, typer.Option("--points", metavar="N", help="Points a leg, its ends included.")] = 5,
    grid: Annotated[int | None, typer.Option("--grid", metavar="N", help="Points a side; default no grid.")] = None,
    items: Annotated[int, typer.Option("--items", metavar="N", min=1, help="Items a task, at most.")] = 200,
    samples: Annotated[int, typer.Option("--samples", metavar="N", help="Samples an item.")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", metavar="T", help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option("--top-p", metavar="P", help="Nucleus sampling mass.")] = 0.95,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Of a response.")] = 512,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="TYPE", help="Of the weights: float32, bfloat16 or float16.")
    ] = "float32",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of sampling and intervals.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write JSON, Parquet, page; resume.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
) -> None:
    """Sample a task on the way between checkpoints."""
    from prismlab.tools.landscape import Settings
    from prismlab.tools.landscape import landscape as walk

    settings = Settings(
        points=points,
        grid=grid,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    walk(checkpoints, tasks=task or (), micro=micro or (), items=items, settings=settings, out=out, as_json=as_json)


app.command("eval", epilog=cli_eval.EVAL)(cli_eval.evaluate)
app.command(epilog=cli_judge.GATE)(cli_judge.gate)
app.command(epilog=cli_judge.CLAIMS)(cli_judge.claims)
app.command(epilog=cli_judge.ADVISE)(cli_judge.advise)
app.command(epilog=cli_train.MODELS)(cli_train.models)
app.add_typer(cli_data.app)
app.add_typer(cli_sandbox.app)


def _complain(text: str) -> None:
    typer.echo(text, err=True)


def _start_lean() -> None:
    """For a command that is done in a second, of which Python's start is half: takes a third of that away.

    Collecting garbage among modules that are being loaded finds none, nor does it at the end, and a command without
    linear algebra needs neither threads for it nor scipy's, for which numba looks when it starts. Called before numpy
    is imported, and only where the process is the command's own.
    """
    collector.disable()
    atexit.register(collector.freeze)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.modules["scipy.linalg.cython_blas"] = None  # type: ignore[assignment]  # an import of it fails at once


def main() -> None:
    """Run ``prism``: exit code 0, 2 for what the user can mend (two lines at most), 130 for Ctrl-C, 1 for our fault."""
    from prismlab.errors import PrismError, place_trouble

    if sys.argv[1:2] in (["merge"], ["diff"]) and not any(word.startswith(("--svd", "--device")) for word in sys.argv):
        _start_lean()
    try:
        app(prog_name="prism")
    except PrismError as error:
        _complain(f"prism: {error}")
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer turns Ctrl-C into this.
            _complain("prism: stopped; run the same command again to go on")
        raise
    except Exception as error:
        trouble = place_trouble(error)
        if trouble is not None:
            _complain(f"prism: {trouble}")
            sys.exit(2)
        detail = getattr(error, "detail", None)
        if detail is None:
            raise
        _complain(f"{detail}\nprism: {error}")
        sys.exit(1)
