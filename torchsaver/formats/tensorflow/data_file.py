"""A data file of a bundle: runs of bytes that its index names, read by position; opened when something is wanted."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats.chunks import Chunk
from torchsaver.formats.file_layout import TensorSpec
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.regular_file import RegularFile
from torchsaver.formats.tensorflow.data_types import STRING, VARIANT
from torchsaver.formats.tensorflow.stored_value import ValueFile
from torchsaver.formats.tensorflow.texts import ByteOrder, parse_texts, variants_checksum

# Of elements of any length: their checksum is not that of the bytes as they stand in the file.
_OF_ELEMENTS = {STRING.name, VARIANT.name}


class DataFile(ValueFile):
    """A data file of a bundle. What is in it is noted as it is looked up in the index.

    Args:
        path: The file, which need not be there as long as nothing is read from it.
        order: Byte order of the lengths in it.

    Raises:
        CorruptCheckpointError: When something is read: the file is missing or damaged, or it ends before a tensor.
        OSError: When something is read: as the system gave it.
    """

    def __init__(self, path: str, order: ByteOrder) -> None:
        self.path = path
        self.specs = {}
        self.has_checksums = True
        self.manifest = Manifest(crc32c={})
        self._data_start = 0
        self._order = order
        self._opened: RegularFile | None = None
        self._is_closed = False
        self._opening = threading.Lock()

    def note(self, spec: TensorSpec, checksum: int) -> None:
        """Note what the index says of a tensor."""
        self.specs[spec.key] = spec
        self.manifest.crc32c[spec.key] = checksum  # type: ignore[index]  # a dict, made above

    @property
    def _file(self) -> RegularFile:  # type: ignore[override]
        with self._opening:
            if self._opened is None:
                if self._is_closed:
                    raise ValueError(f"{self.path!r} is closed; read inside the reader's with block")
                try:
                    self._opened = RegularFile(self.path)
                except FileNotFoundError as error:
                    reason = "it is missing, and the index beside it names it; copy all files of the checkpoint"
                    raise CorruptCheckpointError(self.path, 0, reason) from error
                require_no_pointer(self._opened)
            return self._opened

    def require_inside(self, spec: TensorSpec) -> None:
        """Check that a tensor's bytes are all there, before memory is taken for them.

        Raises:
            CorruptCheckpointError: The file is shorter.
        """
        nbytes = self._file.nbytes
        if spec.end > nbytes:
            reason = f"{spec.key!r} is at bytes {spec.start} to {spec.end}, and the file has {nbytes}"
            raise CorruptCheckpointError(self.path, min(spec.start, nbytes), reason)

    def checksums(self, specs: Sequence[TensorSpec], chunks: Sequence[Chunk] | None = None) -> list[int]:
        """Return the CRC-32C of tensors as the index has it; arguments and errors as in TensorFile."""
        for spec in specs:
            self.require_inside(spec)
        numbers = [spec for spec in specs if spec.dtype not in _OF_ELEMENTS]
        found = super().checksums(numbers, chunks if len(numbers) == len(specs) else None)
        by_key = dict(zip((spec.key for spec in numbers), found, strict=True))
        for spec in specs:
            if spec.dtype in _OF_ELEMENTS:
                by_key[spec.key] = self._elements(spec)[1]
        return [by_key[spec.key] for spec in specs]

    def read_texts(self, spec: TensorSpec) -> list[bytes]:
        """Return a string tensor's elements; as ValueFile has it."""
        self.require_inside(spec)
        texts, checksum = self._elements(spec)
        self.compare(spec, checksum)
        return texts

    def _elements(self, spec: TensorSpec) -> tuple[list[bytes], int]:
        """Return the strings of a tensor, none for variants, and the checksum of it that the index has."""
        data = bytes(self._file.read(spec.start, spec.nbytes))
        count = math.prod(spec.shape)
        try:
            if spec.dtype == STRING.name:
                return parse_texts(data, count, self._order)
            return [], variants_checksum(data, count, self._order)
        except ValueError as error:
            raise CorruptCheckpointError(self.path, spec.start, f"{spec.key!r}: {error}") from error

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._opening:
            self._is_closed = True
            if self._opened is not None:
                self._opened.close()


_POINTER = b"version https://git-lfs"


def require_no_pointer(file: RegularFile) -> None:
    """Check that a file is not what git-lfs leaves in the place of one.

    Raises:
        CorruptCheckpointError: It is.
    """
    if file.nbytes < 1024 and file.read(0, min(file.nbytes, len(_POINTER))) == _POINTER:
        reason = "it is a pointer of git-lfs, and not the file itself, which `git lfs pull` fetches"
        raise CorruptCheckpointError(file.path, 0, reason)
