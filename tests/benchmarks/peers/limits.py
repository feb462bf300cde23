"""What no library can beat: the same bytes to the disk, from the disk, and from memory to memory."""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator

from benchmarks.memory import HugeBuffer
from benchmarks.peers.peer import Way
from benchmarks.peers.torch_values import TorchPeer, TorchValues

_THREADS = 2
_DIRECT_BYTES = 4 << 20
_COPY_BYTES = 8 << 20
_FLAT_COPY_BYTES = 64 << 20
_MOST_WINDOW_BYTES = 256 << 20
_LEAST_WINDOW_BYTES = 16 << 20
_SECTOR_BYTES = 4096
_MANY = 2000


class Limit(TorchPeer):
    """Two threads and O_DIRECT on one side, copies in memory on the other.

    Writing is from, reading and copying to, a window of huge pages that is gone through again and again: at most
    256 MiB, far more than the caches of a processor hold, and less than a second model. Warm, each tensor's own
    memory is copied there by two threads, 8 MiB at a time. Of thousands of tensors, as many bytes are copied in pieces
    of 64 MiB by one thread, from one half of the window to the other: with calls for each tensor it would be Python
    that is measured.
    """

    is_durable = True

    def __init__(self, values: TorchValues) -> None:
        super().__init__(values)
        self._size = values.bytes
        self._file_size = _up(self._size, _SECTOR_BYTES)
        self._window_bytes = min(_MOST_WINDOW_BYTES, max(_LEAST_WINDOW_BYTES, _up(2 * self._size, _COPY_BYTES)))
        self._window = HugeBuffer(self._window_bytes)
        for start in range(0, self._window_bytes, _COPY_BYTES):
            self._window.view[start : start + _COPY_BYTES] = os.urandom(_COPY_BYTES)
        self._sources = [] if values.tensors >= _MANY else _pieces(values)

    def save(self, path: str) -> None:
        """Write as many bytes to a new file, past the page cache, and fsync it."""
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o644)
        try:
            os.posix_fallocate(fd, 0, self._file_size)
            _in_threads(lambda thread: self._write(fd, thread))
            os.fsync(fd)
        finally:
            os.close(fd)

    def ways(self) -> dict[str, Way]:
        """Return reading past the page cache for a cold file, copying for a warm one."""
        return {"": Way(self._read_all, self._copy_all, is_into_existing=False)}

    def clear(self) -> None:
        """Do nothing: nothing will be restored."""

    def is_restored(self) -> bool | None:
        """Return None: nothing was."""
        return None

    def _write(self, fd: int, thread: int) -> None:
        for start in range(thread * _DIRECT_BYTES, self._file_size, _THREADS * _DIRECT_BYTES):
            size = min(_DIRECT_BYTES, self._file_size - start)
            at = start % self._window_bytes
            _require(size, os.pwrite(fd, self._window.view[at : at + size], start))

    def _read_all(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            _in_threads(lambda thread: self._read(fd, thread))
        finally:
            os.close(fd)

    def _read(self, fd: int, thread: int) -> None:
        buffer = self._window.view[thread * _DIRECT_BYTES : (thread + 1) * _DIRECT_BYTES]
        for start in range(thread * _DIRECT_BYTES, self._file_size, _THREADS * _DIRECT_BYTES):
            _require(min(_DIRECT_BYTES, self._file_size - start), os.preadv(fd, [buffer], start))

    def _copy_all(self, path: str) -> None:
        del path
        if self._sources:
            numbers = (
                itertools.count()
            )  # taking the next one is atomic: a thread that is held up leaves more to the other
            _in_threads(lambda _: self._copy(numbers))
            return
        half = self._window_bytes // 2
        piece = min(_FLAT_COPY_BYTES, half)
        for start in range(0, self._size, piece):
            ctypes.memmove(self._window.address, self._window.address + half, min(piece, self._size - start))

    def _copy(self, numbers: Iterator[int]) -> None:
        slots = self._window_bytes // _COPY_BYTES
        while (i := next(numbers)) < len(self._sources):
            address, size = self._sources[i]
            ctypes.memmove(self._window.address + i % slots * _COPY_BYTES, address, size)


def _pieces(values: TorchValues) -> list[tuple[int, int]]:
    """Return address and size of all the memory of the tensors, in pieces."""
    return [
        (tensor.data_ptr() + start, min(_COPY_BYTES, tensor.nbytes - start))
        for tensor in values.distinct()
        for start in range(0, tensor.nbytes, _COPY_BYTES)
    ]


def _in_threads(work: Callable[[int], None]) -> None:
    """Call `work` with the number of each thread, in all of them at once; an error in one of them is raised."""
    errors: list[BaseException] = []

    def run(thread: int) -> None:
        try:
            work(thread)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(_THREADS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if errors:
        raise errors[0]


def _require(wanted: int, done: int) -> None:
    if done != wanted:
        raise OSError(f"{done} bytes instead of {wanted} in one call")


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
