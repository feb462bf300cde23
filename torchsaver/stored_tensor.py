"""One tensor of an open checkpoint: what it is in torch, and its values read whole, in place, or by rows."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from torchsaver.errors import UnsupportedCheckpointError
from torchsaver.formats.dtypes import torch_form
from torchsaver.formats.file_layout import TensorSpec
from torchsaver.formats.safetensors_file import SafetensorsFile
from torchsaver.formats.tensor_bytes import TORCH_DTYPES, byte_view, dtype_text, row_major_targets
from torchsaver.formats.tensor_file import TensorFile

_AS_STORED = TORCH_DTYPES.keys() - {"F4"}  # with the shape in torch that they have in a file


class StoredTensor(NamedTuple):
    """A tensor of a checkpoint: where its bytes are, and the dtype and shape it has in torch."""

    file: TensorFile
    spec: TensorSpec
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.spec.nbytes

    @property
    def dtype_name(self) -> str:
        """The dtype's name without "torch."."""
        return dtype_text(self.dtype)

    @property
    def pieces(self) -> list[tuple[TensorFile, TensorSpec]]:
        """The runs of bytes it is made of: one."""
        return [(self.file, self.spec)]

    @property
    def checksum(self) -> int:
        """The stored CRC-32C of the bytes; where none is stored (a third party's file), they are read for it."""
        stored = self.file.manifest.crc32c.get(self.spec.key)
        return self.file.checksums([self.spec])[0] if stored is None else stored

    def read(self) -> torch.Tensor:
        """Return the values in a new CPU tensor.

        Raises:
            CorruptCheckpointError: The bytes end early, or their CRC-32C differs from the stored one.
        """
        self.file.require_inside(self.spec)
        tensor = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        self.file.compare(self.spec, self.file.fill_one(self.spec, tensor.data_ptr()))
        return tensor

    def read_into(self, target: torch.Tensor) -> None:
        """Fill `target` (the same dtype and element count, any strides and device) with the stored values, in place.

        Raises:
            CorruptCheckpointError: The file ends early.
        """
        offset = 0
        for buffer in row_major_targets(target):
            self.file.read_into(self.spec, offset, buffer)
            offset += len(buffer)

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Return the rows [start, stop) of the first dimension, or the whole of a scalar; errors as `read_into`."""
        self.file.require_inside(self.spec)
        tensor = torch.empty((stop - start, *self.shape[1:]) if self.shape else (), dtype=self.dtype, device="cpu")
        row_bytes = self.nbytes // self.shape[0] if self.shape and self.shape[0] else 0
        self.file.read_into(self.spec, start * row_bytes, byte_view(tensor))
        return tensor


class Rows(Protocol):
    """A stored tensor that can be read by rows."""

    @property
    def dtype(self) -> Any:
        """Its dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    def read_rows(self, start: int, stop: int) -> Any:
        """Return the rows [start, stop) of the first dimension, or the whole of a scalar."""


class TensorSlice:
    """A stored tensor, read by index. What a slice reads is not compared with the checksum, which covers the whole."""

    def __init__(self, stored: Rows) -> None:
        self._stored = stored

    def get_shape(self) -> list[int]:
        """Return the whole tensor's shape."""
        return list(self._stored.shape)

    def get_dtype(self) -> torch.dtype:
        """Return the dtype."""
        return self._stored.dtype  # type: ignore[no-any-return]

    def __getitem__(self, index: Any) -> torch.Tensor | Any:
        """Return what the whole tensor would give for `index`, having read only the rows its first part asks for."""
        first, *rest = index if isinstance(index, tuple) and index else (index,)
        shape = self._stored.shape
        if not shape or isinstance(first, bool) or not isinstance(first, (int, slice)):
            return self._stored.read_rows(0, shape[0] if shape else 1)[index]
        if isinstance(first, int):
            row = first + shape[0] if first < 0 else first
            if not 0 <= row < shape[0]:
                raise IndexError(f"row {first} of {shape[0]}")
            return self._stored.read_rows(row, row + 1)[(0, *rest)]
        start, stop, step = first.indices(shape[0])
        if step < 1:
            raise ValueError(f"the step of a slice is positive, not {step}")
        return self._stored.read_rows(start, max(start, stop))[(slice(None, None, step), *rest)]


def require_known_dtypes(file: SafetensorsFile) -> None:
    """Check that every tensor of a file has a dtype and a shape in torch; errors as `stored_tensor`."""
    if file.layout.dtypes - _AS_STORED or file.manifest.complex128:
        for spec in file.specs.values():
            stored_tensor(file, spec)


def stored_tensor(file: TensorFile, spec: TensorSpec) -> StoredTensor:
    """Return the tensor of a spec, with the dtype and shape it has in torch.

    Raises:
        CorruptCheckpointError: It is noted as complex128, and is no pairs of F64.
        UnsupportedCheckpointError: This torch has no such dtype, or no such shape of it.
    """
    dtype = TORCH_DTYPES.get(spec.dtype)
    if dtype is None:
        raise UnsupportedCheckpointError(
            file.path, f"{spec.key!r} is {spec.dtype}, which torch {torch.__version__} lacks"
        )
    is_complex128 = spec.key in file.manifest.complex128
    if not is_complex128 and spec.dtype in _AS_STORED:
        return StoredTensor(file, spec, dtype, spec.shape)
    _, shape = torch_form(spec, is_complex128=is_complex128, path=file.path)
    return StoredTensor(file, spec, torch.complex128 if is_complex128 else dtype, shape)
