"""How a run is made, and where its interpreters are."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass

from benchmarks.errors import PeerError
from benchmarks.peers import Environment
from benchmarks.workloads import Scale

INTERPRETER_VARIABLES: dict[Environment, str] = {"tensorflow": "BENCH_TF_PYTHON", "orbax": "BENCH_ORBAX_PYTHON"}


@dataclass(frozen=True)
class Settings:
    """What holds for the whole of a run.

    Attributes:
        scale: How large the workloads are.
        repetitions: How often each row is timed.
        most_ways: How many ways of restoring are measured of each peer; of ours and of the limit, all are.
        directory: Where checkpoints are written; it has to be on the disk that is measured.
        drops_caches: Make files cold by emptying the whole page cache, which only root may.
        touches_memory: Touch free memory of the machine before each timed call.
    """

    scale: Scale
    repetitions: int
    most_ways: int
    directory: str
    drops_caches: bool
    touches_memory: bool


def find_interpreter(environment: Environment) -> str:
    """Return the Python that has the libraries of an environment; for torch it is this one.

    Raises:
        PeerError: It was not given, or is not there.
    """
    if environment == "torch":
        return sys.executable
    variable = INTERPRETER_VARIABLES[environment]
    path = os.environ.get(variable)
    if not path:
        raise PeerError(f"{variable} is not set")
    if shutil.which(path) is None:
        raise PeerError(f"{variable}: there is no {path}")
    return path
