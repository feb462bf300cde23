"""A disk that fails at the n-th call: what torchsaver does with `os` and `flock` to store checkpoints goes through here.

It can also record what was done, as operations from which `crash_states` works out what a power loss may leave.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from faults.operations import Recording

from torchsaver.formats import regular_file
from torchsaver.storage import catalog, checkpoint_files, disk, locks, writeback

MODULES = (disk, writeback, locks, catalog, checkpoint_files, regular_file)
NEED_SPACE = ("create", "pwritev", "fsync", "link", "replace", "mkdir")
CHANGES = (*NEED_SPACE, "unlink", "rmdir")
CALLS = (*CHANGES, "open", "close", "fstat", "listdir", "flock", "unflock")  # "create" is an open that makes the file
NAMES = ("replace", "link", "unlink", "mkdir", "rmdir")

Kind = Literal["error", "done", "interrupt", "late interrupt", "short"]


@dataclass(frozen=True)
class Fault:
    """What goes wrong at the n-th call.

    Attributes:
        n: The call, from 1.
        errno: What an error says.
        sticky: Later calls fail too: all for EIO (a dead disk), those that need space for ENOSPC (a full one), those
            that change something for EROFS.
        kind: "error" the call fails; "done" it is done and reported as failed, as NFS may; "interrupt" and "late
            interrupt" KeyboardInterrupt comes in its place or right after it; "short" a write does only a part.
    """

    n: int
    errno: int = errno.EIO
    sticky: bool = False
    kind: Kind = "error"

    def strikes(self, count: int, name: str) -> bool:
        """Return whether call number `count`, of this name, is hit."""
        later = {errno.ENOSPC: NEED_SPACE, errno.EROFS: CHANGES}.get(self.errno, CALLS)
        return count == self.n or (self.sticky and count > self.n and name in later)

    def __str__(self) -> str:
        what = os.strerror(self.errno) if self.kind in ("error", "done") else "by itself"
        return f"{self.kind} ({what}) at call {self.n}{' and on' if self.sticky else ''}"


class DyingDisk:
    """Stands in for the module `os` in MODULES; syncing is only noted, so that tests are fast.

    Args:
        fault: What goes wrong; None: nothing.
        recording: Takes down the changes.
        root: The directory that is recorded.

    Attributes:
        calls: Names of the calls made, of CALLS.
        failed: Names of those that were hit.
        synced: "file" or "directory", for each fsync.
    """

    def __init__(self, fault: Fault | None = None, recording: Recording | None = None, root: str = "") -> None:
        self.fault = fault
        self.calls: list[str] = []
        self.failed: list[str] = []
        self.synced: list[str] = []
        self._recorder = None if recording is None else _Recorder(recording, root)

    def __getattr__(self, name: str) -> Any:
        if name not in CALLS or name.endswith("flock"):
            return getattr(os, name)
        return lambda *args, **kwargs: self._call(name, args, kwargs)

    def flock(self, fd: int, operation: int) -> None:
        """Stand in for fcntl.flock."""
        self._call("unflock" if operation == fcntl.LOCK_UN else "flock", (fd, operation), {})

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "open" and len(args) > 1 and args[1] & os.O_CREAT:
            name = "create"
        self.calls.append(name)
        if self.fault is None or not self.fault.strikes(len(self.calls), name):
            return self._done(name, args, kwargs)
        self.failed.append(name)
        return self._hit(self.fault, name, args, kwargs)

    def _hit(self, fault: Fault, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if fault.kind == "short":
            return self._done(name, _half(args, up=1), kwargs)
        if name == "pwritev" and fault.kind == "error":  # a part of it may be there
            self._done(name, _half(args, up=0), kwargs)
        elif name == "close" or fault.kind in ("done", "late interrupt"):
            # Linux closes a descriptor whatever it reports, and of an interrupted one nobody could do it again.
            try:
                result = self._done(name, args, kwargs)
            except OSError:
                if fault.kind == "late interrupt":
                    raise KeyboardInterrupt from None
                raise
            if name in ("open", "create"):  # nobody ever learns of the descriptor
                os.close(result)
        if fault.kind in ("interrupt", "late interrupt"):
            raise KeyboardInterrupt
        named = args[:1] if isinstance(args[0], str) else ()  # as the system: a path if it was given one
        raise OSError(fault.errno, os.strerror(fault.errno), *named)

    def _done(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._recorder is not None:
            return self._recorder.call(name, args, lambda: self._really(name, args, kwargs))
        return self._really(name, args, kwargs)

    def _really(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "fsync":
            self.synced.append("directory" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file")
            return None
        if name.endswith("flock"):
            return fcntl.flock(*args)
        return getattr(os, "open" if name == "create" else name)(*args, **kwargs)


def _half(args: tuple[Any, ...], up: int) -> tuple[Any, ...]:
    """Return the arguments of a pwritev of half the bytes."""
    fd, pieces, position = args
    data = b"".join(pieces)
    return fd, [data[: (len(data) + up) // 2]], position


class _Recorder:
    """Tells a recording what is done below one directory."""

    def __init__(self, recording: Recording, root: str) -> None:
        self._recording, self._root = recording, root
        self._nodes: dict[int, int] = {}  # by descriptor

    def _inside(self, path: str) -> str | None:
        relative = os.path.relpath(path, self._root)
        return None if relative.startswith("..") else relative

    def call(self, name: str, args: tuple[Any, ...], do: Callable[[], Any]) -> Any:
        """Do a call and record what it has done."""
        result = do()
        if name in ("open", "create"):
            self._open(name, args[0], result)
        elif isinstance(args[0], int):
            self._descriptor(name, args, result)
        else:
            self._name(name, args)
        return result

    def _open(self, name: str, path: str, fd: int) -> None:
        inside = self._inside(path)
        if inside is not None:
            node = self._recording.create(inside) if name == "create" else self._recording.lookup(inside)
            assert node is not None, f"{inside}: nothing recorded has made it"
            self._nodes[fd] = node

    def _descriptor(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        node = self._nodes.get(args[0])
        if node is None:
            return
        if name == "pwritev":
            self._recording.write(node, b"".join(args[1])[:result], args[2])
        elif name == "fsync":
            self._recording.fsync(node)
        elif name == "close":
            del self._nodes[args[0]]
            self._recording.close(node)

    def _name(self, name: str, args: tuple[Any, ...]) -> None:
        inside = [self._inside(path) for path in args if isinstance(path, str)]
        if name == "mkdir" and inside[0] is not None:
            self._recording.make_directory(inside[0])
        elif name in ("unlink", "rmdir") and inside[0] is not None:
            self._recording.remove(inside[0])
        elif name in ("replace", "link") and inside[0] is not None and inside[1] is not None:
            if name == "replace":
                self._recording.rename(inside[0], inside[1])
            else:
                node = self._recording.lookup(inside[0])
                assert node is not None
                self._recording.link(node, inside[1])


def install(
    patch: pytest.MonkeyPatch, fault: Fault | None = None, recording: Recording | None = None, root: str = ""
) -> DyingDisk:
    """Put a disk in place of the real one until `patch` is undone; arguments as DyingDisk."""
    dying = DyingDisk(fault, recording, root)
    put(patch, dying)
    return dying


def put(patch: pytest.MonkeyPatch, dying: DyingDisk) -> None:
    """Put this disk in place of the real one until `patch` is undone."""
    for module in MODULES:
        patch.setattr(module, "os", dying)
    patch.setattr(locks, "fcntl", _Fcntl(dying))


class _Fcntl:
    """Stands in for the module `fcntl`."""

    def __init__(self, dying: DyingDisk) -> None:
        self.flock = dying.flock

    def __getattr__(self, name: str) -> Any:
        return getattr(fcntl, name)


def faults(calls: Sequence[str], errnos: Sequence[int] = ()) -> Iterator[Fault]:
    """Yield what can go wrong in an operation that makes these calls, one at a time.

    A call that changes nothing is not interrupted in its place, which is right after the one before it.

    Args:
        calls: As DyingDisk.calls has them when nothing goes wrong.
        errnos: More errors that a change may meet, each once.
    """
    for n, name in enumerate(calls, 1):
        yield Fault(n, errno.EIO)
        yield Fault(n, kind="late interrupt")
        if name in NEED_SPACE:
            yield Fault(n, errno.ENOSPC)
            yield Fault(n, errno.ENOSPC, sticky=True)
        if name in (*CHANGES, "unflock"):
            yield Fault(n, kind="interrupt")
        if name in CHANGES:
            yield Fault(n, errno.EIO, sticky=True)
            yield Fault(n, errno.EROFS, sticky=True)
            yield from (Fault(n, number) for number in errnos)
        if name in NAMES:
            yield Fault(n, kind="done")
        if name == "pwritev":
            yield Fault(n, kind="short")


def open_files() -> int:
    """Return the number of file descriptors this process holds."""
    return len(os.listdir("/proc/self/fd"))
