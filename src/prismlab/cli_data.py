"""Commands of ``prism data``. ``cli`` adds them; all that is heavy is imported late."""

from __future__ import annotations

from enum import StrEnum
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
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Show all of these recipes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
) -> None:
    """List the reference study's sources: domain, licence, tokens."""
    from prismlab.tools.data_sources import sources as show

    show(as_json=as_json, names=names or ())


@app.command(
    epilog="Examples:  prism data clean study.yaml web --out cleaned/web --workers 8  |  "
    "prism data clean study.yaml web --out cleaned/web --executor slurm --option time=12:00:00 --option partition=cpu"
)
def clean(
    study: Annotated[Path, typer.Argument(metavar="FILE", help="A study, or a file with mixtures (YAML).")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Name of a source.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the documents and the work.")],
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Processes at a time.")] = 1,
    executor: Annotated[str, typer.Option("--executor", metavar="NAME", help="local, slurm or ray.")] = "local",
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Of the executor; repeat.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
) -> None:
    """Clean one source as a run would; stopped, it goes on."""
    from prismlab.errors import SpecError
    from prismlab.study.load import load_mixtures
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
    step = plan_cleaning(load_mixtures(study).as_study(), source)
    if step is None:
        raise SpecError(
            f"{study}: source {source!r} asks for no cleaning; give it a 'recipe', 'filters' or 'dedup', or the file "
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
    seq_len: Annotated[int, typer.Option("--seq-len", metavar="N", min=2, max=2**20, help="Tokens a row.")] = 8192,
    ranks: Annotated[int, typer.Option("--ranks", metavar="N", min=1, help="Processes that train.")] = 1,
    rows_per_step: Annotated[
        int | None, typer.Option("--rows-per-step", metavar="N", min=1, help="Rows of all ranks; default one a rank.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Processes that tokenise.")] = 1,
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


BUILD = (
    "Example:  prism data build study.yaml mcs --tokens 500M --seq-len 8192 --tokenizer granite-3.3-8b-base --out mcs "
    "--workers 8 --packing best_fit"
)


class Method(StrEnum):
    """Ways to lay documents out in rows."""

    concat = "concat"
    best_fit = "best_fit"


@app.command(epilog=BUILD)
def build(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study, or a file with mixtures (YAML).")],
    mixture: Annotated[str, typer.Argument(metavar="MIXTURE", help="Name of a mixture.")],
    tokens: Annotated[str, typer.Option("--tokens", metavar="N", help="The budget: 26.2B, 500M, 8192.")],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="FOLDER|ID", help="Whose tokenizer; 'bytes' for that of tiny models.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the corpus.")],
    seq_len: Annotated[int, typer.Option("--seq-len", metavar="N", min=8, max=2**20, help="Tokens a row.")] = 8192,
    rows_per_step: Annotated[
        int, typer.Option("--rows-per-step", metavar="N", min=1, help="Round down to steps of so many.")
    ] = 1,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Processes at a time.")] = 1,
    packing: Annotated[Method, typer.Option("--packing", help="How documents are laid out.")] = Method.concat,
    overlap: Annotated[
        int, typer.Option("--overlap", metavar="N", min=0, help="With best_fit: tokens that chunks share.")
    ] = 0,
    min_tokens: Annotated[
        int, typer.Option("--min-tokens", metavar="N", min=0, help="Pass over shorter documents.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
) -> None:
    """Clean, tokenise, mix and pack; stopped, it goes on."""
    from prismlab.errors import SpecError
    from prismlab.study.checkpoints import PackingSpec, TrainSpec
    from prismlab.study.load import load_mixtures
    from prismlab.study.plan import plan_corpus
    from prismlab.tools.data_build import Wanted
    from prismlab.tools.data_build import build as work
    from prismlab.tools.data_plan import tokens_of

    loaded = load_mixtures(file)
    loaded.shares(mixture)  # Raises what is wrong with the mixture.
    steps = tokens_of(tokens) // (seq_len * rows_per_step)
    if not steps:
        raise SpecError(
            f"--tokens {tokens}: less than one step of --rows-per-step {rows_per_step} x {seq_len:,} tokens"
        )
    if overlap and (packing is not Method.best_fit or overlap > seq_len // 2):
        raise SpecError("--overlap is for --packing best_fit, and at most half of --seq-len")
    layout = PackingSpec(method=packing.value, overlap=overlap, min_tokens=min_tokens)
    spec = TrainSpec.model_validate(
        {"stage": "midtrain", "from": "none", "mixture": mixture, "steps": steps, "rows": rows_per_step}
        | {"seq_len": seq_len, "packing": layout, "optimizer": {"warmup": 0}}
    )
    planned = plan_corpus(loaded.as_study(), spec)
    configs = {step.kind: {**step.config, "files": step.paths} for step in planned}
    cleaning = {step.facts["source"]: {**step.config, "files": step.paths} for step in planned if step.kind == "clean"}
    wanted = Wanted(corpus=configs["corpus"], cleaning=cleaning, tokenizer=tokenizer, file=str(file))
    work(wanted, out, workers=workers, as_json=as_json)


@app.command(epilog="Examples:  prism data show mcs  |  prism data show runs/micro/artifacts/corpus-1f2e --rows 0:3")
def show(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Its folder.")],
    rows: Annotated[str, typer.Option("--rows", metavar="A:B", help="Rows A to B (exclusive), from 0.")] = "0:3",
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="FOLDER|ID", help="If not the one it was built with.")
    ] = None,
    characters: Annotated[
        int, typer.Option("--characters", metavar="N", min=0, help="Of a document; 0 for all.")
    ] = 600,
) -> None:
    """Show rows as text, with documents and domains."""
    from prismlab.tools.data_show import show as print_rows

    print_rows(corpus, rows=rows, tokenizer=tokenizer, characters=characters)


@app.command(epilog="Example:  prism data stats mcs --open")
def stats(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Its folder.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="For the page; default the corpus.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Also compare every file with its hash.")] = False,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the tables.")] = False,
) -> None:
    """Write a page on a corpus: shares, lengths, drops, contamination."""
    from prismlab.tools.data_stats import stats as write

    write(corpus, out=out, verify=verify, open_it=open_it, as_json=as_json)
