"""The command ``prism plan``. ``cli`` adds it; all that is heavy is imported late."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PLAN = (
    "Examples:  prism plan study.yaml  |  prism plan study.yaml --devices 128 --device-memory 80  |  "
    "prism plan study.yaml --device cpu"
)


def plan(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (YAML).")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder; default runs/<study's name>.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, max=256, help="CPU threads a step; default the study's own."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="DEVICE", help="h100, h200, a100, or cpu (measured); default h100."),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option("--devices", metavar="N", min=1, max=100_000, help="How many train; default the study's own."),
    ] = None,
    device_memory: Annotated[
        float | None,
        typer.Option(
            "--device-memory",
            min=0.001,
            metavar="GB",
            help="Of one device, 10^9 bytes; a plan that does not fit is refused.",
        ),
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(
            "--utilisation", metavar="SHARE", min=0.001, max=1.0, help="Of the matrix rate, in training; default 0.4."
        ),
    ] = None,
) -> None:
    """Show steps, tokens, operations, disk, time; whether it fits."""
    from prismlab.commands_plan import Asked, show_plan

    asked = Asked(device=device, devices=devices, memory_gb=device_memory, utilisation=utilisation)
    show_plan(study, asked, out=out, threads=threads)
