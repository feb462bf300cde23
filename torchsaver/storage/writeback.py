"""Bytes on their way to the device: room set aside, pieces gathered into one call, and an early start for the device.

Each of these is left out where the system has no such call: then writing takes longer, and nothing else is different.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Sequence

from torchsaver.formats.memory import rest_of

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

_LARGE_BYTES = 8 << 20  # a smaller file is on the device before planning its way there has paid
_START_BYTES = 4 << 20
_BEHIND_BYTES = 128 << 20  # of a file beyond the cache stay in it: the device may not have written them yet
_CACHED_BYTES = 256 << 20  # a larger file does not stay in the page cache: what it would push out is read sooner

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
_fallocate = None  # Linux only; posix_fallocate() writes zeros where the file system has no such thing
if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None, use_errno=True), "fallocate"):
    _fallocate = libc.fallocate
    _fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def write_pieces(fd: int, position: int, pieces: Sequence[bytes | memoryview]) -> int:
    """Write pieces of memory one after the other from `position` on, all of them, and return where they end."""
    end = position + sum(map(len, pieces))
    while position < end:
        done = _write_at(fd, pieces, position)
        position += done
        if position < end:
            pieces = rest_of(pieces, done)
    return end


def _write_at(fd: int, pieces: Sequence[bytes | memoryview], position: int) -> int:
    if hasattr(os, "pwritev"):
        return os.pwritev(fd, pieces, position)
    os.lseek(fd, position, os.SEEK_SET)  # Windows, old macOS
    return os.write(fd, pieces[0])


class Writeback:
    """What the system is told about a file being written.

    Args:
        fd: The file; it stays the caller's.
        nbytes: How large it will be.
    """

    def __init__(self, fd: int, nbytes: int) -> None:
        self._fd = fd
        self._nbytes = nbytes
        self._started = 0  # where the device has not been told to begin yet
        self._left = 0  # where the page cache still holds the file
        self._stays_in_cache = nbytes <= _CACHED_BYTES

    def reserve(self) -> None:
        """Have room set aside for a large file in one piece; its content does not change.

        Raises:
            OSError: There is no such room.
        """
        if self._nbytes < _LARGE_BYTES or _fallocate is None:
            return
        free = os.fstatvfs(self._fd)
        if self._nbytes > free.f_bavail * free.f_frsize:  # taking all there is before it fails would hit others
            return
        has_failed = _fallocate(self._fd, _KEEP_SIZE, 0, self._nbytes)
        if has_failed and (number := ctypes.get_errno()) in NO_SPACE:
            raise OSError(number, os.strerror(number))

    def note_written(self, end: int) -> None:
        """Have the device begin, now and then, with what is written up to `end`: a sync finds the less to do."""
        if end - self._started >= _START_BYTES:
            # Of pages that are not on the device yet, this "don't need" begins to write them, and drops none.
            _advise_dont_need(self._fd, self._started, end)
            self._started = end
            self._leave_cache(end - _BEHIND_BYTES)

    def note_synced(self) -> None:
        """All of it is on the device, also what was not yet when its turn came to leave the cache."""
        self._left = 0
        self._leave_cache(self._started)

    def _leave_cache(self, end: int) -> None:
        if not self._stays_in_cache and end > self._left:
            _advise_dont_need(self._fd, self._left, end)
            self._left = end


def _advise_dont_need(fd: int, start: int, end: int) -> None:
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # it is only advice, which not every file system takes
            os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)
