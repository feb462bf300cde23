"""What a TensorFlow checkpoint has under a key: a dtype, a shape, and the pieces in files that make up the values."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.file_layout import MAX_RANK, TensorSpec
from torchsaver.formats.tensor_file import TensorFile
from torchsaver.formats.tensorflow.data_types import DATA_TYPES, DataType
from torchsaver.formats.tensorflow.slices import Range
from torchsaver.formats.tensorflow.texts import ByteOrder

_MOST_ELEMENTS = (1 << 63) - 1  # that sizes and strides can count; dimensions of size 0 count as 1


class ValueFile(TensorFile):
    """A file of a TensorFlow checkpoint: it can hold strings too."""

    @abstractmethod
    def read_texts(self, spec: TensorSpec) -> list[bytes]:
        """Return a string tensor's elements in row-major order, with their checksum verified; errors as `verify`."""


class Piece(NamedTuple):
    """A part of a tensor: the run of bytes that has it, and what it is of each dimension, lengths in elements."""

    file: ValueFile
    spec: TensorSpec
    ranges: tuple[Range, ...]


class StoredValue(NamedTuple):
    """A tensor of a TensorFlow checkpoint, without its values.

    Attributes:
        key: What it is stored under; bytes that are not UTF-8 are there as surrogates.
        data_type: What TensorFlow calls its elements.
        shape: Of the whole.
        pieces: What it is made of; without gaps and overlaps.
        order: Byte order of its elements.
        is_plain: Whether it is one run of bytes that are torch's own.
    """

    key: str
    data_type: DataType
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    order: ByteOrder
    is_plain: bool

    @property
    def dtype_name(self) -> str:
        """Name of the torch dtype it is read as, or "string" or "variant"."""
        return self.data_type.torch_name or self.data_type.name

    @property
    def nbytes(self) -> int:
        """Size in the files."""
        return sum(piece.spec.nbytes for piece in self.pieces)


def key_text(key: bytes) -> str:
    """Return a key as text; bytes that are not UTF-8 become surrogates, from which `key_bytes` makes them again."""
    return key.decode("utf-8", "surrogateescape")


def key_bytes(key: str) -> bytes | None:
    """Return the bytes of a key, None when no file can have it."""
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None


def known_type(number: int, key: str, path: str) -> DataType:
    """Return a dtype by its number.

    Raises:
        UnsupportedCheckpointError: No checkpoint has it, or none that was known when this was written.
    """
    if number not in DATA_TYPES:
        raise UnsupportedCheckpointError(path, f"{key!r} is of TensorFlow's dtype number {number}")
    return DATA_TYPES[number]


def require_shape(shape: Sequence[int], key: str, path: str) -> tuple[int, ...]:
    """Return a shape, after checking that a tensor can have it.

    Raises:
        CorruptCheckpointError: It has a negative or an absurd size.
        UnsupportedCheckpointError: It has more dimensions than torch takes.
    """
    if len(shape) > MAX_RANK:  # first: the product of a million sizes takes minutes
        raise UnsupportedCheckpointError(path, f"{key!r} has {len(shape)} dimensions, and torch takes {MAX_RANK}")
    if min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) > _MOST_ELEMENTS:
        raise CorruptCheckpointError(path, 0, f"{key!r} has the shape {list(shape)}")
    return tuple(shape)
