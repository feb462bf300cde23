"""Reading a file by position, when nobody promises that it is one: a FIFO or device must neither hang nor flood us."""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from collections.abc import Sequence

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats.memory import rest_of

MOST_BUFFERS = 1024  # that one call takes (IOV_MAX of Linux and macOS)

# O_NONBLOCK: opening a FIFO nobody writes to must not block; it has no effect on a regular file.
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)

_PIECE_BYTES = 64 << 10
_seeking = threading.Lock()  # where a file can only be read at the one position it has


def open_regular(path: str) -> tuple[int, int]:
    """Return a descriptor of a regular file, which the caller owns, and its size in bytes.

    Raises:
        CorruptCheckpointError: It is a FIFO or a device.
        IsADirectoryError: It is a directory.
        OSError: As the system gave it.
    """
    fd = os.open(path, _FLAGS)
    try:
        status = os.fstat(fd)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):
            error.filename = path  # the system call only knows a number
        raise
    if stat.S_ISREG(status.st_mode):
        return fd, status.st_size
    os.close(fd)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a directory stands where a checkpoint's file was wanted", path)
    raise CorruptCheckpointError(path, 0, "it is no regular file")


class RegularFile:
    """An open file, read by position: by several threads at once, and still itself when its name is another file's.

    Owns a file descriptor until `close`, or its own end, and keeps no mapping.

    Args:
        path: Opened as by `open_regular`, with its errors.

    Attributes:
        nbytes: Its size when it was opened.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd, self.nbytes = open_regular(path)
        self._close = weakref.finalize(self, os.close, self._fd)

    def read(self, position: int, nbytes: int) -> bytearray:
        """Return the bytes from `position` on.

        Raises:
            CorruptCheckpointError: The file ends before.
        """
        data = bytearray(nbytes)
        self.read_into(position, [memoryview(data)])
        return data

    def read_into(self, position: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers, at most MOST_BUFFERS, one after the other with the bytes from `position` on.

        Raises:
            CorruptCheckpointError: The file ends before.
        """
        fd = self.fileno()
        wanted = sum(map(len, buffers))
        while wanted:
            try:
                count = _read_at(fd, buffers, position)
            except OSError as error:
                error.filename = self.path  # the system call only knows a number
                raise
            if count == 0:
                raise CorruptCheckpointError(self.path, position, f"the file ends {wanted} bytes early")
            position += count
            wanted -= count
            if wanted:
                buffers = rest_of(buffers, count)

    def fileno(self) -> int:
        """Return the descriptor, which stays the file's.

        Raises:
            ValueError: The file is closed.
        """
        if not self._close.alive:
            raise ValueError(f"{self.path!r} is closed; read inside the reader's with block")
        return self._fd

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._close()


def _read_at(fd: int, buffers: Sequence[memoryview], position: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, buffers, position)
    with _seeking, open(fd, "rb", buffering=0, closefd=False) as file:  # Windows, old macOS
        file.seek(position)
        return file.readinto(buffers[0]) or 0


def read_regular(path: str, max_bytes: int) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        CorruptCheckpointError: It has more than `max_bytes`, or is a FIFO or a device.
        OSError: As the system gave it.
    """
    fd, nbytes = open_regular(path)
    with open(fd, "rb", buffering=0) as file:
        if nbytes > max_bytes:
            raise CorruptCheckpointError(path, max_bytes, f"{nbytes} bytes are too many: {max_bytes} are read at most")
        pieces, room = [], max_bytes
        # Up to its end, which some file systems do not know before; in pieces, since each read takes its memory first.
        while piece := file.read(min(max(nbytes, _PIECE_BYTES), room)):
            pieces.append(piece)
            room -= len(piece)
    return b"".join(pieces)
