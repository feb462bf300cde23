"""Memory: of this process, of the machine, and how to have it ready."""

from __future__ import annotations

import contextlib
import ctypes
import mmap

HUGE_PAGE_BYTES = 2 << 20
_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python has no name for it
_MOST_TOUCHED_BYTES = 6 << 30


class HugeBuffer:
    """Memory of huge pages, aligned to one.

    Attributes:
        address: Where it begins.
        view: Its bytes.
    """

    def __init__(self, size: int) -> None:
        self._map = _anonymous(size + HUGE_PAGE_BYTES)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.address = start + -start % HUGE_PAGE_BYTES
        self.view = memoryview((ctypes.c_ubyte * size).from_address(self.address)).cast("B")


def touch_free_memory(size: int) -> None:
    """Write to as many free bytes of the machine and let them go.

    A virtual machine that reports its free pages gets each back at the first touch, which takes up to ten times as long
    as a touch; it would be counted for whoever happens to be the first.
    """
    buffer = _anonymous(max(mmap.PAGESIZE, min(size, _MOST_TOUCHED_BYTES, _machine_bytes("MemAvailable") // 2)))
    with buffer, contextlib.suppress(OSError):  # of an older kernel: then it is as the machine was found
        buffer.madvise(_MADV_POPULATE_WRITE)


def total_bytes() -> int:
    """Return the memory of the machine."""
    return _machine_bytes("MemTotal")


def cached_bytes() -> int:
    """Return the size of the page cache."""
    return _machine_bytes("Cached")


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return _field("/proc/self/status", "VmRSS")


def peak_resident_bytes() -> int:
    """Return the most resident memory this process has had since `reset_peak`."""
    return _field("/proc/self/status", "VmHWM")


def reset_peak() -> None:
    """Let the peak of resident memory begin anew."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as control:
        control.write("5")


def anonymous_bytes(pid: int) -> int:
    """Return the resident memory of a process less the pages of mapped files."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
        _, resident, shared, *_ = map(int, statm.read().split())
    return (resident - shared) * mmap.PAGESIZE


def _anonymous(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # of a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _machine_bytes(name: str) -> int:
    return _field("/proc/meminfo", name)


def _field(path: str, name: str) -> int:
    """Return a field of a file of /proc that has lines "Name:  12 kB"."""
    with open(path, encoding="ascii", errors="replace") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
