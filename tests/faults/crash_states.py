"""What a disk may hold after a power loss: every state, within bounds, that recorded operations can leave.

Two models of a file system (after Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014):

    journalled  as ext4 with its defaults: changes of names reach the disk in order, so some prefix of them survives,
                and any fsync brings those before it; data not synced may be missing, short, or zeros. A rename over a
                file, and the close of a file cut to nothing, flush its data first (auto_da_alloc).
    weak        what POSIX promises and no more: only fsync of a file makes its data durable, only fsync of a directory
                its entries; of other entries any subset may survive, and data may be lost, torn or zeros.

Bounds: of n unsynced name changes the weak model takes all, none, each prefix, each alone, and all but one; unsynced
data is lost whole, half, as zeros or in its first page, for all files or for one. What was recorded before the newest
save began counts as durable (`settle`): saves are minutes apart, and a kernel writes back within half a minute.

    >>> from faults.operations import Recording
    >>> recording = Recording()
    >>> file = recording.create("new")
    >>> recording.write(file, b"value")  # and no fsync(file)
    >>> recording.rename("new", "state")
    >>> recording.fsync(0)
    >>> sorted({dict(state.tree.files).get("state") for state in states(recording, "weak")} - {None})
    [b'', b'\\x00\\x00\\x00\\x00\\x00', b'value']

Nothing here touches a disk but `materialise` and `snapshot`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from faults.file_damage import Contents, Damage
from faults.operations import (
    ROOT,
    AddName,
    Close,
    Fsync,
    NameOperation,
    Operation,
    Recording,
    RemoveName,
    Rename,
    SaveAcked,
    SaveStarted,
    SyncAll,
    Truncate,
)

Model = Literal["journalled", "weak"]
MODELS: tuple[Model, ...] = get_args(Model)


@dataclass(frozen=True)
class Tree:
    """Content of a directory: paths of directories, and (path, bytes) of files; both sorted, so that equal is equal."""

    directories: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class State:
    """What may be on the disk when the power fails after the first `operations` of a recording.

    Attributes:
        tree: The content of the directory.
        operations: How many operations had been done.
        acked: Steps whose saves had returned.
        in_flight: Step whose save had begun and not returned.
    """

    tree: Tree
    operations: int
    acked: tuple[int, ...]
    in_flight: int | None


def states(recording: Recording, model: Model, *, settle: bool = True) -> Iterator[State]:
    """Yield the states that a power loss after any operation may leave; many are equal, see `distinct`.

    Args:
        recording: What was done.
        model: How the file system behaves.
        settle: Count what was done before the newest save began as durable.
    """
    operations, contents = recording.operations, Contents(recording)
    first = floor = recording.initial_operations
    acked: tuple[int, ...] = ()
    in_flight: int | None = None
    for done in range(first, len(operations) + 1):
        last = operations[done - 1] if done > first else None
        if isinstance(last, SaveStarted):
            in_flight = last.step
            floor = done - 1 if settle else floor
        elif isinstance(last, SaveAcked):
            acked, in_flight = (*acked, last.step), None
        elif isinstance(last, (Close, Fsync)) and done < len(operations):
            continue  # whatever this leaves, the operation before it could leave too
        for tree in _trees(recording, contents, model, done, floor):
            yield State(tree, done, acked, in_flight)


def distinct(every: Iterable[State]) -> dict[Tree, list[State]]:
    """Return the different trees among states, each with one state for each promise it has to keep."""
    found: dict[Tree, dict[tuple[tuple[int, ...], int | None], State]] = {}
    for state in every:
        found.setdefault(state.tree, {}).setdefault((state.acked, state.in_flight), state)
    return {tree: list(by_promise.values()) for tree, by_promise in found.items()}


def final_tree(recording: Recording) -> Tree:
    """Return what the directory holds when everything recorded has been done; compare it with the real one."""
    done = len(recording.operations)
    names = [index for index, operation in enumerate(recording.operations) if isinstance(operation, NameOperation)]
    return _build(recording, names, Contents(recording).after(done, lambda _file: done, {}))


def materialise(tree: Tree, directory: str) -> None:
    """Make `directory` hold exactly `tree`."""
    os.makedirs(directory, exist_ok=True)
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    for path in tree.directories:
        os.makedirs(os.path.join(directory, path), exist_ok=True)
    for path, data in tree.files:
        with open(os.path.join(directory, path), "wb") as file:
            file.write(data)


def snapshot(directory: str) -> Tree:
    """Return what `directory` holds."""
    directories, files = [], []
    for where, below, names in os.walk(directory):
        directories += [os.path.relpath(os.path.join(where, name), directory) for name in below]
        for name in names:
            path = os.path.join(where, name)
            with open(path, "rb") as file:
                files.append((os.path.relpath(path, directory), file.read()))
    return Tree(tuple(sorted(directories)), tuple(sorted(files)))


# ---- what is durable


@dataclass
class _Durable:
    """Operations that surely are on the disk: of each file's data, and of names, those of a lower index."""

    floor: int
    data: dict[int, int] = field(default_factory=dict)
    names: set[int] = field(default_factory=set)

    def of(self, file: int) -> int:
        return max(self.floor, self.data.get(file, 0))

    def with_flushed(self, flushed: Mapping[int, int]) -> _Durable:
        data = {file: max(self.of(file), flushed.get(file, 0)) for file in {*self.data, *flushed}}
        return _Durable(self.floor, data, self.names)


def _durable(operations: Sequence[Operation], names: Sequence[int], model: Model, floor: int) -> _Durable:
    durable = _Durable(floor)
    committed = floor  # name changes before this are durable for one reason or another
    for index, operation in enumerate(operations):
        if isinstance(operation, SyncAll):
            durable.floor = max(floor, index)
            committed = index
        elif isinstance(operation, Fsync):
            durable.data[operation.node] = index
            if model == "journalled":
                committed = max(committed, index)
            else:
                durable.names |= {i for i in names if i < index and operation.node in _directories(operations[i])}
    durable.names |= {i for i in names if i < committed}
    return durable.with_flushed(_flushed_by_close(operations)) if model == "journalled" else durable


def _directories(operation: Operation) -> tuple[int, ...]:
    """Return the directories whose fsync makes a name change durable."""
    if isinstance(operation, Rename):
        return operation.directory, operation.new_directory
    return (operation.directory,) if isinstance(operation, (AddName, RemoveName)) else ()


def _flushed_by_close(operations: Sequence[Operation]) -> dict[int, int]:
    """Return where the close of a file that had been cut to nothing flushed it."""
    cut: set[int] = set()
    flushed = {}
    for index, operation in enumerate(operations):
        if isinstance(operation, Truncate) and operation.size == 0:
            cut.add(operation.file)
        elif isinstance(operation, Close) and operation.file in cut:
            cut.remove(operation.file)
            flushed[operation.file] = index
    return flushed


# ---- what else may be there


def _trees(recording: Recording, contents: Contents, model: Model, done: int, floor: int) -> Iterator[Tree]:
    operations = recording.operations[:done]
    names = [index for index, operation in enumerate(operations) if isinstance(operation, NameOperation)]
    durable = _durable(operations, names, model, floor)
    for kept in _surviving_names(names, durable, model):
        here = durable
        if model == "journalled":  # a rename over a file flushes what replaces it
            renames = [(index, operations[index]) for index in kept]
            over = {op.node: i for i, op in renames if isinstance(op, Rename) and op.replaced is not None}
            here = durable.with_flushed(over)
        for damage in _damages(contents.volatile(done, here.of), model):
            yield _build(recording, kept, contents.after(done, here.of, damage))


def _surviving_names(names: Sequence[int], durable: _Durable, model: Model) -> Iterator[list[int]]:
    sure = [index for index in names if index in durable.names]
    open_ = [index for index in names if index not in durable.names]
    choices = [open_[:count] for count in range(len(open_) + 1)]
    if model == "weak":
        choices += [[index] for index in open_]
        choices += [[other for other in open_ if other != index] for index in open_]
    for choice in dict.fromkeys(map(tuple, choices)):
        yield sorted([*sure, *choice])


def _damages(volatile: Sequence[int], model: Model) -> Iterator[dict[int, Damage]]:
    yield {}
    if not volatile:
        return
    for_all: tuple[Damage, ...] = (
        ("empty", "half", "old") if model == "journalled" else ("empty", "half", "old", "zeros")
    )
    for_one: tuple[Damage, ...] = ("empty",) if model == "journalled" else ("empty", "zeros", "hole")
    for damage in for_all:
        yield dict.fromkeys(volatile, damage)
    for file in volatile:
        for damage in for_one:
            yield {file: damage}


def _build(recording: Recording, names: Iterable[int], content: Callable[[int], bytes]) -> Tree:
    """Return the tree that these name changes make, and `content`, by a file's number, fills."""
    entries = {directory: dict(inside) for directory, inside in recording.initial.items()}
    for index in names:
        _apply_name(entries, recording.operations[index])
    directories: list[str] = []
    files: list[tuple[str, bytes]] = []
    todo = [(ROOT, "")]
    while todo:
        directory, above = todo.pop()
        for name, node in entries.get(directory, {}).items():
            if node in recording.directories:
                directories.append(above + name)
                todo.append((node, f"{above}{name}/"))
            else:
                files.append((above + name, content(node)))
    return Tree(tuple(sorted(directories)), tuple(sorted(files)))


def _apply_name(entries: dict[int, dict[str, int]], operation: Operation) -> None:
    if isinstance(operation, AddName):
        entries.setdefault(operation.directory, {})[operation.name] = operation.node
    elif isinstance(operation, (RemoveName, Rename)):
        inside = entries.setdefault(operation.directory, {})
        if inside.get(operation.name) == operation.node:
            del inside[operation.name]
        if isinstance(operation, Rename):
            entries.setdefault(operation.new_directory, {})[operation.new_name] = operation.node
