"""The sampler against the library's own generation, a full forward pass, and the softmax it should draw from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from prismlab.errors import CheckpointError, StageError
from prismlab.model import generate
from prismlab.model.caches import bytes_a_token, new_cache
from prismlab.model.draws import draw
from prismlab.model.generate import Completion, SamplingSettings, TransformersSampler, prompt_ids
from prismlab.run.step import Silent

EOS = 256
VOCAB = 258


pytestmark = pytest.mark.usefixtures("one_thread")


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocab | {"<|end|>": EOS, "<|bos|>": 257}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


TOKENIZER = byte_tokenizer(eos_token="<|end|>")


def sharpened(model: PreTrainedModel) -> PreTrainedModel:
    """Larger output weights: a fresh model is all but uniform, and a test of its samples would see little."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    return model.eval()


def llama(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    shape |= {"num_key_value_heads": 2, "max_position_embeddings": 256} | changes
    config = LlamaConfig(vocab_size=VOCAB, **shape)
    return sharpened(LlamaForCausalLM(config))


def mistral_window() -> PreTrainedModel:
    torch.manual_seed(2)
    return sharpened(
        MistralForCausalLM(
            MistralConfig(
                vocab_size=VOCAB,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                sliding_window=9,
            )
        )
    )


def granite_hybrid() -> PreTrainedModel:
    torch.manual_seed(3)
    return sharpened(
        GraniteMoeHybridForCausalLM(
            GraniteMoeHybridConfig(
                vocab_size=VOCAB,
                hidden_size=32,
                intermediate_size=48,
                shared_intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                num_local_experts=0,
                num_experts_per_tok=0,
                layer_types=["linear_attention", "full_attention"],
                mamba_n_heads=4,
                mamba_d_head=16,
                mamba_d_state=8,
                mamba_chunk_size=16,
                mamba_expand=2,
                mamba_n_groups=1,
                max_position_embeddings=256,
            )
        )
    )


def nemotron() -> PreTrainedModel:
    torch.manual_seed(4)
    return sharpened(
        NemotronHForCausalLM(
            NemotronHConfig(
                vocab_size=VOCAB,
                hidden_size=32,
                intermediate_size=48,
                layers_block_type=["linear_attention", "mlp", "full_attention", "mlp"],
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                mamba_num_heads=4,
                mamba_head_dim=16,
                ssm_state_size=8,
                n_groups=1,
                chunk_size=16,
                max_position_embeddings=256,
            )
        )
    )


def gpt2() -> PreTrainedModel:
    """Learned absolute positions: rotary ones only see distances, and would not notice a shift by padding."""
    torch.manual_seed(5)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256))
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(20)
    return sharpened(model)


FAMILIES = {
    "gpt2": gpt2,
    "llama": llama,
    "mistral-window": mistral_window,
    "granite-h": granite_hybrid,
    "nemotron-h": nemotron,
}
PROMPTS = [[EOS, 5, 6, 7], [EOS, 9], [EOS, *range(20, 45)], [EOS, 5, 6, 7, 8, 9, 10], [EOS, 80, 81, 82]]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_the_librarys_generate(family: str) -> None:
    model = FAMILIES[family]()
    settings = SamplingSettings(max_new_tokens=24, temperature=0.0)
    ours = TransformersSampler(model, TOKENIZER).sample(PROMPTS, 2, settings, seed=0)
    assert len({tuple(group[0].token_ids) for group in ours}) == len(PROMPTS), "all alike: the test would see nothing"
    for prompt, group in zip(PROMPTS, ours, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=EOS,
        )[0, len(prompt) :].tolist()
        assert [c.token_ids for c in group] == [theirs, theirs]


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_a_full_forward_pass_without_cache(family: str) -> None:
    model = FAMILIES[family]()
    settings = SamplingSettings(max_new_tokens=20, temperature=0.7, top_p=0.8)
    for prompt, group in zip(
        PROMPTS, TransformersSampler(model, TOKENIZER).sample(PROMPTS, 3, settings, seed=4), strict=True
    ):
        for completion in group:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion.token_ids]), use_cache=False).logits[0].double()
            logits = logits[len(prompt) - 1 : -1]
            drawn = torch.tensor(completion.token_ids)[:, None]
            own = torch.log_softmax(logits, -1).gather(1, drawn)[:, 0]
            np.testing.assert_allclose(completion.logprobs, own, atol=1e-4)
            warm = torch.softmax(logits / 0.7, -1)
            for row, token, value in zip(warm, completion.token_ids, completion.sampler_logprobs or [], strict=True):
                ranked = sorted(range(VOCAB), key=lambda i: -float(row[i]))
                nucleus, mass = [], 0.0
                while mass < 0.8:
                    nucleus.append(ranked[len(nucleus)])
                    mass += float(row[nucleus[-1]])
                assert token in nucleus
                assert value == pytest.approx(np.log(float(row[token]) / mass), abs=1e-3)


def expected_pairs(model: PreTrainedModel, prompt: list[int], temperature: float) -> np.ndarray:
    """Probability of each first token, and of each second token whatever the first, [2, vocabulary]."""
    with torch.no_grad():
        first = torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double() / temperature, -1)
        rows = torch.tensor([[*prompt, token] for token in range(VOCAB)])
        second = torch.softmax(model(rows).logits[:, -1].double() / temperature, -1)
    after = first.clone()
    after[EOS] = 0  # a response that stopped has no second token
    return torch.stack([first, after @ second / after.sum()]).numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_follow_the_softmax(temperature: float) -> None:
    model = llama()
    prompt = PROMPTS[0]
    settings = SamplingSettings(max_new_tokens=2, temperature=temperature)
    [group] = TransformersSampler(model, TOKENIZER, batch_rows=2048).sample([prompt], 8000, settings, seed=11)
    for place, expected in enumerate(expected_pairs(model, prompt, temperature)):
        drawn = [c.token_ids[place] for c in group if len(c.token_ids) > place]
        counts = np.bincount(drawn, minlength=VOCAB).astype(float)
        common = expected * len(drawn) >= 5
        observed = np.append(counts[common], counts[~common].sum())
        wanted = np.append(expected[common], expected[~common].sum()) * len(drawn)
        assert common.sum() > 10
        assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3
        # The same test must see a wrong temperature, or it proves nothing.
        other = expected_pairs(model, prompt, temperature * 1.25)[place]
        wrong = np.append(other[common], other[~common].sum()) * len(drawn)
        assert chisquare(observed, wrong * observed.sum() / wrong.sum()).pvalue < 1e-6


def test_nucleus_keeps_the_smallest_sufficient_set() -> None:
    model = llama()
    with torch.no_grad():
        likely = torch.softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1].double(), -1).sort(descending=True)
    size = int((likely.values.cumsum(0) < 0.5).sum()) + 1
    settings = SamplingSettings(max_new_tokens=1, top_p=0.5)
    [group] = TransformersSampler(model, TOKENIZER, batch_rows=4096).sample([PROMPTS[0]], 4000, settings, seed=1)
    assert {c.token_ids[0] for c in group} == set(likely.indices[:size].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_the_batch(family: str) -> None:
    model = FAMILIES[family]()
    settings = SamplingSettings(max_new_tokens=16)

    def ids(batch_rows: int) -> list[list[list[int]]]:
        groups = TransformersSampler(model, TOKENIZER, batch_rows).sample(PROMPTS, 5, settings, seed=2)
        return [[c.token_ids for c in group] for group in groups]

    whole = ids(256)
    assert whole == ids(1) == ids(3) == ids(7)
    assert len({tuple(row) for group in whole for row in group}) > 10


def test_seeds_name_the_streams() -> None:
    sampler = TransformersSampler(llama(), TOKENIZER)
    settings = SamplingSettings(max_new_tokens=8)
    one = sampler.sample(PROMPTS, 2, settings, seed=[7, 8, 9, 10, 11])
    turned = sampler.sample(PROMPTS[::-1], 3, settings, seed=[11, 10, 9, 8, 7])
    # A prompt with its seed draws the same wherever it stands, and its first samples do not depend on how many follow.
    assert [group[:2] for group in turned[::-1]] == one
    assert (
        sampler.sample([PROMPTS[0]] * 2, 1, settings, seed=3)[0] != sampler.sample([PROMPTS[0]] * 2, 1, settings, 3)[1]
    )
    assert sampler.sample(PROMPTS, 1, settings, seed=3) != sampler.sample(PROMPTS, 1, settings, seed=4)


def test_rows_that_stop_leave_the_others_as_they_were() -> None:
    """Against sampling row by row, where no row ever leaves a batch; stops are made frequent."""
    model = llama(attention_bias=True)
    with torch.no_grad():
        model.get_output_embeddings().weight[EOS] = model.get_output_embeddings().weight[:EOS].mean(0)
        model.get_output_embeddings().weight.mul_(0.05)
    settings = SamplingSettings(max_new_tokens=60)
    groups = TransformersSampler(model, TOKENIZER).sample(PROMPTS, 8, settings, seed=5)
    alone = TransformersSampler(model, TOKENIZER, batch_rows=1).sample(PROMPTS, 8, settings, seed=5)
    assert [[c.token_ids for c in g] for g in groups] == [[c.token_ids for c in g] for g in alone]
    flat = [c for group in groups for c in group]
    assert 3 < sum(c.finished for c in flat) < len(flat)
    for completion in flat:
        stops = [i for i, token in enumerate(completion.token_ids) if token == EOS]
        assert stops == ([len(completion.token_ids) - 1] if completion.finished else [])
        assert completion.finished or len(completion.token_ids) == 60
        spoken = completion.token_ids[:-1] if completion.finished else completion.token_ids
        assert completion.text == TOKENIZER.decode(spoken)
        assert "<|end|>" not in completion.text
        assert len(completion.logprobs or []) == len(completion.sampler_logprobs or []) == len(completion.token_ids)


def test_responses_end_where_positions_end_and_it_is_said() -> None:
    notes: list[str] = []

    class Listening(Silent):
        done = 0

        def note(self, text: str) -> None:
            notes.append(text)

        def advance(self, n: int = 1, **shown: float | str) -> None:
            self.done += n

    model = llama(max_position_embeddings=20)
    progress = Listening()
    sampler = TransformersSampler(model, TOKENIZER)
    prompts = [[EOS] * 17, [EOS] * 12]
    first, second = sampler.sample(prompts, 2, SamplingSettings(max_new_tokens=6, temperature=0), 0, progress)
    assert [len(c.token_ids) for c in first if not c.finished] == [3] * sum(not c.finished for c in first)
    assert all(len(c.token_ids) <= 6 for c in second)
    sampler.sample(prompts, 2, SamplingSettings(max_new_tokens=6), 0, progress)
    assert len(notes) == 1
    assert "20 positions" in notes[0]
    assert progress.done == 8
    with pytest.raises(StageError, match=r"prompt 1 has 20 tokens.*20 positions"):
        sampler.sample([[1], [2] * 20], 1, SamplingSettings(max_new_tokens=1), 0)


def test_model_is_left_as_it_was() -> None:
    model = llama(attention_dropout=0.5).train()
    settings = SamplingSettings(max_new_tokens=4, temperature=0)
    before = TransformersSampler(model, TOKENIZER).sample(PROMPTS, 1, settings, 0)
    assert model.training
    assert before == TransformersSampler(model.eval(), TOKENIZER).sample(PROMPTS, 1, settings, 0)
    model.train()
    loss = model(torch.tensor([PROMPTS[0]]), labels=torch.tensor([PROMPTS[0]])).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_prompt_ids_follow_the_training_rows() -> None:
    assert prompt_ids(TOKENIZER, "ab") == [EOS, *TOKENIZER("ab")["input_ids"]]
    assert prompt_ids(byte_tokenizer(eos_token="<|end|>", bos_token="<|end|>"), "ab")[0] == EOS
    spelled = prompt_ids(TOKENIZER, "a<|end|>")
    assert spelled.count(EOS) == 1
    assert TOKENIZER.decode(spelled[1:]) == "a<|end|>"
    own = byte_tokenizer(eos_token="<|end|>", bos_token="<|bos|>")
    assert prompt_ids(own, "ab") == own("ab")["input_ids"]


def test_refusals() -> None:
    with pytest.raises(CheckpointError, match="end-of-sequence"):
        TransformersSampler(llama(), byte_tokenizer())
    sampler = TransformersSampler(llama(), TOKENIZER)
    with pytest.raises(StageError, match="prompt 1 has no tokens"):
        sampler.sample([[1], []], 1, SamplingSettings(max_new_tokens=1), 0)
    with pytest.raises(ValueError, match="2 prompts need 2 seeds"):
        sampler.sample([[1], [2]], 1, SamplingSettings(max_new_tokens=1), [1])
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(ValueError):
            SamplingSettings(**({"max_new_tokens": 1} | wrong))
    assert sampler.sample([], 2, SamplingSettings(max_new_tokens=1), 0) == []
    assert isinstance(sampler.sample([[1]], 1, SamplingSettings(max_new_tokens=1), 0)[0][0], Completion)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("uniform", [None, torch.zeros(2, dtype=torch.float64)])
def test_broken_weights_are_not_sampled_from(value: float, uniform: torch.Tensor | None) -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = value
    with pytest.raises(StageError, match="NaN or infinite"):
        draw(logits, SamplingSettings(max_new_tokens=1), uniform)


@pytest.mark.parametrize("family", ["llama", "granite-h", "nemotron-h"])
def test_batches_keep_to_the_memory(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES[family]()
    settings = SamplingSettings(max_new_tokens=7)
    sampler = TransformersSampler(model, TOKENIZER)
    whole = sampler.sample(PROMPTS, 4, settings, seed=1)
    sizes: list[int] = []
    run = sampler._run
    monkeypatch.setattr(sampler, "_run", lambda batch, *args: [sizes.append(len(batch)), run(batch, *args)][1])
    longest = max(map(len, PROMPTS)) + 7
    monkeypatch.setattr(generate, "CPU_CACHE_BYTES", 3 * longest * bytes_a_token(model))
    assert [[c.token_ids for c in g] for g in sampler.sample(PROMPTS, 4, settings, seed=1)] == [
        [c.token_ids for c in g] for g in whole
    ]
    assert max(sizes) == 3
    assert sum(sizes) == len(PROMPTS) * 4
    monkeypatch.setattr(generate, "CPU_CACHE_BYTES", 1)
    sizes.clear()
    sampler.sample(PROMPTS, 1, settings, seed=1)
    assert sizes == [1] * len(PROMPTS)


def test_bytes_of_a_token() -> None:
    model = llama()
    cache = new_cache(model)
    model(torch.tensor([PROMPTS[2]]), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert bytes_a_token(model) * len(PROMPTS[2]) == held
