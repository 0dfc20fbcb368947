"""The pages against the code: fields, examples, errors, step kinds, modules and links.

The tables of fields in docs/studies.md are made from the fields' own docstrings: ``python tests/test_docs.py`` writes
them anew between their markers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from prismlab.commands import check_study
from prismlab.errors import SpecError
from prismlab.study.load import load_study
from prismlab.study.stages import STAGES
from prismlab.study.study import Study

ROOT = Path(__file__).parents[1]
STUDIES, ARCHITECTURE = ROOT / "docs" / "studies.md", ROOT / "docs" / "architecture.md"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "studies" / "README.md"]
PAGES += [ROOT / "CONTRIBUTING.md"]
PATTERNS = {"^[a-z0-9]": "name", "^[a-z][a-z0-9_-]": "word", "^C(": "C1 to C18"}
"""What the patterns of the schema are called in the tables."""
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "minItems": "entries ≥"}


def models(annotation: Any = Study, seen: dict[str, type[BaseModel]] | None = None) -> dict[str, type[BaseModel]]:
    """Every spec class that a study can hold, by name, in the order of the study's fields."""
    seen = {} if seen is None else seen
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation.__name__ not in seen:
        seen[annotation.__name__] = annotation
        for field in annotation.model_fields.values():
            models(field.annotation, seen)
    for part in get_args(annotation):
        models(part, seen)
    return seen


def _pattern(pattern: str) -> str:
    return next((called for start, called in PATTERNS.items() if pattern.startswith(start)), f"text like `{pattern}`")


def _what(schema: Mapping[str, Any]) -> str:
    """Kind and range of a value, in words, from its JSON schema."""
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "oneOf" in schema or "anyOf" in schema:
        parts = [_what(part) for part in schema.get("oneOf") or schema["anyOf"]]
        return " or ".join(dict.fromkeys(part for part in parts if part != "null"))
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    # A bound of a thousand million is a guard against slips, no range to think of.
    limits = {key: schema[key] for key in (*BOUNDS, "multipleOf") if key in schema and schema[key] < 10**9}
    bounds = [f"{BOUNDS.get(key, 'multiple of')} {int(n) if n == int(n) else n}" for key, n in limits.items()]
    tail = f" ({', '.join(bounds)})" if bounds else ""
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"[{', '.join(_what(item) for item in schema['prefixItems'])}]"
        case "array":
            return f"list of {_what(schema['items'])}{tail}"
        case "object":
            (held,) = schema.get("patternProperties", {"": schema.get("additionalProperties")}).values()
            return f"name: {_what(held)}"
        case "string":
            return _pattern(str(schema["pattern"])) if "pattern" in schema else "text"
        case kind:
            return {"integer": "whole number", "boolean": "true or false"}.get(str(kind), str(kind)) + tail


def _default(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        # What differs from the class's own defaults; an empty mapping takes all of them.
        value = value.model_dump(mode="json", exclude_defaults=True)
    return f"`{json.dumps(value)}`"


def table(model: type[BaseModel]) -> str:
    """The fields of a spec class as a Markdown table."""
    properties = model.model_json_schema(by_alias=True)["properties"]
    rows = [f"| `{model.__name__}` | value | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        key = field.alias or name
        meaning = " ".join(str(field.description).split()).replace("``", "`")
        cells = [f"`{key}`", _what(properties[key]), _default(model, name), meaning]
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(rows)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _yaml(whole: bool) -> list[Any]:
    """The YAML blocks of the pages: whole studies, or parts of one."""
    found: list[Any] = []
    for page in (STUDIES, ROOT / "README.md"):
        for number, text in enumerate(blocks(page, "yaml")):
            if text.startswith("name:") == whole:
                found.append(pytest.param(text, id=f"{page.name}-{number}"))
    return found


MINIMAL = next(text for text in blocks(STUDIES, "yaml") if text.startswith("name:"))


@pytest.mark.parametrize("name", list(models()))
def test_the_table_of_fields_is_the_code_s(name: str) -> None:
    page = STUDIES.read_text(encoding="utf-8")
    found = re.search(rf"^<!-- fields: {name} -->\n(.*?)\n<!-- end -->$", page, re.MULTILINE | re.DOTALL)
    assert found, f"docs/studies.md has no table of {name}: write its two markers, then run tests/test_docs.py"
    assert found[1] == table(models()[name]), "run 'python tests/test_docs.py' to write the tables anew"


def test_the_tables_name_no_class_that_is_gone() -> None:
    assert set(re.findall(r"^<!-- fields: (\w+) -->$", STUDIES.read_text(encoding="utf-8"), re.MULTILINE)) == set(
        models()
    )


@pytest.mark.parametrize("text", _yaml(whole=True))
def test_studies_on_the_pages_load(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    try:
        assert load_study(tmp_path / "study.yaml").study.name == yaml.safe_load(text)["name"]
    except SpecError as error:
        # Files come last: all that does not depend on them was right.
        if "no file matches" in str(error) or "no folder" in str(error):
            pytest.skip("reads files that are not here")
        raise


@pytest.mark.parametrize("text", _yaml(whole=False))
def test_parts_of_studies_on_the_pages_are_valid(text: str) -> None:
    part = yaml.safe_load(text)
    study = Study.model_validate({**yaml.safe_load(MINIMAL), **part})
    assert part.keys() <= study.model_fields_set


def test_the_minimal_study_is_short_and_passes_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").write_text(MINIMAL, encoding="utf-8")
    assert MINIMAL.count("\n") <= 15
    check_study(Path("first.yaml"), artifacts=False, out=None)
    shown = capsys.readouterr().out
    beginning = shown.partition("\nC4")[0]
    assert beginning in STUDIES.read_text(encoding="utf-8"), "what 'prism check' says is shown on the page"


@pytest.mark.parametrize(("right", "wrong"), [("mixture: middle", "mixture: midle"), ("steps: 20", "stpes: 20")])
def test_the_errors_on_the_page_are_real(
    right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert right in MINIMAL
    at = MINIMAL.rindex(right)
    Path("first.yaml").write_text(MINIMAL[:at] + wrong + MINIMAL[at + len(right) :], encoding="utf-8")
    with pytest.raises(SpecError) as raised:
        load_study("first.yaml")
    assert f"prism: {raised.value}" in STUDIES.read_text(encoding="utf-8")


def test_the_house_plan_names_every_kind_and_module() -> None:
    page = ARCHITECTURE.read_text(encoding="utf-8")
    rows = page.partition("| kind | config |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE) == list(STAGES)
    tree = blocks(ARCHITECTURE, "")[0]
    source = ROOT / "src" / "prismlab"
    for path in source.rglob("*.py"):
        if path.name.startswith("__"):
            continue
        folder = path.parent.relative_to(source).as_posix()
        # A package's part of the tree: its own line and the deeper indented ones below it.
        part = tree if folder == "." else re.search(rf"^  {folder}/.*\n(?:   .*\n)*", tree, re.MULTILINE)
        text = part if isinstance(part, str) else part[0] if part else ""
        assert re.search(rf"\b{path.stem}\b", text), f"docs/architecture.md does not name {path.relative_to(source)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`]*`", "", text))
    inside = [link for link in links if not re.match(r"[a-z][a-z0-9+.-]*:", link)]
    split = [
        (page.parent / file if file else page, place) for file, _, place in (link.partition("#") for link in inside)
    ]
    missing = [file for file, _ in split if not file.exists()]
    assert not missing, f"{page.name} links to files that are not there: {missing}"
    lost = [(file.name, place) for file, place in split if place and place not in places(file)]
    assert not lost, f"{page.name} links to headings that are not there: {lost}"


def places(page: Path) -> set[str]:
    """What a link may name behind ``#``: a page's headings in small letters, blanks as ``-``, without marks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def write_tables() -> None:
    """Write every table of docs/studies.md anew."""
    page = STUDIES.read_text(encoding="utf-8")
    for name, model in models().items():
        marked = re.compile(rf"^<!-- fields: {name} -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)
        fresh = f"<!-- fields: {name} -->\n{table(model)}\n<!-- end -->"
        page = marked.sub(lambda _, fresh=fresh: fresh, page)
    STUDIES.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    write_tables()
