"""Commands of ``prism`` about models in training. ``cli`` adds them; all that is heavy is imported late."""

from __future__ import annotations

from typing import Annotated

import typer

MODELS = "Examples:  prism models  |  prism models nemotron-h-8b  |  prism models runs/mine/model --json"


def models(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Short names, hub ids or folders; none for all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
) -> None:
    """List the study's seven models, or what a checkpoint is."""
    from prismlab.tools.models import models as show

    show(as_json=as_json, names=names or ())
