"""Where the project is, and what processes need to find it."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).parents[1]
PROJECT = TESTS.parent
OUTPUT = PROJECT / "build" / "bench"


def environment_variables() -> dict[str, str]:
    """Return the environment of this process, with this package and, unless it names another, this library in it.

    Byte code is kept, as it is wherever a library is installed, so that an import is no compilation.
    """
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH"), str(PROJECT)]))
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": path}
