"""Documents of a corpus as the loop sees them: numbers, first tokens without a loss, padding, and packed = unpacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prismlab.data.corpus import Corpus
from prismlab.data.shards import CONTINUES, Marks, finish, write_shard
from prismlab.micro.models import build_model, tiny_config
from prismlab.model import boundaries
from prismlab.train.boundaries import TrainingRows, document_ids
from prismlab.train.loop import World, train

torch.set_num_threads(1)

LENGTH, VOCAB = 24, 258
STARTS = [[0, 10, 11], [0], [0 | int(CONTINUES), 4, 20], [0, 12]]
FILL = [24, 24, 22, 12]
"""The last row's second document is padding's neighbour: it begins where the tokens end, so there is none."""
SPEC: dict[str, Any] = {
    "steps": 2,
    "rows": 2,
    "seq_len": LENGTH,
    "micro_rows": None,
    "precision": "float32",
    "on_nonfinite": "stop",
    "optimizer": {
        "lr": 1e-3,
        "schedule": "constant",
        "warmup": 0,
        "final_lr_factor": 1.0,
        "weight_decay": 0.0,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "clip": None,
    },
}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    starts = [*STARTS[:3], [0]]
    tokens = np.random.default_rng(0).integers(0, 256, (4, LENGTH))
    marks = Marks(
        np.array(FILL),
        np.array([len(row) for row in starts]),
        np.array([at for row in starts for at in row], np.uint32),
    )
    write_shard(tmp_path, 0, tokens, marks, VOCAB)
    finish(
        tmp_path,
        tmp_path,
        row_source=np.zeros(4, np.int64),
        sources=[{"name": "web", "domain": "web"}],
        seq_len=LENGTH,
        vocab=VOCAB,
        tokenizer_hash="x",
        more={"masked": False, "padding": LENGTH * 4 - sum(FILL)},
    )
    return Corpus.open(tmp_path)


def test_documents_are_numbered_and_padding_is_one_more(corpus: Corpus) -> None:
    expected = [
        [0] * 10 + [1] + [2] * 13,
        [0] * 24,
        [0] * 4 + [1] * 16 + [2] * 2 + [3] * 2,
        [0] * 12 + [1] * 12,
    ]
    assert document_ids(corpus, 0, 4).tolist() == expected
    assert document_ids(corpus, 2, 3).tolist() == expected[2:3]


def test_the_first_token_of_a_document_has_no_loss_but_where_boundaries_are_ignored(corpus: Corpus) -> None:
    learned = TrainingRows(corpus, "respect").loss_mask(0, 4)
    missing = [np.flatnonzero(~row).tolist() for row in learned]
    # A row's own first token has no prediction before it, so that it counts for nothing either way.
    assert missing == [[10, 11], [], [4, 20, 22, 23], list(range(12, 24))]
    ignoring = TrainingRows(corpus, "ignore")
    assert [np.flatnonzero(~row).tolist() for row in ignoring.loss_mask(0, 4)] == [
        [],
        [],
        [22, 23],
        list(range(12, 24)),
    ]
    assert ignoring.documents(0, 4) is None


@pytest.mark.parametrize("arch", ["llama", "granite4-h"])
def test_a_step_on_packed_rows_is_a_step_on_their_documents(corpus: Corpus, arch: str) -> None:
    """Two steps against a plain loop that gives the model one document at a time, with torch's own loss."""
    model, other = (build_model(tiny_config(arch, 32, 3, VOCAB), 0) for _ in range(2))
    boundaries.prepare(model)
    reports = list(train(model, TrainingRows(corpus, "respect"), SPEC, World()))
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    other.train()
    ids, tokens = document_ids(corpus, 0, 4), torch.as_tensor(corpus.tokens(0, 4))
    for step in range(2):
        losses: list[torch.Tensor] = []
        for row in (2 * step, 2 * step + 1):
            for number in np.unique(ids[row, : FILL[row]]):
                one = tokens[row : row + 1, np.flatnonzero(ids[row] == number)]
                if one.shape[1] > 1:
                    logits = other(input_ids=one, use_cache=False).logits[0, :-1]
                    losses.append(torch.nn.functional.cross_entropy(logits, one[0, 1:], reduction="none"))
        loss = torch.cat(losses).mean()
        assert reports[step].loss == pytest.approx(loss.item(), abs=1e-5)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4), name


def test_ignored_boundaries_are_another_training(corpus: Corpus) -> None:
    losses = []
    for policy in ("respect", "ignore"):
        model = build_model(tiny_config("llama", 32, 2, VOCAB), 0)
        boundaries.prepare(model)
        losses.append([report.loss for report in train(model, TrainingRows(corpus, policy), SPEC, World())])  # type: ignore[arg-type]
    assert abs(losses[0][0] - losses[1][0]) > 1e-3
