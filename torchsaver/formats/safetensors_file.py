"""Reading a safetensors file, of ours or anyone's; the header's rules are next door."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats import safetensors_header as header
from torchsaver.formats.bulk_read import read_chunks
from torchsaver.formats.checksum import crc32c_hex
from torchsaver.formats.chunks import Chunk, Extent, cut_into_chunks, joined_by_owner
from torchsaver.formats.manifest import MANIFEST_KEY, Manifest, is_unnamed, parse_manifest
from torchsaver.formats.regular_file import RegularFile


class SafetensorsFile:
    """An open safetensors file: its header is checked, its data is read by position.

    Owns a file descriptor until `close`, or its own end, and keeps no mapping, so that the file can be replaced or
    removed meanwhile. One thread at a time may change it; reads share nothing but the descriptor.

    Args:
        path: The file.
        known: Layouts it may have again; see `parse_header`.

    Attributes:
        layout: Where its tensors are.
        manifest: What it says of itself; an empty one for a third party's file.
        header_crc32c: The manifest's header checksum; None for a third party's file.

    Raises:
        CorruptCheckpointError: Not a file, not of the format, or its header checksum differs.
        UnsupportedCheckpointError: A dtype or format version this version does not know.
        OSError: As the system gave it.
    """

    def __init__(self, path: str, known: Iterable[header.Layout] = ()) -> None:
        self.path = path
        self._file = RegularFile(path)
        try:
            self._read_header(known)
        except BaseException:
            self.close()
            raise

    def _read_header(self, known: Iterable[header.Layout]) -> None:
        file = self._file
        length = header.parse_length(file.read(0, min(header.LENGTH_BYTES, file.nbytes)), file.nbytes, self.path)
        self._data_start = header.LENGTH_BYTES + length
        head = file.read(header.LENGTH_BYTES, length)
        self.layout, strings = header.parse_header(head, file.nbytes - self._data_start, self.path, known)
        del head  # up to MAX_HEADER_BYTES, and the manifest takes memory of its own
        specs = self.layout.specs
        self.header_crc32c: int | None = None
        if MANIFEST_KEY in strings:
            text = strings.pop(MANIFEST_KEY)
            self.manifest, self.header_crc32c = parse_manifest(text, self.layout.content, specs, self.path)
        elif any(is_unnamed(text) for text in strings.values()):
            raise CorruptCheckpointError(self.path, header.LENGTH_BYTES, "the manifest has lost its name")
        else:
            # safetensors.torch.save_model notes the names it drops for tied tensors as {dropped: kept}.
            aliases = {name: kept for name, kept in strings.items() if name not in specs and kept in specs}
            aliases.pop("format", None)  # "pt", even beside a tensor of that name
            self.manifest = Manifest(aliases=aliases)

    @property
    def specs(self) -> dict[str, header.TensorSpec]:
        """The tensors by key, in the order of the file."""
        return self.layout.specs

    def read_into(self, spec: header.TensorSpec, offset: int, buffer: memoryview) -> None:
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

    def fill_one(self, spec: header.TensorSpec, address: int) -> int:
        """Read a tensor's bytes to a memory address, and return the CRC-32C of what came; errors as `fill`."""
        chunks = cut_into_chunks([Extent(spec.start, spec.end, address)])
        return self._checksums(chunks, 1, fill=True)[0]

    def checksums(self, specs: Sequence[header.TensorSpec], chunks: Sequence[Chunk] | None = None) -> list[int]:
        """Return the CRC-32C of tensors' bytes as they are on the disk now; errors as `fill`.

        Args:
            specs: In the order of the file.
            chunks: Theirs, where they are known already.
        """
        if chunks is None:
            chunks = cut_into_chunks(Extent(spec.start, spec.end) for spec in specs)
        return self._checksums(chunks, len(specs))

    def _checksums(self, chunks: Sequence[Chunk], count: int, *, fill: bool = False) -> list[int]:
        found = read_chunks(self._file, self._data_start, chunks, fill=fill, checksum=True)
        return joined_by_owner(chunks, found, count)

    def verify(self, specs: Sequence[header.TensorSpec], chunks: Sequence[Chunk] | None = None) -> None:
        """Read tensors and compare their checksums; a third party's file has none. Arguments as `checksums`.

        Raises:
            CorruptCheckpointError: The first one that differs.
        """
        if stored := self.manifest.crc32c:  # of every tensor, or of none
            found = self.checksums(specs, chunks)
            for spec, checksum in zip(specs, found, strict=True):
                if stored.get(spec.key) != checksum:
                    self.compare(spec, checksum)

    def compare(self, spec: header.TensorSpec, found: int) -> None:
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

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
