"""Tensors that are runs of bytes in a file, each with a key and perhaps a checksum, whatever the file's format."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats.bulk_read import read_chunks
from torchsaver.formats.checksum import crc32c, crc32c_hex
from torchsaver.formats.chunks import CHUNK_BYTES, Chunk, cut_into_chunks, joined_by_owner
from torchsaver.formats.file_layout import TensorSpec
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.memory import memory_at
from torchsaver.formats.regular_file import RegularFile


class TensorFile:
    """An open file of tensors, read by position.

    Owns a file descriptor until `close`, or its own end, and keeps no mapping, so that the file can be replaced or
    removed meanwhile. One thread at a time may change it; reads share nothing but the descriptor.

    Args:
        path: The file.

    Attributes:
        specs: Its tensors by key.
        manifest: What it says of itself, with the tensors' checksums; an empty one if it says nothing.
        has_checksums: Whether every tensor has a checksum.

    Raises:
        CorruptCheckpointError: It is no regular file.
        OSError: As the system gave it.
    """

    specs: dict[str, TensorSpec]
    manifest: Manifest
    has_checksums: bool

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = RegularFile(path)
        self._data_start = 0

    def require_inside(self, spec: TensorSpec) -> None:
        """Check that a tensor's bytes are all there, before memory is taken for them; some formats have done so.

        Raises:
            CorruptCheckpointError: The file is shorter.
        """

    def read_into(self, spec: TensorSpec, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` on.

        Raises:
            CorruptCheckpointError: The file ends before.
        """
        self._file.read_into(self._data_start + spec.start + offset, [buffer])

    def fill(self, chunks: Sequence[Chunk]) -> None:
        """Read chunks of the file's data into their memory, which the caller keeps alive.

        Raises:
            CorruptCheckpointError: The file ends before.
        """
        read_chunks(self._file, self._data_start, chunks, fill=True)

    def fill_one(self, spec: TensorSpec, address: int) -> int:
        """Read a tensor's bytes to a memory address, and return the CRC-32C of what came; errors as `fill`."""
        if spec.nbytes > CHUNK_BYTES:
            return self._checksums(cut_into_chunks([(spec.start, spec.end, address)]), 1, fill=True)[0]
        memory = memory_at(address, spec.nbytes)  # one call: planning it would take longer than reading it
        self._file.read_into(self._data_start + spec.start, [memory])
        return crc32c(memory)

    def checksums(self, specs: Sequence[TensorSpec], chunks: Sequence[Chunk] | None = None) -> list[int]:
        """Return the CRC-32C of tensors' bytes as they are on the disk now; errors as `fill`.

        Args:
            specs: In the order of the file.
            chunks: Theirs, where they are known already.
        """
        if chunks is None:
            chunks = cut_into_chunks((spec.start, spec.end, 0) for spec in specs)
        return self._checksums(chunks, len(specs))

    def _checksums(self, chunks: Sequence[Chunk], count: int, *, fill: bool = False) -> list[int]:
        found = read_chunks(self._file, self._data_start, chunks, fill=fill, checksum=True)
        return joined_by_owner(chunks, found, count)

    def verify(self, specs: Sequence[TensorSpec], chunks: Sequence[Chunk] | None = None) -> None:
        """Read tensors and compare their checksums; a third party's file has none. Arguments as `checksums`.

        Raises:
            CorruptCheckpointError: The first one that differs.
        """
        if stored := self.manifest.crc32c:  # of every tensor, or of none
            found = self.checksums(specs, chunks)
            if found != [stored.get(spec.key) for spec in specs]:
                for spec, checksum in zip(specs, found, strict=True):
                    self.compare(spec, checksum)

    def compare(self, spec: TensorSpec, found: int) -> None:
        """Compare `found`, the CRC-32C of the tensor's bytes, with the stored one, if there is one.

        Raises:
            CorruptCheckpointError: They differ.
        """
        stored = self.manifest.crc32c.get(spec.key, found)
        if stored != found:
            reason = f"{spec.key!r} has the checksum {crc32c_hex(found)}, and {crc32c_hex(stored)} is stored"
            raise CorruptCheckpointError(self.path, self._data_start + spec.start, reason)

    def fileno(self) -> int:
        """Return the descriptor, which stays the file's."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._file.close()

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Opened = TypeVar("Opened", bound=TensorFile)
