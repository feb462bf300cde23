"""Reading much of a file at once: several threads, each a chunk at a time.

What the page cache holds is copied from there. What it does not hold can be read around it: that is faster, and leaves
the cache to others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from torchsaver.formats.checksum import crc32c
from torchsaver.formats.chunks import CHUNK_BYTES, Chunk
from torchsaver.formats.direct_io import MARGIN_BYTES, DirectReads
from torchsaver.formats.memory import copy_bytes, device_buffer
from torchsaver.formats.parallel import cores, share
from torchsaver.formats.regular_file import RegularFile

_FEW_BYTES = 4 << 20  # are read sooner than threads have started
_DISK_REQUESTS = 8  # a disk has several in hand at once, whatever the number of cores

# Returns the bytes [position, position + nbytes) of a file if they are to be had past the page cache.
_ReadDirect: TypeAlias = "Callable[[int, int, memoryview], memoryview | None] | None"


def read_chunks(
    file: RegularFile,
    base: int,
    chunks: Sequence[Chunk],
    *,
    fill: bool = False,
    checksum: bool = False,
    past_cache: bool = True,
) -> list[list[int]]:
    """Read chunks of a file.

    Args:
        file: Where they are.
        base: Where the file's data starts.
        chunks: What to read.
        fill: Whether each piece goes into its own memory, which the caller keeps alive.
        checksum: Whether to return checksums.
        past_cache: Whether to read around the page cache what is not in it; False for what is read again soon.

    Returns:
        If asked for, the CRC-32C of each chunk's pieces, as they are on the disk now.

    Raises:
        CorruptCheckpointError, OSError: As `RegularFile.read_into`; some pieces have been read by then.
    """
    found: list[list[int]] = [[]] * len(chunks)

    def read(number: int, buffer: memoryview, read_direct: _ReadDirect) -> None:
        chunk = chunks[number]
        pieces = chunk.memory
        data = read_direct(base + chunk.start, chunk.nbytes, buffer) if read_direct else None
        if data is not None:
            pieces = _cut(data, chunk.sizes)
            if fill:
                for target, piece in zip(chunk.memory, pieces, strict=True):
                    copy_bytes(target, piece)
        elif fill:
            file.read_into(base + chunk.start, pieces)
        else:
            file.read_into(base + chunk.start, [buffer[: chunk.nbytes]])
            pieces = _cut(buffer, chunk.sizes)
        if checksum:
            found[number] = list(map(crc32c, pieces))

    _for_each(file, chunks, read, past_cache=past_cache)
    return found


def _cut(data: memoryview, sizes: list[int]) -> list[memoryview]:
    return [data[start:end] for start, end in itertools.pairwise(itertools.accumulate(sizes, initial=0))]


def _for_each(
    file: RegularFile,
    chunks: Sequence[Chunk],
    work: Callable[[int, memoryview, _ReadDirect], None],
    *,
    past_cache: bool,
) -> None:
    """Do the work for each chunk, given by its number, with a buffer that holds it; in threads if there is much."""
    if sum(chunk.nbytes for chunk in chunks) <= _FEW_BYTES:
        small = memoryview(bytearray(max((chunk.nbytes for chunk in chunks), default=0)))
        for number in range(len(chunks)):
            work(number, small, None)
        return
    with DirectReads(file) as direct:
        read_direct = direct.read if past_cache else None

        def run(numbers: Iterable[int]) -> None:
            buffer = device_buffer(CHUNK_BYTES + MARGIN_BYTES)
            for number in numbers:
                work(number, buffer, read_direct)

        share(len(chunks), _DISK_REQUESTS if past_cache else 2 * cores(), run)
