"""``prism models``: the seven by name, a folder by its config, and names in a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prismlab.cli import app
from prismlab.cost.hub import CARD_PARAMETERS
from prismlab.cost.names import MODELS, hub_id
from prismlab.errors import CheckpointError, SpecError
from prismlab.micro.models import ARCHITECTURES, build_model, tiny_config
from prismlab.model.checkpoint import save_checkpoint
from prismlab.model.hub import resolve
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.study.spec import BaseSpec


def told(*args: str | Path) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["models", *map(str, args), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_seven_are_listed_with_the_cards_sizes() -> None:
    rows = told()
    assert [row["name"] for row in rows] == list(MODELS)
    assert {row["hub"]: row["parameters"] for row in rows} == pytest.approx(CARD_PARAMETERS, rel=2e-3)
    assert all(row["boundaries"] and row["special"] for row in rows)
    by_name = {row["name"]: row for row in rows}
    assert by_name["mistral-7b"]["window"] == 4096
    assert by_name["mistral-small-24b"]["window"] is None
    assert by_name["granite-4-h-micro"]["layers"] == "36 mamba + 4 attention"
    assert by_name["nemotron-h-8b"]["layers"] == "24 mamba + 24 mlp + 4 attention"
    assert by_name["nemotron-h-8b"]["context"] == 8192


def test_the_table_names_ids_and_what_is_special() -> None:
    text = CliRunner().invoke(app, ["models"], catch_exceptions=False).stdout
    for name, one in MODELS.items():
        assert name in text
        assert one.hub in text
    assert "code that a checkpoint brings runs only under 'trust_remote_code: true'" in " ".join(text.split())


@pytest.mark.parametrize("arch", ["granite4-h", "nemotron-h", "mistral-swa"])
def test_a_folder_is_told_by_its_config_and_its_headers(arch: str, tmp_path: Path) -> None:
    model = build_model(tiny_config(arch, 32, 4, 258), 0)
    save_checkpoint(model, build_byte_tokenizer(), tmp_path / "mine")
    (row,) = told(tmp_path / "mine")
    assert row["name"] == "mine"
    assert row["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert row["context"] == 2048
    assert row["window"] == (128 if arch == "mistral-swa" else None)
    assert row["layers"] == {"granite4-h": "3 mamba + 1 attention", "nemotron-h": "2 mlp + 1 mamba + 1 attention"}.get(
        arch, "4"
    )


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    runner = CliRunner()
    with pytest.raises(SpecError, match=r"nobody/knows: neither a folder nor one of granite-3.3-8b"):
        runner.invoke(app, ["models", "nobody/knows"], catch_exceptions=False)
    with pytest.raises(CheckpointError):
        runner.invoke(app, ["models", str(tmp_path)], catch_exceptions=False)


def test_a_study_takes_a_model_by_its_name() -> None:
    assert BaseSpec(checkpoint="nemotron-h-8b").checkpoint == "nvidia/Nemotron-H-8B-Base-8K"
    assert BaseSpec(checkpoint="llama-3.1-8b@0123abc").checkpoint == "meta-llama/Llama-3.1-8B@0123abc"
    assert BaseSpec(checkpoint="./llama-3.1-8b").checkpoint == "./llama-3.1-8b"
    assert hub_id("owner/name@x") == "owner/name@x"


def test_a_command_takes_a_model_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("prismlab.model.hub.fetch", lambda name: asked.append(name) or Path("/x"))
    resolve("granite-3.3-8b")
    assert asked == ["ibm-granite/granite-3.3-8b-base"]


def test_every_tiny_class_has_its_like_among_the_seven() -> None:
    kinds = {tiny_config(arch, 32, 4, 258).model_type for arch in ARCHITECTURES}
    assert {row["model_type"] for row in told()} == kinds
