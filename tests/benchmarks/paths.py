"""Where the project is, and what processes need to find it."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
PROJECT = TESTS.parent
OUTPUT = PROJECT / "build" / "bench"


def environment_variables() -> dict[str, str]:
    """Return the environment of this process, with this package and, unless it names another, this library in it."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH"), str(PROJECT)]))
    return {**os.environ, "PYTHONPATH": path}
