"""Rules that a spec states by itself, and defaults that depend on the stage."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prismlab.study.checkpoints import RLSpec, TrainSpec
from prismlab.study.spec import MicroSource, TaskSpec

RL = {"stage": "rl", "from": "mid", "prompts": "p"}
FILES = {"files": ["a.jsonl"], "domain": "math", "fields": {"question": "q", "answer": "a"}}


def test_a_partial_rl_optimizer_keeps_rl_s_own_defaults() -> None:
    spec = RLSpec.model_validate({**RL, "optimizer": {"lr": 1e-6}})
    assert (spec.optimizer.lr, spec.optimizer.schedule) == (1e-6, "linear")
    assert (spec.optimizer.final_lr_factor, spec.optimizer.weight_decay) == (0.0, 0.0)


def test_defaults_are_the_reference_study_s() -> None:
    rl = RLSpec.model_validate(RL)
    assert (rl.steps, rl.prompts_per_step, rl.samples, rl.temperature) == (1000, 64, 16, 1.0)
    assert (rl.kl_beta, rl.ratio_cap, rl.optimizer.lr) == (0.05, 2.0, 5e-7)
    train = TrainSpec.model_validate({"stage": "midtrain", "from": "b", "mixture": "m", "steps": 25_000})
    assert train.tokens == 26_214_400_000
    optimizer = train.optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay) == (5e-5, (0.9, 0.95), 1e-10, 0.1)


def test_programs_are_judged_in_the_micro_world_alone() -> None:
    with pytest.raises(ValidationError, match="'verifier: program' is for micro tasks alone"):
        TaskSpec.model_validate({**FILES, "verifier": "program"})
    assert TaskSpec.model_validate({**FILES, "verifier": "number"}).domain_name == "math"


def test_a_choice_needs_the_choices() -> None:
    with pytest.raises(ValidationError, match="'verifier: choice' needs 'choices' in 'fields'"):
        TaskSpec.model_validate({**FILES, "verifier": "choice"})
    fields = {"question": "q", "answer": "a", "choices": "options"}
    assert TaskSpec.model_validate({**FILES, "fields": fields, "verifier": "choice"}).verifier == "choice"


@pytest.mark.parametrize(("domain", "form"), [("math", "facts"), ("web", "worked"), ("chat", "facts")])
def test_forms_that_a_domain_does_not_have_are_refused(domain: str, form: str) -> None:
    with pytest.raises(ValidationError, match=f"'form: {form}'"):
        MicroSource.model_validate({"domain": domain, "form": form})
