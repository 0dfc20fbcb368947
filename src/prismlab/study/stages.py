"""Which function carries out a step of each kind, and its version.

Stages are named as strings, so that planning imports none of them. Raise a stage's version when its output for an equal
configuration changes: artifacts of the old version are then built anew.
"""

from __future__ import annotations

STAGES: dict[str, tuple[str, int]] = {
    "base": ("prismlab.model.base:run", 1),
    "clean": ("prismlab.data.clean:run", 2),
    "corpus": ("prismlab.data.build:run", 4),
    "train": ("prismlab.train.stage:run", 2),
    "snapshot": ("prismlab.model.snapshot:run", 1),
    "merge": ("prismlab.merge.linear:run", 2),
    "scoring": ("prismlab.rl.prompts:run_scoring", 4),
    "prompts": ("prismlab.rl.prompts:run_prompts", 1),
    "rl": ("prismlab.rl.train:run", 5),
    "evaluation": ("prismlab.evaluate.stage:run", 7),
    "weights": ("prismlab.analyse.weights:run", 2),
    "direction": ("prismlab.analyse.direction:run", 3),
    "states": ("prismlab.analyse.states:run", 1),
    "cka": ("prismlab.analyse.cka:run", 2),
    "behaviour": ("prismlab.analyse.behaviour:run", 3),
    "trajectory": ("prismlab.analyse.trajectory:run", 2),
    "landscape": ("prismlab.analyse.landscape:run", 5),
    "frontier": ("prismlab.rl.frontier:run", 3),
    "gate": ("prismlab.evaluate.retention:run", 4),
    "claims": ("prismlab.claims.ledger:run", 6),
    "report": ("prismlab.report.html:run", 9),
}
