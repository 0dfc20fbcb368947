"""Shapes of the tiny models without libraries, and what a device is taken to do."""

from __future__ import annotations

import json

import numpy as np
import pytest

from prismlab.cost.devices import DEVICES, device_named, measured_cpu, seconds_for
from prismlab.cost.hub import hub_shape
from prismlab.cost.operations import training_operations
from prismlab.cost.shapes import shape_of
from prismlab.cost.tiny import BYTE_VOCABULARY, tiny_shape
from prismlab.errors import SpecError
from prismlab.micro.models import ARCHITECTURES, tiny_config
from prismlab.model.tokens import build_byte_tokenizer


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("width", "layers"), [(16, 3), (32, 4), (48, 7), (96, 12), (128, 4), (256, 14)])
def test_tiny_shapes_are_those_that_are_built(arch: str, width: int, layers: int) -> None:
    vocab = len(build_byte_tokenizer())
    assert vocab == BYTE_VOCABULARY
    built = shape_of(json.loads(tiny_config(arch, width, layers, vocab).to_json_string()))
    assert tiny_shape(arch, width, layers) == built


def test_the_measured_rate_is_that_of_numpy() -> None:
    """An independent timing of the same product; the machine may be loaded, so within a factor of three, and at a
    moment when it lets both be measured alike."""
    import time

    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 512, 512), dtype=np.float32)
    ratios: list[float] = []
    while not any(1 / 3 < ratio < 3 for ratio in ratios) and len(ratios) < 30:
        device, times = measured_cpu(512, 0.1), list[float]()
        for _ in range(20):
            began = time.perf_counter()
            np.dot(a, b)
            times.append(time.perf_counter() - began)
        ratios.append(device.rate * min(times) / (2 * 512**3))
    assert 1 / 3 < ratios[-1] < 3, ratios


def test_time_on_a_cluster_by_hand() -> None:
    """26.2B tokens through 8.17B parameters are 1.3e21 operations and some attention; 128 H100 at 40% do 5.1e16/s."""
    shape = hub_shape("ibm-granite/granite-3.3-8b-base")
    assert shape is not None
    operations = 25_000 * 128 * training_operations(shape, 8192).model.total
    dense = 6 * shape.parameters * 26_214_400_000
    assert 1.05 * dense < operations < 1.2 * dense
    hours = seconds_for(operations, DEVICES["h100"], 128, 0.4) / 3600
    assert hours == pytest.approx(operations / (128 * 989e12 * 0.4) / 3600)
    assert 7 < hours < 9


def test_devices_by_name() -> None:
    assert device_named("h200").memory == 141e9
    with pytest.raises(SpecError, match="'tpu' is not known; there are h100"):
        device_named("tpu")
