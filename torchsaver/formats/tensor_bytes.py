"""A tensor's memory as bytes: dtype names, which tensors can be stored, and their values in row-major order.

A dense CPU tensor *is* its bytes: it is written and read with no copy. Any other one (transposed, expanded, conjugated,
on another device) goes through buffers (staging), so that memory stays bounded whatever the tensor's size.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch

from torchsaver.formats.checksum import crc32c
from torchsaver.formats.dtypes import TORCH_NAMES
from torchsaver.formats.file_layout import MAX_RANK
from torchsaver.formats.staging import staged_targets, staged_values

# By safetensors' names; an older torch lacks the newest.
TORCH_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, attribute) for name, attribute in TORCH_NAMES.items() if hasattr(torch, attribute)
}
DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def dtype_text(dtype: torch.dtype) -> str:
    """Return a dtype's name without "torch.": "float32"."""
    return str(dtype).removeprefix("torch.")


def why_not_storable(tensor: torch.Tensor) -> str | None:
    """Return why this tensor has no bytes to store or to fill, with the remedy; None when it has."""
    has_plain_memory = _has_plain_memory(type(tensor))
    if not has_plain_memory and torch.nn.parameter.is_lazy(tensor):
        return "is a lazy parameter without a shape yet; run one forward pass first"
    if tensor.is_meta:
        return "is on the meta device and has no values; give it memory with to_empty() first"
    if not has_plain_memory:
        return f"is a {type(tensor).__name__}, which keeps its values elsewhere; pass a plain tensor (gather it first)"
    if tensor.is_nested or tensor.layout != torch.strided:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        return f"has the layout {layout}, and only dense tensors can be stored; use to_dense() or store its parts"
    if tensor.untyped_storage().nbytes() < tensor.storage_offset() * tensor.element_size() + span_bytes(tensor):
        return "has no memory any more (its storage was freed, as sharded training does); gather it first"
    return _why_not_described(tensor)


def _why_not_described(tensor: torch.Tensor) -> str | None:
    """Return why the header has no words for this dtype or shape."""
    dtype, rank = tensor.dtype, tensor.dim()
    name = DTYPE_NAMES.get(dtype)
    if name is None and dtype != torch.complex128:
        return f"has dtype {dtype_text(dtype)}, for which safetensors has no name; convert it first"
    if rank == 0 and name == "F4":
        return f"is a scalar of {dtype_text(dtype)}, which holds two values; reshape it to [1]"
    if rank + (name is None) > MAX_RANK:
        return f"has {rank} dimensions, and {MAX_RANK} can be read back; reshape it first"
    return None


def footprint(tensors: Iterable[torch.Tensor], before: list[Any] | None = None) -> list[Any] | None:
    """Return what tells tensors from themselves at another place, of another shape or dtype: equal if none has changed.

    None when one of them is not a plain strided tensor, of which all that could not be told.

    Args:
        tensors: In an order that is always the same.
        before: What was returned before: it is returned again, the very list, if none has changed.
    """
    some = list(tensors)
    if not all(map(_has_plain_memory, set(map(type, some)))):
        return None
    mode = torch.is_inference_mode_enabled()  # it decides whether an inference tensor is writable
    try:
        # One at a time: tens of thousands of tuples, for a moment, are what the garbage collector then looks through.
        found = itertools.chain([mode, len(some)], _places(some))
        if before is not None and all(map(operator.eq, found, before)):
            return before
        return [mode, len(some), *_places(some)]
    except RuntimeError:  # sparse and opaque tensors have no storage, and nested ones no shape
        return None


def _places(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[Any, ...]]:
    for each in tensors:  # all of one at a time: tens of thousands of them do not stay in the processor's cache
        yield (
            type(each),
            each.data_ptr(),
            each.untyped_storage().nbytes(),
            each.is_cpu or each.device,
            each.dtype,
            each.shape,
            each.is_contiguous() or each.stride(),
            each.is_conj(),
            each.is_neg(),
        )


@lru_cache(maxsize=64)
def _has_plain_memory(kind: type[torch.Tensor]) -> bool:
    is_lazy = issubclass(kind, (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer))
    return not is_lazy and kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__


def why_not_writable(tensor: torch.Tensor) -> str | None:
    """Return why values cannot be restored into this tensor, with the remedy; None when they can."""
    if (reason := why_not_storable(tensor)) is not None:
        return reason
    if not tensor.is_contiguous() and _overlaps_itself(tensor):
        return "is expanded, or may overlap itself in memory; restore into a clone() or into its base"
    if tensor.is_inference() and not is_dense(tensor) and not torch.is_inference_mode_enabled():
        return "is an inference tensor and not contiguous; restore inside torch.inference_mode()"
    return None


def _overlaps_itself(tensor: torch.Tensor) -> bool:
    """Return whether two elements of a tensor that is not contiguous, so not empty either, may have one place."""
    reached = 1  # elements that the dimensions seen so far reach over
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    ):
        if stride < reached:
            return True
        reached += stride * (size - 1)
    return False


def span_bytes(tensor: torch.Tensor) -> int:
    """Return how many bytes of its storage a tensor reaches over, from its first element to its last."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return tensor.nbytes
    last = sum(stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return (last + 1) * tensor.element_size()


def stored_spec(tensor: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """Return the safetensors dtype name and shape a tensor is stored under.

    complex128 becomes F64 with a last dimension of 2 (real, imaginary); float4 counts values, two a byte.
    """
    dtype, shape = tensor.dtype, tuple(tensor.shape)
    if dtype == torch.complex128:
        return "F64", (*shape, 2)
    name = DTYPE_NAMES[dtype]
    if name == "F4":
        shape = (*shape[:-1], shape[-1] * 2)
    return name, shape


def is_dense(tensor: torch.Tensor) -> bool:
    """Return whether the tensor's memory is its row-major values, on the CPU."""
    return tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def byte_view(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a dense tensor as `nbytes` bytes, writable and shared."""
    # as_strided, not reshape: a dense tensor of one element may have any stride, and reshape keeps it.
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data


def row_major_bytes(tensor: torch.Tensor) -> Iterator[memoryview]:
    """Yield the tensor's values in row-major order; each piece is valid until the next one is asked for."""
    source = tensor.detach()
    if is_dense(source):
        yield byte_view(source)
        return
    yield from map(byte_view, staged_values(source))


def row_major_crc32c(tensor: torch.Tensor) -> int:
    """Return the CRC-32C of the tensor's values in row-major order."""
    checksum = 0
    for piece in row_major_bytes(tensor):
        checksum = crc32c(piece, checksum)
    return checksum


def row_major_targets(tensor: torch.Tensor) -> Iterator[memoryview]:
    """Yield buffers that together take the tensor's values in row-major order; each must be filled before the next.

    A dense tensor's buffer is its own memory. For any other one each buffer is copied into place when the next one is
    asked for, on the tensor's own device and strides.
    """
    target = tensor.detach()
    if is_dense(target):
        yield byte_view(target)
    else:
        yield from map(byte_view, staged_targets(target))
    note_new_values([tensor])


def note_new_values(tensors: Sequence[torch.Tensor]) -> None:
    """Tell autograd of memory written behind its back: a graph that saved the old values must not use the new ones."""
    try:
        torch.autograd.graph.increment_version(tensors)
    except (TypeError, AttributeError, RuntimeError):  # torch 2.4 takes one at a time, and none of inference mode
        for tensor in tensors:
            if not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)
