"""A tensor of a TensorFlow checkpoint that is not torch's own bytes in one run.

It is cut in slices, in another byte order, of elements torch lacks, of text, or within the messages of a V1 file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from torchsaver.errors import UnsupportedCheckpointError
from torchsaver.formats.file_layout import TensorSpec
from torchsaver.formats.tensor_bytes import row_major_crc32c, row_major_targets
from torchsaver.formats.tensor_file import TensorFile
from torchsaver.formats.tensorflow.data_types import STRING
from torchsaver.formats.tensorflow.small_floats import E2M1FN, E4M3B11FNUZ
from torchsaver.formats.tensorflow.stored_value import Piece, StoredValue

_WINDOW_BYTES = 1 << 20  # of elements that are converted at a time
_Decode = Callable[[memoryview], "np.ndarray[Any, Any]"]


def _bytes(raw: memoryview) -> np.ndarray[Any, Any]:
    return np.frombuffer(raw, np.uint8)


# The small types take a byte each; their value is in its low bits, and the rest of it has no meaning.
_DECODE: dict[str, _Decode] = {
    "int4": lambda raw: ((_bytes(raw) & 15 ^ 8).astype(np.int8) - 8).astype(np.int8),
    "uint4": lambda raw: _bytes(raw) & 15,
    "int2": lambda raw: ((_bytes(raw) & 3 ^ 2).astype(np.int8) - 2).astype(np.int8),
    "uint2": lambda raw: _bytes(raw) & 3,
    "float4_e2m1fn": lambda raw: np.array(E2M1FN, np.float32)[_bytes(raw) & 15],
    "float8_e4m3b11fnuz": lambda raw: np.array(E4M3B11FNUZ, np.float32)[_bytes(raw)],
}


def _decoder(value: StoredValue) -> _Decode | None:
    """Return what makes torch's elements of stored bytes; None where they are that already."""
    if value.data_type.name in _DECODE:
        return _DECODE[value.data_type.name]
    if value.order == "big" and value.data_type.item_bytes > 1:
        component = value.data_type.item_bytes // (2 if value.data_type.name.startswith("complex") else 1)
        return lambda raw: np.frombuffer(raw, f"u{component}").byteswap()
    return None


class AssembledTensor:
    """A tensor of a TensorFlow checkpoint whose values have to be assembled.

    Attributes:
        value: What the checkpoint says of it.
        dtype: In torch; numpy's dtype of objects for strings and variants.
        shape: Of the whole.
    """

    def __init__(self, value: StoredValue) -> None:
        self.value = value
        name = value.data_type.torch_name
        self.dtype: Any = getattr(torch, name) if name else np.dtype(object)
        self.shape = value.shape
        self._decode = _decoder(value)

    @property
    def dtype_name(self) -> str:
        """Name of the torch dtype, or "string" or "variant"."""
        return self.value.dtype_name

    @property
    def nbytes(self) -> int:
        """Size in the files."""
        return self.value.nbytes

    @property
    def pieces(self) -> list[tuple[TensorFile, TensorSpec]]:
        """The runs of bytes it is made of."""
        return [(piece.file, piece.spec) for piece in self.value.pieces]

    @property
    def checksum(self) -> int:
        """The CRC-32C of the assembled bytes in row-major order."""
        return row_major_crc32c(self.read())

    def read(self) -> Any:
        """Return the values in a new CPU tensor; strings in a numpy array of bytes objects.

        Raises:
            CorruptCheckpointError: The bytes end early, or their checksum differs.
            UnsupportedCheckpointError: They are variants.
        """
        if not self.value.data_type.torch_name:
            return self._texts()
        for piece in self.value.pieces:
            piece.file.verify([piece.spec])
        tensor = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        self.read_into(tensor)
        return tensor

    def read_into(self, target: torch.Tensor) -> None:
        """Fill `target` (the same dtype and element count, any strides and device) with the values, in place.

        Raises:
            CorruptCheckpointError: A file ends early.
        """
        if len(self.value.pieces) == 1:
            self._read_run(self.value.pieces[0], 0, target)
            return
        if target.shape != self.shape:  # Saver(reshape=True)
            target.copy_(self.read().reshape(target.shape))
            return
        for piece in self.value.pieces:
            index = tuple(slice(each.start, each.end) for each in piece.ranges)
            self._read_run(piece, 0, target[index])

    def read_rows(self, start: int, stop: int) -> Any:
        """Return the rows [start, stop) of the first dimension, or the whole of a scalar; errors as `read_into`."""
        if not self.value.data_type.torch_name:
            return self._texts()[start:stop] if self.shape else self._texts()
        tensor = torch.empty((stop - start, *self.shape[1:]) if self.shape else (), dtype=self.dtype, device="cpu")
        for piece, rows, index in self._pieces_within(start, stop):
            row_items = math.prod(each.length for each in piece.ranges[1:])
            self._read_run(piece, rows * row_items, tensor[index] if index else tensor)
        return tensor

    def _pieces_within(self, start: int, stop: int) -> Iterator[tuple[Piece, int, tuple[slice, ...]]]:
        """Yield the pieces that have some of the rows, the first of its own rows, and where these go."""
        for piece in self.value.pieces:
            if not piece.ranges:
                yield piece, 0, ()
                continue
            first, last = max(start, piece.ranges[0].start), min(stop, piece.ranges[0].end)
            if first < last:
                others = tuple(slice(each.start, each.end) for each in piece.ranges[1:])
                yield piece, first - piece.ranges[0].start, (slice(first - start, last - start), *others)

    def _read_run(self, piece: Piece, first_item: int, target: torch.Tensor) -> None:
        """Fill `target` with a piece's elements from `first_item` on."""
        item_bytes = self.value.data_type.item_bytes
        offset = first_item * item_bytes
        for buffer in row_major_targets(target):
            if self._decode is None:
                piece.file.read_into(piece.spec, offset, buffer)
                offset += len(buffer)
                continue
            for start in range(0, len(buffer), _WINDOW_BYTES):
                window = buffer[start : start + _WINDOW_BYTES]
                raw = memoryview(bytearray(len(window) // target.element_size() * item_bytes))
                piece.file.read_into(piece.spec, offset, raw)
                window[:] = self._decode(raw).data.cast("B")
                offset += len(raw)

    def _texts(self) -> np.ndarray[Any, Any]:
        if self.value.data_type != STRING:
            feature = f"{self.value.key!r} is a variant, the state of a TensorFlow object; leave it out"
            raise UnsupportedCheckpointError(self.value.pieces[0].file.path, feature)
        # All of them first: memory is taken for as many as there are, not for as many as there should be.
        read = [(piece, piece.file.read_texts(piece.spec)) for piece in self.value.pieces]
        array = np.empty(self.shape, dtype=object)
        for piece, texts in read:
            part = np.empty(len(texts), dtype=object)
            part[:] = texts
            place: Any = (*(slice(each.start, each.end) for each in piece.ranges), ...)
            array[place] = part.reshape(piece.spec.shape)
        return array
