"""What is built of a study, for the commands that judge it: nothing is run, nothing is written but the hash cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismlab.errors import StoreError
from prismlab.run.step import Artifact
from prismlab.run.store import Store
from prismlab.study.load import load_study
from prismlab.study.plan import plan_study
from prismlab.study.steps import Missing, entries_of
from prismlab.study.study import Study


@dataclass(frozen=True, kw_only=True)
class Built:
    """A study as the stage ``report`` is told of it, from the artifacts that are there."""

    study: Study
    plain: Mapping[str, Any]
    """The study as JSON."""
    entries: list[dict[str, Any]]
    """All steps of the plan; one without an artifact has ``missing``, its reason."""
    arms: Mapping[str, str]
    inputs: Mapping[str, Artifact]
    """Finished artifacts by step id."""

    def of(self, kind: str) -> dict[str, Artifact]:
        """Finished artifacts of one kind by step id."""
        return {key: artifact for key, artifact in self.inputs.items() if artifact.kind == kind}


def built(file: Path, *, out: Path | None) -> Built:
    """What is built of a study.

    Args:
        file: the study file.
        out: its run folder; None for the usual one.

    Raises:
        StoreError: there is no run folder.
        SpecError: the study file is wrong.
    """
    loaded = load_study(file)
    store = Store(out if out is not None else Path("runs") / loaded.study.name)
    if not store.artifacts.is_dir():
        raise StoreError(f"{store.root}: nothing is built yet; 'prism run {file}' builds it")
    plan = plan_study(loaded, hash_cache=store.hash_cache)
    inputs: dict[str, Artifact] = {}
    missing: dict[str, str] = {}
    for step_id, found in plan.resolve(store.record).items():
        if isinstance(found, Missing):
            missing[step_id] = found.reason
            continue
        artifact = store.find(found.step.kind, found.fingerprint)
        if artifact is None:
            missing[step_id] = store.not_built(step_id)
        elif artifact.record["status"] == "ended":
            missing[step_id] = str(artifact.record.get("reason", "ended"))
        else:
            inputs[step_id] = artifact
    entries = entries_of(plan.steps)
    told = [{**one, "missing": missing[one["key"]]} if one["key"] in missing else one for one in entries]
    plain = loaded.study.model_dump(mode="json", by_alias=True)
    return Built(study=loaded.study, plain=plain, entries=told, arms=plan.arms, inputs=inputs)
