"""What happens to one directory tree, as a file system sees it: operations on numbered files, and their recorder.

Names and files are kept apart, because a disk keeps them apart: data is written to a file, whatever it is called, and a
name is an entry of a directory, whatever it leads to. `crash_states` works out what a power loss may leave of a
recording; a recording is made from a system-call trace (`strace_log`), from calls that were intercepted, or by hand.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

ROOT = 0  # number of the directory itself


@dataclass(frozen=True)
class Write:
    """`data` was written to a file at `offset`."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    """A file was cut, or extended by zeros, to `size` bytes."""

    file: int
    size: int


@dataclass(frozen=True)
class Close:
    """A descriptor of a file was closed: some file systems then flush a file that had been truncated."""

    file: int


@dataclass(frozen=True)
class AddName:
    """`directory` got an entry: a new file, a new directory, or a hard link."""

    directory: int
    name: str
    node: int


@dataclass(frozen=True)
class Rename:
    """An entry moved; `replaced` is what its new name led to before."""

    directory: int
    name: str
    new_directory: int
    new_name: str
    node: int
    replaced: int | None


@dataclass(frozen=True)
class RemoveName:
    """`directory` lost an entry."""

    directory: int
    name: str
    node: int


@dataclass(frozen=True)
class Fsync:
    """fsync or fdatasync of a file or a directory returned without an error."""

    node: int


@dataclass(frozen=True)
class SyncAll:
    """sync or syncfs returned."""


@dataclass(frozen=True)
class SaveStarted:
    """Mark: a save of this step began."""

    step: int


@dataclass(frozen=True)
class SaveAcked:
    """Mark: the save of this step returned normally, so that from here on it is promised."""

    step: int


NameOperation = AddName | Rename | RemoveName
DataOperation = Write | Truncate
Operation = NameOperation | DataOperation | Close | Fsync | SyncAll | SaveStarted | SaveAcked


class Recording:
    """A list of operations, made by telling it what a program does; paths are relative to the directory recorded.

    Example: `crash_states` has one.

    Args:
        existing: A directory whose content was there before and is durable; None: it was empty.

    Attributes:
        operations: What was recorded so far, in order.
        initial: Entries of each directory at the beginning, by its number.
        initial_operations: How many of `operations` are writes of what was there at the beginning.
        directories: Numbers that are directories; all others are files.
    """

    def __init__(self, existing: str | None = None) -> None:
        self.operations: list[Operation] = []
        self.directories = {ROOT}
        self._entries: dict[int, dict[str, int]] = {ROOT: {}}
        self._sizes: dict[int, int] = {}
        self._next = ROOT + 1
        if existing is not None:
            self._read(existing)
        self.initial = {directory: dict(entries) for directory, entries in self._entries.items()}
        self.initial_operations = len(self.operations)

    # ---- names

    def lookup(self, path: str) -> int | None:
        """Return the number of the file or directory at `path`, None when there is none."""
        node: int | None = ROOT
        for part in _parts(path):
            node = self._entries.get(node, {}).get(part) if node is not None else None
        return node

    def create(self, path: str) -> int:
        """Record a new empty file at `path`, and return its number."""
        return self.link(self.new_file(), path)

    def new_file(self) -> int:
        """Return the number of a new empty file that has no name yet (O_TMPFILE)."""
        node, self._next = self._next, self._next + 1
        self._sizes[node] = 0
        return node

    def make_directory(self, path: str) -> int:
        """Record a new directory at `path`, and return its number."""
        node, self._next = self._next, self._next + 1
        self.directories.add(node)
        self._entries[node] = {}
        return self.link(node, path)

    def link(self, node: int, path: str) -> int:
        """Record another name for a file, and return its number."""
        directory, name = self._place(path)
        self._entries[directory][name] = node
        self.operations.append(AddName(directory, name, node))
        return node

    def rename(self, old: str, new: str) -> None:
        """Record a rename, over whatever had the new name."""
        directory, name = self._place(old)
        new_directory, new_name = self._place(new)
        node = self._entries[directory].pop(name)
        replaced = self._entries[new_directory].get(new_name)
        self._entries[new_directory][new_name] = node
        self.operations.append(Rename(directory, name, new_directory, new_name, node, replaced))

    def remove(self, path: str) -> None:
        """Record that a name, of a file or of an empty directory, was removed."""
        directory, name = self._place(path)
        self.operations.append(RemoveName(directory, name, self._entries[directory].pop(name)))

    # ---- content

    def size(self, file: int) -> int:
        """Return how many bytes a file has."""
        return self._sizes[file]

    def write(self, file: int, data: bytes, offset: int | None = None) -> None:
        """Record a write at `offset`, by default at the end."""
        start = self._sizes[file] if offset is None else offset
        self._sizes[file] = max(self._sizes[file], start + len(data))
        self.operations.append(Write(file, start, data))

    def truncate(self, file: int, size: int) -> None:
        """Record that a file was cut or extended."""
        self._sizes[file] = size
        self.operations.append(Truncate(file, size))

    def close(self, file: int) -> None:
        """Record that a descriptor was closed; of a directory it means nothing."""
        if file not in self.directories:
            self.operations.append(Close(file))

    # ---- promises

    def fsync(self, node: int) -> None:
        """Record a successful fsync of a file or a directory."""
        self.operations.append(Fsync(node))

    def sync_all(self) -> None:
        """Record a sync of the whole file system."""
        self.operations.append(SyncAll())

    def save_started(self, step: int) -> None:
        """Mark the start of a save."""
        self.operations.append(SaveStarted(step))

    def save_acked(self, step: int) -> None:
        """Mark that a save returned."""
        self.operations.append(SaveAcked(step))

    def _place(self, path: str) -> tuple[int, str]:
        """Return the directory and the name in it that `path` means."""
        *above, name = _parts(path)
        directory = self.lookup("/".join(above))
        if directory is None:
            raise FileNotFoundError(f"{path!r}: nothing recorded makes the directory it is in")
        return directory, name

    def _read(self, existing: str) -> None:
        for where, directories, files in os.walk(existing):
            inside = os.path.relpath(where, existing)
            for name in directories:
                self.make_directory(os.path.join(inside, name))
            for name in files:
                with open(os.path.join(where, name), "rb") as file:
                    self.write(self.create(os.path.join(inside, name)), file.read())
        self.operations = [operation for operation in self.operations if isinstance(operation, Write)]


def _parts(path: str) -> list[str]:
    return [part for part in os.path.normpath(path or ".").split("/") if part != "."]
