"""Something in a checkpoint file's place that is no regular file."""

from __future__ import annotations

import os
from collections.abc import Callable

from faults.syscalls.adapters.adapter import files_below
from faults.syscalls.harness import Harness
from faults.syscalls.orders import CheckItem
from faults.syscalls.verdict import Tally, judge_reading

_MEMORY_GB = 3.0
_REPLACEMENTS: dict[str, Callable[[str], None]] = {
    "a FIFO": os.mkfifo,
    "a link to /dev/zero": lambda path: os.symlink("/dev/zero", path),
    "a directory": os.mkdir,
    "a link to itself": lambda path: os.symlink(os.path.basename(path), path),
    "a link to nothing": lambda path: os.symlink("/nonexistent/x", path),
    "a link to /proc/self/mem": lambda path: os.symlink("/proc/self/mem", path),
}


def special(harness: Harness) -> list[Tally]:
    """Put something special in the place of each file: reading neither hangs, nor fills memory, nor kills."""
    tally = Tally("FIFOs, devices, directories and link loops in a file's place")
    for name in sorted(files_below(harness.with_two_saves()))[:12]:
        for what, make in _REPLACEMENTS.items():
            path = os.path.join(harness.with_two_saves(), name)
            os.unlink(path)
            make(path)
            item = CheckItem(harness.directory, harness.zygote.keep, is_deep=False)
            (finding,) = harness.zygote.check([item], timeout=6, memory_gb=_MEMORY_GB)
            tally.add(judge_reading(finding, harness.zygote.documented), f"{name} is {what}")
    return [tally]
