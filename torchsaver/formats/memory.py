"""The memory of this process by address: tensors' own bytes, handed to the system without a copy."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Iterable

# One view of everything; a slice of it costs a tenth of what a view by way of the tensor does, and keeps nothing alive.
_ALL = memoryview((ctypes.c_ubyte * sys.maxsize).from_address(0)).cast("B")

_HUGE_BYTES = 2 << 20
_LARGE_BYTES = 32 << 10  # are copied while other threads go on; for less it is not worth handing over


def memory_at(address: int, nbytes: int) -> memoryview:
    """Return memory as `nbytes` bytes, writable and shared; whoever uses them keeps their owner alive."""
    return _ALL[address : address + nbytes]


def copy_bytes(target: memoryview, source: memoryview) -> None:
    """Copy bytes between two writable views of the same size."""
    if len(target) < _LARGE_BYTES:
        target[:] = source
    else:
        ctypes.memmove(_address(target), _address(source), len(target))


def device_buffer(nbytes: int) -> memoryview:
    """Return new memory, 2 MiB at most, in one huge page where there are such: a device fills it in one go."""
    memory = mmap.mmap(-1, 2 * _HUGE_BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = memoryview(memory)
    start = -_address(whole) % _HUGE_BYTES
    whole[start] = 0  # it is there from now on
    return whole[start : start + nbytes]


def rest_of(pieces: Iterable[bytes | memoryview], done: int) -> list[memoryview]:
    """Return what is left of pieces beyond their first `done` bytes."""
    rest = []
    for piece in pieces:
        if done < len(piece):
            rest.append(memoryview(piece)[done:])
        done = max(0, done - len(piece))
    return rest


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
