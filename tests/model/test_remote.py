"""Code that a checkpoint brings: never run unasked, run where its study trusts it, and only the files so trusted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from prismlab.errors import CheckpointError, SpecError
from prismlab.micro.models import tiny_config
from prismlab.model.base import run
from prismlab.model.checkpoint import load_model, save_checkpoint
from prismlab.model.remote import code_of, runs
from prismlab.model.tokens import build_byte_tokenizer
from prismlab.run.step import Result, Silent, trusted, trusting
from prismlab.study.load import load_study
from prismlab.study.plan import plan_study
from prismlab.study.spec import BaseSpec

CONFIG = """
from transformers import LlamaConfig

class OddConfig(LlamaConfig):
    model_type = "prism_odd"
"""
MODEL = """
import os
from pathlib import Path

from transformers import LlamaForCausalLM

from .odd_config import OddConfig

Path(os.environ["PRISM_ODD_MARK"]).touch()

class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig

    def forward(self, *given, **named):
        out = super().forward(*given, **named)
        out.logits = out.logits * 0.5
        return out
"""


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that the checkpoint's code makes when it is run; the library's copies of it go to a folder of the test."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    place = tmp_path / "was-run"
    monkeypatch.setenv("PRISM_ODD_MARK", str(place))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield place
    # What the library remembers of one test's code would be taken for another's.
    CONFIG_MAPPING._extra_content.pop("prism_odd", None)
    for kind in [one for one in MODEL_FOR_CAUSAL_LM_MAPPING._extra_content if one.__name__ == "OddConfig"]:
        del MODEL_FOR_CAUSAL_LM_MAPPING._extra_content[kind]
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def odd(folder: Path) -> Path:
    """A checkpoint of a class that transformers does not have, with its code beside it."""
    tokenizer = build_byte_tokenizer()
    torch.manual_seed(0)
    save_checkpoint(LlamaForCausalLM(tiny_config("llama", 32, 2, len(tokenizer))), tokenizer, folder)
    (folder / "odd_config.py").write_text(CONFIG)
    (folder / "odd_model.py").write_text(MODEL)
    config = json.loads((folder / "config.json").read_text())
    named = {"AutoConfig": "odd_config.OddConfig", "AutoModelForCausalLM": "odd_model.OddForCausalLM"}
    config |= {"model_type": "prism_odd", "architectures": ["OddForCausalLM"], "auto_map": named}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def base(out: Path, folder: Path, *, trust: bool) -> Result:
    out.mkdir()
    spec = BaseSpec(checkpoint=".", trust_remote_code=trust).model_dump(mode="json")
    return run({"spec": spec, "seed": 0, "files": {"checkpoint": [str(folder)]}}, {}, out, Silent())


def hashes(folder: Path) -> list[str]:
    return [one["blake2b"] for one in code_of(folder)]


def test_code_is_neither_brought_nor_run_unasked(tmp_path: Path, mark: Path) -> None:
    metrics = base(tmp_path / "out", odd(tmp_path / "odd"), trust=False).metrics
    assert "remote_code" not in metrics
    assert not list((tmp_path / "out").rglob("*.py"))
    for folder, told in ((tmp_path / "odd", "odd_config.py, odd_model.py"), (tmp_path / "out/model", "not in this")):
        with pytest.raises(CheckpointError, match=rf"'prism_odd' is none of .*{told}.*'trust_remote_code: true'"):
            load_model(folder)
    assert not mark.exists()


def test_trusted_code_is_brought_recorded_and_run_by_what_was_made_from_it(tmp_path: Path, mark: Path) -> None:
    told = base(tmp_path / "out", odd(tmp_path / "odd"), trust=True).metrics["remote_code"]
    model = tmp_path / "out/model"
    assert [one["name"] for one in told] == ["odd_config.py", "odd_model.py"]
    assert told == code_of(tmp_path / "odd") == code_of(model)
    assert not mark.exists(), "the base is copied, its code is not run"
    with (tmp_path / "odd/odd_model.py").open("a") as file:
        file.write("# edited where it lies")
    assert code_of(model) == told
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        load_model(model)
    with trusting(one["blake2b"] for one in told):
        loaded = load_model(model)
        assert mark.exists()
        ids = torch.arange(12)[None]
        plain = LlamaForCausalLM.from_pretrained(shutil.copytree(model, tmp_path / "plain"), dtype=torch.float32)
        assert torch.allclose(loaded(input_ids=ids).logits, 0.5 * plain(input_ids=ids).logits, atol=1e-6)
        save_checkpoint(loaded, build_byte_tokenizer(), tmp_path / "again")
        assert code_of(tmp_path / "again") == told, "a saved checkpoint has its code beside it"
        assert type(load_model(tmp_path / "again")).__name__ == "OddForCausalLM"
    assert not trusted()


def test_code_that_was_changed_is_not_run(tmp_path: Path, mark: Path) -> None:
    folder = odd(tmp_path / "odd")
    allowed = hashes(folder)
    (folder / "odd_model.py").write_text(MODEL + "\n# changed\n")
    with trusting(allowed):
        assert not runs(folder)
        with pytest.raises(CheckpointError, match="'trust_remote_code: true'"):
            load_model(folder)
    assert not mark.exists()


def test_other_code_for_the_same_configs_in_one_process_is_refused(tmp_path: Path, mark: Path) -> None:
    # Folders of artifacts have one name, by which the library would take the two for one.
    first, second = odd(tmp_path / "first/model"), odd(tmp_path / "second/model")
    (second / "odd_model.py").write_text(MODEL.replace("0.5", "0.25"))
    with trusting([*hashes(first), *hashes(second)]):
        load_model(first)
        with pytest.raises(CheckpointError, match="same class of configs but other code was loaded before"):
            load_model(second)
    assert mark.exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"auto_map": {"AutoConfig": "odd_config.OddConfig"}}, "names no AutoModelForCausalLM"),
        ({"auto_map": {"AutoModelForCausalLM": "them/other--odd_model.Odd"}}, "is not a file of this folder"),
        ({"auto_map": {"AutoModelForCausalLM": "gone.Odd"}}, r"gone\.py is not a file of this folder"),
    ],
)
def test_trust_in_what_is_not_there_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    folder = odd(tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=told):
        base(tmp_path / "out", folder, trust=True)


STUDY: dict[str, Any] = {
    "name": "odd",
    "bases": {"b": {"checkpoint": "odd", "trust_remote_code": True}},
    "sources": {"sums": {"micro": {"domain": "math", "form": "worked"}}},
    "mixtures": {"m": {"weights": {"sums": 1}}},
    "checkpoints": {
        "mid": {
            "stage": "midtrain",
            "from": "b",
            "mixture": "m",
            "steps": 2,
            "rows": 2,
            "seq_len": 64,
            "boundaries": "ignore",
            "snapshots": 2,
            "tensorboard": False,
        },
        "mixed": {"stage": "merge", "weights": {"b": 0.5, "mid": 0.5}},
    },
    "evaluations": {"e": {"text": ["sums"], "text_documents": 2, "text_tokens": 32, "checkpoints": ["mid", "mixed"]}},
}


def study(folder: Path, **changes: Any) -> Path:
    """A study file beside its checkpoint; ``changes`` of its base."""
    whole = {**STUDY, "bases": {"b": {**STUDY["bases"]["b"], **changes}}}
    (folder / "study.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    return folder / "study.yaml"


def base_config(path: Path) -> dict[str, Any]:
    return next(dict(step.config) for step in plan_study(load_study(path)).steps if step.kind == "base")


def test_trusted_code_belongs_to_the_fingerprint_and_untrusted_code_does_not(tmp_path: Path) -> None:
    odd(tmp_path / "odd")
    plain = base_config(study(tmp_path, trust_remote_code=False))
    assert "trust_remote_code" not in plain["spec"], "bases without code have the fingerprints that they always had"
    with_code = base_config(study(tmp_path))
    assert with_code["spec"]["trust_remote_code"] is True
    names = {one["name"] for one in with_code["content"]} - {one["name"] for one in plain["content"]}
    assert names == {"odd_config.py", "odd_model.py"}
    (tmp_path / "odd/odd_model.py").write_text(MODEL + "# changed\n")
    assert base_config(study(tmp_path)) != with_code
    assert base_config(study(tmp_path, trust_remote_code=False)) == plain


def test_a_hub_id_is_trusted_at_a_commit_alone(tmp_path: Path) -> None:
    for name in ("them/odd", "them/odd@main"):
        with pytest.raises(SpecError, match=r"trust_remote_code: no commit in 'checkpoint'.* 'them/odd@' and 40"):
            base_config(study(tmp_path, checkpoint=name))
    pinned = base_config(study(tmp_path, checkpoint=f"them/odd@{'0' * 40}"))
    assert pinned["content"] == {"id": "them/odd", "revision": "0" * 40}
    with pytest.raises(ValueError, match="tiny models bring no code"):
        BaseSpec(arch="llama", trust_remote_code=True)


@pytest.mark.slow
@pytest.mark.e2e
def test_a_study_trains_merges_and_evaluates_a_class_of_its_own(tmp_path: Path) -> None:
    odd(tmp_path / "odd")
    env = os.environ | {"OMP_NUM_THREADS": "1", "PRISM_ODD_MARK": str(tmp_path / "mark")}
    env["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    command = [sys.executable, "-m", "prismlab", "run", str(study(tmp_path)), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = {}
    for path in (tmp_path / "run/artifacts").glob("*/record.json"):
        record = json.loads(path.read_text())
        found[record["name"]] = (path.parent, record)
    told = code_of(tmp_path / "odd")
    for name in ("base/b", "train/mid/s0", "merge/mixed/s0", "evaluation/e@mid/s0", "evaluation/e@mixed/s0"):
        assert found[name][1]["metrics"]["remote_code"] == told, name
    before, after = (load_file(found[name][0] / "model/model.safetensors") for name in ("base/b", "train/mid/s0"))
    assert set(before) == set(after)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    untrusted = study(tmp_path, trust_remote_code=False)
    done = subprocess.run([*command[:4], str(untrusted), *command[5:]], capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert "'trust_remote_code: true'" in done.stdout + done.stderr
