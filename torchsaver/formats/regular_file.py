"""Opening a file to read it, when nobody promises that it is one: a FIFO or device must neither hang nor flood us."""

from __future__ import annotations

import errno
import os
import stat

from torchsaver.errors import CorruptCheckpointError


def open_regular(path: str) -> tuple[int, int]:
    """Return a descriptor of a regular file, which the caller owns, and its size in bytes.

    Raises:
        CorruptCheckpointError: It is a FIFO or a device.
        IsADirectoryError: It is a directory.
        OSError: As the system gave it.
    """
    # O_NONBLOCK: opening a FIFO nobody writes to must not block; it has no effect on a regular file.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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


def read_regular(path: str, max_bytes: int) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        CorruptCheckpointError: It has more than `max_bytes`, or is a FIFO or a device.
        OSError: As the system gave it.
    """
    fd, nbytes = open_regular(path)
    with open(fd, "rb") as file:
        if nbytes > max_bytes:
            raise CorruptCheckpointError(path, max_bytes, f"{nbytes} bytes are too many: {max_bytes} are read at most")
        return file.read(max_bytes)
