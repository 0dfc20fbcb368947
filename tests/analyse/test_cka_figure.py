"""The figure of the docs shows what the estimators give, and the closed form that the plain one follows."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("cka_bias", DOCS / "figures/cka_bias.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def committed() -> dict[int, dict[str, list[float]]]:
    text = (DOCS / "cka-bias.svg").read_text(encoding="utf-8")
    found = re.search("<metadata>(.*)</metadata>", text)
    assert found is not None
    return {int(n): point for n, point in json.loads(found[1]).items()}


def test_the_committed_numbers_are_measured_and_drawn(script: Any) -> None:
    points = committed()
    assert tuple(points) == script.INPUTS
    for inputs in (8, 64):
        for name, values in script.measure(inputs).items():
            assert points[inputs][name] == pytest.approx(values, abs=1e-6)
    drawn = script.draw(points)
    assert drawn == (DOCS / "cka-bias.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(drawn)


def test_plain_is_far_above_zero_where_debiased_is_near_it(script: Any) -> None:
    for inputs, point in committed().items():
        (plain, _), (debiased, spread) = point["plain"], point["debiased"]
        assert plain == pytest.approx(script.WIDTH / (inputs + script.WIDTH), abs=0.002)
        assert abs(debiased) < 4 * spread / script.REPEATS**0.5
        assert plain > 0.3 > 0.06 > abs(debiased)
