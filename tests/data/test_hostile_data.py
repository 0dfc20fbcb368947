"""Sources made to do harm: values that Python cannot hold, columns that share a name, limits that nothing enforces."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from prismlab.data.lines import Bad
from prismlab.data.rows import Row, file_rows, rows_or_bad
from prismlab.data.sources import row_documents
from prismlab.errors import DataError, SpecError
from prismlab.study.load import load_mixtures
from prismlab.study.spec import MixtureSpec, SourceSpec

BEYOND = {
    "a date beyond the year 9999": pa.array([0, 10**8, 0], pa.date32()),
    "a time before the year 1": pa.array([0, -(2**62), 0], pa.timestamp("us")),
    "a span beyond its own unit": pa.array([0, 2**62, 0], pa.duration("s")),
    "text that is not UTF-8": pa.array([b"a", b"\xff\xfe", b"c"], pa.binary()).view(pa.string()),
}


@pytest.mark.parametrize("case", BEYOND)
def test_a_value_that_python_cannot_hold_costs_its_row_alone(case: str, tmp_path: Path) -> None:
    texts = [f"text {at}" for at in range(2050)]
    column = BEYOND[case]
    plain = pa.concat_arrays([pa.nulls(1, column.type)] * (len(texts) - 3))
    # In the second batch of rows, so that the count of those before it matters.
    table = pa.table({"text": texts, "other": pa.concat_arrays([plain, column])})
    pq.write_table(table, tmp_path / "a.parquet")
    found = list(rows_or_bad(tmp_path / "a.parquet"))
    bad = [one for one in found if isinstance(one, Bad)]
    rows = [one for one in found if isinstance(one, Row)]
    assert [(one.file, one.line, one.reason) for one in bad] == [("a.parquet", 2049, "a value that cannot be read")]
    assert [row.text("text") for row in rows] == texts[:2048] + texts[2049:]
    assert [row.where for row in rows[-2:]] == ["a.parquet:2048", "a.parquet:2050"]
    with pytest.raises(DataError, match=r"a\.parquet:2049: a value cannot be read"):
        list(file_rows(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_nul_is_refused_also_where_nothing_is_cleaned(name: str, tmp_path: Path) -> None:
    texts = ["one", "two\0three", "four"]
    lines = [json.dumps({"text": text}) if name.endswith("l") else text for text in texts]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    spec = SourceSpec.model_validate({"files": [name], "domain": "web"}).model_dump(mode="json", by_alias=True)
    found = row_documents("s", spec, [tmp_path / name], "think")
    assert next(found).text == "one"
    with pytest.raises(DataError, match=rf"{re.escape(name)}:2: character 4 is NUL"):
        next(found)


def test_columns_that_share_a_name_are_refused_as_keys_are(tmp_path: Path) -> None:
    columns = [pa.array(["one"]), pa.array(["two"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: the column 'text' stands there twice"):
        list(rows_or_bad(tmp_path / "a.parquet"))


def test_fewer_than_one_pass_is_a_limit_only_where_sizes_are_known() -> None:
    """A source is read as far as its rows need it, so half of one whose size is not known could not be told."""
    given: dict[str, Any] = {"weights": {"web": 1, "books": 1}, "max_epochs": 0.5}
    with pytest.raises(ValidationError, match=r"'max_epochs' is 0\.5, below 1, and the size of 'web' is not in"):
        MixtureSpec.model_validate(given)
    with pytest.raises(ValidationError, match="the size of 'books' is not in"):
        MixtureSpec.model_validate({**given, "tokens_in_source": {"web": 1e6}})
    MixtureSpec.model_validate({**given, "tokens_in_source": {"web": 1e6, "books": 1e6}})
    MixtureSpec.model_validate({**given, "max_epochs": 1})


def test_a_slip_in_a_known_size_is_told_in_a_file_of_mixtures_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    text = (
        "sources:\n  web: {{files: [a.jsonl], domain: web}}\n"
        "mixtures:\n  m: {{weights: {{web: 1}}, max_epochs: 2, tokens_in_source: {{{}: 5}}}}\n"
    )
    (tmp_path / "m.yaml").write_text(text.format("webb"))
    with pytest.raises(SpecError, match=r"mixtures\.m\.tokens_in_source: no source 'webb'"):
        load_mixtures(tmp_path / "m.yaml").shares("m")
    (tmp_path / "m.yaml").write_text(text.format("web"))
    assert load_mixtures(tmp_path / "m.yaml").shares("m") == {"web": 1.0}
