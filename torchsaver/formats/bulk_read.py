"""Reading much of a file at once: several threads, each a chunk at a time; a disk likes several requests, too."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterable, Sequence

from torchsaver.formats.checksum import crc32c
from torchsaver.formats.chunks import FEW_PIECES, Chunk
from torchsaver.formats.parallel import cores, share
from torchsaver.formats.regular_file import RegularFile

_FEW_BYTES = 4 << 20  # are read sooner than threads have started
_MOST_THREADS = 8  # each has a buffer of a chunk: memory is bounded whatever the number of processors


def read_chunks(
    file: RegularFile, base: int, chunks: Sequence[Chunk], *, fill: bool = False, checksum: bool = False
) -> list[list[int]]:
    """Read chunks of a file.

    Args:
        file: Where they are.
        base: Where the file's data starts.
        chunks: What to read.
        fill: Whether each piece goes into its own memory, which the caller keeps alive.
        checksum: Whether to return checksums.

    Returns:
        If asked for, the CRC-32C of each chunk's pieces, as they are on the disk now.

    Raises:
        CorruptCheckpointError, OSError: As `RegularFile.read_into`; some pieces have been read by then.
    """
    found: list[list[int]] = [[]] * len(chunks)
    buffer_bytes = 1 if fill else max((chunk.nbytes for chunk in chunks), default=1)
    threads = _threads(chunks)

    def read(numbers: Iterable[int]) -> None:
        buffer = memoryview(mmap.mmap(-1, buffer_bytes) if threads > 1 else bytearray(buffer_bytes))
        for number in numbers:
            chunk = chunks[number]
            pieces = chunk.memory if fill else _cut(buffer, chunk.sizes)
            file.read_into(base + chunk.start, pieces if fill else [buffer[: chunk.nbytes]])
            if checksum:
                found[number] = list(map(crc32c, pieces))

    share(len(chunks), threads, read)
    return found


def _threads(chunks: Sequence[Chunk]) -> int:
    if sum(chunk.nbytes for chunk in chunks) <= _FEW_BYTES:
        return 1
    in_small_pieces = sum(len(chunk.sizes) for chunk in chunks) > FEW_PIECES * len(chunks)
    return min(cores() if in_small_pieces else 2 * cores(), _MOST_THREADS)


def _cut(data: memoryview, sizes: list[int]) -> list[memoryview]:
    return [data[start:end] for start, end in itertools.pairwise(itertools.accumulate(sizes, initial=0))]
