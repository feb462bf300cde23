"""A file system that is really full, and later has room again."""

from __future__ import annotations

import os
import subprocess

from faults.crash_states import snapshot
from faults.syscalls.harness import Harness
from faults.syscalls.verdict import Tally

_BLOCK_BYTES = 4096
_SPARE_KB = 8


def enospc(harness: Harness) -> list[Tally]:
    """Save four times into file systems that hold from a third of a checkpoint to three."""
    tally = Tally("file system really full, then room again")
    files = snapshot(harness.with_two_saves()).files
    one_kb = sum(-(-len(data) // _BLOCK_BYTES) * _BLOCK_BYTES for _, data in files) / 2 / 1024
    sizes = [0.3 + i * 0.1 for i in range(30)] if harness.is_full else [0.6, 1.6, 2.2, 2.5, 2.9]
    usual, small = harness.directory, f"{harness.work}/small"
    os.makedirs(small)
    for kb in [int(one_kb * size) + _SPARE_KB for size in sizes]:
        if not _mount(small, f"size={kb}k"):
            tally.note = "not available: no tmpfs can be mounted here"
            break
        try:
            harness.directory = f"{small}/run"
            os.makedirs(harness.directory)
            outcome = harness.zygote.write(harness.directory, [("save", step) for step in range(1, 5)])
            _mount(small, "remount,size=4m")
            violations = harness.look(outcome.promise()) | outcome.violations()
            tally.add(violations, f"{kb} KiB; saved {outcome.acked}, raised {outcome.raised}")
        finally:
            harness.directory = usual
            subprocess.run(["umount", small], check=False, capture_output=True)
    return [tally]


def _mount(path: str, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "none", path]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False
