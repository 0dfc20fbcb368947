"""Commands of ``prism sandbox``: what this machine can enforce. ``cli`` adds them; what is heavy is imported late."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(name="sandbox", help="Where programs that a model wrote are run.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Where programs that a model wrote are run."""


@app.command(epilog="Examples:  prism sandbox check  |  prism sandbox check --level B --json")
def check(
    level: Annotated[
        list[str] | None, typer.Option("--level", metavar="A|B|URL", help="Only this one; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The records as JSON instead of the tables.")] = False,
) -> None:
    """What this machine can enforce, probe by probe. Exit 0 if the level in use holds, 2 if not."""
    from prismlab.tools import sandbox as tool

    tool.check(level or (), as_json=as_json)
