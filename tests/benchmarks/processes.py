"""What is measured with fresh processes: the toy of two variables, imports, and the command line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks import files
from benchmarks.errors import PeerError
from benchmarks.paths import environment_variables
from benchmarks.peers import ENTRIES
from benchmarks.results import ImportResult, ToyResult, ToyRow
from benchmarks.settings import Settings, find_interpreter
from benchmarks.toy_process import TOYS

_TIMEOUT_SECS = 300
_IMPORTS = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import torchsaver
print(middle - start, time.perf_counter() - middle)
"""
_SAVE_TWO_VARIABLES = """
import sys
import torch
import torchsaver
torchsaver.Saver({"v1": torch.ones(3), "v2": torch.ones(2)}).save(sys.argv[1])
"""


def measure_toy(peers: Sequence[str], processes: int, repeats: int, settings: Settings) -> ToyResult:
    """Save and restore two variables in `processes` fresh processes of each peer, in shuffled order.

    Args:
        peers: Names; those that have no toy are left out.
        processes: How many are timed of each; one more before them reads everything from the disk.
        repeats: Repeated calls in each process.
        settings: Of the run.
    """
    result: ToyResult = {"repeats": repeats, "rows": [], "skipped": {}}
    rows = {peer: _no_toy_row(peer) for peer in peers if peer in TOYS}
    for repetition in range(processes + 1):
        order = [peer for peer in rows if peer not in result["skipped"]]
        random.Random(repetition).shuffle(order)
        for peer in order:
            try:
                seconds = _run_toy(peer, repeats if repetition else 1, settings.directory)
            except PeerError as error:
                result["skipped"][peer] = str(error)
                continue
            if repetition:
                for name, value in seconds.items():
                    rows[peer][name].append(value)  # type: ignore[literal-required]  # the names are the row's
        print(f"  toy, repetition {repetition} of {processes}", file=sys.stderr, flush=True)
    result["rows"] = [row for peer, row in rows.items() if peer not in result["skipped"]]
    return result


def measure_imports(processes: int, settings: Settings) -> ImportResult:
    """Import, and look into a checkpoint of two variables, in fresh processes; one of each before is not counted."""
    path = os.path.join(settings.directory, "inspected", "x")
    _output([sys.executable, "-c", _SAVE_TWO_VARIABLES, path], settings.directory)
    result: ImportResult = {
        "torch": [],
        "torchsaver": [],
        "empty_process": [],
        "inspect_process": [],
    }
    commands = {
        "empty_process": ["-c", "pass"],
        "inspect_process": ["-m", "torchsaver", "inspect", f"{path}.safetensors"],
    }
    for repetition in range(processes + 1):
        torch_secs, torchsaver_secs = map(float, _output([sys.executable, "-c", _IMPORTS], settings.directory).split())
        taken = {
            name: _seconds_of([sys.executable, *command], settings.directory) for name, command in commands.items()
        }
        if repetition:
            for name, seconds in {"torch": torch_secs, "torchsaver": torchsaver_secs, **taken}.items():
                result[name].append(seconds)  # type: ignore[literal-required]  # the names are the result's
    files.remove(os.path.dirname(path))
    return result


def _run_toy(peer: str, repeats: int, directory: str) -> dict[str, float]:
    interpreter = find_interpreter(ENTRIES[peer].environment)
    with tempfile.TemporaryDirectory(dir=directory) as empty:
        printed = _output(
            [interpreter, "-m", "benchmarks.toy_process", peer, os.path.join(empty, "toy"), str(repeats)], directory
        )
    seconds: dict[str, float] = json.loads(printed.splitlines()[-1])
    return seconds


def _seconds_of(command: Sequence[str], directory: str) -> float:
    start = time.perf_counter()
    _output(command, directory)
    return time.perf_counter() - start


def _output(command: Sequence[str], directory: str) -> str:
    """Return what a process printed.

    Raises:
        PeerError: It failed, with its last line.
    """
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment_variables(),
        cwd=directory,
        timeout=_TIMEOUT_SECS,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise PeerError(f"exit status {done.returncode}: {said}")
    return done.stdout


def _no_toy_row(peer: str) -> ToyRow:
    return {
        "peer": peer,
        "role": ENTRIES[peer].role,
        "torch_import": [],
        "imports": [],
        "first_save": [],
        "first_restore": [],
        "repeat_save": [],
        "repeat_restore": [],
        "durable_save": [],
        "memory_save": [],
        "memory_file": [],
        "memory_bytes": [],
        "memory_restore": [],
    }
