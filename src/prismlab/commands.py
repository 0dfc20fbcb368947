"""What the commands of ``prism`` do. Imported by ``cli`` only when a command runs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import typer

from prismlab.errors import SandboxError, SpecError, StoreError
from prismlab.run.launch import InProcess
from prismlab.run.progress import display_for, seconds_text, where_the_time_went
from prismlab.run.runner import Runner, Summary
from prismlab.run.step import Artifact
from prismlab.run.store import NOT_BUILT, OLDER, Store
from prismlab.study.arms import ambiguous_arms, infer_arms
from prismlab.study.check import leaks
from prismlab.study.load import LoadedStudy, load_study
from prismlab.study.pairs import CHAIN, landscape_triples, trajectory_checkpoints
from prismlab.study.plan import plan_study
from prismlab.study.starter import starter, study_name
from prismlab.study.steps import Missing, Plan, Settled


def say(text: str = "") -> None:
    typer.echo(text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Columns as wide as they need; those in ``right`` flush right."""
    whole = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in whole) for column in range(len(head))]
    for row in whole:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


def number_text(value: float | None) -> str:
    """A count with a unit: 26.2G, 12.3k; ``unknown`` for None."""
    if value is None:
        return "unknown"
    for size, unit in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _bytes(size: int) -> str:
    return f"{number_text(float(size))}B"


def store_of(loaded: LoadedStudy, out: Path | None) -> Store:
    return Store(out if out is not None else Path("runs") / loaded.study.name)


def planned(loaded: LoadedStudy, store: Store, threads: int | None) -> Plan:
    return plan_study(loaded, threads=threads, hash_cache=store.hash_cache)


def write_starter(file: Path, kind: str) -> None:
    """``prism new``."""
    if file.exists():
        raise SpecError(f"{file}: is there already; take another name")
    if not file.parent.is_dir():
        raise SpecError(f"{file.parent}: no such folder; make it first")
    try:
        file.write_text(starter(kind, study_name(file), file.name), encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{file}: cannot be written: {error.strerror}; take another place") from error
    put = "" if kind == "micro" else "put your own files in, then: "
    say(f"wrote {file}; {put}prism check {file}")


def _lacking(arms: Mapping[str, str], ids: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    """Claim by claim what stands in the way of deciding it."""
    from prismlab.claims.rules import CLAIMS

    for claim in CLAIMS:
        if ids is not None and claim.id not in ids:
            continue
        absent = [arm for arm in claim.arms if arm not in arms]
        if absent:
            yield claim.id, f"lacks {', '.join(absent)}"
        else:
            yield claim.id, "has its arms"


@cache
def _no_sandbox() -> str:
    """Why programs cannot be run on this machine, and what helps; empty where they can."""
    from prismlab.verify.sandbox.probe import open_sandbox

    try:
        open_sandbox().close()
    except SandboxError as error:
        return str(error)
    return ""


def _warnings(loaded: LoadedStudy) -> Iterator[str]:
    study = loaded.study
    for arm, names in ambiguous_arms(study).items():
        yield f"{arm} could be {', '.join(names)}: {names[0]} is taken; set claims.arms to choose another"
    if len(study.seeds) < 2:
        yield "one seed gives no interval over seeds, so claims stay inconclusive; name at least 2 in 'seeds'"
    if not study.evaluations:
        yield "no evaluations, so no scores"
    for name, base in study.bases.items():
        if base.checkpoint is not None and f"bases.{name}" not in loaded.files:
            revision = base.checkpoint.partition("@")[2]
            if len(revision) != 40:
                yield f"bases.{name}: {revision or 'main'!r} can move; name a commit to pin the weights"
    if study.analyses.trajectory is not None and not trajectory_checkpoints(study):
        yield "analyses.trajectory: no RL checkpoint has 'snapshots' above 0"
    if study.analyses.landscape is not None and not landscape_triples(study):
        yield f"analyses.landscape: the study lacks one of {', '.join(CHAIN)}; name checkpoints in 'triples'"
    for name, task in study.tasks.items():
        if task.verifier == "tests" and (trouble := _no_sandbox()):
            yield f"tasks.{name}: 'verifier: tests' runs programs; sampling it will stop here: {trouble}"
    yield from leaks(study, loaded.files)
    used = {name for mixture in study.mixtures.values() for name in mixture.names}
    used |= {name for evaluation in study.evaluations.values() for name in evaluation.text}
    used |= set(study.analyses.cka.sources if study.analyses.cka else [])
    for name in study.sources:
        if name not in used:
            yield f"sources.{name} is used nowhere"


def check_study(file: Path, *, artifacts: bool, out: Path | None) -> None:
    """``prism check``."""
    loaded = load_study(file)
    study = loaded.study
    store = store_of(loaded, out)
    plan = plan_study(loaded, hash_cache=store.hash_cache, machine_text=lambda: "")
    kinds = Counter(step.kind for step in plan.steps)
    seeds = ", ".join(str(seed) for seed in study.seeds)
    say(f"{file}: study {study.name!r}, seeds {seeds}")
    say(f"{len(plan.steps)} steps: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")
    arms = infer_arms(study)
    say("\narms" if arms else "\nno arms: nothing is mid-trained from a base, so most claims cannot be tested")
    table(["arm", "checkpoint"], arms.items())
    say("\nclaims")
    table(["claim", ""], _lacking(arms, study.claims.ids))
    for warning in _warnings(loaded):
        say(f"\nwarning: {warning}")
    if artifacts:
        _check_artifacts(store)


def _check_artifacts(store: Store) -> None:
    """Verify every artifact; StoreError with the first damaged file and the number of the others."""
    broken: list[str] = []
    count = 0
    for folder in store.all():
        count += 1
        try:
            store.verify(store.read(folder))
        except StoreError as error:
            broken.append(str(error))
    say(f"\n{count} artifacts in {store.artifacts}, {len(broken)} damaged")
    if broken:
        raise StoreError(broken[0] + (f" (+{len(broken) - 1} more)" if len(broken) > 1 else ""))


def records_of(store: Store) -> Iterator[Mapping[str, Any]]:
    for folder in store.all():
        try:
            yield store.read(folder).record
        except StoreError:
            continue


def state_of(store: Store, found: Settled | Missing) -> str:
    if isinstance(found, Missing):
        return "skipped"
    record = store.record(found.step.kind, found.fingerprint)
    if record is None:
        return "damaged" if store.path(found.step.kind, found.fingerprint).exists() else "to build"
    return "ended" if record["status"] == "ended" else "built"


@contextmanager
def _opened(store: Store) -> Iterator[None]:
    with store.lock():
        store.prepare()
        yield


def run_study(
    file: Path, *, jobs: int | None, threads: int | None, out: Path | None, until: str | None, in_process: bool
) -> None:
    """``prism run``."""
    loaded = load_study(file)
    store = store_of(loaded, out)
    with _opened(store):
        plan = planned(loaded, store, threads)
        plan = plan if until is None else plan.until(until)
        slots = 1 if in_process else (jobs or loaded.study.run.jobs)
        launcher = (lambda slots, threads: InProcess()) if in_process else None
        runner = Runner(plan, store, jobs=slots, display=display_for(sys.stdout), launcher=launcher)
        summary = runner.run()
    _ending(summary, store)


def _ending(summary: Summary, store: Store) -> None:
    """Where the time went, what ended early, and where the report lies."""
    rows = where_the_time_went(summary.steps)
    if rows:
        say("\nwhere the time went")
        table(
            ["kind", "steps", "time"], [[r["kind"], str(r["steps"]), seconds_text(r["seconds"])] for r in rows], (1, 2)
        )
    for step in summary.steps:
        if step["status"] != "skipped" and "reason" in step:
            say(f"ended {step['id']}: {step['reason']}")
    skipped = [step["id"] for step in summary.steps if step["status"] == "skipped"]
    if skipped:
        say(f"skipped, for want of what ended: {', '.join(skipped)}")
    say(f"\n{len(summary.steps)} steps in {seconds_text(summary.seconds)}, artifacts in {store.artifacts}")
    if summary.report:
        say(f"report: {summary.report}")


def show_status(file: Path, *, out: Path | None, threads: int | None) -> None:
    """``prism status``."""
    loaded = load_study(file)
    store = store_of(loaded, out)
    plan = planned(loaded, store, threads)
    found = plan.resolve(store.record)
    states = {step_id: state_of(store, this) for step_id, this in found.items()}
    rows: list[list[str]] = []
    for step_id, this in found.items():
        name = this.reason if isinstance(this, Missing) else f"{this.step.kind}-{this.fingerprint}"
        rows.append([step_id, states[step_id], name])
    table(["step", "state", "artifact"], rows)
    say("\n" + ", ".join(f"{count} {state}" for state, count in Counter(states.values()).items()))
    holder = store.holder()
    say("no run is going on" if holder is None else f"a run is going on: {holder}")


SHORTEST_PREFIX = 4
"""Fewest digits by which ``prism show`` takes a word for the front part of a fingerprint."""


def _search(what: str, out: Path | None) -> list[Path]:
    """Artifact folders that ``what`` may mean."""
    if (Path(what) / "record.json").is_file():
        return [Path(what).absolute()]
    roots = [out] if out is not None else sorted(path for path in Path("runs").glob("*") if path.is_dir())
    folders = [folder for root in roots for folder in Store(root).all()]
    fits = len(what) >= SHORTEST_PREFIX
    named = [f for f in folders if f.name == what or (fits and f.name.rpartition("-")[2].startswith(what))]
    if named:
        return named
    found: list[tuple[str, Path]] = []
    for folder in folders:
        try:
            record = Store(folder.parents[1]).read(folder).record
        except StoreError:
            continue
        if record["name"] == what or (what and record["name"].startswith(what.rstrip("/") + "/")):
            found.append((record["started"], folder))
    return [folder for _, folder in sorted(found)]


def show_record(what: str, *, out: Path | None) -> None:
    """``prism show``: of several artifacts of a step the newest, with the others named."""
    found = _search(what, out)
    if not found:
        where = "runs/" if out is None else str(out)
        raise SpecError(
            f"no artifact or step {what!r} in {where}; 'prism status STUDY' lists them, --out names a folder"
        )
    for folder in found[:-1]:
        typer.echo(f"also: {folder}", err=True)
    artifact = Store(found[-1].parents[1]).read(found[-1])
    say(json.dumps({"path": str(artifact.path), **artifact.record}, indent=2, ensure_ascii=False))


def _built_store(loaded: LoadedStudy, out: Path | None, file: Path) -> Store:
    store = store_of(loaded, out)
    if not store.artifacts.is_dir():
        raise StoreError(f"{store.root}: nothing is built yet; 'prism run {file}' builds it")
    return store


def _decided(loaded: LoadedStudy, store: Store, threads: int | None, only: tuple[str, ...]) -> Summary:
    with _opened(store):
        return Runner(planned(loaded, store, threads), store, only=only, display=display_for(sys.stderr)).run()


def ledger_of(file: Path, *, out: Path | None) -> Artifact:
    """The ledger of a study from what is built, decided now if that was not done; its gates, too, which may stop it."""
    loaded = load_study(file)
    store = _built_store(loaded, out, file)
    (step,) = [step for step in _decided(loaded, store, None, ("claims", "gate")).steps if step["kind"] == "claims"]
    return store.read(store.path("claims", step["fingerprint"]))


def build_report(file: Path, *, out: Path | None, threads: int | None, open_it: bool) -> None:
    """``prism report``."""
    loaded = load_study(file)
    store = _built_store(loaded, out, file)
    summary = _decided(loaded, store, threads, ("claims", "gate", "report"))
    absent = sum(step.get("reason", "").endswith((NOT_BUILT, OLDER)) for step in summary.steps)
    if absent:
        typer.echo(f"{absent} steps are not in it; 'prism run {file}' builds them", err=True)
    say(str(summary.report))
    if open_it and summary.report is not None:
        import webbrowser

        if not webbrowser.open(Path(summary.report).as_uri()):
            typer.echo("no browser could be opened here: open that file in one", err=True)


def collect_garbage(file: Path, *, out: Path | None, threads: int | None, snapshots: bool, yes: bool) -> None:
    """``prism gc``."""
    loaded = load_study(file)
    store = store_of(loaded, out)
    if not store.root.is_dir():
        raise StoreError(f"{store.root}: no such run folder; --out names another")
    with store.lock():
        plan = planned(loaded, store, threads)
        found = plan.resolve(store.record)
        kept = {store.path(f.step.kind, f.fingerprint) for f in found.values() if isinstance(f, Settled)}
        begun = {store.scratches / path.name for path in kept if not path.exists()}
        left = [folder for folder in store.scratches.glob("*") if folder not in begun]
        freed = 0
        spare = [folder for folder in store.all() if folder not in kept]
        for folder in [*spare, *sorted(store.damaged.glob("*")), *sorted(left)]:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            say(f"{_bytes(size):>8}  {folder.relative_to(store.root)}")
            freed += store.remove(folder) if yes else size
        for artifact in _spare_snapshots(plan, found, store) if snapshots else ():
            files = artifact.record["files"]
            size = sum(known["bytes"] for name, known in files.items() if name.startswith("snapshots/"))
            say(f"{_bytes(size):>8}  {artifact.path.relative_to(store.root)}/snapshots")
            freed += store.drop(artifact, "snapshots/") if yes else size
    say(f"{_bytes(freed)} freed" if yes else f"{_bytes(freed)} could be freed; add --yes to delete")


def _spare_snapshots(plan: Plan, found: Mapping[str, Settled | Missing], store: Store) -> Iterator[Artifact]:
    """Artifacts with snapshots that no trajectory which is still to be built reads."""
    wanted = {
        step.inputs["run"]
        for step in plan.steps
        if step.kind == "trajectory" and state_of(store, found[step.id]) in ("to build", "damaged")
    }
    for step_id, this in found.items():
        if isinstance(this, Missing) or step_id in wanted:
            continue
        artifact = store.find(this.step.kind, this.fingerprint)
        if artifact is not None and any(name.startswith("snapshots/") for name in artifact.record["files"]):
            yield artifact
