"""Every call that changes the disk: files that appear whole and durable or not at all, removal, and the sweep.

A file is written under a temporary name in its own directory, synced, and renamed into place; then the directory is
synced. A lock on the temporary file says that its writer is alive: `sweep` removes those whose writer is not.
Names come before calls: whatever interrupts a call, what it may have made is known and is cleared away.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType

from torchsaver.storage import locks, paths
from torchsaver.storage.writeback import NO_SPACE, Writeback, write_pieces

logger = logging.getLogger("torchsaver")

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # a file system without hard links
_COPIED_BYTES = 1 << 20


class NewFile:
    """A file being written under a temporary name; it takes its own name when its Stage is published.

    Owned by its Stage.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._temporary = ""
        self._descriptor: locks.Descriptor | None = None
        self._writeback: Writeback | None = None
        self._is_synced = False

    def open(self) -> None:
        """Create the temporary file, locked: while this process lives, no sweep takes it."""
        while True:
            self._temporary = paths.temporary_file(os.path.dirname(self.path))
            with _naming(self.path):
                # The mode is cut by the umask. O_EXCL and O_NOFOLLOW: a planted file or link is never written through.
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                try:
                    self._descriptor = locks.Descriptor(os.open(self._temporary, flags, 0o666))
                except FileExistsError:
                    self._temporary = ""  # planted: not ours to remove
                    raise
                if locks.acquire(self._fd) is not False and os.fstat(self._fd).st_nlink:
                    return
                self._descriptor.close()  # a sweep took it between its creation and the lock

    @property
    def _fd(self) -> int:
        assert self._descriptor is not None, "open() comes first"
        return self._descriptor.fd

    def reserve(self, nbytes: int) -> None:
        """Have the system make ready for a file of so many bytes.

        Raises:
            OSError: There is no room for it.
        """
        self._writeback = Writeback(self._fd, nbytes)
        with _naming(self.path):
            self._writeback.reserve()

    def write(self, position: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Write pieces of memory one after the other from `position` on; what nobody writes reads as zeros."""
        self._is_synced = False
        with _naming(self.path):
            end = write_pieces(self._fd, position, pieces)
            if self._writeback is not None:
                self._writeback.note_written(end)

    def sync(self) -> None:
        """Hand the bytes to the device and wait for it. After an error the file is lost: no second fsync would tell."""
        if not self._is_synced:
            with _naming(self.path):
                os.fsync(self._fd)
            self._is_synced = True
            if self._writeback is not None:
                self._writeback.note_synced()

    def rename(self) -> None:
        """Give the file its own name, in place of what had it."""
        with _naming(self.path):
            try:
                os.replace(self._temporary, self.path)
            except OSError:
                if not self.is_at_its_path():
                    raise
        self._temporary = ""

    def rename_to_new(self) -> None:
        """Give the file its own name, which nothing else has.

        Raises:
            FileExistsError: Something has it: another process saves under the same prefix.
        """
        with _naming(self.path):
            try:
                os.link(self._temporary, self.path)  # unlike a rename it takes no other file's place; close() ends it
            except OSError as error:
                if self.is_at_its_path():
                    return
                if isinstance(error, FileExistsError):
                    message = "another process is saving the same checkpoint; let one save, or each its own prefix"
                    raise FileExistsError(errno.EEXIST, message, self.path) from error
                if error.errno not in _NO_LINKS or os.path.lexists(self.path):
                    raise
                self.rename()

    def unlock(self) -> None:
        """Let others lock the file."""
        locks.release(self._fd)

    def is_at_its_path(self) -> bool:
        """Return whether the file has its name, also when the call that gave it reported a failure (as NFS may)."""
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._fd))
        except OSError:
            return False

    def close(self) -> None:
        """Close the file, and remove it if it has not got its name; a failure is logged, the sweep will see to it."""
        try:
            try:
                if self._temporary:
                    remove(self._temporary)
            finally:
                if self._descriptor is not None:
                    self._descriptor.close()
        except OSError as error:
            logger.warning("could not clear away %s, left by a save of %s: %s", self._temporary, self.path, error)


class Stage:
    """New files that get their names together, in the order made, once all of them are on the device.

    Used as a context; leaving it without `publish` removes what was written.
    """

    def __init__(self) -> None:
        self._files: list[NewFile] = []
        self._closing = contextlib.ExitStack()

    def create(self, path: str) -> NewFile:
        """Return a new file that is to become `path`, after what was staged before is safe on the device."""
        self.sync()
        file = NewFile(path)
        self._closing.callback(file.close)
        file.open()
        self._files.append(file)
        return file

    def sync(self) -> None:
        """Bring what was staged last onto the device."""
        if self._files:
            self._files[-1].sync()

    def publish(self, names: Collection[str] | None = None, *, only_new: bool = False) -> None:
        """Give the files, or those with these own `names`, their names, and sync their directories: they are there.

        With `only_new`, a name that is taken is a FileExistsError.
        """
        self.sync()
        files = [file for file in self._files if names is None or file.path in names]
        for file in files:
            if only_new:
                file.rename_to_new()
            else:
                file.rename()
        for directory in {os.path.dirname(file.path) for file in files}:
            sync_directory(directory)

    def published(self) -> list[str]:
        """Return the names that files have got, whatever the calls that gave them reported."""
        return [file.path for file in self._files if file.is_at_its_path()]

    def unlock(self) -> None:
        """Let others lock the files, which have their names."""
        for file in self._files:
            file.unlock()

    def close(self) -> None:
        """Close the files, and remove those without a name of their own."""
        self._closing.close()

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_atomic(path: str, data: bytes) -> None:
    """Replace `path` by a file of these bytes: whole, durable, or not at all.

    Raises:
        OSError: Naming `path`; the old file is as it was or, if only its directory was not synced, replaced whole.
    """
    with Stage() as stage:
        stage.create(path).write(0, [data])
        stage.publish()


def link_atomic(source: str, path: str) -> None:
    """Make `path` another name of the file `source`, in place of what had it; without hard links, a copy of the file.

    Raises:
        OSError: Naming `path`, which leads to the old file, or to the new one that is not durable yet.
    """
    if os.path.exists(path) and os.path.samefile(source, path):
        return
    temporary = paths.temporary_file(os.path.dirname(path))
    with _naming(path):
        try:
            os.link(source, temporary, follow_symlinks=False)
            os.replace(temporary, path)
        except OSError as error:
            was_swept = isinstance(error, FileNotFoundError) and os.path.lexists(source)  # by another process
            if not was_swept and error.errno not in (*_NO_LINKS, errno.EMLINK):
                raise
            _copy_atomic(source, path)
        finally:
            remove(temporary)
    sync_directory(os.path.dirname(path))


def _copy_atomic(source: str, path: str) -> None:
    with open(source, "rb") as file, Stage() as stage:
        copy, position = stage.create(path), 0
        while data := file.read(_COPIED_BYTES):
            copy.write(position, [data])
            position += len(data)
        stage.publish()


def make_directories(directory: str) -> None:
    """Create a directory and the missing ones above it, durably; an existing one is left alone.

    Raises:
        NotADirectoryError, FileExistsError: A file is in the way.
    """
    directory = directory or "."
    if os.path.isdir(directory):
        return
    parent = os.path.dirname(directory.rstrip(os.sep))
    if parent != directory:
        make_directories(parent)
    try:
        os.mkdir(directory)
        sync_directory(parent)
    except FileExistsError:
        if not os.path.isdir(directory):  # else another process made it meanwhile
            raise
    except BaseException:
        with contextlib.suppress(OSError):
            os.rmdir(directory)  # a directory that is there is taken for durable
        raise


def remove(path: str) -> None:
    """Remove one file by its literal name; one that is gone already is no error."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sync_directory(directory: str) -> None:
    """Wait until names in `directory` are on the device (a rename is durable only then)."""
    with _naming(directory or "."):
        fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def sweep(directory: str) -> None:
    """Remove temporary files whose writers have died; those of live writers are left alone."""
    for name in os.listdir(directory or "."):
        if paths.is_temporary(name):
            path = os.path.join(directory, name)
            try:
                remove_if_abandoned(path, shared=True)
            except OSError as error:  # it is in nobody's way; the next save tries again
                logger.warning("could not remove the leftover %s: %s", path, error)


def remove_if_abandoned(path: str, *, shared: bool = False) -> None:
    """Remove a file unless a Stage of a live writer, in this process or another, still holds it.

    With `shared`, readers may hold it: a temporary name may be a second one of a file that has its own by now.
    """
    try:
        descriptor = locks.Descriptor(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK))
    except FileNotFoundError:  # its writer has just finished
        return
    try:
        if locks.acquire(descriptor.fd, shared=shared):
            remove(path)
    finally:
        descriptor.close()


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Let an OSError name the file the caller knows, and say what to do about a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            remedy = "the file was not written and nothing was removed; free space and save again"
            raise OSError(error.errno, f"{os.strerror(error.errno)}: {remedy}", path) from error
        raise OSError(error.errno, error.strerror or str(error), path) from error
