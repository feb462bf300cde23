"""The rearrangements between TensorFlow's values and torch's, and their names in rules.

    dense(fc.weight)                                          # [in, out] <-> [out, in]
    dense.then(flatten(7, 7, 64))(fc.weight)                  # the same after a flattened image
    dense(q.weight, k.weight, v.weight, join=Concat(0))       # one stored kernel, three weights

A part of a weight, and a weight with dimensions of one, are tensors too: `dense(conv.weight[:, :, 0, 0])`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial

import torch

from torchsaver.variables.mapping.joins import cat, reshaped
from torchsaver.variables.mapping.layouts import Transform, identity

_PACKED = getattr(torch, "float4_e2m1fn_x2", None)  # torch 2.8 has it


def _check(value: torch.Tensor, what: str, fewest: int, most: int | None = None) -> None:
    """Raise ValueError unless `value` has so many dimensions, and values of their own to move."""
    if not fewest <= value.dim() <= (fewest if most is None else most):
        wanted = f"{fewest} dimension{'s' * (fewest > 1)}" if most is None else f"{fewest} to {most} dimensions"
        raise ValueError(f"a {what} has {wanted}, this has shape {list(value.shape)}")
    if value.dtype == _PACKED:
        raise ValueError(f"a {what} of {value.dtype} holds two values a byte, which cannot be moved apart; convert it")


def _check_size(value: torch.Tensor, what: str, axis: int, size: int) -> None:
    if value.shape[axis] != size:
        raise ValueError(f"a {what} has {size} in dimension {axis}, this has shape {list(value.shape)}")


def _check_counts(name: str, *counts: int) -> None:
    if not all(type(count) is int and count > 0 for count in counts):
        raise ValueError(f"{name}({_listed(counts)}): whole numbers above 0 were wanted")


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _dense(what: str, value: torch.Tensor) -> torch.Tensor:
    _check(value, f"dense {what}", 2)
    return value.t()


dense = Transform("dense", partial(_dense, "kernel"), partial(_dense, "weight"))
"""Kernel [in, out] <-> weight [out, in]: a transpose."""


def _conv_to_torch(what: str, value: torch.Tensor) -> torch.Tensor:
    _check(value, f"{what} kernel", 3, 5)
    last = value.dim() - 1
    return value.permute(last, last - 1, *range(last - 1))


def _conv_to_stored(what: str, value: torch.Tensor) -> torch.Tensor:
    _check(value, f"{what} weight", 3, 5)
    return value.permute(*range(2, value.dim()), 1, 0)


conv = Transform("conv", partial(_conv_to_torch, "conv"), partial(_conv_to_stored, "conv"))
"""Kernel [W, in, out], [H, W, in, out] or [D, H, W, in, out] <-> weight [out, in, ...]; `in` being that of a group."""

conv_transpose = Transform(
    "conv_transpose", partial(_conv_to_torch, "conv_transpose"), partial(_conv_to_stored, "conv_transpose")
)
"""Kernel [..., out, in] <-> weight [in, out, ...]; nothing is flipped."""


def depthwise(multiplier: int = 1) -> Transform:
    """Kernel [H, W, in, multiplier] <-> weight [in * multiplier, 1, H, W] of a convolution of `in` groups; 1-D too."""
    _check_counts("depthwise", multiplier)
    return Transform(
        f"depthwise({multiplier})",
        partial(_depthwise_to_torch, multiplier),
        partial(_depthwise_to_stored, multiplier),
    )


def _depthwise_to_torch(multiplier: int, value: torch.Tensor) -> torch.Tensor:
    what = "depthwise kernel"
    _check(value, what, 3, 4)
    _check_size(value, what, value.dim() - 1, multiplier)
    last = value.dim() - 1
    ordered = value.permute(last - 1, last, *range(last - 1))
    return reshaped(ordered, (ordered.shape[0] * multiplier, 1, *ordered.shape[2:]))


def _depthwise_to_stored(multiplier: int, value: torch.Tensor) -> torch.Tensor:
    what = "depthwise weight"
    _check(value, what, 3, 4)
    _check_size(value, what, 1, 1)
    if value.shape[0] % multiplier:
        raise ValueError(f"a {what} has {multiplier} outputs for each input, this has shape {list(value.shape)}")
    split = reshaped(value, (value.shape[0] // multiplier, multiplier, *value.shape[2:]))
    return split.permute(*range(2, split.dim()), 0, 1)


def pointwise(dims: int = 2) -> Transform:
    """Kernel [1, 1, in, out] of a convolution with `dims` dimensions of one <-> weight [out, in] of a Linear."""
    _check_counts("pointwise", dims)
    return Transform(f"pointwise({dims})", partial(_pointwise_to_torch, dims), partial(_pointwise_to_stored, dims))


def _pointwise_to_torch(dims: int, value: torch.Tensor) -> torch.Tensor:
    _check(value, "pointwise kernel", dims + 2)
    for axis in range(dims):
        _check_size(value, "pointwise kernel", axis, 1)
    return value[(0,) * dims].t()


def _pointwise_to_stored(dims: int, value: torch.Tensor) -> torch.Tensor:
    _check(value, "pointwise weight", 2)
    return value.t()[(None,) * dims]


def gates(*order: int) -> Transform:
    """Equal blocks of the last axis in another order: torch's block i is the stored block `order[i]`.

    A Keras LSTM has torch's order i f c o; BasicLSTMCell has i c f o: gates(0, 2, 1, 3); a Keras GRU has z r h, torch
    r z n: gates(1, 0, 2). A kernel is transposed then: `gates(1, 0, 2).then(dense)`.
    """
    if not order or sorted(order) != list(range(len(order))):
        raise ValueError(f"gates({_listed(order)}): each of 0 to n - 1 was wanted, once")
    back = tuple(order.index(block) for block in range(len(order)))
    return Transform(f"gates({_listed(order)})", partial(_reorder, order), partial(_reorder, back))


def _reorder(order: tuple[int, ...], value: torch.Tensor) -> torch.Tensor:
    _check(value, "value with gates", 1, 64)
    if value.shape[-1] % len(order):
        raise ValueError(f"the last dimension is not {len(order)} equal gates, this has shape {list(value.shape)}")
    width = value.shape[-1] // len(order)
    return cat([value.narrow(-1, block * width, width) for block in order], -1)


def flatten(height: int, width: int, channels: int) -> Transform:
    """Inputs of a layer after an image was flattened, which TF does row by row and torch channel by channel.

    The last axis changes from the order (height, width, channels) to (channels, height, width). A kernel has its inputs
    there once it is transposed: `dense.then(flatten(7, 7, 64))`.
    """
    _check_counts("flatten", height, width, channels)
    return Transform(
        f"flatten({height}, {width}, {channels})",
        partial(_flatten, (height, width, channels), (2, 0, 1)),
        partial(_flatten, (channels, height, width), (1, 2, 0)),
    )


def _flatten(sizes: tuple[int, int, int], order: tuple[int, int, int], value: torch.Tensor) -> torch.Tensor:
    what = "flattened image"
    _check(value, what, 1, 2)
    _check_size(value, what, value.dim() - 1, sizes[0] * sizes[1] * sizes[2])
    image = reshaped(value, (*value.shape[:-1], *sizes))
    leading = range(value.dim() - 1)
    return reshaped(image.permute(*leading, *(axis + value.dim() - 1 for axis in order)), value.shape)


def heads(count: int) -> Transform:
    """Last two axes (heads, head size) <-> one: Keras' MultiHeadAttention has them apart.

    Query, key and value kernels: `heads(8).then(dense)`; their biases: `heads(8)`.
    """
    _check_counts("heads", count)
    return Transform(f"heads({count})", partial(_merge, count, -2), partial(_part, count, -1))


def output_heads(count: int) -> Transform:
    """First two axes (heads, head size) <-> one, as in the output kernel: `output_heads(8).then(dense)`."""
    _check_counts("output_heads", count)
    return Transform(f"output_heads({count})", partial(_merge, count, 0), partial(_part, count, 0))


def _merge(count: int, axis: int, value: torch.Tensor) -> torch.Tensor:
    _check(value, "value with heads", 2, 64)
    axis %= value.dim()
    _check_size(value, "value with heads", axis, count)
    return reshaped(value, (*value.shape[:axis], count * value.shape[axis + 1], *value.shape[axis + 2 :]))


def _part(count: int, axis: int, value: torch.Tensor) -> torch.Tensor:
    _check(value, "value with heads", 1, 63)
    axis %= value.dim()
    if value.shape[axis] % count:
        raise ValueError(f"dimension {axis} is not {count} equal heads, this has shape {list(value.shape)}")
    return reshaped(value, (*value.shape[:axis], count, value.shape[axis] // count, *value.shape[axis + 1 :]))


TRANSFORMS: dict[str, Transform | Callable[..., Transform]] = {
    "identity": identity,
    "dense": dense,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "depthwise": depthwise,
    "pointwise": pointwise,
    "gates": gates,
    "flatten": flatten,
    "heads": heads,
    "output_heads": output_heads,
}
"""Transforms, and functions that make one of whole numbers, by their names in rules."""

_CALL = re.compile(r"([a-z_]+)(?:\((.*)\))?")


def parse_transform(text: str | Iterable[str]) -> Transform:
    """Return the transform of a name as str() gives it: "dense", "gates(1, 0, 2), then dense", or a list of names.

    Raises:
        ValueError: A name is unknown, and the known ones are listed; or its numbers are not what it takes.
    """
    result = identity
    for part in [text] if isinstance(text, str) else text:
        for name in part.split(", then "):
            result = result.then(_parse_one(name.strip()))
    return result


def _parse_one(text: str) -> Transform:
    match = _CALL.fullmatch(text)
    found = TRANSFORMS.get(match[1]) if match else None
    if match is None or found is None:
        raise ValueError(f"{text!r} is no transform; known are {', '.join(TRANSFORMS)}")
    if isinstance(found, Transform):
        if match[2] is not None:
            raise ValueError(f"{text!r}: {found} takes no numbers")
        return found
    try:
        numbers = [int(number) for number in match[2].split(",")] if match[2] else []
    except ValueError as e:
        raise ValueError(f"{text!r}: whole numbers were wanted, with commas between them") from e
    try:
        return found(*numbers)
    except TypeError as e:
        raise ValueError(f"{text!r}: {match[1]} takes another count of numbers") from e
