"""TensorFlow's layers as its documentation defines them, step by step in numpy, and values of any dtype to move."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from torchsaver.formats.tensor_bytes import TORCH_DTYPES, row_major_bytes
from torchsaver.variables.mapping.layouts import Layout

# Every dtype but float4, of which two values share a byte.
DTYPES = [dtype for name, dtype in TORCH_DTYPES.items() if name != "F4"] + [torch.complex128]


def any_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Return values of random bits: NaNs with payloads, -0, and bools that are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(seed)
    nbytes = math.prod(shape) * dtype.itemsize
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


def content(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return all that tells two values apart, to the bit."""
    return tensor.dtype, tuple(tensor.shape), b"".join(bytes(piece) for piece in row_major_bytes(tensor))


def numbers(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed + sum(shape)).normal(size=shape)


def load(layout: Layout | torch.Tensor, stored: np.ndarray[Any, Any]) -> None:
    """Put a stored value into the tensors of a layout, or into a tensor that is stored as it is."""
    value = torch.from_numpy(stored)
    pairs = [(layout, value)]
    if isinstance(layout, Layout):
        pairs = list(zip(layout.tensors, layout.from_stored(value), strict=True))
    for tensor, part in pairs:
        assert tensor.shape == part.shape
        tensor.detach().copy_(part)


def load_all(layouts: Mapping[str, Layout | torch.Tensor], stored: Mapping[str, np.ndarray[Any, Any]]) -> None:
    for leaf, value in stored.items():
        load(layouts[leaf], value)


def to_channels_first(image: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(image).movedim(-1, 1)


def to_channels_last(image: torch.Tensor) -> np.ndarray[Any, Any]:
    return image.detach().movedim(1, -1).numpy()


def _windows(image: np.ndarray[Any, Any], sizes: tuple[int, ...]) -> Any:
    """Yield (position, image below the window there), the window moving by one and staying inside."""
    places = [n - size + 1 for n, size in zip(image.shape[1:-1], sizes, strict=True)]
    for at in np.ndindex(*places):
        yield at, image[(slice(None), *(slice(p, p + size) for p, size in zip(at, sizes, strict=True)))]


def conv(image: np.ndarray[Any, Any], kernel: np.ndarray[Any, Any], groups: int = 1) -> np.ndarray[Any, Any]:
    """tf.nn.convolution, VALID: image [n, ..., in], kernel [..., in / groups, out]."""
    sizes, (inputs, outputs) = kernel.shape[:-2], kernel.shape[-2:]
    places = [n - size + 1 for n, size in zip(image.shape[1:-1], sizes, strict=True)]
    result = np.zeros((image.shape[0], *places, outputs))
    for at, patch in _windows(image, sizes):
        for group in range(groups):
            outs = slice(group * outputs // groups, (group + 1) * outputs // groups)
            ins = slice(group * inputs, (group + 1) * inputs)
            for element in np.ndindex(*sizes):
                result[(slice(None), *at, outs)] += (
                    patch[(slice(None), *element, ins)] @ kernel[(*element, slice(None), outs)]
                )
    return result


def depthwise_conv(image: np.ndarray[Any, Any], kernel: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """tf.nn.depthwise_conv2d, VALID: kernel [..., in, multiplier]; output k * multiplier + q is input k's q-th."""
    sizes, (inputs, multiplier) = kernel.shape[:-2], kernel.shape[-2:]
    places = [n - size + 1 for n, size in zip(image.shape[1:-1], sizes, strict=True)]
    result = np.zeros((image.shape[0], *places, inputs * multiplier))
    for at, patch in _windows(image, sizes):
        for k in range(inputs):
            for q in range(multiplier):
                result[(slice(None), *at, k * multiplier + q)] = [
                    (one[..., k] * kernel[..., k, q]).sum() for one in patch
                ]
    return result


def conv_transpose(image: np.ndarray[Any, Any], kernel: np.ndarray[Any, Any], stride: int) -> np.ndarray[Any, Any]:
    """tf.nn.conv2d_transpose, VALID, the gradient of a convolution: kernel [..., out, in]."""
    sizes = kernel.shape[:-2]
    shape = [(n - 1) * stride + size for n, size in zip(image.shape[1:-1], sizes, strict=True)]
    result = np.zeros((image.shape[0], *shape, kernel.shape[-2]))
    for at in np.ndindex(*image.shape[1:-1]):
        for element in np.ndindex(*sizes):
            place = tuple(p * stride + e for p, e in zip(at, element, strict=True))
            result[(slice(None), *place)] += image[(slice(None), *at)] @ kernel[element].T
    return result


def sigmoid(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return 1 / (1 + np.exp(-x))


def keras_lstm(x: Any, kernel: Any, recurrent_kernel: Any, bias: Any) -> np.ndarray[Any, Any]:
    """keras.layers.LSTM: x [time, n, in]; gates i f c o; the states h of all steps."""
    h = c = np.zeros((x.shape[1], recurrent_kernel.shape[0]))
    states = []
    for step in x:
        i, f, new, o = np.split(step @ kernel + h @ recurrent_kernel + bias, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(new)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states)


def keras_gru(x: Any, kernel: Any, recurrent_kernel: Any, bias: Any) -> np.ndarray[Any, Any]:
    """keras.layers.GRU with reset_after=True: gates z r h, bias [2, 3u] for input and state."""
    h = np.zeros((x.shape[1], recurrent_kernel.shape[0]))
    states = []
    for step in x:
        x_z, x_r, x_h = np.split(step @ kernel + bias[0], 3, axis=-1)
        h_z, h_r, h_h = np.split(h @ recurrent_kernel + bias[1], 3, axis=-1)
        z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        h = z * h + (1 - z) * np.tanh(x_h + r * h_h)
        states.append(h)
    return np.stack(states)


def keras_simple_rnn(x: Any, kernel: Any, recurrent_kernel: Any, bias: Any) -> np.ndarray[Any, Any]:
    """keras.layers.SimpleRNN."""
    h = np.zeros((x.shape[1], recurrent_kernel.shape[0]))
    states = []
    for step in x:
        h = np.tanh(step @ kernel + bias + h @ recurrent_kernel)
        states.append(h)
    return np.stack(states)


def basic_lstm_cell(x: Any, kernel: Any, bias: Any, forget_bias: float) -> np.ndarray[Any, Any]:
    """tf.nn.rnn_cell.BasicLSTMCell: one kernel [in + u, 4u], gates i j f o, forget_bias added to f at run time."""
    h = c = np.zeros((x.shape[1], kernel.shape[1] // 4))
    states = []
    for step in x:
        i, j, f, o = np.split(np.concatenate([step, h], axis=1) @ kernel + bias, 4, axis=-1)
        c = c * sigmoid(f + forget_bias) + sigmoid(i) * np.tanh(j)
        h = np.tanh(c) * sigmoid(o)
        states.append(h)
    return np.stack(states)
