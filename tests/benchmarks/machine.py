"""What a run was made on."""

from __future__ import annotations

import os
import platform

from benchmarks import memory


def describe(directory: str) -> str:
    """Return processor, memory, kernel, Python, and the file system of a directory, in a line."""
    return (
        f"{os.cpu_count()} x {_processor()}, {memory.total_bytes() / 1e9:.0f} GB of memory, "
        f"Linux {platform.release()}, {_file_system(directory)}, Python {platform.python_version()}"
    )


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _file_system(directory: str) -> str:
    """Return the type of the file system that a directory is on."""
    directory = os.path.realpath(directory)
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as lines:
        mounts = [(fields[1], fields[2]) for fields in map(str.split, lines)]
    above = [mount for mount in mounts if os.path.commonpath([directory, mount[0]]) == mount[0]]
    return max(above, key=lambda mount: len(mount[0]))[1] if above else "unknown file system"
