"""What is written of a policy whose weights are spread: what the library gathers, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from prismlab.errors import StageError
from prismlab.model.checkpoint import load_model, load_tokenizer, save_checkpoint, save_snapshot
from prismlab.rl.whole import Whole


def gathering(state: dict[str, torch.Tensor]) -> Any:
    """A trainer whose processes hold ``state`` together."""
    return SimpleNamespace(model_wrapped="all", accelerator=SimpleNamespace(get_state_dict=lambda model: state))


def test_the_gathered_weights_are_written_not_those_that_lie_here(start: Path, tmp_path: Path) -> None:
    here = load_model(start / "model")
    state = {name: tensor + 0.25 for name, tensor in here.state_dict().items()}
    for parameter in here.parameters():
        parameter.data = torch.empty(0)  # As ZeRO-3 leaves it.
    whole = Whole(here, start / "model", True, True)
    whole.gather(gathering(state))
    save_checkpoint(whole.model, load_tokenizer(start / "model"), tmp_path / "model")
    save_snapshot(whole.model, tmp_path)
    for name, tensor in load_model(tmp_path / "model").state_dict().items():
        assert torch.equal(tensor, state[name].bfloat16().float())


def test_other_processes_take_part_and_hold_nothing(start: Path) -> None:
    asked: list[Any] = []
    trainer: Any = gathering({})
    trainer.accelerator.get_state_dict = lambda model: asked.append(model) or {}
    whole = Whole(load_model(start / "model"), start / "model", True, False)
    whole.gather(trainer)
    assert asked == ["all"]
    assert whole.model is None


def test_a_policy_in_one_piece_is_written_itself(start: Path) -> None:
    here = load_model(start / "model")
    whole = Whole(here, start / "model", False, True)
    whole.gather(None)
    assert whole.model is here


@pytest.mark.parametrize("how", ["missing", "another", "empty"])
def test_what_is_not_the_model_is_refused(how: str, start: Path) -> None:
    state = dict(load_model(start / "model").state_dict())
    name = sorted(state)[0]
    if how == "empty":
        state[name] = torch.empty(0)
    else:
        tensor = state.pop(name)
        state |= {"module." + name: tensor} if how == "another" else {}
    with pytest.raises(StageError, match="gathered from all processes are not the model's"):
        Whole(None, start / "model", True, True).gather(gathering(state))


def test_tied_weights_may_be_given_once(start: Path, tmp_path: Path) -> None:
    model: Any = load_model(start / "model")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    save_checkpoint(model, load_tokenizer(start / "model"), tmp_path)
    state = {name: tensor + 0.5 for name, tensor in load_model(tmp_path).state_dict().items()}
    del state["lm_head.weight"]
    whole = Whole(None, tmp_path, True, True)
    whole.gather(gathering(state))
    written = whole.model.state_dict()
    assert torch.equal(written["lm_head.weight"], state["model.embed_tokens.weight"])
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())


def test_masters_need_float32(rl_spec: Callable[..., dict[str, Any]]) -> None:
    vllm = {"vllm": {"mode": "colocate"}, "launch": "torchrun", "nproc": 2}
    assert rl_spec(**vllm, sharding="fsdp", keep_master=True)["keep_master"]
    with pytest.raises(ValidationError, match="'keep_master' goes without 'sharding: zero3'"):
        rl_spec(**vllm, sharding="zero3", keep_master=True)
