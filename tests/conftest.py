"""Settings of every test: one thread, no network, the same examples each time."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"
for _variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[_variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A process that gives no sign of life for so long hangs on any machine; by default it is 40 s.
os.environ["PRISM_SILENT_SECONDS"] = "900"
# Output is looked at as it is off a terminal, and a run on several machines is played by the tests themselves.
for _variable in ("FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE", "GITHUB_ACTIONS", "COLUMNS", "LINES", "PRISM_SANDBOX"):
    os.environ.pop(_variable, None)
for _variable in ("PRISM_NODES", "PRISM_NODE_RANK", "PRISM_MASTER", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
    os.environ.pop(_variable, None)

# A run says the same about the same code, also on a busy machine. New examples: --hypothesis-profile=default.
settings.register_profile(
    "steady", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers, whichever ran before it in its process; ones that no test seeds itself."""
    random.seed(24301)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(24301)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(24301)


@pytest.fixture(scope="session")
def level_a() -> None:
    """Skips a test where this machine cannot have the sandbox's level A: without bwrap, or without namespaces."""
    if shutil.which("bwrap") is None:
        pytest.skip("no bwrap: apt-get install bubblewrap")
    if subprocess.run(["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")


@pytest.fixture
def ample_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of items that name no limit have a minute, not two seconds: a machine may be busy."""
    from prismlab.verify.sandbox.outcome import Limits

    monkeypatch.setitem(Limits.__init__.__kwdefaults__, "seconds", 60.0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes on one thread during the test."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
