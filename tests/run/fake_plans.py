"""Plans of fake stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prismlab.run.store import Store
from prismlab.study.steps import Plan, Step, entries_of

ENTRY = "fake_stages:run"


def fake(name: str, needs: tuple[str, ...] = (), kind: str = "train", entry: str = ENTRY, **config: Any) -> Step:
    """A step of the fake stage; ``needs`` are ids."""
    return Step(
        kind=kind,
        id=f"{kind}/{name}/s0",
        name=name,
        seed=0,
        config={"name": name, "seed": 1, **config},
        inputs={need: need for need in needs},
        entry=entry,
        version=1,
    )


def plan_of(*steps: Step, report: bool = True) -> Plan:
    """The steps and a report over all of them."""
    whole = list(steps)
    if report:
        whole.append(
            Step(
                kind="report",
                id="report/test",
                name="test",
                seed=None,
                config={"name": "report", "seed": 1, "entries": entries_of(steps)},
                inputs={step.id: step.id for step in steps},
                entry=ENTRY,
                version=1,
            )
        )
    return Plan(name="test", steps=whole, arms={})


def diamond(**config: Mapping[str, Any]) -> Plan:
    """a -> b, a -> c, (b, c) -> d, and a report."""
    return plan_of(
        fake("a", **config.get("a", {})),
        fake("b", ("train/a/s0",), **config.get("b", {})),
        fake("c", ("train/a/s0",), **config.get("c", {})),
        fake("d", ("train/b/s0", "train/c/s0"), **config.get("d", {})),
    )


def prepared(root: Path) -> Store:
    """A store with its folders made."""
    store = Store(root)
    store.prepare()
    return store


def end_state(root: Path) -> dict[str, bytes]:
    """Every artifact's files but the record, whose times differ from run to run."""
    artifacts = root / "artifacts"
    return {
        path.relative_to(artifacts).as_posix(): path.read_bytes()
        for path in sorted(artifacts.rglob("*"))
        if path.is_file() and path.name != "record.json"
    }
