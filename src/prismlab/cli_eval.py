"""The command ``prism eval``. ``cli`` adds it; all that is heavy is imported late."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EVAL = (
    "Examples:  prism eval CHECKPOINT --suite retention --from DIR --out judged  |  prism eval fetch retention --to DIR"
    "  |  prism eval suites"
)


def evaluate(
    what: Annotated[
        list[str], typer.Argument(metavar="CHECKPOINT | fetch SUITE | suites", help="A folder or model id (@revision).")
    ],
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="NAME", help="See 'prism eval suites'; or a FILE.yaml.")
    ] = None,
    source: Annotated[Path | None, typer.Option("--from", metavar="DIR", help="Folder with the sets.")] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--tasks", metavar="NAME", help="Benchmarks; repeat or a,b.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Items a benchmark, drawn at random; default all.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", metavar="N", min=0, max=100, help="Worked examples; default the suite's.")
    ] = None,
    length: Annotated[
        list[int] | None, typer.Option("--length", metavar="N", help="Tokens of long items; repeat for several.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", min=1, help="Samples an item; default the suite's.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", metavar="T", min=0.0, help="0 is greedy; default the suite's.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", metavar="P", help="Nucleus sampling mass; default the suite's.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest response, in tokens; default the suite's."),
    ] = None,
    template: Annotated[
        str, typer.Option("--template", metavar="NAME", help="Prompt template of sampled items.")
    ] = "think",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of sampling and of generated items.")] = 0,
    include: Annotated[
        list[Path] | None, typer.Option("--include", metavar="DIR", help="Of harness: your own tasks.")
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option("--exclude", metavar="FILE", help="Items in training data: task/item a line.")
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", metavar="TYPE", help="float32, bfloat16 or float16.")] = "float32",
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="With fetch: where the sets go.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Rows and results; resume there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the tables.")] = False,
) -> None:
    """Judge a checkpoint by a suite of benchmarks, from local files."""
    from prismlab.errors import SpecError

    named = tuple(name.strip() for text in tasks or () for name in text.split(",") if name.strip())
    if what == ["suites"]:
        from prismlab.tools.evaluate import list_suites

        list_suites(as_json=as_json)
        return
    if what[0] == "fetch" and len(what) in (2, 3):
        from prismlab.tools.eval_fetch import fetch_suite

        if to is None:
            raise SpecError("eval fetch: say where the sets go with --to DIR")
        maker = what[2] if len(what) == 3 else None
        lengths, own = tuple(length or ()), tuple(include or ())
        fetch_suite(what[1], to, named, checkpoint=maker, lengths=lengths, include=own, as_json=as_json)
        return
    if len(what) != 1 or suite is None or to is not None:
        raise SpecError("eval: name one CHECKPOINT and --suite NAME; or 'fetch SUITE --to DIR'; or 'suites'")
    from prismlab.tools.evaluate import Place, Wish
    from prismlab.tools.evaluate import evaluate as judge

    wish = Wish(
        benchmarks=named,
        limit=limit,
        shots=shots,
        lengths=tuple(length or ()),
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        template=template,
        seed=seed,
    )
    judge(
        what[0],
        suite,
        wish,
        Place(source=source, include=tuple(include or ()), exclude=exclude, device=device, dtype=dtype, out=out),
        as_json=as_json,
    )
