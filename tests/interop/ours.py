"""Records from torch's tensors and back, and tensors to make records of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from interop.records import Record, data_of, record, text_array, text_record

from torchsaver.formats.tensor_bytes import byte_view, dtype_text
from torchsaver.formats.tensorflow.data_types import BY_TORCH_NAME

DTYPES = sorted(BY_TORCH_NAME)


def to_record(value: Any) -> Record:
    """Return the record of a tensor, or of an array of bytes objects."""
    if isinstance(value, np.ndarray):
        return text_record(value)
    value = value.detach().contiguous()
    return record(dtype_text(value.dtype), value.shape, bytes(byte_view(value)))


def to_records(values: Mapping[str, Any]) -> dict[str, Record]:
    """Return the record of each."""
    return {name: to_record(value) for name, value in values.items()}


def to_value(given: Record) -> Any:
    """Return the tensor, or the array of bytes objects, of a record."""
    if given["dtype"] == "string":
        return text_array(given)
    data = bytearray(data_of(given))
    raw = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return raw.view(getattr(torch, given["dtype"])).reshape(given["shape"])


def any_bits(dtype: str, *shape: int, seed: int = 1) -> torch.Tensor:
    """Return a tensor of nearly any bits: infinities and subnormal numbers among them; of bool, 0 and 1.

    A nan is torch's own: TensorFlow makes quiet ones of others when it makes a variable of them.
    """
    kind = getattr(torch, dtype)
    numbers = torch.Generator().manual_seed(seed)
    if kind == torch.bool:
        return torch.randint(0, 2, shape, generator=numbers).bool()
    width = torch.empty(0, dtype=kind).element_size()
    raw = torch.randint(0, 256, (*shape, width), generator=numbers, dtype=torch.uint8)
    bits = raw.view(kind).reshape(shape)
    if width > 1 and (bits.is_complex() or bits.is_floating_point()):
        real = torch.view_as_real(bits) if bits.is_complex() else bits
        real[real.isnan()] = float("nan")
    return bits


def strings(*texts: bytes, shape: tuple[int, ...] | None = None) -> np.ndarray[Any, Any]:
    """Return a string tensor."""
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape((len(texts),) if shape is None else shape)
