"""Study files: a mistake gets at most two lines: file, key path, what is allowed, the nearest spelling."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from studies import STUDY, study, written

from prismlab.errors import SpecError
from prismlab.study.check import find_cycle, leaks
from prismlab.study.load import load_study
from prismlab.study.starter import KINDS, starter, study_name

SHIPPED = Path(__file__).parents[2] / "studies"


def refused(folder: Path, data: dict[str, Any] | str) -> list[str]:
    path = written(folder, data)
    with pytest.raises(SpecError) as caught:
        load_study(path)
    lines = str(caught.value).split("\n")
    assert len(lines) <= 2, lines
    assert str(path) in lines[0]
    return [lines[0].removeprefix(str(path)), *lines[1:]]


def changed(path: str, value: Any) -> dict[str, Any]:
    """The study with the value at a dotted path replaced, or taken out where it is ``...``."""
    data = copy.deepcopy(STUDY)
    at = data
    *parents, last = path.split("/")
    for key in parents:
        at = at.setdefault(key, {})
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return data


def test_the_study_loads(tmp_path: Path) -> None:
    loaded = load_study(written(tmp_path, study()))
    assert loaded.study.name == "small"
    assert loaded.folder == tmp_path


CASES = [
    # where, value, what the first line says, what the second suggests
    (
        "checkpoints/base/mixtur",
        "mc",
        ": checkpoints.base: unknown key 'mixtur'; allowed: stage, from, mixture",
        "mixture",
    ),
    ("checkpoints/base/optimizer", {"learning": 1}, ": checkpoints.base.optimizer: unknown key 'learning'", None),
    ("checkpoints/base/optimizer", {"warmupp": 1}, ": checkpoints.base.optimizer: unknown key 'warmupp'", "warmup"),
    ("chekpoints", {}, ": top level: unknown key 'chekpoints'; allowed: name, description", "checkpoints"),
    (
        "checkpoints/base/stage",
        "pretran",
        ": checkpoints.base.stage: unknown stage 'pretran'; allowed: pretrain",
        "pretrain",
    ),
    ("checkpoints/base/stage", ..., ": checkpoints.base: the key 'stage' is missing; allowed: pretrain", None),
    ("checkpoints/base/from", ..., ": checkpoints.base: the key 'from' is missing", None),
    ("checkpoints/base/from", "tinny", ": checkpoints.base.from: no base or checkpoint 'tinny'; allowed: tiny", "tiny"),
    ("checkpoints/base/mixture", "strat", ": checkpoints.base.mixture: no mixture 'strat'; allowed: start, m", "start"),
    ("checkpoints/base/steps", 0, ": checkpoints.base.steps: 0 is out of range; allowed: at least 1", None),
    (
        "checkpoints/base/steps",
        "ten",
        ": checkpoints.base.steps: 'ten' is of the wrong type; allowed: a whole number",
        None,
    ),
    (
        "checkpoints/base/steps",
        1.5,
        ": checkpoints.base.steps: 1.5 is of the wrong type; allowed: a whole number",
        None,
    ),
    ("bases/tiny/arch", "lama", ": bases.tiny.arch: 'lama' is not known; allowed: llama, mistral", "llama"),
    ("bases/tiny/width", 20, ": bases.tiny.width: 20 is out of range; allowed: a multiple of 8", None),
    ("bases/tiny", {}, ": bases.tiny: give exactly one of 'arch'", None),
    ("bases/Tiny", {"arch": "llama"}, ": bases.Tiny: 'Tiny' is not allowed here; allowed: small letters", None),
    ("bases/base", {"arch": "llama"}, ": checkpoints.base: a base has this name too", None),
    ("seeds", [0, -1], ": seeds[1]: -1 is out of range; allowed: at least 0", None),
    ("seeds", [1, 1], ": seeds: [1, 1] has a seed twice", None),
    ("heldout", float("nan"), ": heldout: nan is out of range", None),
    ("tokenizer", "tine", ": tokenizer: no base 'tine'; allowed: tiny", "tiny"),
    ("mixtures/mc/weights/mathh", 1, ": mixtures.mc.weights: no source 'mathh'; allowed: web, math", "math"),
    ("mixtures/mc/weights", {}, ": mixtures.mc: name at least one source, in 'weights' or in 'by_size'", None),
    (
        "checkpoints/merged/weights",
        {"base": 0.5, "mid-mcs": 0.4},
        ": checkpoints.merged: merge weights sum to 0.9",
        None,
    ),
    (
        "checkpoints/merged/weights",
        {"base": 0.5, "mid": 0.5},
        ": checkpoints.merged.weights: no base or checkpoint 'mid'",
        "mid-mc",
    ),
    ("checkpoints/rl/prompts", "mcz", ": checkpoints.rl.prompts: no prompt set 'mcz'; allowed: mc, mcs", "mc"),
    ("prompts/mc/scoring", "al", ": prompts.mc.scoring: no scoring 'al'; allowed: all", "all"),
    (
        "prompts/mc/tasks",
        ["adition"],
        ": prompts.mc.tasks: no task among those of scoring 'all': 'adition'",
        "addition",
    ),
    ("prompts/mc/overrides", {"addition": [3, 99]}, ": prompts.mc.overrides.addition: 3 to 99 correct samples", None),
    ("prompts/mc/max_correct", 0, ": prompts.mc: 1 to 0 correct samples; allowed: 0 <= least <= most <= 16", None),
    ("scorings/all/by", "mid", ": scorings.all.by: no base or checkpoint 'mid'", "mid-mc"),
    ("evaluations/core/tasks", ["program"], ": evaluations.core.tasks: no task 'program'", "programs"),
    ("evaluations/core/text", ["wbe"], ": evaluations.core.text: no source 'wbe'", "web"),
    ("evaluations/core/checkpoints", ["bse"], ": evaluations.core.checkpoints: no base or checkpoint 'bse'", "base"),
    ("analyses/weights/pairs", [["base", "lr"]], ": analyses.weights.pairs[0]: no base or checkpoint 'lr'", None),
    (
        "analyses/direction",
        {"groups": [["base", "mid-mc", "mid"]]},
        ": analyses.direction.groups[0]: no base or checkpoint 'mid'",
        "mid-mc",
    ),
    (
        "analyses/direction",
        {"groups": [["base", "rl"]]},
        ": analyses.direction.groups[0]: 2 entries; allowed: at",
        None,
    ),
    (
        "analyses/direction",
        {"groups": [["base", "rl", "base"]]},
        ": analyses.direction.groups[0]: 'base' stands there twice",
        None,
    ),
    (
        "analyses/direction",
        {"groups": [], "triples": []},
        ": analyses.direction: 'triples' is the old name of 'groups': keep 'groups' alone",
        None,
    ),
    ("analyses/weigths", {}, ": analyses: unknown key 'weigths'; allowed: weights, direction", "weights"),
    ("analyses/behaviour/evaluation", "cor", ": analyses.behaviour.evaluation: no evaluation with tasks 'cor'", "core"),
    ("analyses/landscape/evaluation", "cor", ": analyses.landscape.evaluation: no evaluation with tasks 'cor'", "core"),
    ("analyses/landscape/points", 1, ": analyses.landscape.points: 1 is out of range; allowed: at least 2", None),
    (
        "analyses/landscape/triples",
        [["base", "mid-mc", "rl"], ["base", "mid", "rl"]],
        ": analyses.landscape.triples[1]: no base or checkpoint 'mid'",
        "mid-mc",
    ),
    (
        "analyses/landscape/triples",
        [["base", "rl", "rl"]],
        ": analyses.landscape.triples[0]: 'rl' stands there twice",
        None,
    ),
    (
        "analyses/trajectory/checkpoints",
        ["base"],
        ": analyses.trajectory.checkpoints: no checkpoint with 'snapshots'",
        None,
    ),
    ("claims/evaluation", "cora", ": claims.evaluation: no evaluation 'cora'; allowed: core", "core"),
    ("claims/arms", {"base": "bas"}, ": claims.arms.base: no base or checkpoint 'bas'", "base"),
    ("claims/ids", ["C19"], ": claims.ids[0]: 'C19' is not allowed here; allowed: text that matches", None),
    ("sources/web/files", ["x.txt"], ": sources.web: give exactly one of 'micro', 'files' and 'hub'", None),
    ("claims/arms", {"mid[CM]": "mid-mc"}, ": claims.arms.mid[CM]: no arm is called so; allowed: 'base', 'mid", None),
    (
        "checkpoints/base/steps",
        10**30,
        f": checkpoints.base.steps: 1{'0' * 30} is out of range",
        None,
    ),
    ("checkpoints/base/steps", True, ": checkpoints.base: 'steps' is true or false", None),
    ("seeds", [True], ": top level: 'seeds' is true or false", None),
    ("micro/code_k", True, ": micro: 'code_k' is true or false", None),
    ("checkpoints/base/nproc", 2, ": checkpoints.base: 'nproc' above 1 needs 'launch: torchrun'", None),
    ("checkpoints/base/snapshots", 11, ": checkpoints.base: 11 'snapshots' are more than the 10 'steps'", None),
    (
        "checkpoints/base/optimizer",
        {"warmup": 11},
        ": checkpoints.base: 'optimizer.warmup' of 11 steps",
        None,
    ),
    ("checkpoints/rl/optimizer", {"warmup": 11}, ": checkpoints.rl: 'optimizer.warmup' of 11 steps", None),
    ("checkpoints/base/optimizer", {"betas": [0.9]}, ": checkpoints.base.optimizer.betas: too few entries", None),
    (
        "checkpoints/base/optimizer",
        {"betas": [0.9, 1]},
        ": checkpoints.base.optimizer.betas[1]: 1 is out",
        None,
    ),
    (
        "evaluations/core/tasks",
        ["programs", "programs"],
        ": evaluations.core.tasks: 'programs' stands",
        None,
    ),
    (
        "scorings/all/tasks",
        ["addition"] * 2 + ["programs", "elements"],
        ": scorings.all.tasks: 'addition' stands",
        None,
    ),
    ("prompts/mc/tasks", ["addition", "addition"], ": prompts.mc.tasks: 'addition' stands there twice", None),
    ("analyses/cka/sources", ["web", "web"], ": analyses.cka.sources: 'web' stands there twice", None),
    ("sources", [], ": sources: [] is of the wrong type; allowed: a mapping of names", None),
    ("checkpoints/base/wandb", "", ": checkpoints.base: 'wandb' is blank: give it a text, or leave it out", None),
    ("checkpoints/base/wandb", " \n", ": checkpoints.base: 'wandb' is blank", None),
    ("checkpoints/rl/wandb", "", ": checkpoints.rl: 'wandb' is blank", None),
    ("bases/mine", {"checkpoint": ""}, ": bases.mine: 'checkpoint' is blank", None),
    ("sources/own", {"files": ["a.jsonl", ""], "domain": "web"}, ": sources.own: 'files' is blank", None),
]


@pytest.mark.parametrize(("where", "value", "first", "guess"), CASES, ids=[f"{c[0]}={c[1]}"[:50] for c in CASES])
def test_a_mistake_is_explained(tmp_path: Path, where: str, value: Any, first: str, guess: str | None) -> None:
    lines = refused(tmp_path, changed(where, value))
    assert lines[0].startswith(first), lines
    if guess is None:
        assert len(lines) == 1, lines
    else:
        assert lines[1].startswith(f"did you mean {guess!r}?"), lines


def test_of_several_mistakes_the_first_is_told_and_the_others_counted(tmp_path: Path) -> None:
    data = changed("checkpoints/base/mixtur", "mc")
    data["checkpoints"]["base"].pop("mixture")
    data["seeds"] = ["x"]
    lines = refused(tmp_path, data)
    assert "unknown key 'mixtur'" in lines[0], "a misspelt key comes before the missing one it looks like"
    assert lines[-1].endswith("(+2 more)")


@pytest.mark.parametrize(
    ("changes", "cycle"),
    [
        ({"checkpoints/mid-mc/from": "mid-mc"}, "checkpoints.mid-mc <- checkpoints.mid-mc"),
        (
            {"checkpoints/mid-mc/from": "mid-mcs", "checkpoints/mid-mcs/from": "mid-mc"},
            "checkpoints.mid-mc <- checkpoints.mid-mcs <- checkpoints.mid-mc",
        ),
        (
            {"scorings/all/by": "rl"},
            "checkpoints.rl <- prompts.mcs <- scorings.all <- checkpoints.rl",
        ),
    ],
)
def test_a_cycle_is_named(tmp_path: Path, changes: dict[str, str], cycle: str) -> None:
    data = copy.deepcopy(STUDY)
    for path, value in changes.items():
        section, name, key = path.split("/")
        data[section][name][key] = value
    assert cycle in refused(tmp_path, data)[0]


def test_a_long_chain_is_no_cycle_and_no_overflow() -> None:
    chain = {str(i): [str(i + 1)] for i in range(5000)} | {"5000": []}
    assert find_cycle(chain) is None
    assert find_cycle(chain | {"5000": ["4998"]}) == ["4998", "4999", "5000", "4998"]


HEAD = "name: x\nbases: {t: {arch: llama}}\n"
TEXTS = [
    ("seeds: [1]\nname: y\n" + HEAD, ":3: duplicate key 'name' (first on line 2); keep one"),
    (HEAD + "sources:\n  a: {micro: {domain: web}}\n  a: {micro: {domain: chat}}\n", ":5: duplicate key 'a'"),
    (
        HEAD + "description: !!python/object/apply:os.system ['true']\n",
        ":3: the tag !!python/object/apply:os.system is",
    ),
    (HEAD + "description: !local x\n", ":3: the tag !local is refused"),
    (HEAD + "x: &a [1, *a]\n", ":3: an alias that contains itself"),
    (HEAD + "x: [" + "*a, " * 2 + "]\n", ":3: not YAML: found undefined alias"),
    (HEAD + "x: &a 1\ny: [" + ", ".join(["*a"] * 300) + "]\n", ":4: more than 256 aliases"),
    (HEAD + "x: " + "[" * 60 + "]" * 60 + "\n", ":3: nested deeper than 32 levels"),
    (HEAD + "x: [" + "1, " * 100_001 + "]\n", ":3: more than 100000 values"),
    (HEAD + "description: !!binary aGk=\n", ":3: the tag !!binary is refused"),
    (HEAD + 'description: "\\ud800"\n', ":3: half of a surrogate pair"),
    (HEAD + "seeds: [010]\n", ":3: 010 would be read as a number in another base"),
    (HEAD + "seeds: [1:30]\n", ":3: 1:30 would be read as a number in another base"),
    (HEAD + "? [a, b]\n: 1\n", ":3: a key is a list or a mapping"),
    (HEAD + "x: [1, 2\n", "not YAML: expected ',' or ']'"),
    ("- a\n- b\n", ": the file is a list, not a mapping"),
    ("", ": the file is empty, not a mapping"),
    ("name: x\tbases\n  y: \t- 1\n: :", "not YAML"),
    (
        "name: x\nbases:\n\tt: {arch: llama}\n",
        ":3: not YAML: found character '\\t' that cannot start any token; indent",
    ),
]


def test_rows_are_split_evenly_over_processes(tmp_path: Path) -> None:
    data = changed("checkpoints/base/launch", "torchrun")
    data["checkpoints"]["base"]["nproc"] = 3
    assert "4 'rows' cannot be split over 3 processes" in refused(tmp_path, data)[0]
    data["checkpoints"]["base"]["nproc"] = 2
    load_study(written(tmp_path, data))


def test_rows_both_evaluated_and_trained_on_are_told(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(f'{{"q": "{name}", "a": "1"}}\n')
    fields = {"question": "q", "answer": "a"}
    task: dict[str, Any] = {"domain": "math", "verifier": "number", "fields": fields}
    data = study()
    data["tasks"] |= {"own": {**task, "files": ["test.jsonl"]}, "other": {**task, "files": ["train.jsonl"]}}
    data["evaluations"]["core"]["tasks"].append("own")
    data["scorings"]["all"]["tasks"].append("other")

    def told() -> list[str]:
        loaded = load_study(written(tmp_path, data))
        return [line.partition(" is ")[2].split(" (")[0] for line in leaks(loaded.study, loaded.files)]

    assert told() == [], "two files, and tasks of the micro world, which parts its own"
    data["tasks"]["other"]["files"] = ["t*.jsonl"]
    assert told() == ["evaluated, and tasks.other, read from the same rows, is scored for RL prompts"]
    data["sources"]["own"] = {"domain": "math", "fields": fields, "files": ["test.jsonl"]}
    data["mixtures"]["mc"]["weights"]["own"] = 1
    assert told()[1:] == ["evaluated, and sources.own, read from the same rows, is trained on"]
    hub = {"id": "a/b", "revision": "main", "split": "test"}
    data["sources"]["own"] = {"domain": "math", "fields": fields, "hub": hub}
    for name, split in (("own", "test"), ("other", "train")):
        data["tasks"][name] = {**task, "hub": {**hub, "revision": "v1", "split": split}}
    assert told() == ["evaluated, and sources.own, read from the same rows, is trained on"]


@pytest.mark.parametrize(("text", "message"), TEXTS)
def test_yaml_traps(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(tmp_path, text)[0]


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "aliases unfold to more than" in refused(tmp_path, "\n".join(lines) + "\n")[0]


def test_merge_keys_are_plain_yaml_and_may_be_overridden(tmp_path: Path) -> None:
    text = yaml.safe_dump({key: STUDY[key] for key in ("name", "bases", "sources", "mixtures")}, sort_keys=False)
    text += "checkpoints:\n  a: &a {stage: pretrain, from: tiny, mixture: start, steps: 3, seq_len: 64}\n"
    text += "  b: {<<: *a, steps: 4}\n"
    checkpoints = load_study(written(tmp_path, text)).study.checkpoints
    assert [spec.model_dump()["steps"] for spec in checkpoints.values()] == [3, 4]


def test_a_file_that_is_not_there_not_utf8_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        load_study(tmp_path / "none.yaml")
    path = tmp_path / "a.yaml"
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(SpecError, match="byte 6 is not UTF-8"):
        load_study(path)
    path.write_bytes(b"#" * (4 * 2**20 + 1))
    with pytest.raises(SpecError, match="at most 4194304"):
        load_study(path)


def test_globs_start_from_the_studys_folder_and_must_match(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.csv"):
        (tmp_path / name).write_text("{}\n")
    source = {"files": ["b.jsonl", "*.jsonl"], "domain": "web", "fields": {"text": "text"}}
    data = changed("sources/own", source)
    loaded = load_study(written(tmp_path, data))
    assert [path.name for path in loaded.files["sources.own"]] == ["b.jsonl", "a.jsonl"]
    assert (
        "sources.own.files[0]: no file matches 'd*.txt'"
        in refused(tmp_path, changed("sources/own", {**source, "files": ["d*.txt"]}))[0]
    )
    told = refused(tmp_path, changed("sources/own", {**source, "files": ["$HOME/*.jsonl"]}))[0]
    assert told.endswith("; variables such as $HOME stay as they are written")
    assert (
        "'c.csv' has no known ending; allowed: .jsonl"
        in refused(tmp_path, changed("sources/own", {**source, "files": ["c.csv"]}))[0]
    )


def test_a_checkpoint_is_a_folder_or_an_id(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    data = changed("bases/mine", {"checkpoint": "model"})
    assert load_study(written(tmp_path, data)).files["bases.mine"] == [tmp_path / "model"]
    data = changed("bases/mine", {"checkpoint": "owner/name@abc"})
    assert "bases.mine" not in load_study(written(tmp_path, data)).files
    assert "no folder './modle'" in refused(tmp_path, changed("bases/mine", {"checkpoint": "./modle"}))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_starters_load(tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    for name in ("wiki/a.jsonl.gz", "books.txt", "chat.jsonl", "code.parquet"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    for name in ("math_train", "math_test", "science_train", "science_test"):
        (data / f"{name}.jsonl").touch()
    path = written(tmp_path, starter(kind, study_name(Path("My study 1.yaml")), "s.yaml"))
    assert load_study(path).study.name == "my-study-1"
    assert load_study(written(tmp_path, starter(kind, "123", "s.yaml"))).study.name == "123"


def test_an_unknown_starter_is_refused() -> None:
    with pytest.raises(SpecError, match="did you mean 'micro'"):
        starter("mikro", "x", "x.yaml")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_studies_load(path: Path) -> None:
    assert load_study(path).study.name == path.stem
