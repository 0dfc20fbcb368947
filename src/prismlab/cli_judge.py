"""Commands of ``prism`` that judge: ``gate``, ``claims``, ``advise``. What is heavy is imported late."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

GATE = (
    "Examples:  prism gate base mid --rows-base a.parquet --rows-new b.parquet --margin 2 --margin math=1  |  "
    "prism gate study.yaml --reference base --checkpoint mid-mcs"
)
ADVISE = "Examples:  prism advise study.yaml  |  prism advise study.yaml --loss text --margin 0.05 --out advice"
CLAIMS = "Examples:  prism claims study.yaml  |  prism claims --reference"


def gate(
    what: Annotated[list[str], typer.Argument(metavar="STUDY | BASE NEW", help="A study file, or two names or files.")],
    rows_base: Annotated[Path | None, typer.Option("--rows-base", metavar="FILE", help="Rows of BASE.")] = None,
    rows_new: Annotated[Path | None, typer.Option("--rows-new", metavar="FILE", help="Rows of NEW.")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="NAME", help="Of a study: what is held up.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", metavar="NAME", help="Of a study: what is tested.")
    ] = None,
    suite: Annotated[str | None, typer.Option("--suite", metavar="NAME", help="Of a study: the evaluation.")] = None,
    margin: Annotated[
        list[str] | None,
        typer.Option("--margin", metavar="POINTS", help="2 (the default), or of one benchmark: math=1.5."),
    ] = None,
    runs: Annotated[Path | None, typer.Option("--runs", metavar="DIR", help="Run folder of the study.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write JSON and a page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
) -> None:
    """Was it retained? Exit 0 yes, 3 undecided, 4 regressed."""
    from prismlab.errors import SpecError
    from prismlab.tools import gate as tool

    if len(what) == 2 and reference is None and checkpoint is None and suite is None and runs is None:
        pairs, lacking = [tool.sides_of_files(what, rows_base, rows_new)], []
    elif len(what) == 1 and reference and checkpoint and rows_base is None and rows_new is None:
        from prismlab.built import built

        there = built(Path(what[0]), out=runs)
        named = [name for name, spec in there.study.evaluations.items() if spec.tasks or spec.suite]
        pairs, lacking = tool.sides_of_study(
            there.of("evaluation"), named, suite, (reference, checkpoint), there.study.seeds
        )
    else:
        raise SpecError("gate: name BASE and NEW with their rows, or a STUDY with --reference and --checkpoint")
    raise typer.Exit(tool.gate(pairs, margins=margin or (), lacking=lacking, out=out, as_json=as_json))


def claims(
    study: Annotated[Path | None, typer.Argument(metavar="STUDY", help="Study file; none with --reference.")] = None,
    reference: Annotated[bool, typer.Option("--reference", help="Judge the paper's own tables.")] = False,
    runs: Annotated[Path | None, typer.Option("--runs", metavar="DIR", help="Run folder of the study.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write JSON and a page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the tables.")] = False,
) -> None:
    """Show the ledger of claims, with what is missing."""
    from prismlab.errors import SpecError
    from prismlab.tools import claims as tool

    if reference == (study is not None):
        raise SpecError("claims: name a study file, or --reference for the paper's own tables")
    if study is None:
        tool.show_reference(out=out, as_json=as_json)
        return
    from prismlab.commands import ledger_of

    tool.show_ledger(ledger_of(study, out=runs), out=out, as_json=as_json)


def advise(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Study file.")],
    gain: Annotated[str | None, typer.Option("--gain", metavar="EVAL", help="Evaluation of the gain.")] = None,
    loss: Annotated[str | None, typer.Option("--loss", metavar="EVAL|text", help="Of what may be lost.")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="NAME", help="Held against; else the base.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            "--margin", metavar="X", help="Loss that counts as retained; default the claims' margin, or 2 points."
        ),
    ] = None,
    runs: Annotated[Path | None, typer.Option("--runs", metavar="DIR", help="Run folder of the study.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write JSON and a page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the tables.")] = False,
) -> None:
    """What to keep, to merge and to run next, with its rows."""
    from prismlab.built import built
    from prismlab.commands import ledger_of
    from prismlab.tools import advise as tool
    from prismlab.tools.show import check_out

    check_out(out)
    ledger_of(study, out=runs)
    there = built(study, out=runs)
    found = tool.advise(
        there.plain, there.entries, there.arms, there.inputs, gain=gain, loss=loss, reference=reference, margin=margin
    )
    tool.show_advice(found, out=out, as_json=as_json)
