"""What a power loss may leave of the data of one file."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from faults.operations import DataOperation, Recording, Truncate, Write

PAGE_BYTES = 4096
SECTOR_BYTES = 512

# What becomes of the unsynced operations of one file:
#   whole all done, old none done, empty cut but not written, half the first half written, zeros the size but no data,
#   hole all but the first page
Damage = Literal["whole", "old", "empty", "half", "zeros", "hole"]


class Contents:
    """Bytes of every file after so many operations, with so much of it durable; each is worked out once."""

    def __init__(self, recording: Recording) -> None:
        self._operations: dict[int, list[tuple[int, DataOperation]]] = {}
        for index, operation in enumerate(recording.operations):
            if isinstance(operation, DataOperation):
                self._operations.setdefault(operation.file, []).append((index, operation))
        self._known: dict[tuple[int, int, int, Damage], bytes] = {}

    def _count(self, file: int, before: int) -> int:
        return bisect_left(self._operations.get(file, []), before, key=lambda item: item[0])

    def volatile(self, done: int, safe: Callable[[int], int]) -> list[int]:
        """Return the files with data that is not durable; of file f, what is before `safe(f)` is."""
        return [file for file in self._operations if self._count(file, done) > self._count(file, safe(file))]

    def after(self, done: int, safe: Callable[[int], int], damage: Mapping[int, Damage]) -> Callable[[int], bytes]:
        """Return a function from a file to its bytes: `done` operations, those before `safe(f)` whole, others damaged."""
        return lambda file: self._bytes(file, done, safe(file), damage.get(file, "whole"))

    def _bytes(self, file: int, done: int, durable: int, damage: Damage) -> bytes:
        total = self._count(file, done)
        safe = min(total, self._count(file, durable))
        key = (file, total, safe, damage if safe < total else "whole")
        if key not in self._known:
            operations = [operation for _, operation in self._operations.get(file, [])[:total]]
            self._known[key] = _content([*operations[:safe], *_damaged(operations[safe:], key[3])])
        return self._known[key]


def _damaged(operations: Sequence[DataOperation], damage: Damage) -> Iterator[DataOperation]:
    """Yield what is left of operations that nothing has made durable."""
    if damage == "old":
        return
    left = sum(len(operation.data) for operation in operations if isinstance(operation, Write)) // 2
    left -= left % SECTOR_BYTES
    for operation in operations:
        if isinstance(operation, Truncate):
            if operation.size == 0 or damage not in ("empty", "half"):
                yield operation
        elif damage == "half":
            yield Write(operation.file, operation.offset, operation.data[:left])
            left = max(0, left - len(operation.data))
        elif damage != "empty":
            zeros = {"whole": 0, "hole": max(0, PAGE_BYTES - operation.offset)}.get(damage, len(operation.data))
            start = operation.data[:zeros]
            yield Write(operation.file, operation.offset, b"\0" * len(start) + operation.data[zeros:])


def _content(operations: Iterable[DataOperation]) -> bytes:
    data = bytearray()
    for operation in operations:
        if isinstance(operation, Truncate):
            del data[operation.size :]
            data.extend(b"\0" * (operation.size - len(data)))
        elif operation.data:
            data.extend(b"\0" * (operation.offset - len(data)))
            data[operation.offset : operation.offset + len(operation.data)] = operation.data
    return bytes(data)
