"""``prism eval fetch``: the sets of a suite to local files, on a machine with network."""

from __future__ import annotations

from pathlib import Path

from prismlab.errors import SpecError
from prismlab.evaluate.suites import TASKS, suite_named, suite_of
from prismlab.tools import show


def fetch_suite(
    name: str,
    to: Path,
    benchmarks: tuple[str, ...] = (),
    *,
    checkpoint: str | None = None,
    lengths: tuple[int, ...] = (),
    include: tuple[Path, ...] = (),
    as_json: bool = False,
) -> None:
    """Fetch what a suite needs below ``to/<suite>`` and show what it is.

    Args:
        name: of the suite.
        to: folder; ``prism eval ... --from`` takes it.
        benchmarks: names; empty for all.
        checkpoint: whose tokenizer sizes items of a length (``ruler``).
        lengths: tokens of such items.
        include: folders with tasks of the user's own (``harness``).
        as_json: JSON instead of the table.

    Raises:
        SpecError: no such suite, or one that needs no file.
        DataError: a set cannot be had.
        MissingExtra: a package is missing.
    """
    from prismlab.evaluate.fetch import fetch

    if name == TASKS and benchmarks:
        suite = suite_of({"name": TASKS, "benchmarks": list(benchmarks)})
    else:
        suite = suite_named(name)
    chosen = suite.named(benchmarks)
    if all(one.kind in ("micro", "long") for one in chosen):
        raise SpecError(f"suite {suite.name} is generated where it is needed; there is nothing to fetch")
    show.check_out(to)
    with show.progress(f"fetch {suite.name}") as progress:
        if any(one.kind == "harness" for one in chosen):
            from prismlab.evaluate.harness import fetch_tasks

            told = fetch_tasks(suite, chosen, to, progress, checkpoint=checkpoint, lengths=lengths, include=include)
        else:
            told = fetch(suite, chosen, to, progress)
    rows = [
        [
            name,
            one["file"],
            str((one.get("hub") or {}).get("id", show.NONE)),
            str(one.get("commit"))[:12],
            f"{one['rows']:,}",
        ]
        for name, one in told.items()
    ]
    table = show.Table(
        head=["set", "file", "hub id", "commit", "rows"], rows=rows, title=f"{suite.name} in {to}", words=4
    )
    show.emit("eval", {"suite": suite.name, "folder": str(to), "sets": told}, [table], title="Fetched", as_json=as_json)
