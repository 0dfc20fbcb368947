"""The synthetic study of the claims' tests, with files on disk as the stages leave them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "claims"))
