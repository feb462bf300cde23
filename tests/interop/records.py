"""Values on their way between the two halves, as JSON: a dtype's name, a shape, and bytes; only numpy is needed.

Both sides use this file, each with its own numpy; names of dtypes are those torch and TensorFlow share.
"""

from __future__ import annotations

import base64
from typing import Any, TypeAlias

import numpy as np

Record: TypeAlias = "dict[str, Any]"  # dtype, shape, and data, in base64, or texts, each in base64


def record(dtype: str, shape: Any, data: bytes) -> Record:
    """Return the record of numbers, from their little-endian bytes in row-major order."""
    return {"dtype": dtype, "shape": list(shape), "data": base64.b64encode(data).decode()}


def text_record(array: np.ndarray[Any, Any]) -> Record:
    """Return the record of an array of bytes objects."""
    texts = [base64.b64encode(text).decode() for text in array.ravel().tolist()]
    return {"dtype": "string", "shape": list(array.shape), "texts": texts}


def data_of(given: Record) -> bytes:
    """Return the bytes of numbers."""
    return base64.b64decode(given["data"])


def text_array(given: Record) -> np.ndarray[Any, Any]:
    """Return the array of bytes objects."""
    array = np.empty(len(given["texts"]), dtype=object)
    array[:] = [base64.b64decode(text) for text in given["texts"]]
    return array.reshape(given["shape"])
