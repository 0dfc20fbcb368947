"""A synthetic study for tests of claims and report: records with numbers that the test chooses, no model anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prismlab.claims.arms import Table
from prismlab.run.step import Artifact
from prismlab.study.study import THRESHOLDS, Study

ARMS = {
    "base": "base",
    "mid[M]": "mid-m",
    "mid[MC]": "mid-mc",
    "mid[MCS]": "mid-mcs",
    "mid[MC]>rl[MC]": "rl-mc-mc",
    "mid[MC]>rl[MCS]": "rl-mc-mcs",
    "mid[MCS]>rl[MC]": "rl-mcs-mc",
    "mid[MCS]>rl[MCS]": "rl-mcs-mcs",
    "base>rl[MCS]": "rl-base-mcs",
    "mid[MCS]>finetune[MCS]": "control",
}
SWEEP_ARMS = {
    "mid[MC]>merge>extend": "extended",
    "mid[MCS]@8k": "mid-8k",
    "mid[MCS]@16k": "mid-16k",
    "mid[MCS]@32k": "mid-32k",
    "mid[MC]@16B": "mid-16b",
    "mid[MC]@26B": "mid-26b",
    "phase3>mid[MCS]": "mid-phase3",
    "phase4>mid[MCS]": "mid-phase4",
    "extend>mid[MCS]": "mid-late",
}
"""Arms of C16 to C18, which a study names."""
DOMAINS = ("math", "code", "science")
RL_OPTIMIZER = {"lr": 5e-5, "schedule": "linear", "final_lr_factor": 0.0, "weight_decay": 0.0}


def study_json(seeds: Sequence[int] = (0, 1, 2), **changes: Any) -> dict[str, Any]:
    """A study with every arm that a rule of version 1 knows, as the planner hands it to stages."""
    mid = {"stage": "midtrain", "from": "base", "steps": 40, "rows": 4, "seq_len": 64}
    rl = {"stage": "rl", "steps": 20, "prompts_per_step": 4, "samples": 4, "optimizer": RL_OPTIMIZER, "snapshots": 5}
    checkpoints: dict[str, Any] = {
        "base": {"stage": "pretrain", "from": "tiny", "mixture": "web", "steps": 40, "rows": 4, "seq_len": 64}
    }
    checkpoints |= {f"mid-{mix}": {**mid, "mixture": mix} for mix in ("m", "mc", "mcs")}
    checkpoints |= {
        f"rl-{a}-{b}": {**rl, "from": f"mid-{a}", "prompts": b} for a in ("mc", "mcs") for b in ("mc", "mcs")
    }
    checkpoints["rl-base-mcs"] = {**rl, "from": "base", "prompts": "mcs"}
    checkpoints["control"] = {
        **mid,
        "stage": "finetune",
        "from": "mid-mcs",
        "mixture": "mcs",
        "steps": 20,
        "optimizer": RL_OPTIMIZER,
    }
    tasks = {"addition": "math", "programs": "code", "elements": "science"}
    sources: dict[str, Any] = {"web": {"micro": {"domain": "web"}}, "chat": {"micro": {"domain": "chat"}}}
    sources |= {f"{d}-worked": {"micro": {"domain": d, "form": "worked"}} for d in DOMAINS}
    given = {
        "name": "synthetic",
        "description": "Numbers made up for tests.",
        "seeds": list(seeds),
        "bases": {"tiny": {"arch": "llama", "width": 32, "layers": 2}},
        "sources": sources,
        "mixtures": {
            "web": {"weights": {"web": 8, "chat": 2}},
            "m": {"weights": {"web": 4, "math-worked": 6}},
            "mc": {"weights": {"web": 4, "math-worked": 3, "code-worked": 3}},
            "mcs": {"weights": {"web": 4, "math-worked": 2, "code-worked": 2, "science-worked": 2}},
        },
        "checkpoints": checkpoints,
        "tasks": {name: {"micro": {"domain": domain}} for name, domain in tasks.items()},
        "scorings": {"all": {"by": "mid-mcs", "tasks": list(tasks)}},
        "prompts": {
            "mc": {"scoring": "all", "tasks": ["addition", "programs"]},
            "mcs": {"scoring": "all", "tasks": list(tasks)},
        },
        "evaluations": {"core": {"tasks": list(tasks), "text": ["web", "chat"]}},
        "analyses": {
            "weights": {},
            "direction": {},
            "trajectory": {},
            "cka": {"sources": ["web", "math-worked"]},
            "behaviour": {"evaluation": "core"},
        },
        **changes,
    }
    return Study.model_validate(given).model_dump(mode="json", by_alias=True)


def score(value: float) -> dict[str, Any]:
    """A SCORE with an item interval of 3 points to each side."""
    return {
        "value": value,
        "lo": value - 3,
        "hi": value + 3,
        "items": 100,
        "samples": 200,
        "truncation": 2.0,
        "unscored": 0,
    }


def divergence(l2: float, share: float, shares: Mapping[float, float] | None = None) -> dict[str, Any]:
    """A DIV whose share at every threshold is ``share``, but where ``shares`` says otherwise."""
    changed = {str(t): (shares or {}).get(t, share) for t in THRESHOLDS}
    ulp = {"0": 1 - share, "1": share / 2, "2": share / 4, "3-4": 0.0, ">4": share / 4}
    counts = {"elements": 1000, "zeros_old": 0, "zeros_changed": 0}
    return {"l2": l2, **counts, "changed": changed, "equal": 1 - share, "ulp": ulp, "sign_flips": share / 10}


@dataclass
class World:
    """Entries and artifacts that a test fills."""

    seeds: tuple[int, ...] = (0, 1, 2)
    arms: dict[str, str] = field(default_factory=lambda: dict(ARMS))
    study: dict[str, Any] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    inputs: dict[str, Artifact] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.study = self.study or study_json(self.seeds)

    @property
    def table(self) -> Table:
        """What the rules read."""
        return Table(study=self.study, entries=self.entries, arms=self.arms, inputs=self.inputs)

    def add(
        self,
        kind: str,
        name: str,
        seed: int,
        metrics: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        path: Path = Path("nowhere"),
        step: str | None = None,
        **entry: Any,
    ) -> Artifact:
        """One finished step."""
        key = f"{kind}/{step or name}/s{seed}"
        if key not in self.metrics:
            self.entries.append({"key": key, "kind": kind, "name": name, "seed": seed, **entry})
        self.metrics[key] = {**metrics}
        fingerprint = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        record = {
            "schema": 1,
            "kind": kind,
            "version": 1,
            "name": key,
            "fingerprint": fingerprint,
            "seed": seed,
            "threads": 1,
            "config": {"seed": seed, **(config or {})},
            "inputs": {},
            "versions": {"torch": "2.13.0", "prismlab": "0.1.0"},
            "git": {"commit": "0" * 40, "dirty": False},
            "started": "2026-03-24T10:00:00+00:00",
            "seconds": 2.5,
            "peak_memory_mb": 300.0,
            "tokens": 1000,
            "metrics": self.metrics[key],
            "files": {},
            "status": "complete",
        }
        self.inputs[key] = Artifact(kind=kind, fingerprint=fingerprint, path=path, record=record)
        return self.inputs[key]

    def lose(self, kind: str, reason: str, **match: Any) -> None:
        """Ends the steps of a kind whose entry has these values: entry kept with its reason, artifact gone."""
        hits = [e for e in self.entries if e["kind"] == kind and all(e.get(k) == v for k, v in match.items())]
        assert hits, f"no {kind} entry matches {match}"
        for entry in hits:
            entry["missing"] = reason
            del self.inputs[entry["key"]]

    def forget(self, kind: str, **match: Any) -> None:
        """Removes steps as if the study had never planned them."""
        hits = [e for e in self.entries if e["kind"] == kind and all(e.get(k) == v for k, v in match.items())]
        assert hits, f"no {kind} entry matches {match}"
        for entry in hits:
            self.entries.remove(entry)
            del self.inputs[entry["key"]]

    def _each(self, kind: str, name: str, make: Any, config: Mapping[str, Any] | None = None, **entry: Any) -> None:
        for i, seed in enumerate(self.seeds):
            self.add(kind, name, seed, make(i), config, **entry)

    def evaluate(
        self,
        arm: str,
        math: Sequence[float],
        code: Sequence[float],
        science: Sequence[float],
        web: Sequence[float] = (2.0, 2.0, 2.0),
        chat: Sequence[float] = (2.0, 2.0, 2.0),
    ) -> None:
        """Scores in percent and text losses of an arm, one value a seed."""
        checkpoint = self.arms[arm]

        def make(i: int) -> dict[str, Any]:
            domains = {"math": math[i], "code": code[i], "science": science[i]}
            text = {"web": web[i], "chat": chat[i]}
            return {
                "tasks": {
                    t: score(domains[d]) for t, d in zip(("addition", "programs", "elements"), DOMAINS, strict=True)
                },
                "domains": {d: score(v) for d, v in domains.items()},
                "average": score(sum(domains.values()) / 3),
                "text": {
                    s: {"bits_per_byte": v, "lo": v - 0.02, "hi": v + 0.02, "documents": 20, "bytes": 9000}
                    for s, v in text.items()
                },
            }

        self._each("evaluation", "core", make, {"name": "core"}, step=f"core@{checkpoint}", checkpoint=checkpoint)

    def weigh(
        self,
        old: str,
        new: str,
        l2: Sequence[float],
        share: Sequence[float],
        shares: Mapping[float, Sequence[float]] | None = None,
        parts: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """A weight analysis: total L2 and share changed at 1% (at other thresholds by ``shares``), shares of parts."""
        a, b = self.arms[old], self.arms[new]

        def make(i: int) -> dict[str, Any]:
            named = {t: values[i] for t, values in (shares or {}).items()}
            given = parts or {"attention.q": share, "attention.v": share, "mlp.up": share, "norm": share}
            subs = {name: divergence(l2[i], values[i]) for name, values in given.items()}
            components = {c: divergence(l2[i], share[i], named) for c in ("attention", "mlp", "embedding", "norm")}
            layers = {
                str(n): {c: divergence(l2[i] * (1 + n / 5), share[i]) for c in ("attention", "mlp")} for n in range(2)
            }
            return {
                "total": divergence(l2[i], share[i], named),
                "components": components,
                "subcomponents": subs,
                "layers": layers,
            }

        self._each("weights", f"{a}:{b}", make, old=a, new=b)

    def aim(self, a: str, b: str, cosine: Sequence[float]) -> None:
        """An update direction from base."""
        x, y = self.arms[a], self.arms[b]

        def matrix(value: float) -> list[list[float]]:
            """A third checkpoint lies between the two: a reader that takes the wrong cell is caught."""
            return [[1.0, 0.95, value], [0.95, 1.0, 0.95], [value, 0.95, 1.0]]

        def make(i: int) -> dict[str, Any]:
            components = {"attention": cosine[i], "mlp": cosine[i] - 0.02, "embedding": min(1.0, cosine[i] + 0.3)}
            return {
                "names": names,
                "cosine": matrix(cosine[i]),
                "l2": dict.fromkeys(names, 0.2),
                "components": {name: matrix(value) for name, value in components.items()},
                "subcomponents": {},
                "layers": {},
                "reasons": {},
            }

        names = [x, "another", y]
        self._each("direction", "base", make, base=self.arms["base"], checkpoints=names)

    def compare(self, old: str, new: str, cka: Sequence[float]) -> None:
        """CKA whose smallest value over two sets and three layers is ``cka``."""
        a, b = self.arms[old], self.arms[new]

        def one(value: float) -> dict[str, Any]:
            row = [1.0 - (1.0 - value) * n / 2 for n in range(3)]
            layers = [
                {"layer": n, "cka": v, "std": 1e-4, "debiased": v - 1e-4, "debiased_std": 1e-4}
                for n, v in enumerate(row)
            ]
            return {
                "layers": layers,
                "min": value,
                "min_layer": 2,
                "debiased_min": value - 1e-4,
                "inputs": 100,
                "final": value,
            }

        self._each(
            "cka",
            f"{a}:{b}",
            lambda i: {"sets": {"web": one((1 + cka[i]) / 2), "math-worked": one(cka[i])}},
            old=a,
            new=b,
        )

    def behave(self, arm: str, length: Sequence[float], nll: Sequence[float], gap: Sequence[float]) -> None:
        """Behaviour on the math task; other tasks have other numbers, so that a rule that reads them is caught."""
        checkpoint = self.arms[arm]

        def triple(value: float) -> dict[str, float]:
            return {"value": value, "lo": value * 0.95, "hi": value * 1.05}

        def make(i: int) -> dict[str, Any]:
            own = {
                "pass": triple(0.4),
                "n": 200,
                "length_median": triple(length[i]),
                "length_mean": triple(length[i] * 1.1),
                "nll": triple(nll[i]),
                "nll_correct": triple(nll[i] + gap[i]),
                "nll_incorrect": triple(nll[i]),
                "truncation": triple(0.01),
            }
            other = {key: triple(1.0) for key in own} | {"n": 200}
            return {"tasks": {"addition": own, "programs": other, "elements": other}, "all": own}

        self._each("behaviour", "core", make, {}, step=f"core@{checkpoint}", checkpoint=checkpoint)

    def walk(self, base: str, mid: str, run: str, along: Mapping[float, Sequence[float]], grid: int = 0) -> None:
        """A landscape: average scores by place on the path base (0), mid (1), RL (2), one value a seed each.

        Of a grid the score is 90 a + 3 b, plus the seed's place: which axis is which can be told from it.
        """
        names = [self.arms[arm] for arm in (base, mid, run)]

        def make(i: int) -> dict[str, Any]:
            path = [_row(x, values[i]) for x, values in along.items()]
            sides = [k / (grid - 1) for k in range(grid)] if grid else []
            average = [[score(90 * a + 3 * b + i) for b in sides] for a in sides]
            mesh = {"a": sides, "b": sides, "average": average} if grid else None
            return {"path": path, "grid": mesh, "barrier": [], "samples": 9}

        self._each("landscape", ":".join(names), make, base=names[0], mid=names[1], rl=names[2])

    def solve(self, arm: str, gain: Sequence[float], first: int = 16, fresh: int = 64) -> None:
        """A frontier: the unsolved prompts gain so many points over a second draw of 2%; other groups lose 50."""
        checkpoint = self.arms[arm]

        def make(i: int) -> dict[str, Any]:
            def group(rate: float, by: float) -> dict[str, Any]:
                return {"prompts": 40, "fresh": score(rate), "after": score(rate + by), "difference": score(by)}

            groups = {"0": group(2.0, gain[i])} | {name: group(60.0, -50.0) for name in ("1", "more", "all")}
            return {"samples": {"first": first, "fresh": fresh}, "groups": groups, "domains": {}, "pass_at_k": {}}

        self._each("frontier", checkpoint, make, checkpoint=checkpoint)

    def reach(self, arm: str, values: Sequence[float]) -> None:
        """Scores by length, one value a seed at 64 tokens; at 32 all arms score alike."""
        checkpoint = self.arms[arm]

        def make(i: int) -> dict[str, Any]:
            return {"tasks": {}, "domains": {}, "lengths": {"64": score(values[i]), "32": score(20.0 - values[i] / 10)}}

        self._each("evaluation", "ruler", make, {}, step=f"ruler@{checkpoint}", checkpoint=checkpoint)

    def follow(self, arm: str, front: Sequence[float], first: Sequence[float], last: Sequence[float]) -> None:
        """A trajectory: front share, share changed at 1% at the first and at the last snapshot."""
        checkpoint = self.arms[arm]

        def make(i: int) -> dict[str, Any]:
            curve = [first[i] + (last[i] - first[i]) * k / 4 for k in range(5)]
            return {
                "steps": [4, 8, 12, 16, 20],
                "l2": [0.001, 0.002, 0.0025, 0.0028, 0.003],
                "overlap": [0.4, 0.5, 0.6, 0.8, 1.0],
                "changed": {"0.01": curve, "0.1": [0.0] * 5},
                "step50": 6,
                "step80": 12,
                "front_share": front[i],
                "components": {
                    "attention": {"l2": [0.002], "changed": {"0.01": [last[i]]}, "step50": 5, "step80": 11},
                    "norm": {"l2": [None], "changed": {"0.01": [None]}, "step50": None, "step80": None},
                },
            }

        self._each("trajectory", checkpoint, make, checkpoint=checkpoint)


def _row(x: float, value: float) -> dict[str, Any]:
    leg = 1 if x <= 1 else 2
    t = x - (leg - 1)
    a, b = (t, 0.0) if leg == 1 else (1.0, t)
    above = None if t in (0, 1) else {"value": -1.0, "lo": -4.0, "hi": 2.0, "items": 100}
    domains = {d: score(value) for d in DOMAINS}
    return {"leg": leg, "t": t, "a": a, "b": b, "domains": domains, "average": score(value), "deviation": above}


def near(value: float, spread: float, *names: object, n: int = 3) -> list[float]:
    """``n`` values about ``value``, within ``spread``, by name: pairs of arms never share their scatter."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return [value + spread * x for x in np.random.default_rng(int.from_bytes(digest, "big")).uniform(-1, 1, n)]


SCORES = {
    "base": (5.0, 4.0, 20.0),
    "mid[M]": (45.0, 5.0, 20.0),
    "mid[MC]": (50.0, 40.0, 20.0),
    "mid[MCS]": (48.0, 38.0, 45.0),
    "mid[MC]>rl[MC]": (58.0, 48.0, 21.0),
    "mid[MC]>rl[MCS]": (57.0, 47.0, 23.0),
    "mid[MCS]>rl[MC]": (58.0, 47.0, 60.0),
    "mid[MCS]>rl[MCS]": (56.0, 46.0, 65.0),
    "base>rl[MCS]": (6.0, 5.0, 21.0),
    "mid[MCS]>finetune[MCS]": (50.0, 39.0, 47.0),
}
"""Scores (math, code, science) of a world in which every claim holds."""
SWEEP_SCORES = {
    "mid[MCS]@8k": (46.0, 34.0, 41.0),
    "mid[MCS]@16k": (50.0, 38.0, 45.0),
    "mid[MCS]@32k": (47.0, 35.0, 42.0),
    "mid[MC]@16B": (50.0, 40.0, 20.0),
    "mid[MC]@26B": (50.0, 40.0, 20.0),
    "phase3>mid[MCS]": (30.0, 20.0, 25.0),
    "phase4>mid[MCS]": (28.0, 22.0, 25.0),
    "extend>mid[MCS]": (48.0, 38.0, 45.0),
}
"""Those of the arms of C17 and C18."""


def complete(seeds: tuple[int, ...] = (0, 1, 2), sweeps: bool = True) -> World:
    """A world in which every claim is supported; without ``sweeps`` C15 to C18 have nothing to read."""
    world, n = World(seeds=seeds, arms=ARMS | (SWEEP_ARMS if sweeps else {})), len(seeds)
    for arm, values in (SCORES | (SWEEP_SCORES if sweeps else {})).items():
        domains = [near(v, 0.6, arm, d, n=n) for d, v in zip(DOMAINS, values, strict=True)]
        world.evaluate(arm, *domains, web=near(2.0, 0.01, arm, "w", n=n), chat=near(2.1, 0.01, arm, "c", n=n))
        world.behave(arm, *([near(v, v / 50, arm, f, n=n) for f, v in _behaviour(arm).items()]))
    for old, new, l2, share in [
        ("base", "mid[MC]", 0.2, 0.96),
        ("base", "mid[MCS]", 0.2, 0.96),
        ("mid[MCS]", "mid[MCS]>rl[MCS]", 0.001, 0.05),
        ("mid[MC]", "mid[MC]>rl[MCS]", 0.001, 0.05),
        ("base", "base>rl[MCS]", 0.001, 0.05),
        ("mid[MCS]", "mid[MCS]>finetune[MCS]", 0.01, 0.4),
    ]:
        world.weigh(old, new, near(l2, l2 / 100, old, new, n=n), near(share, 0.002, old, new, "share", n=n))
    world.aim("mid[MC]", "mid[MCS]", near(0.55, 0.01, "aim", n=n))
    for mid in ("mid[MC]", "mid[MCS]"):
        world.compare(mid, f"{mid}>rl[MCS]", near(0.9994, 0.0001, mid, "cka", n=n))
    world.compare("base", "mid[MCS]", near(0.98, 0.001, "base", "cka", n=n))
    along = {x / 4: near(10 + 30 * min(1, x / 4) + 8 * max(0, x / 4 - 1), 0.5, "walk", x, n=n) for x in range(9)}
    world.walk("base", "mid[MCS]", "mid[MCS]>rl[MCS]", along)
    if sweeps:
        world.solve("mid[MCS]>rl[MCS]", near(6.0, 0.5, "solved", n=n))
        for arm, value in (("base", 60.0), ("mid[MC]", 10.0), ("mid[MC]>merge>extend", 42.0)):
            world.reach(arm, near(value, 0.5, arm, "long", n=n))
    for arm in ("mid[MCS]>rl[MCS]", "base>rl[MCS]"):
        ends = near(1.5, 0.05, arm, "first", n=n), near(5.0, 0.05, arm, "last", n=n)
        world.follow(arm, near(0.75, 0.02, arm, "front", n=n), *([v / 100 for v in end] for end in ends))
    return world


def _behaviour(arm: str) -> dict[str, float]:
    """Length, negative log-probability, and that of correct minus incorrect responses."""
    if arm.startswith("mid"):
        return {"length": 40.0, "nll": 0.15, "gap": -0.03}
    return {"length": 10.0, "nll": 0.4, "gap": -0.01}
