"""A file's data in chunks: what is written, read and checksummed at a time, whatever the tensors in it are like.

A chunk has as many small tensors as go into one system call, or a part of a large one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from torchsaver.formats.checksum import joined_crc32c
from torchsaver.formats.memory import memory_at
from torchsaver.formats.regular_file import MOST_BUFFERS

FEW_PIECES = 16  # a chunk of more takes its time in Python, where threads are in each other's way
CHUNK_BYTES = 1 << 20  # stays in the processor's cache between reading or writing it and its checksum


# The bytes [start, end) of a file's data, and the address of the memory that has or takes them; 0: no memory. A plain
# tuple: there are tens of thousands, and one with names takes as long as all that is done with it.
Extent: TypeAlias = tuple[int, int, int]


class Chunk(NamedTuple):
    """Consecutive bytes of a file's data, in pieces.

    Attributes:
        start: Where they begin.
        nbytes: How many they are, CHUNK_BYTES at most.
        sizes: Bytes of each piece, none of them empty.
        owners: The number of the extent each piece belongs to.
        memory: Each piece's memory; it owns nothing, and has no meaning for an extent without memory.
    """

    start: int
    nbytes: int
    sizes: list[int]
    owners: list[int]
    memory: list[memoryview]


def cut_into_chunks(extents: Iterable[Extent]) -> list[Chunk]:
    """Return the chunks of extents, which are in the order of the file; empty ones have none."""
    chunks: list[Chunk] = []
    start = end = 0
    sizes: list[int] = []
    owners: list[int] = []
    memory: list[memoryview] = []
    for owner, extent in enumerate(extents):
        position, stop, address = extent
        while position < stop:
            # All pieces of an extent but the first have the same size: their checksums are joined the faster.
            size = (stop - position - 1) % CHUNK_BYTES + 1
            if position != end or end - start + size > CHUNK_BYTES or len(sizes) == MOST_BUFFERS:
                if sizes:
                    chunks.append(Chunk(start, end - start, sizes, owners, memory))
                start, sizes, owners, memory = position, [], [], []
            sizes.append(size)
            owners.append(owner)
            memory.append(memory_at(address, size))
            position += size
            address += size
            end = position
    if sizes:
        chunks.append(Chunk(start, end - start, sizes, owners, memory))
    return chunks


def joined_by_owner(chunks: Sequence[Chunk], checksums: Iterable[Sequence[int]], count: int) -> list[int]:
    """Return the CRC-32C of each of `count` extents, from those of each chunk's pieces; 0 for an empty one."""
    joined = dict.fromkeys(range(count), 0)
    before = None
    for chunk, found in zip(chunks, checksums, strict=True):
        owner = chunk.owners[0]  # only this one can have begun in the chunk before
        first = joined_crc32c(joined[owner], found[0], chunk.sizes[0]) if owner == before else found[0]
        joined.update(zip(chunk.owners, found, strict=True))
        joined[owner] = first
        before = chunk.owners[-1]
    return list(joined.values())
