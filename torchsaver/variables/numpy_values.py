"""numpy's arrays and scalars as parts of a state tree: as a tensor where torch has the dtype, else as JSON.

```
DTYPE := "<f8" | "|S3" | "<M8[ns]" | ..                                    dtype.str, byte order and all
       | {"fields": [[NAME, DTYPE, OFFSET], ..], "itemsize": N, "align": BOOL} | {"subarray": [DTYPE, [N, ..]]}
```
"""

from __future__ import annotations

import base64
import math
import re
from typing import Any

import numpy as np
import torch

from torchsaver.formats.file_layout import MAX_RANK

# What torch and numpy both have, in the machine's own byte order.
_TENSOR_DTYPES = frozenset(
    np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
)
_PLAIN_DTYPE = re.compile(r"[<>|](?:[biufcSUV][1-9][0-9]{0,9}|[mM]8(?:\[[0-9]{0,9}[a-zA-Z]{1,2}\])?)")
_SCALAR_KINDS = "biufcmM"


def is_scalar(value: Any) -> bool:
    """Return whether a value is one of numpy's own numbers, bools or times, whose exact type its dtype gives."""
    return isinstance(value, np.generic) and value.dtype.kind in _SCALAR_KINDS and type(value) is value.dtype.type


def encode_scalar(value: np.generic) -> Any:
    """Return a scalar as [DTYPE, BASE64]."""
    return [value.dtype.str, _base64(value.tobytes())]


def decode_scalar(tree: Any) -> np.generic:
    """Return the scalar that `encode_scalar` gave; any other tree is an error, as for a dtype."""
    text, data = tree
    dtype = _decode_dtype(text)
    if dtype.kind not in _SCALAR_KINDS:
        raise ValueError(f"no number has the dtype {text!r}")
    value: Any = _array([], dtype, data)[()]
    return value  # type: ignore[no-any-return]


def as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor | None:
    """Return a tensor with an array's values, of its memory if that is writable and row-major; None if torch has none.

    An array that is read-only or laid out otherwise is copied.
    """
    if array.dtype not in _TENSOR_DTYPES:
        return None
    source = array if array.flags.carray else np.array(array, order="C")
    # Of one item or none, numpy calls any strides row-major, also those that torch refuses: below 0, or between items.
    return torch.from_numpy(np.ndarray(source.shape, source.dtype, source))


def from_tensor(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a row-major array with a tensor's values and memory of its own; TypeError if numpy lacks the dtype."""
    array: np.ndarray[Any, Any] = tensor.numpy().copy(order="C")
    return array


def encode_array(array: np.ndarray[Any, Any]) -> Any:
    """Return an array that torch has no dtype for as [DTYPE, SHAPE, BASE64], row-major.

    Raises:
        ValueError: Its items have no bytes of their own; the message goes on after the name of the array.
    """
    if array.dtype.hasobject:
        raise ValueError(f"is a numpy array of Python objects ({array.dtype}); use a list, or give it another dtype")
    dtype = _encode_dtype(array.dtype)
    try:
        is_exact = repr(_decode_dtype(dtype)) == repr(array.dtype)  # repr tells align and titles, == does not
    except (TypeError, ValueError):
        is_exact = False
    if not is_exact:
        raise ValueError(f"is a numpy array of dtype {array.dtype!r}, which cannot be stored; convert it first")
    return [dtype, list(array.shape), _base64(_without_gaps(array).tobytes())]


def _without_gaps(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array with zeros between the fields of its items, where else there is what the memory held before."""
    if array.dtype.names is None:
        return array
    zeros = np.zeros(array.shape, array.dtype)
    _copy_fields(zeros, array)
    return zeros


def _copy_fields(target: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> None:
    """Copy the fields of items, and what is in them; numpy's own assignment may take the gaps along."""
    if source.dtype.names is None:
        target[...] = source
        return
    for name in source.dtype.names:
        _copy_fields(target[name], source[name])


def decode_array(tree: Any) -> np.ndarray[Any, Any]:
    """Return the array that `encode_array` gave, writable; any other tree is an error, as for a dtype."""
    dtype, shape, data = tree
    return _array(shape, _decode_dtype(dtype), data).copy(order="C")


def _array(shape: Any, dtype: np.dtype[Any], data: Any) -> np.ndarray[Any, Any]:
    """Return a read-only array of bytes in base64, which must be exactly as many as it takes."""
    if not isinstance(shape, list) or len(shape) > MAX_RANK:
        raise ValueError("an array has no shape")
    found = base64.b64decode(data, validate=True)
    wanted = math.prod(_size(size) for size in shape) * dtype.itemsize
    if len(found) != wanted:
        raise ValueError(f"an array of {dtype} and shape {shape} takes {wanted} bytes, not {len(found)}")
    return np.ndarray(tuple(shape), dtype, found)


def _encode_dtype(dtype: np.dtype[Any]) -> Any:
    if dtype.subdtype is not None:
        return {"subarray": [_encode_dtype(dtype.subdtype[0]), list(dtype.subdtype[1])]}
    if dtype.names is None or dtype.fields is None:
        return dtype.str
    fields = [[name, _encode_dtype(dtype.fields[name][0]), dtype.fields[name][1]] for name in dtype.names]
    return {"fields": fields, "itemsize": dtype.itemsize, "align": dtype.isalignedstruct}


def _decode_dtype(tree: Any) -> np.dtype[Any]:
    """Return the dtype that `_encode_dtype` gave.

    Raises:
        ValueError, TypeError, AttributeError, ArithmeticError: The tree is another one, or a dtype with Python objects,
            or with items of no bytes.
    """
    dtype = _numpy_dtype(tree)
    if dtype.hasobject or dtype.itemsize == 0 or dtype.subdtype is not None or _encode_dtype(dtype) != tree:
        raise ValueError(f"{tree!r} is no dtype of plain values")
    return dtype


def _numpy_dtype(tree: Any) -> np.dtype[Any]:
    if isinstance(tree, str):
        if not _PLAIN_DTYPE.fullmatch(tree):
            raise ValueError(f"{tree!r} is no dtype of plain values")
        return np.dtype(tree)
    if tree.keys() == {"subarray"}:
        base, shape = tree["subarray"]
        return np.dtype((_numpy_dtype(base), tuple(map(_size, shape))))
    if tree.keys() != {"fields", "itemsize", "align"}:
        raise ValueError("a dtype has other members")
    names, formats, offsets = zip(*tree["fields"], strict=True)
    members: Any = {"names": list(names), "formats": list(map(_numpy_dtype, formats)), "offsets": list(offsets)}
    members["itemsize"] = tree["itemsize"]
    dtype: np.dtype[Any] = np.dtype(members, align=tree["align"] is True)
    return dtype


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
