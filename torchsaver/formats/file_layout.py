"""Where each tensor is in a file, in the words of the safetensors header: dtype, shape, and bytes. Pure, as that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from torchsaver.formats.json_text import quoted

MAX_RANK = 64  # torch's own limit for most operations (TensorIterator)
DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F4": 4,
}


class TensorSpec(NamedTuple):
    """One tensor of a header: dtype name, shape and its bytes [start, end) in the file's data."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return self.end - self.start


class FileLayout:
    """Where each tensor is in a file: the header without its metadata. Files of the same tensors can share one.

    Args:
        specs: In the order of the file.
    """

    def __init__(self, specs: Iterable[TensorSpec]) -> None:
        self.specs = {spec.key: spec for spec in specs}
        self.nbytes = max((spec.end for spec in self.specs.values()), default=0)

    @cached_property
    def dtypes(self) -> frozenset[str]:
        """The names of all dtypes there are."""
        return frozenset(spec.dtype for spec in self.specs.values())

    @cached_property
    def members(self) -> str:
        """The header's text for the tensors, without the braces around it."""
        sizes = self._sizes()
        return ",".join(
            f'{quoted(key)}:{{"dtype":"{dtype}","shape":[{sizes[shape]}],"data_offsets":[{start},{end}]}}'
            for key, dtype, shape, start, end in self.specs.values()
        )

    @cached_property
    def content(self) -> bytes:
        """What a manifest's checksum covers of it, as canonical JSON: dtype and shape by key, but no offsets."""
        sizes, specs = self._sizes(), self.specs
        members = (f'{quoted(key)}:["{specs[key].dtype}",[{sizes[specs[key].shape]}]]' for key in sorted(specs))
        return f"{{{','.join(members)}}}".encode()

    def _sizes(self) -> dict[tuple[int, ...], str]:
        """Return the text of each shape there is, of which tens of thousands of tensors have a few."""
        return {shape: ",".join(map(str, shape)) for shape in {spec.shape for spec in self.specs.values()}}


def lay_out(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> FileLayout:
    """Return where a file has the tensors given as (key, dtype name, shape).

    Wider dtypes come first and keys are sorted within a width, so that every tensor is aligned to its own items.
    """
    specs, offset = [], 0
    for key, dtype, shape in sorted(sorted(tensors), key=lambda tensor: DTYPE_BITS[tensor[1]], reverse=True):
        nbytes = bytes_of(dtype, shape)
        assert nbytes is not None, f"{key}: a tensor in memory has a size in bytes"
        specs.append(TensorSpec(key, dtype, tuple(shape), offset, offset + nbytes))
        offset += nbytes
    return FileLayout(specs)


def bytes_of(dtype: str, shape: Sequence[int]) -> int | None:
    """Return the bytes a tensor takes, None when bytes or elements are beyond 63 bits, or no whole number of bytes."""
    bits, count = DTYPE_BITS[dtype], math.prod(shape)
    bound = count or math.prod(size or 1 for size in shape)  # a zero does not make [0, 2**63] a shape
    if bound * max(bits, 8) >= 1 << 66 or count * bits % 8:  # torch counts elements too, of which a byte may hold two
        return None
    return count * bits // 8
