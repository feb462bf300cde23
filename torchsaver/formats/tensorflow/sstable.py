"""Sorted string tables, LevelDB's, in which TensorFlow keeps the index of a bundle and the whole of a V1 file.

    file    blocks, then a footer of 48 bytes: handles of the metaindex and the index block, padding, MAGIC
    block   contents | type, 0 plain or 1 snappy | masked CRC-32C of both; a handle's size is that of contents
    contents   entries | restarts, u32 each | number of restarts, u32
    entry   shared, unshared, value size: varints | unshared bytes of the key | value

The index block's entries have handles of data blocks as their values.

Source: table_format.md in github.com/google/leveldb; block.cc and format.cc in TensorFlow's tsl/lib/io.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.checksum import crc32c
from torchsaver.formats.regular_file import RegularFile
from torchsaver.formats.tensorflow import snappy
from torchsaver.formats.tensorflow.wire import read_varint

FOOTER_BYTES = 48
TRAILER_BYTES = 5  # of a block: its type and checksum
MAGIC = bytes.fromhex("57fb808b247547db")
_MASK_DELTA = 0xA282EAD8
# Keys of a block to its size in the file. TensorFlow writes every 16th key whole, so that its keys have no more than 16
# times as many bytes; keys that all share a long beginning could have any number.
_MOST_KEY_GROWTH = 64
_MOST_ENTRY_BYTES = 5  # of each of the three varints at the start of an entry, which are of 32 bits


def masked(checksum: int) -> int:
    """Return a CRC-32C as tables and bundles store it, so that one of bytes with one in them is as good as any.

    Source: crc32c.h in LevelDB.
    """
    return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & 0xFFFFFFFF


def unmasked(stored: int) -> int:
    """Return the CRC-32C that is stored as `stored`."""
    rotated = (stored - _MASK_DELTA) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def has_magic(file: RegularFile) -> bool:
    """Return whether a file ends as a table does."""
    return file.nbytes >= FOOTER_BYTES and file.read(file.nbytes - len(MAGIC), len(MAGIC)) == MAGIC


def read_table(file: RegularFile) -> Iterator[tuple[bytes, bytes]]:
    """Yield every (key, value) in order, a block at a time, each with its checksum verified.

    Raises:
        CorruptCheckpointError: It is no table, or a damaged one; keys that do not ascend are damage too.
    """
    last: bytes | None = None
    for offset, nbytes in read_handles(file):
        for key, value in read_block(file, offset, nbytes, last):
            last = key
            yield key, value


def read_handles(file: RegularFile) -> list[tuple[int, int]]:
    """Return the (offset, size) of each data block, in the order of their keys; errors as `read_index`."""
    return [(offset, nbytes) for _, offset, nbytes in read_index(file)]


def read_index(file: RegularFile) -> list[tuple[bytes, int, int]]:
    """Return (separator, offset, size) of each data block in order; no key of a block is above its separator.

    Raises:
        CorruptCheckpointError: The footer or the index block is damaged, or the blocks are more than fit into the file.
    """
    if file.nbytes < FOOTER_BYTES:
        raise CorruptCheckpointError(file.path, 0, f"{file.nbytes} bytes are too short for a table")
    start = file.nbytes - FOOTER_BYTES
    footer = bytes(file.read(start, FOOTER_BYTES))
    if not footer.endswith(MAGIC):
        raise CorruptCheckpointError(file.path, file.nbytes - len(MAGIC), "it does not end as a table does")
    try:
        _, position = _read_handle(footer, 0)
        (offset, nbytes), _ = _read_handle(footer, position)
    except ValueError as error:
        raise CorruptCheckpointError(file.path, start, f"footer: {error}") from error
    blocks, total = [], 0
    for key, value in _entries(file, offset, nbytes):
        try:
            (start, size), _ = _read_handle(value, 0)
        except ValueError as error:
            raise CorruptCheckpointError(file.path, offset, f"index block, {key!r}: {error}") from error
        total += size + TRAILER_BYTES
        if total > file.nbytes:  # or one block could be read ten thousand times
            raise CorruptCheckpointError(file.path, offset, "the index block has more blocks than the file can hold")
        blocks.append((key, start, size))
    return blocks


def read_block(file: RegularFile, offset: int, nbytes: int, last: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) entries of one block, after verifying its checksum.

    Args:
        file: The table.
        offset: Where the block starts.
        nbytes: Size of the block, as a handle has it.
        last: The last key of the block before, if there is one.

    Raises:
        CorruptCheckpointError: It lies outside the file, is damaged, or its keys do not ascend.
        UnsupportedCheckpointError: It is compressed in a way that is not known.
    """
    for key, value in _entries(file, offset, nbytes):
        if last is not None and key <= last:
            raise CorruptCheckpointError(file.path, offset, f"key {key!r} comes after {last!r}")
        last = key
        yield key, value


def _entries(file: RegularFile, offset: int, nbytes: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of a block, whether their keys ascend or not; errors as `read_block`."""
    if offset + nbytes + TRAILER_BYTES > file.nbytes - FOOTER_BYTES:
        raise CorruptCheckpointError(file.path, offset, f"a block of {nbytes} bytes at {offset} ends beyond the blocks")
    data = bytes(file.read(offset, nbytes + TRAILER_BYTES))
    stored, found = int.from_bytes(data[nbytes + 1 :], "little"), masked(crc32c(memoryview(data)[: nbytes + 1]))
    if stored != found:
        raise CorruptCheckpointError(file.path, offset, f"checksum of a block: {stored:08x} stored, {found:08x} found")
    if data[nbytes] not in _PLAIN:
        raise UnsupportedCheckpointError(
            file.path, f"a block is of type {data[nbytes]}; 0, plain, and 1, snappy, are known"
        )
    try:
        yield from _parse_block(_PLAIN[data[nbytes]](data[:nbytes]), _MOST_KEY_GROWTH * nbytes)
    except ValueError as error:
        raise CorruptCheckpointError(file.path, offset, f"block: {error}") from error


# By a block's type.
_PLAIN: dict[int, Callable[[bytes], bytes]] = {0: bytes, 1: snappy.decompress}


def _parse_block(contents: bytes, most_key_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    restarts = int.from_bytes(contents[-4:], "little")
    end = len(contents) - 4 - 4 * restarts
    if len(contents) < 4 or not restarts or end < 0:
        raise ValueError(f"{len(contents)} bytes with {restarts} restarts")
    position, key = 0, b""
    while position < end:
        shared, unshared, value_bytes, position = _entry_sizes(contents, position)
        value_start = position + unshared
        if shared > len(key) or value_start + value_bytes > end:
            raise ValueError(f"an entry before byte {position} reaches beyond the block or the key before it")
        key = key[:shared] + contents[position:value_start]
        most_key_bytes -= len(key)
        if most_key_bytes < 0:
            raise ValueError("its keys are far longer than itself")
        position = value_start + value_bytes
        yield key, contents[value_start:position]


def _entry_sizes(contents: bytes, position: int) -> tuple[int, int, int, int]:
    """Return shared, unshared and value size of the entry at `position`, and where its key starts."""
    sizes = contents[position : position + 3]
    if len(sizes) == 3 and max(sizes) < 0x80:  # nearly always
        return sizes[0], sizes[1], sizes[2], position + 3
    shared, position = read_varint(contents, position, _MOST_ENTRY_BYTES)
    unshared, position = read_varint(contents, position, _MOST_ENTRY_BYTES)
    value_bytes, position = read_varint(contents, position, _MOST_ENTRY_BYTES)
    return shared, unshared, value_bytes, position


def _read_handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = read_varint(data, position)
    nbytes, position = read_varint(data, position)
    return (offset, nbytes), position
