"""From the graph of a study to the arms that the claims speak of.

An arm is a checkpoint in its role: ``base``, ``mid[MCS]``, ``mid[MC]>rl[MCS]``, ``base>rl[MCS]``,
``mid[MCS]>finetune[MCS]``. The letters name the task domains of the data: math, code, science.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prismlab.study.check import starts_of
from prismlab.study.checkpoints import MergeSpec, RLSpec, TrainSpec
from prismlab.study.study import Study

LETTERS = {"math": "M", "code": "C", "science": "S"}
"""Letter of each task domain, in the order in which an arm's name lists them."""


def _letters(domains: set[str]) -> str:
    return "".join(letter for domain, letter in LETTERS.items() if domain in domains)


def mixture_letters(study: Study, mixture: str) -> str:
    """Task domains of a mixture's sources, for example ``MC``; empty if it has none."""
    return _letters({study.sources[name].domain_name for name in study.mixtures[mixture].names})


def prompt_letters(study: Study, prompts: str) -> str:
    """Task domains of a prompt set, for example ``MCS``."""
    return _letters({study.tasks[name].domain_name for name in study.prompts[prompts].tasks})


def _is_start(study: Study, name: str) -> bool:
    """Whether a name can be the arm ``base``: an outside checkpoint, or what pretraining made in the end."""
    if name in study.bases:
        return study.bases[name].arch is None
    spec = study.checkpoints.get(name)
    return isinstance(spec, TrainSpec) and spec.stage == "pretrain"


def base_of(study: Study) -> str | None:
    """The checkpoint that is the arm ``base``: where the first mid-training starts, else the first RL."""
    for stage in ("midtrain", "rl"):
        for spec in study.checkpoints.values():
            if spec.stage == stage and _is_start(study, starts_of(spec)[0]):
                return starts_of(spec)[0]
    return next((name for name in (*study.checkpoints, *study.bases) if _is_start(study, name)), None)


def _candidates(study: Study) -> Iterator[tuple[str, str]]:
    """Every (arm, checkpoint) that the graph shows, in file order, ambiguous ones included."""
    given = study.claims.arms
    base = given.get("base") or base_of(study)
    if base is None:
        return
    yield "base", base
    chosen = {"base": base}
    for name, spec in study.checkpoints.items():
        if isinstance(spec, TrainSpec) and spec.stage == "midtrain" and spec.start == base:
            letters = mixture_letters(study, spec.mixture)
            if letters:
                chosen.setdefault(f"mid[{letters}]", name)
                yield f"mid[{letters}]", name
    # A run belongs to an arm by the one checkpoint that stands for the arm it starts from, so that pairs stay pairs.
    role = {name: arm for arm, name in reversed((chosen | dict(given)).items())}
    for name, spec in study.checkpoints.items():
        if isinstance(spec, RLSpec) and spec.start in role:
            letters, stage = prompt_letters(study, spec.prompts), "rl"
        elif isinstance(spec, TrainSpec) and spec.stage == "finetune" and spec.start in role:
            letters, stage = mixture_letters(study, spec.mixture), "finetune"
        else:
            continue
        if letters:
            yield f"{role[spec.start]}>{stage}[{letters}]", name
    yield from _repaired(study, role)


def _repaired(study: Study, role: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Long-context training of a merge with a mid-trained checkpoint: ``mid[MC]>merge>extend``."""
    for name, spec in study.checkpoints.items():
        if not isinstance(spec, TrainSpec) or spec.stage != "extend":
            continue
        start = study.checkpoints.get(spec.start)
        parts = start.weights if isinstance(start, MergeSpec) else {}
        for arm in (role[part] for part in parts if role.get(part, "").startswith("mid[")):
            yield f"{arm}>merge>extend", name


def infer_arms(study: Study) -> dict[str, str]:
    """Arm to checkpoint. Where two checkpoints fit one, the first in the file is taken; ``claims.arms`` overrides."""
    arms: dict[str, str] = {}
    for arm, name in _candidates(study):
        arms.setdefault(arm, name)
    return arms | dict(study.claims.arms)


def ambiguous_arms(study: Study) -> dict[str, list[str]]:
    """Arms that several checkpoints fit and ``claims.arms`` does not settle, with all of them in file order."""
    fits: dict[str, list[str]] = {}
    for arm, name in _candidates(study):
        fits.setdefault(arm, []).append(name)
    return {arm: names for arm, names in fits.items() if len(names) > 1 and arm not in study.claims.arms}
