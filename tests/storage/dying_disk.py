"""A disk that dies at the n-th call: what torchsaver.storage.disk does with `os` goes through here."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from torchsaver.storage import disk

CALLS = ("open", "pwrite", "fsync", "link", "replace", "unlink", "close", "mkdir")
MOST_CALLS = 200  # no operation tested here needs as many: a loop over faults that goes on is a bug


@dataclass(frozen=True)
class Fault:
    """The n-th call and, if sticky, every later one fails with this errno."""

    n: int
    errno: int
    sticky: bool

    def __str__(self) -> str:
        return f"call {self.n} {'and on' if self.sticky else 'once'}: {os.strerror(self.errno)}"


class DyingDisk:
    """Stands in for the module `os` inside torchsaver.storage.disk; syncing is only noted, so that tests are fast."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        self.calls: list[str] = []
        self.failed: list[str] = []
        self.synced: list[str] = []  # "file" or "directory"

    def __getattr__(self, name: str) -> Any:
        if name not in CALLS:
            return getattr(os, name)
        return lambda *args, **kwargs: self._call(name, args, kwargs)

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls.append(name)
        count, fault = len(self.calls), self.fault
        if fault is not None and (count == fault.n or (fault.sticky and count > fault.n)):
            self.failed.append(name)
            if name == "close":  # Linux closes the descriptor whatever it reports
                os.close(*args)
            if name == "pwrite":  # a part of it may be there
                os.pwrite(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
            named = args[:1] if isinstance(args[0], str) else ()  # as the system: a path if it was given one
            raise OSError(fault.errno, os.strerror(fault.errno), *named)
        if name == "fsync":
            self.synced.append("directory" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file")
            return None
        return getattr(os, name)(*args, **kwargs)


def install(patch: pytest.MonkeyPatch, fault: Fault | None = None) -> DyingDisk:
    """Put a disk in place of the real one until `patch` is undone."""
    dying = DyingDisk(fault)
    patch.setattr(disk, "os", dying)
    return dying


def faults() -> Iterator[Fault]:
    """Yield the faults of call 1, 2, ...: EIO and ENOSPC, each once and sticky; stop when one is not reached any more."""
    for n, sticky, number in itertools.product(range(1, MOST_CALLS), (False, True), (errno.EIO, errno.ENOSPC)):
        yield Fault(n, number, sticky)
    pytest.fail(f"the operation did not pass within {MOST_CALLS} calls")


def open_files() -> int:
    """Return the number of file descriptors this process holds."""
    return len(os.listdir("/proc/self/fd"))
