"""Files of a checkpoint, whatever form it has, and what of them the page cache holds."""

from __future__ import annotations

import os
import shutil

_DROP_CACHES = "/proc/sys/vm/drop_caches"
_READ_BYTES = 8 << 20


def files_under(path: str) -> list[str]:
    """Return the files at or below a path."""
    if os.path.isfile(path):
        return [path]
    return [os.path.join(directory, name) for directory, _, names in os.walk(path) for name in names]


def size_of(path: str) -> int:
    """Return the bytes of all files at or below a path."""
    return sum(os.path.getsize(file) for file in files_under(path))


def remove(path: str) -> None:
    """Remove a file, or a directory with all that is in it; what is not there is fine."""
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.unlink(path)


def fsync_all(path: str) -> None:
    """Fsync every file at or below a path, and every directory with an entry that leads to one."""
    files = files_under(path)
    directories = {os.path.dirname(path), *(os.path.dirname(file) for file in files)}
    for each in [*files, *sorted(directories, reverse=True)]:
        fd = os.open(each, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def can_drop_caches() -> bool:
    """Return whether this process may empty the page cache: root may."""
    return os.access(_DROP_CACHES, os.W_OK)


def evict(path: str, *, drops_caches: bool) -> None:
    """Get the files at or below a path out of the page cache, with all else in it or alone."""
    if drops_caches:
        os.sync()
        with open(_DROP_CACHES, "w", encoding="ascii") as control:
            control.write("3")
        return
    for file in files_under(path):
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)  # a dirty page would stay
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def preload(path: str) -> None:
    """Get the files at or below a path into the page cache, all of them."""
    for file in files_under(path):
        with open(file, "rb", buffering=0) as stream:
            while stream.read(_READ_BYTES):
                pass
