"""Log-probabilities without padding against one row at a time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from prismlab.rl import logps as module
from prismlab.rl.logps import response_logps

VOCABULARY = 23
PROMPTS, RESPONSES = [3, 5, 1, 4], [2, 6, 7, 1]


def model_of(kind: str) -> Any:
    common = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(3)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**common, intermediate_size=64, num_hidden_layers=2))
    if kind == "granite":
        scaled = {"logits_scaling": 4.0, "embedding_multiplier": 6.0, "residual_multiplier": 0.5}
        return GraniteForCausalLM(GraniteConfig(**common, **scaled, intermediate_size=64, num_hidden_layers=2))
    layers = ["mamba", "mlp", "attention", "mlp"]
    mamba = {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 4}
    return NemotronHForCausalLM(
        NemotronHConfig(**common, **mamba, intermediate_size=64, layers_block_type=layers, head_dim=16)
    )


def batch() -> tuple[torch.Tensor, torch.Tensor, list[tuple[list[int], list[int]]]]:
    """Prompts padded on the left, responses on the right, with tokens in the padding that must not matter."""
    generator = torch.Generator().manual_seed(1)
    keep, left = max(RESPONSES), max(PROMPTS)
    ids = torch.randint(0, VOCABULARY, (4, left + keep), generator=generator)
    mask = torch.zeros_like(ids)
    rows: list[tuple[list[int], list[int]]] = []
    for row, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        mask[row, left - p : left + r] = 1
        rows.append((ids[row, left - p : left].tolist(), ids[row, left : left + r].tolist()))
    return ids, mask, rows


def reference(model: Any, rows: list[tuple[list[int], list[int]]], temperature: float) -> list[list[list[float]]]:
    """[row][token] = (log-probability, entropy), each row alone, in float64 from the logits on."""
    result: list[list[list[float]]] = []
    for prompt, response in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double() / temperature
        logs = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
        entropy = torch.distributions.Categorical(logits=logs).entropy()
        result.append([[logs[t, token].item(), entropy[t].item()] for t, token in enumerate(response)])
    return result


@pytest.mark.parametrize(
    ("kind", "dense", "chunk"),
    [*itertools.product(["llama", "granite"], [True, False], [8, 10_000]), ("nemotron", True, 10_000)],
)
def test_like_one_row_at_a_time(kind: str, dense: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(kind).train()
    ids, mask, rows = batch()
    expected = reference(model, rows, 0.7)
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    monkeypatch.setattr(module, "TOKENS_A_CHUNK", {"cpu": chunk})
    monkeypatch.setattr(module, "DENSE_VOCABULARY", VOCABULARY if dense else VOCABULARY - 1)
    logps, entropies = response_logps(model, ids, mask, max(RESPONSES), 0.7)
    assert logps.shape == entropies.shape == (4, max(RESPONSES))
    for row, values in enumerate(expected):
        n = len(values)
        assert logps[row, :n].tolist() == pytest.approx([v[0] for v in values], abs=1e-4)
        assert entropies[row, :n].tolist() == pytest.approx([v[1] for v in values], abs=1e-4)
        assert not logps[row, n:].any()
        assert not entropies[row, n:].any()


@pytest.mark.parametrize("dense", [True, False])
def test_gradients_like_one_row_at_a_time(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama").train()
    ids, mask, rows = batch()
    weights = torch.randn(4, max(RESPONSES), generator=torch.Generator().manual_seed(2))
    loss = torch.zeros(())
    for row, (prompt, response) in enumerate(rows):
        logs = torch.log_softmax(model(input_ids=torch.tensor([prompt + response])).logits[0], dim=-1)
        for t, token in enumerate(response):
            loss = loss + weights[row, t] * logs[len(prompt) - 1 + t, token]
    loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    monkeypatch.setattr(module, "TOKENS_A_CHUNK", {"cpu": 16})
    monkeypatch.setattr(module, "DENSE_VOCABULARY", VOCABULARY if dense else 0)
    logps, entropies = response_logps(model, ids, mask, max(RESPONSES), 1.0)
    assert not entropies.requires_grad
    (logps * weights).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("most", [1, 3, 4])
def test_processes_make_as_many_passes(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has fewer chunks than another halves some: a shared model's passes are taken together or never end."""
    model, (ids, mask, rows) = model_of("llama"), batch()
    passed: list[int] = []
    model.register_forward_pre_hook(lambda *_, **__: passed.append(1), with_kwargs=True)

    def all_reduce(count: torch.Tensor, op: Any) -> None:
        assert op is torch.distributed.ReduceOp.MAX
        count.clamp_(min=most)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    logps, entropies = response_logps(model, ids, mask, max(RESPONSES), 1.0)
    assert len(passed) == most
    for row, expected in enumerate(reference(model, rows, 1.0)):
        found = zip(logps[row].tolist(), entropies[row].tolist(), strict=True)
        assert list(itertools.islice(found, len(expected))) == [pytest.approx(pair, abs=1e-5) for pair in expected]


def test_processes_with_unlike_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count, op: count.fill_(5))
    with pytest.raises(ValueError, match="4 rows for 5 passes"):
        module._as_many_as_others([[0, 1], [2], [3]], torch.device("cpu"))


def test_a_head_of_which_this_process_holds_nothing() -> None:
    """Weights that are spread over processes have no rows here: the vocabulary is the configuration's."""
    asked: list[dict[str, Any]] = []

    class Spread(torch.nn.Module):
        config = LlamaConfig(vocab_size=module.DENSE_VOCABULARY + 1)

        def get_output_embeddings(self) -> Any:
            return torch.nn.Linear(4, 0, bias=False)

        def forward(self, **given: Any) -> Any:
            asked.append(given)
            shape = (len(given["input_ids"]), given["input_ids"].shape[1] - 1)
            return type("Output", (), {"log_probs": torch.zeros(shape), "entropy": torch.zeros(shape)})

    ids, mask, _ = batch()
    response_logps(Spread(), ids, mask, max(RESPONSES), 1.0)
    assert all(given["fused_lm_head"] for given in asked)
