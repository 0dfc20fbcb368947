"""Devices by what a plan needs of them: the rate of matrix products and the memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

from prismlab.errors import SpecError

UTILISATION = 0.4
"""Share of the matrix rate that training is taken to reach: what dense models of 3B to 24B commonly do on such devices
(PaLM 46%, Chowdhery et al. 2022, table 3; Llama 3 38 to 43%, Grattafiori et al. 2024, table 4)."""
SAMPLING_UTILISATION = 0.05
"""The same of sampling, which reads all weights for each token of a batch and so waits for memory: *ours*, a guess
that a record of a like step replaces."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device."""

    name: str
    rate: float
    """Operations a second of dense bf16 matrix products (of a CPU: float32, measured)."""
    memory: float | None
    """Bytes; None of a CPU, which shares the machine's."""
    source: str


DEVICES = {
    "h100": Device(name="h100", rate=989e12, memory=80e9, source="data sheet, SXM, without sparsity"),
    "h200": Device(name="h200", rate=989e12, memory=141e9, source="data sheet, SXM, without sparsity"),
    "a100": Device(name="a100", rate=312e12, memory=80e9, source="data sheet, SXM 80 GB, without sparsity"),
}


def measured_cpu(size: int = 1024, seconds: float = 0.2) -> Device:
    """This machine's CPU, as many threads as numpy takes: its rate of float32 products [size, size], measured now."""
    import numpy as np

    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    np.matmul(left, right)  # The first one starts threads and fills caches.
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        began = time.perf_counter()
        np.matmul(left, right)
        times.append(time.perf_counter() - began)
    return Device(name="cpu", rate=2.0 * size**3 / min(times), memory=None, source="measured now, float32 products")


def device_named(name: str) -> Device:
    """A device of ``DEVICES``, or this machine's ``cpu``, measured.

    Raises:
        SpecError: no such device.
    """
    if name == "cpu":
        return measured_cpu()
    if name not in DEVICES:
        raise SpecError(f"device {name[:40]!r} is not known; there are {', '.join(DEVICES)} and cpu")
    return DEVICES[name]


def seconds_for(operations: float, device: Device, devices: int, utilisation: float) -> float:
    """Seconds that ``devices`` devices need at that share of their matrix rate."""
    return operations / (devices * device.rate * utilisation)
