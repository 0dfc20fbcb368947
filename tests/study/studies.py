"""A small study as plain data, for tests to change."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from prismlab.study.load import LoadedStudy, load_study

TRAIN = {"rows": 4, "seq_len": 16, "steps": 10}
STUDY: dict[str, Any] = {
    "name": "small",
    "bases": {"tiny": {"arch": "llama"}},
    "sources": {
        "web": {"micro": {"domain": "web"}},
        "math": {"micro": {"domain": "math", "form": "worked"}},
        "code": {"micro": {"domain": "code", "form": "worked"}},
        "science": {"micro": {"domain": "science", "form": "worked"}},
    },
    "mixtures": {
        "start": {"weights": {"web": 1}},
        "m": {"weights": {"web": 1, "math": 1}},
        "mc": {"weights": {"web": 1, "math": 1, "code": 1}},
        "mcs": {"weights": {"web": 1, "math": 1, "code": 1, "science": 1}},
    },
    "checkpoints": {
        "base": {"stage": "pretrain", "from": "tiny", "mixture": "start", **TRAIN},
        "mid-mc": {"stage": "midtrain", "from": "base", "mixture": "mc", **TRAIN},
        "mid-mcs": {"stage": "midtrain", "from": "base", "mixture": "mcs", **TRAIN},
        "rl": {"stage": "rl", "from": "mid-mcs", "prompts": "mcs", "steps": 5, "snapshots": 2},
        "rl-base": {"stage": "rl", "from": "base", "prompts": "mc", "steps": 5},
        "control": {"stage": "finetune", "from": "mid-mcs", "mixture": "mcs", **TRAIN},
        "merged": {"stage": "merge", "weights": {"base": 0.15, "mid-mcs": 0.85}},
    },
    "tasks": {
        "addition": {"micro": {"domain": "math"}},
        "programs": {"micro": {"domain": "code"}},
        "elements": {"micro": {"domain": "science"}},
    },
    "scorings": {"all": {"by": "mid-mcs", "tasks": ["addition", "programs", "elements"]}},
    "prompts": {
        "mc": {"scoring": "all", "tasks": ["addition", "programs"]},
        "mcs": {"scoring": "all", "tasks": ["addition", "programs", "elements"]},
    },
    "evaluations": {"core": {"tasks": ["addition", "programs"], "text": ["web"]}},
    "analyses": {
        "weights": {},
        "direction": {},
        "cka": {"sources": ["web"]},
        "behaviour": {"evaluation": "core"},
        "trajectory": {},
        "landscape": {"evaluation": "core"},
    },
}


def study(**changes: Any) -> dict[str, Any]:
    """The study with some of its top-level keys replaced."""
    return {**copy.deepcopy(STUDY), **changes}


def written(folder: Path, data: dict[str, Any] | str, name: str = "study.yaml") -> Path:
    """The study as a file."""
    path = folder / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


def loaded(folder: Path, data: dict[str, Any] | None = None) -> LoadedStudy:
    """The study written and read again."""
    return load_study(written(folder, study() if data is None else data))
