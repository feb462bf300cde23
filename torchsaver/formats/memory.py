"""The memory of this process by address: tensors' own bytes, handed to the system without a copy."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable

# One view of everything; a slice of it costs a tenth of what a view by way of the tensor does, and keeps nothing alive.
_ALL = memoryview((ctypes.c_ubyte * sys.maxsize).from_address(0)).cast("B")


def memory_at(address: int, nbytes: int) -> memoryview:
    """Return memory as `nbytes` bytes, writable and shared; whoever uses them keeps their owner alive."""
    return _ALL[address : address + nbytes]


def rest_of(pieces: Iterable[bytes | memoryview], done: int) -> list[memoryview]:
    """Return what is left of pieces beyond their first `done` bytes."""
    rest = []
    for piece in pieces:
        if done < len(piece):
            rest.append(memoryview(piece)[done:])
        done = max(0, done - len(piece))
    return rest
