"""A V1 checkpoint as any other is read: its keys, and for each the pieces that have its values."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.checksum import crc32c
from torchsaver.formats.chunks import Chunk
from torchsaver.formats.file_layout import TensorSpec
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.tensor_file import TensorFile
from torchsaver.formats.tensorflow.data_types import STRING
from torchsaver.formats.tensorflow.object_graph import ObjectGraph
from torchsaver.formats.tensorflow.slices import Range, require_partition
from torchsaver.formats.tensorflow.stored_value import (
    Piece,
    StoredValue,
    ValueFile,
    key_bytes,
    key_text,
    known_type,
    require_shape,
)
from torchsaver.formats.tensorflow.v1 import V1File, V1Tensor, open_v1
from torchsaver.formats.tensorflow.v1_values import is_number


class V1Values(ValueFile):
    """The values in one file of a V1 checkpoint; the last ones asked for are kept, since they come by the piece.

    Its specs have no place in the file: values stand in messages, in blocks with checksums of their own.
    """

    def __init__(self, file: V1File) -> None:
        self.path = file.path
        self.specs = {}
        self.manifest = Manifest()
        self.has_checksums = True
        self._v1 = file
        self._slices: dict[str, tuple[V1Tensor, tuple[Range, ...]]] = {}
        self._last: tuple[str, memoryview] | None = None
        self._reading = threading.Lock()  # the file keeps its last block

    def note(self, spec: TensorSpec, tensor: V1Tensor, ranges: tuple[Range, ...]) -> None:
        """Note a slice that may be asked for."""
        self.specs[spec.key] = spec
        self._slices[spec.key] = tensor, ranges

    def read_into(self, spec: TensorSpec, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with a slice's bytes from `offset` on, after verifying its block; errors as `verify`."""
        buffer[:] = self._values(spec)[offset : offset + len(buffer)]

    def _values(self, spec: TensorSpec) -> memoryview:
        with self._reading:
            if self._last is None or self._last[0] != spec.key:
                self._last = None
                self._last = spec.key, self._v1.read_numbers(*self._slices[spec.key])
            return self._last[1]

    def read_texts(self, spec: TensorSpec) -> list[bytes]:
        """Return a string tensor's elements; as ValueFile has it."""
        with self._reading:
            return self._v1.read_text(*self._slices[spec.key])

    def verify(self, specs: Sequence[TensorSpec], chunks: Sequence[Chunk] | None = None) -> None:
        """Read slices: reading a block verifies its checksum.

        Raises:
            CorruptCheckpointError: The first one that is damaged.
        """
        del chunks  # of bytes that have no place
        for spec in specs:
            if spec.dtype == STRING.name:
                self.read_texts(spec)
            else:
                self._values(spec)

    def checksums(self, specs: Sequence[TensorSpec], chunks: Sequence[Chunk] | None = None) -> list[int]:
        """Return the CRC-32C of slices' values, of strings one after the other; errors as `verify`."""
        del chunks
        return [
            crc32c(b"".join(self.read_texts(spec)) if spec.dtype == STRING.name else self._values(spec))
            for spec in specs
        ]

    def fileno(self) -> int:
        """Return the descriptor, which stays the file's."""
        return self._v1.fileno()

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._last = None
        self._v1.close()


class V1Checkpoint:
    """An open V1 checkpoint, in one file or several.

    Args:
        paths: All of them.

    Raises:
        CorruptCheckpointError: A file is damaged, or two disagree.
        UnsupportedCheckpointError: It is of a newer version.
        OSError: As the system gave it.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._v1 = open_v1(paths)
        self._values = {file: V1Values(file) for file in self._v1.files}
        self._found: dict[str, StoredValue] = {}

    @property
    def files(self) -> list[TensorFile]:
        """Its files."""
        return list(self._values.values())

    @property
    def paths(self) -> list[str]:
        """Their paths."""
        return [file.path for file in self._v1.files]

    def keys(self) -> list[str]:
        """Return the keys, sorted as bytes."""
        return [key_text(name) for name in sorted(self._v1.tensors)]

    def find(self, key: str) -> StoredValue | None:
        """Return what is stored under a key, None without it.

        Raises:
            CorruptCheckpointError: What is said of it cannot be.
            UnsupportedCheckpointError: A dtype that no checkpoint has, or more dimensions than torch takes.
        """
        if key not in self._found:
            tensor = self._v1.tensors.get(key_bytes(key) or b"")
            if tensor is None:
                return None
            self._found[key] = self._value(key, tensor)
        return self._found[key]

    def _value(self, key: str, tensor: V1Tensor) -> StoredValue:
        path = self.paths[0]
        data_type = known_type(tensor.type_number, key, path)
        if data_type != STRING and not is_number(data_type):
            raise UnsupportedCheckpointError(path, f"{key!r} is {data_type.debug_name}, which V1 has no place for")
        shape = require_shape(tensor.shape, key, path)
        slices = self._v1.slices_of(tensor.name)
        try:
            partition = require_partition(shape, [ranges for _, ranges in slices])
        except ValueError as error:
            raise CorruptCheckpointError(path, 0, f"{key!r}: {error}") from error
        pieces = []
        for number, ((file, stored), ranges) in enumerate(zip(slices, partition, strict=True)):
            part = tuple(each.length for each in ranges)
            spec = TensorSpec(f"{key}\0{number}", data_type.name, part, 0, math.prod(part) * data_type.item_bytes)
            self._values[file].note(spec, tensor, stored)
            pieces.append(Piece(self._values[file], spec, ranges))
        return StoredValue(key, data_type, shape, tuple(pieces), "little", is_plain=False)

    def object_graph(self) -> ObjectGraph | None:
        """Return None: V1 knows names only."""
        return None

    def close(self) -> None:
        """Close the files; a second time does nothing."""
        for file in self._values.values():
            file.close()
