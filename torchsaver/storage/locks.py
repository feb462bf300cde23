"""Locks between processes. Each is an flock, which ends with its holder: nothing stays locked by the dead.

    a temporary file    exclusive, by its writer: the sweep leaves it alone
    a directory         exclusive, while a checkpoint gets its name, is listed, and others go
    a checkpoint's file shared, by a process that was told it is the newest valid one: retention leaves it for later

A lock is let go explicitly, because a child that was forked meanwhile holds the same one. Where the platform or the
file system has no flock, nothing is locked, and what needs the proof of a lock (sweeping, say) is not done.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from types import FrameType, TracebackType

from torchsaver.storage import paths

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PATIENCE_SECS = 60.0  # a holder renames, syncs and removes a few files
_LONGEST_PAUSE_SECS = 0.01

_descriptors: weakref.WeakSet[Descriptor] = weakref.WeakSet()  # all that are open
_held: weakref.WeakValueDictionary[tuple[str, int], DirectoryLock] = weakref.WeakValueDictionary()  # and the thread
_pins: dict[str, dict[str, Descriptor]] = {}  # directory -> file -> what holds the shared lock
_pinning = threading.RLock()


def acquire(fd: int, *, shared: bool = False) -> bool | None:
    """Lock an open file or directory at once: True; False when another holds it; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.EIO, errno.EINTR):
            raise
        return None
    return True


def release(fd: int) -> None:
    """Let a lock go, for forked children too; without one nothing happens."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)


class Descriptor:
    """An open file that may hold a lock; closed once, at the latest when nobody has this object any more.

    An interrupt may come between any two steps, also before a with statement knows of what it has entered: what it
    leaves behind must not hold a lock for ever. In a forked child it is closed at once, and the parent's lock stays.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        _descriptors.add(self)

    def close(self) -> None:
        """Let the lock go, for children forked without Python's knowledge too, and close the file."""
        fd = self.fd
        if fd >= 0:
            try:
                release(fd)
            finally:
                self.fd = -1  # the system closes it whatever it reports; nothing can come between these two
                os.close(fd)

    def abandon(self) -> None:
        """Close a copy of the file; the lock stays with whoever has another."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class DirectoryLock:
    """The lock of a directory, held in a with block, whose target says whether there is one to be had.

    Raises:
        TimeoutError: Another process has held it for a minute: it hangs or is stopped.
        RuntimeError: This very thread holds it further down: a signal handler has interrupted a save, and saves.
        OSError: The directory is missing or cannot be opened.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory or "."
        self._descriptor: Descriptor | None = None
        self._frame: FrameType | None = None

    def is_in_use(self) -> bool:
        """Return whether this thread is still inside of the with block: what asks was called from there."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None

    def __enter__(self) -> bool:
        place = paths.real_directory(self._directory), threading.get_ident()
        if (other := _held.get(place)) is not None:
            if other.is_in_use():
                raise RuntimeError("save() inside of save(): in a signal handler, set a flag, and save in the loop")
            other.close()  # left by an interrupt
        self._frame = sys._getframe(1)
        _held[place] = self
        self._descriptor = Descriptor(os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            return _wait_for(self._descriptor.fd, self._directory)
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the lock go; a second time does nothing."""
        self._frame = None
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # nothing was written to it
                self._descriptor.close()


def _wait_for(fd: int, directory: str) -> bool:
    give_up, pause = time.monotonic() + _PATIENCE_SECS, 0.0005
    while (held := _acquired(fd, directory)) is False:
        if time.monotonic() > give_up:
            message = f"another process has been saving here for {_PATIENCE_SECS:g} s; is it stopped? nothing was saved"
            raise TimeoutError(errno.ETIMEDOUT, message, directory)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECS)
    return bool(held)


def _acquired(fd: int, directory: str) -> bool | None:
    try:
        return acquire(fd)
    except OSError as error:
        error.filename = directory  # the system call only knows a number
        raise


@contextlib.contextmanager
def unused(files: list[str]) -> Iterator[bool]:
    """Hold the locks of a checkpoint's files while they are removed; yields False when another process has pinned one.

    A pin of this very process gives way: who saves here has done with what it read before.
    """
    for path in files:  # all of them first: a thread that pins may be waiting for what is locked below
        _unpin_file(path)
    with contextlib.ExitStack() as stack:
        free = True
        for path in files:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP, errno.EACCES):  # gone, a link, or closed to readers
                    continue
                raise
            descriptor = Descriptor(fd)
            stack.callback(descriptor.close)
            free = free and acquire(descriptor.fd) is not False
        yield free


def is_pinned_elsewhere(files: list[str]) -> bool:
    """Return whether another process has pinned one of these files now; nothing is locked or let go."""
    with _pinning:
        own = {path for held in _pins.values() for path in held}
    return any(_is_held(path) for path in files if os.path.realpath(path) not in own)


def _is_held(path: str) -> bool:
    try:
        descriptor = Descriptor(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:  # gone, or not to be read: nobody's reading keeps it
        return False
    try:
        return acquire(descriptor.fd) is False
    finally:
        descriptor.close()


def pin(directory: str, files: dict[str, int]) -> bool:
    """Keep the open files {path: descriptor} from being removed until `unpin`; what was pinned before is let go.

    A file that has just got its name is waited for: its writer has locked it until the name is durable.

    Returns:
        False when one of them is gone or just being removed; then nothing is pinned.
    """
    with _pinning:
        unpin(directory)
        held: dict[str, Descriptor] = {}
        for path, fd in files.items():
            own = held[os.path.realpath(path)] = Descriptor(os.dup(fd))  # shares the lock, and outlives its model
            if not _is_shared(path, own.fd):
                for descriptor in held.values():
                    descriptor.close()
                return False
        _pins[paths.real_directory(directory)] = held
        return True


def unpin(directory: str) -> None:
    """Let go what `pin` holds in a directory."""
    with _pinning:
        for descriptor in _pins.pop(paths.real_directory(directory), {}).values():
            descriptor.close()


def _unpin_file(path: str) -> None:
    real = os.path.realpath(path)
    with _pinning:
        for held in _pins.values():
            if (descriptor := held.pop(real, None)) is not None:
                descriptor.close()


def _is_shared(path: str, fd: int) -> bool:
    """Lock the file for reading while it has its name; return whether it still has it."""
    give_up = time.monotonic() + _PATIENCE_SECS
    while _is_at(path, fd):
        if acquire(fd, shared=True) is not False:
            return _is_at(path, fd)
        if time.monotonic() > give_up:
            break
        time.sleep(_LONGEST_PAUSE_SECS / 10)
    return False


def _is_at(path: str, fd: int) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _forget_parent() -> None:
    """In a forked child: the locks are the parent's."""
    global _pinning  # noqa: PLW0603, another thread of the parent may have had it
    _pinning = threading.RLock()
    for descriptor in list(_descriptors):
        descriptor.abandon()
    _pins.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
