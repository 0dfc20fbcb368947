from __future__ import annotations

from pathlib import Path

import pytest

from prismlab.errors import SpecError
from prismlab.study.load import load_mixtures, load_study

STUDY = """
name: s
include: [shared/web.yaml, tasks.yaml]
bases: {tiny: {arch: llama, width: 32, layers: 2}}
sources: {sums: {micro: {domain: math}}}
mixtures: {own: {weights: {web: 1, sums: 1}}}
"""
WEB = """
description: Text of ours.
sources: {web: {files: [web.txt], domain: web}}
mixtures: {text: {weights: {web: 1}}}
"""
TASKS = "tasks: {addition: {micro: {domain: math}}}\n"


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        suffix = ".txt" if name.endswith("txt") else ".yaml"
        file.with_name(file.name.removesuffix("_txt") + suffix).write_text(text, encoding="utf-8")
    return folder / "study.yaml"


def files(folder: Path, **changed: str) -> Path:
    given = {"study": STUDY, "shared__web": WEB, "tasks": TASKS, "shared__web_txt": "one\n\ntwo\n"}
    return write(folder, **{**given, **changed})


def test_an_included_file_is_part_of_the_study(tmp_path: Path) -> None:
    loaded = load_study(files(tmp_path))
    assert set(loaded.study.sources) == {"web", "sums"}
    assert set(loaded.study.mixtures) == {"text", "own"}
    assert set(loaded.study.tasks) == {"addition"}
    assert loaded.study.description == "", "the study's own, not that of what it includes"
    assert loaded.files["sources.web"] == [tmp_path / "shared" / "web.txt"], "relative to the file that names it"


def test_it_says_the_same_as_if_it_were_written_out(tmp_path: Path) -> None:
    one = load_study(files(tmp_path)).study
    text = STUDY.replace("include: [shared/web.yaml, tasks.yaml]\n", "").replace(
        "sources: {sums:", "sources: {web: {files: [shared/web.txt], domain: web}, sums:"
    )
    text = text.replace("mixtures: {own:", "mixtures: {text: {weights: {web: 1}}, own:") + TASKS
    (tmp_path / "whole.yaml").write_text(text, encoding="utf-8")
    other = load_study(tmp_path / "whole.yaml").study
    assert one.model_copy(update={"include": [], "sources": {}}) == other.model_copy(update={"sources": {}})
    assert one.include == []


def test_a_file_met_by_two_ways_is_one(tmp_path: Path) -> None:
    both = "include: [shared/web.yaml]\n" + TASKS
    assert set(load_study(files(tmp_path, tasks=both)).study.sources) == {"web", "sums"}


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"tasks": TASKS + "sources: {web: {micro: {domain: web}}}"}, ["tasks.yaml", "sources.web", "web.yaml"]),
        ({"tasks": TASKS + "sources: {sums: {micro: {domain: math}}}"}, ["study.yaml", "sources.sums", "tasks.yaml"]),
        ({"tasks": "include: [study.yaml]\n"}, ["circle", "study.yaml -> tasks.yaml -> study.yaml"]),
        ({"tasks": "include: [tasks.yaml]\n"}, ["circle", "tasks.yaml -> tasks.yaml"]),
        ({"tasks": "include: [none.yaml]\n"}, ["tasks.yaml", "no file 'none.yaml'", "looked for from"]),
        ({"tasks": "include: 7\n"}, ["tasks.yaml", "include", "a list"]),
        ({"tasks": TASKS + "seeds: [1]\n"}, ["tasks.yaml", "seeds", "not for an included file"]),
        ({"tasks": TASKS + "mixture: {}\n"}, ["tasks.yaml", "did you mean 'mixtures'"]),
        ({"tasks": "tasks: {addition: {micro: {domain: maths}}}\n"}, ["tasks.yaml", "tasks.addition.micro.domain"]),
        ({"tasks": STUDY.replace("tasks.yaml", "x.yaml")}, ["tasks.yaml", "a whole study cannot be included"]),
        ({"shared__web": WEB.replace("web.txt", "gone.txt")}, ["shared/web.yaml", "no file matches 'gone.txt'"]),
    ],
)
def test_what_is_wrong_names_the_file(tmp_path: Path, changed: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(SpecError) as error:
        load_study(files(tmp_path, **changed))
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert str(error.value).count("\n") <= 1


def test_files_in_files_have_an_end(tmp_path: Path) -> None:
    deep = {f"d{at}": f"include: [d{at + 1}.yaml]\n" for at in range(12)}
    with pytest.raises(SpecError, match="more than 8 deep"):
        load_study(files(tmp_path, tasks="include: [d0.yaml]\n", **deep, d12=TASKS))


def test_a_mixture_file_is_read_by_itself_and_as_part_of_a_study(tmp_path: Path) -> None:
    study = files(tmp_path)
    alone = load_mixtures(tmp_path / "shared" / "web.yaml")
    assert (alone.study, alone.shares("text")) == (None, {"web": 1.0})
    assert alone.files == {"sources.web": [tmp_path / "shared" / "web.txt"]}
    whole = load_mixtures(study)
    assert whole.study is not None
    assert whole.shares("own") == {"web": 0.5, "sums": 0.5}
    with pytest.raises(SpecError, match="did you mean 'text'"):
        alone.shares("texts")


def test_a_mixture_of_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write(tmp_path, study="mixtures: {text: {weights: {web: 1}}}\nsources: {wed: {micro: {domain: web}}}\n")
    with pytest.raises(SpecError, match="no source 'web'"):
        load_mixtures(tmp_path / "study.yaml").shares("text")
