"""Sorted string tables, written as TensorFlow's own writer does, byte for byte; the layout is described in sstable.py.

Source: TableBuilder and BlockBuilder in TensorFlow's tsl/lib/io; LevelDB's, but for the size of a block.
"""

from __future__ import annotations

from collections.abc import Iterable

from torchsaver.formats.checksum import crc32c
from torchsaver.formats.tensorflow.sstable import FOOTER_BYTES, MAGIC, TRAILER_BYTES, masked
from torchsaver.formats.tensorflow.wire import format_varint

BLOCK_BYTES = 262144  # a block is ended when it has as many
_LARGE_ENTRY_BYTES = 2 * BLOCK_BYTES  # such an entry does not go into a block that has others already
_RESTART_INTERVAL = 16  # entries from one whole key to the next
_PLAIN = b"\x00"  # type of a block that is not compressed


def format_table(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the file of a table with these (key, value).

    Args:
        entries: Their keys ascend as bytes do.

    Raises:
        ValueError: The keys do not ascend.
    """
    table = _Table()
    for key, value in entries:
        table.add(key, value)
    return table.finish()


class _Block:
    """The contents of a block: entries whose keys leave out what they share with the key before."""

    def __init__(self, restart_interval: int = _RESTART_INTERVAL) -> None:
        self._interval = restart_interval
        self._data = bytearray()
        self._restarts = [0]
        self._since_restart = 0
        self._last = b""
        self.is_empty = True

    def add(self, key: bytes, value: bytes) -> None:
        """Add an entry."""
        shared = 0
        if self._since_restart < self._interval:
            shared = _shared_bytes(self._last, key)
        else:
            self._restarts.append(len(self._data))
            self._since_restart = 0
        sizes = shared, len(key) - shared, len(value)
        self._data += b"".join(map(format_varint, sizes)) + key[shared:] + value
        self._since_restart += 1
        self._last, self.is_empty = key, False

    @property
    def nbytes(self) -> int:
        """Size of its contents."""
        return len(self._data) + 4 * len(self._restarts) + 4

    def contents(self) -> bytes:
        """Return its contents."""
        return bytes(self._data) + b"".join(n.to_bytes(4, "little") for n in (*self._restarts, len(self._restarts)))


class _Table:
    """A table on its way; a block's place in the index is known when the first key of the next one is."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._block, self._index = _Block(), _Block(restart_interval=1)
        self._last: bytes | None = None
        self._handle: bytes | None = None  # of the last block, while it is not in the index

    def add(self, key: bytes, value: bytes) -> None:
        """Add an entry."""
        if self._last is not None and key <= self._last:
            raise ValueError(f"key {key!r} comes after {self._last!r}")
        if len(key) + len(value) >= _LARGE_ENTRY_BYTES:
            self._end_block()
        if self._handle is not None and self._last is not None:
            self._index.add(_separator(self._last, key), self._handle)
            self._handle = None
        self._block.add(key, value)
        self._last = key
        if self._block.nbytes >= BLOCK_BYTES:
            self._end_block()

    def _end_block(self) -> None:
        if not self._block.is_empty:
            self._handle = self._write(self._block)
            self._block = _Block()

    def _write(self, block: _Block) -> bytes:
        """Write a block and return its handle."""
        contents = block.contents()
        handle = format_varint(len(self._data)) + format_varint(len(contents))
        self._data += contents + _PLAIN + masked(crc32c(contents + _PLAIN)).to_bytes(TRAILER_BYTES - 1, "little")
        return handle

    def finish(self) -> bytes:
        """Return the file."""
        self._end_block()
        metaindex = self._write(_Block())
        if self._handle is not None and self._last is not None:
            self._index.add(_successor(self._last), self._handle)
        handles = metaindex + self._write(self._index)
        return bytes(self._data) + handles.ljust(FOOTER_BYTES - len(MAGIC), b"\x00") + MAGIC


def _shared_bytes(one: bytes, two: bytes) -> int:
    """Return how many bytes the two begin with alike."""
    if two.startswith(one):
        return len(one)
    return next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def _separator(last: bytes, following: bytes) -> bytes:
    """Return a short key that is not below `last`, and below `following`."""
    shared = _shared_bytes(last, following)
    if shared < len(last) and last[shared] + 1 < following[shared]:
        return last[:shared] + bytes([last[shared] + 1])
    return last


def _successor(last: bytes) -> bytes:
    """Return a short key that is not below `last`."""
    first = next((n for n, byte in enumerate(last) if byte != 0xFF), None)
    return last if first is None else last[:first] + bytes([last[first] + 1])
