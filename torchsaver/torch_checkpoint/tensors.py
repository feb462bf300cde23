"""The tensors of a file of torch.save, as an open checkpoint has them: by key, unread, with what is said of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from torchsaver.formats.chunks import Chunk
from torchsaver.formats.file_layout import FileLayout, TensorSpec
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.safetensors_file import SafetensorsFile
from torchsaver.formats.tensor_bytes import (
    byte_view,
    dtype_text,
    is_dense,
    row_major_crc32c,
    row_major_targets,
    stored_spec,
    why_not_storable,
)
from torchsaver.formats.tensor_file import TensorFile
from torchsaver.formats.torch_file import read_torch_file, verify_torch_file
from torchsaver.torch_checkpoint.content import sort_content
from torchsaver.torch_checkpoint.states import NamedOptimizers, ObjectTrees, listed_tensors, name_for, name_from_file
from torchsaver.variables.var_list import Slots


class MappedTensor:
    """A tensor of a file of torch.save: mapped, so that its bytes are read as they are used."""

    def __init__(self, file: TorchFileTensors, spec: TensorSpec, tensor: torch.Tensor) -> None:
        self.file = file
        self.spec = spec
        self._tensor = tensor

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return self._tensor.dtype

    @property
    def dtype_name(self) -> str:
        """The dtype's name without "torch."."""
        return dtype_text(self._tensor.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self._tensor.shape)

    @property
    def nbytes(self) -> int:
        """Size of its values."""
        return self.spec.nbytes

    @property
    def pieces(self) -> list[tuple[TensorFile, TensorSpec]]:
        """The runs of bytes it is made of: one, as the file counts them."""
        return [(self.file, self.spec)]

    @property
    def checksum(self) -> int:
        """The CRC-32C of the values in row-major order; they are read for it."""
        return row_major_crc32c(self._tensor)

    def read(self) -> torch.Tensor:
        """Return the values in a new CPU tensor.

        Raises:
            CorruptCheckpointError: The file is damaged.
        """
        self.file.verify([self.spec])
        tensor = torch.empty(self.shape, dtype=self.dtype, device="cpu")
        self.read_into(tensor)
        return tensor

    def read_into(self, target: torch.Tensor) -> None:
        """Fill `target` (the same dtype and element count, any strides and device) with the values, in place."""
        if not is_dense(self._tensor):
            with torch.no_grad():
                target.copy_(self._tensor.reshape(target.shape))
            return
        source, offset = byte_view(self._tensor), 0
        for buffer in row_major_targets(target):
            buffer[:] = source[offset : offset + len(buffer)]
            offset += len(buffer)

    def read_rows(self, start: int, stop: int) -> torch.Tensor:
        """Return the rows [start, stop) of the first dimension, or the whole of a scalar."""
        rows = self._tensor[start:stop] if self._tensor.dim() else self._tensor
        return rows.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


class TorchFileTensors(SafetensorsFile):
    """A file of torch.save where one of safetensors could be: keys, dtypes and shapes, and a manifest.

    It stays on the file it has opened. Offsets are those of the values one after the other, not of the file.

    Args:
        path: The file.

    Raises:
        CorruptCheckpointError, UnsupportedCheckpointError, OSError: As `read_torch_file`.
    """

    def _read_header(self, known: Iterable[FileLayout]) -> None:
        del known
        self._content = sort_content(read_torch_file(self.path))
        self._is_verified = False
        self.header_crc32c = None
        self.has_checksums = False
        self._list(name_from_file(self._content))

    def name_optimizers(self, slots: Slots) -> dict[str, str]:
        """Give the states of optimizers the names that parameters have in live ones; return {key: why not} of others.

        Their keys in `specs` are other ones after it.
        """
        named = name_for(self._content, slots)
        self._list(named)
        return named.reasons

    def _list(self, named: NamedOptimizers) -> None:
        tensors = listed_tensors(self._content, named.states)
        counts = Counter(key for key, _ in tensors)  # one of two under a key would be the wrong one
        self._tensors = {key: each for key, each in tensors if counts[key] == 1 and not why_not_storable(each)}
        specs: list[TensorSpec] = []
        start = 0
        for key, tensor in self._tensors.items():
            specs.append(TensorSpec(key, *stored_spec(tensor), start, start + tensor.nbytes))
            start += tensor.nbytes
        self.layout = FileLayout(specs)
        self.specs = self.layout.specs
        self.manifest = Manifest(
            complex128=frozenset(key for key, tensor in self._tensors.items() if tensor.dtype == torch.complex128),
            objects=ObjectTrees(self.path, self._content, named.states),
            metadata=self._content.metadata or None,
        )

    def stored(self, key: str) -> MappedTensor:
        """Return the tensor of a key of `specs`."""
        return MappedTensor(self, self.specs[key], self._tensors[key])

    def verify(self, specs: Sequence[TensorSpec], chunks: Sequence[Chunk] | None = None) -> None:
        """Read the file and compare its checksums, all of them and once; a file of the older format has none.

        Raises:
            CorruptCheckpointError: It is damaged.
        """
        del specs, chunks
        if not self._is_verified:
            verify_torch_file(self.path)
            self._is_verified = True
