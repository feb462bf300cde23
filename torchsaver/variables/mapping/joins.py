"""Tensors of the model that are one value of the checkpoint: joined to save, split to restore, without losing a bit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

_SAME_SIZE_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Join(Protocol):
    """How tensors of the model are one value, in torch's layout."""

    def why_not(self, tensors: Sequence[torch.Tensor]) -> str | None:
        """Return why these tensors cannot be joined so; None when they can."""

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the one value of `tensors`."""

    def split(self, value: torch.Tensor, shapes: Sequence[Sequence[int]]) -> tuple[torch.Tensor, ...]:
        """Return the value of each tensor, their shapes being `shapes`; `value` has the shape that join() gives."""


@dataclass(frozen=True)
class Single:
    """One tensor is the value."""

    def why_not(self, tensors: Sequence[torch.Tensor]) -> str | None:
        """Return why not, unless there is just one."""
        return None if len(tensors) == 1 else f"{len(tensors)} tensors are one value; say how with join=Concat(axis)"

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the tensor."""
        return tensors[0]

    def split(self, value: torch.Tensor, shapes: Sequence[Sequence[int]]) -> tuple[torch.Tensor, ...]:  # noqa: ARG002
        """Return the value."""
        return (value,)


@dataclass(frozen=True)
class Concat:
    """Tensors one after the other along an axis of torch's value: the three weights of one fused q, k, v kernel."""

    axis: int

    def why_not(self, tensors: Sequence[torch.Tensor]) -> str | None:
        """Return why not, if any shape but for the axis differs."""
        shapes = [list(tensor.shape) for tensor in tensors]
        if not all(-len(shape) <= self.axis < len(shape) for shape in shapes):
            return f"shapes {shapes} do not all have an axis {self.axis}"
        others = {(len(shape), *shape[: self.axis], *shape[self.axis :][1:]) for shape in shapes}
        return None if len(others) == 1 else f"shapes {shapes} differ in more than the axis {self.axis}"

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return them as one tensor, a copy."""
        return cat(tensors, self.axis)

    def split(self, value: torch.Tensor, shapes: Sequence[Sequence[int]]) -> tuple[torch.Tensor, ...]:
        """Return the part of each, views."""
        return torch.split(value, [shape[self.axis] for shape in shapes], self.axis)


@dataclass(frozen=True)
class Stack:
    """Tensors as rows of a new first axis: the bias [2, 3u] of a Keras GRU is bias_ih and bias_hh."""

    def why_not(self, tensors: Sequence[torch.Tensor]) -> str | None:
        """Return why not, if shapes differ."""
        shapes = [list(tensor.shape) for tensor in tensors]
        return None if all(shape == shapes[0] for shape in shapes) else f"shapes {shapes} differ"

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return them as one tensor, a copy."""
        return cat([tensor[None] for tensor in tensors], 0)

    def split(self, value: torch.Tensor, shapes: Sequence[Sequence[int]]) -> tuple[torch.Tensor, ...]:  # noqa: ARG002
        """Return the row of each, views."""
        return value.unbind(0)


@dataclass(frozen=True)
class Sum:
    """Two tensors of which only the sum matters: TF's LSTM has one bias, torch's bias_ih and bias_hh.

    The first takes the value and the second becomes `offsets`, so what was restored is saved again bit for bit. Of
    other pairs the sum, less `offsets`, is saved, and a restore gives that to the first.

    Args:
        offsets: What TF adds at run time to each of so many equal blocks of the last axis, e.g. a forget_bias.
    """

    offsets: tuple[float, ...] = (0.0,)

    def why_not(self, tensors: Sequence[torch.Tensor]) -> str | None:
        """Return why not, unless there are two of one shape, which falls into blocks."""
        shapes = [list(tensor.shape) for tensor in tensors]
        if len(shapes) != 2 or shapes[0] != shapes[1]:
            return f"shapes {shapes} are not two of one shape"
        if len(self.offsets) > 1 and (not shapes[0] or shapes[0][-1] % len(self.offsets)):
            return f"the last axis of shape {shapes[0]} is not {len(self.offsets)} equal blocks"
        return None

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the sum less the offsets, a copy; the first tensor's very bits where the second is the offset."""
        first, second = tensors
        if first.is_meta:
            return first
        wide = _adding_dtype(first.dtype)
        difference = second.to(wide) - self._offset(second).to(wide)
        total = (first.to(wide) + difference).to(first.dtype)
        return _of_bits(torch.where(difference == 0, _bits(first), _bits(total)), first.dtype)

    def split(self, value: torch.Tensor, shapes: Sequence[Sequence[int]]) -> tuple[torch.Tensor, ...]:  # noqa: ARG002
        """Return the value and the offsets."""
        return value, self._offset(value)

    def _offset(self, like: torch.Tensor) -> torch.Tensor:
        """Return the offsets in the shape, dtype and device of `like`."""
        if like.is_meta:
            return like
        blocks = torch.tensor(self.offsets, dtype=torch.float64, device="cpu")
        if len(self.offsets) > 1:
            blocks = blocks[:, None].expand(-1, like.shape[-1] // len(self.offsets)).reshape(-1)
        return blocks.to(like.dtype).to(like.device).expand(like.shape).contiguous()


def cat(tensors: Iterable[torch.Tensor], axis: int) -> torch.Tensor:
    """Return the tensors one after the other along an axis: bit for bit, and for every dtype."""
    some = list(tensors)
    if any(tensor.is_meta for tensor in some):  # torch.cat imports sympy to find the shape, which takes seconds
        shape = list(some[0].shape)
        shape[axis] = sum(tensor.shape[axis] for tensor in some)
        return torch.empty(shape, dtype=some[0].dtype, device="meta")
    return _of_bits(torch.cat([_bits(tensor) for tensor in some], axis), some[0].dtype)


def reshaped(value: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return the value in another shape, a view where possible: bit for bit, and for every dtype."""
    return _of_bits(_bits(value).reshape(list(shape)), value.dtype)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor as integers of its item size, for which every operation exists and keeps all bits."""
    if tensor.is_complex():  # complex128 has no such integer, and torch moves complex values as they are
        return tensor.detach()
    return tensor.detach().resolve_neg().view(_SAME_SIZE_INTEGERS[tensor.element_size()])


def _of_bits(bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return bits if bits.is_complex() else bits.view(dtype)


def _adding_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return a dtype that has + and holds every value of `dtype`: float8 and unsigned integers have none."""
    if dtype.is_floating_point:
        return torch.float32 if dtype.itemsize == 1 else dtype
    return dtype if dtype.is_complex else torch.int64
