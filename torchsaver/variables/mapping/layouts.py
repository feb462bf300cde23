"""A value that a checkpoint holds otherwise than torch's parameter does: how it is rearranged, split and joined again.

stored value <- transform -> torch's value <- join -> tensors of the model. A Layout stands in a var_list in place of a
tensor. Transforms rearrange and never compute, so they are exact for every dtype; they are views where torch has one,
so that writing streams a transposed kernel; and they work on meta tensors, so that shapes are checked without reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch

from torchsaver.variables.mapping.joins import Join, Single

Rearrangement: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, repr=False)
class Transform:
    """A named, reversible function of one value; equal to every other one of its name. Called, it makes a Layout.

    Args:
        name: What it is called in messages and rules, with its arguments: "dense", "gates(1, 0, 2)".
        torch_form: From the stored value to torch's. ValueError with the reason for a shape it is not for.
        stored_form: The exact inverse, bit for bit.
    """

    name: str
    torch_form: Rearrangement = field(compare=False)
    stored_form: Rearrangement = field(compare=False)

    def __repr__(self) -> str:
        return self.name

    def to_torch(self, value: torch.Tensor) -> torch.Tensor:
        """Return a stored value as torch has it: a view where possible.

        Raises:
            ValueError: The transform is not for this shape or dtype.
        """
        return self.torch_form(value.detach())

    def to_stored(self, value: torch.Tensor) -> torch.Tensor:
        """Return torch's value as it is stored: a view where possible.

        Raises:
            ValueError: The transform is not for this shape or dtype.
        """
        return self.stored_form(value.detach())

    def then(self, other: Transform) -> Transform:
        """Return the transform that goes on with `other` where this one ends, on the way from stored to torch."""
        if identity in (self, other):
            return other if self == identity else self
        return Transform(
            f"{self}, then {other}",
            partial(_one_after_another, self.torch_form, other.torch_form),
            partial(_one_after_another, other.stored_form, self.stored_form),
        )

    def __call__(self, *tensors: torch.Tensor, join: Join | None = None) -> Layout:
        """Return the Layout of tensors of the model: `dense(fc.weight)`; several need a `join`."""
        return Layout(tensors, self, join or Single())


def _one_after_another(first: Rearrangement, second: Rearrangement, value: torch.Tensor) -> torch.Tensor:
    return second(first(value))


def _unchanged(value: torch.Tensor) -> torch.Tensor:
    return value


identity = Transform("identity", _unchanged, _unchanged)


@dataclass(frozen=True, eq=False, repr=False)
class Layout:
    """Tensors of the model that a checkpoint holds as one value, laid out otherwise.

    It holds the tensors themselves, keeps no copy of them, and is equal to itself only. A part of a tensor is a tensor:
    `dense(attention.in_proj_weight[:d])` is the first of three stored kernels.

    Args:
        tensors: Tensors of the model, of one dtype.
        transform: From the stored value to torch's.
        join: How that value is split among the tensors.

    Raises:
        TypeError: One of `tensors` is no tensor.
        ValueError: They cannot be joined so, or dtypes differ.
    """

    tensors: tuple[torch.Tensor, ...]
    transform: Transform = identity
    join: Join = field(default_factory=Single)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", tuple(self.tensors))
        for tensor in self.tensors:
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{self.transform}: a tensor was wanted, not a {type(tensor).__name__}")
        if not self.tensors:
            raise ValueError(f"{self.transform}: there are no tensors")
        if len(dtypes := {tensor.dtype for tensor in self.tensors}) > 1:
            raise ValueError(f"{self.transform}: tensors of one value have dtypes {sorted(map(str, dtypes))}")
        if not self._is_lazy() and (reason := self.join.why_not(self.tensors)) is not None:
            raise ValueError(f"{self.transform}: {reason}")

    def __repr__(self) -> str:
        return f"Layout({self.transform}: {'no shape yet' if self._is_lazy() else self._shapes()})"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensors, and of what to_stored() gives."""
        return self.tensors[0].dtype

    def stored_shape(self) -> tuple[int, ...]:
        """Return the shape that to_stored() has and from_stored() wants.

        Raises:
            ValueError: The transform is not for tensors of these shapes.
        """
        empty = [torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for tensor in self.tensors]
        return tuple(self._stored(empty).shape)

    def to_stored(self) -> torch.Tensor:
        """Return the tensors as the checkpoint holds them: for one tensor a view where possible, as for a transpose.

        Raises:
            ValueError: The transform is not for tensors of these shapes.
        """
        return self._stored([tensor.detach() for tensor in self.tensors])

    def from_stored(self, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the value of each tensor in its very shape, with `value`'s dtype and device: views where possible.

        Raises:
            ValueError: `value` is not of the shape that to_stored() has, or the transform is not for the tensors.
        """
        wanted = self.stored_shape()
        if tuple(value.shape) != wanted:
            found = f"shape {list(value.shape)} is stored, and {list(wanted)} was wanted for torch's {self._shapes()}"
            raise ValueError(f"{self.transform}: {found}")
        return self.join.split(self.transform.to_torch(value), [tensor.shape for tensor in self.tensors])

    def _is_lazy(self) -> bool:
        return any(map(torch.nn.parameter.is_lazy, self.tensors))

    def _shapes(self) -> str:
        return ", ".join(str(list(tensor.shape)) for tensor in self.tensors)

    def _stored(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.transform.to_stored(self.join.join(tensors))
