"""Reading around the page cache what is not in it: direct I/O into aligned buffers, where the system has it."""

from __future__ import annotations

import ctypes
import mmap
import os
from types import TracebackType

from torchsaver.formats.regular_file import RegularFile

ALIGNMENT = 4096  # in the file and in memory: no disk asks for more
MARGIN_BYTES = 2 * ALIGNMENT  # what a buffer needs beyond the bytes wanted

_FAILED = ctypes.c_void_p(-1).value  # MAP_FAILED
_LINUX = hasattr(os, "O_DIRECT") and os.path.isdir("/proc/self/fd")
_libc = ctypes.CDLL(None) if _LINUX else None
if _libc is not None:
    _libc.mmap.restype = ctypes.c_void_p
    _libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    _libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    _libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


class DirectReads:
    """A second descriptor of an open file, which reads past the page cache; used in a with block, by any thread.

    Without direct I/O (macOS, Windows, tmpfs, some network file systems) it reads nothing.
    """

    def __init__(self, file: RegularFile) -> None:
        self._file = file
        self._fd = _open_again(file.fileno())
        self._mapped: int | None = None
        self._mapped_bytes = 0
        if self._fd is not None:
            self._mapped_bytes = file.nbytes
            self._mapped = _map(self._fd, file.nbytes)

    def read(self, position: int, nbytes: int, buffer: memoryview) -> memoryview | None:
        """Return the bytes from `position` on, in `buffer`, or None: they are in the cache, or cannot be read this way.

        Args:
            position: Where they are in the file.
            nbytes: How many.
            buffer: At an aligned address, and MARGIN_BYTES larger.
        """
        if self._fd is None or self._is_cached(position, nbytes):
            return None
        start = position // ALIGNMENT * ALIGNMENT
        end = -(-(position + nbytes) // ALIGNMENT) * ALIGNMENT
        try:
            count = os.preadv(self._fd, [buffer[: end - start]], start)
        except OSError:  # reading it the usual way will tell
            return None
        data = buffer[position - start : min(count, position - start + nbytes)]
        return data if len(data) == nbytes else None

    def _is_cached(self, position: int, nbytes: int) -> bool:
        if self._mapped is None:
            return True
        page = mmap.PAGESIZE
        start = position // page * page
        pages = (ctypes.c_ubyte * (-(-(position + nbytes - start) // page)))()
        assert _libc is not None, "it made the mapping"
        failed = _libc.mincore(self._mapped + start, position + nbytes - start, pages)
        return bool(failed) or all(flags & 1 for flags in bytes(pages))

    def close(self) -> None:
        """Close the descriptor and the mapping that tells what is cached."""
        fd, self._fd = self._fd, None
        mapped, self._mapped = self._mapped, None
        if mapped is not None and _libc is not None:
            _libc.munmap(mapped, self._mapped_bytes)
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> DirectReads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_again(fd: int) -> int | None:
    """Return a descriptor of the same file, whatever has its name by now, for direct I/O; None where there is none."""
    if not _LINUX or not hasattr(os, "preadv"):
        return None
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return None


def _map(fd: int, nbytes: int) -> int | None:
    """Return the address of a mapping of the file, which nobody reads from: only mincore() asks about it."""
    if _libc is None or nbytes == 0:
        return None
    address = _libc.mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    return None if address == _FAILED else address
