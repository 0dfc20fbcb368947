"""Commands of ``prism data``. ``cli`` adds them; all that is heavy is imported late."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="data",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Sources, mixtures and corpora.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@app.command(epilog="Examples:  prism data sources  |  prism data sources dclm-edu  |  prism data sources --json")
def sources(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME ...]", help="Show all of these recipes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
) -> None:
    """List the sources of the reference study: name, domain, licence, tokens, columns, place."""
    from prismlab.tools.data_sources import sources as show

    show(as_json=as_json, names=names or ())


@app.command(
    epilog="Examples:  prism data clean study.yaml web --out cleaned/web --workers 8  |  "
    "prism data clean study.yaml web --out cleaned/web --executor slurm --option time=12:00:00 --option partition=cpu"
)
def clean(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (YAML).")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Name of a source.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the documents and the work.")],
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes at a time.")] = 1,
    executor: Annotated[str, typer.Option("--executor", help="local, slurm or ray.")] = "local",
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Of the executor; repeat.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
) -> None:
    """Clean one source as a run would; stopped, it goes on."""
    from prismlab.errors import SpecError
    from prismlab.study.load import load_study
    from prismlab.study.plan import plan_cleaning
    from prismlab.tools.data_sources import clean as work

    options: dict[str, Any] = {"kind": executor}
    for one in option or ():
        key, equals, value = one.partition("=")
        if not equals or not key.isidentifier():
            raise SpecError(f"--option {one!r}: KEY=VALUE is wanted, for example partition=cpu")
        options[key] = int(value) if value.lstrip("-").isdigit() else value
    if executor == "local" and option:
        raise SpecError("--option is for --executor slurm or ray; on this machine there is --workers")
    step = plan_cleaning(load_study(study), source)
    if step is None:
        raise SpecError(
            f"{study}: source {source!r} asks for no cleaning; give it a 'recipe', 'filters' or 'dedup', or the study "
            "'decontaminate'"
        )
    config = {**step.config, "files": step.paths}
    work(config, out, workers=workers, executor=None if executor == "local" else options, as_json=as_json)


PLAN = (
    "Examples:  prism data plan study.yaml mcs --tokens 26.2B --seq-len 8192 --ranks 128  |  "
    "prism data plan mixtures/mcs.yaml mcs --tokens 500M"
)


@app.command(epilog=PLAN)
def plan(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study, or a file with mixtures (YAML).")],
    mixture: Annotated[str, typer.Argument(metavar="MIXTURE", help="Name of a mixture.")],
    tokens: Annotated[str, typer.Option("--tokens", metavar="N", help="The budget: 26.2B, 500M, 8192.")],
    seq_len: Annotated[int, typer.Option("--seq-len", min=2, max=2**20, help="Tokens a row.")] = 8192,
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Processes that train.")] = 1,
    rows_per_step: Annotated[
        int | None, typer.Option("--rows-per-step", min=1, help="Rows of all ranks; default one a rank.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that tokenise.")] = 1,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Run folders with earlier builds.")] = Path(
        "runs"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
) -> None:
    """Show what a token budget means: tokens, rows, epochs, disk, time."""
    from prismlab.tools.data_plan import plan as show

    show(
        file,
        mixture,
        tokens=tokens,
        seq_len=seq_len,
        ranks=ranks,
        rows_per_step=rows_per_step,
        workers=workers,
        runs=runs,
        as_json=as_json,
    )
