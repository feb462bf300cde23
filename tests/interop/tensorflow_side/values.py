"""Records from TensorFlow's values and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]
from interop.records import Record, data_of, record, text_array, text_record


def to_record(value: Any, dtype: Any = None) -> Record:
    """Return the record of an eager tensor, a variable, or a numpy array."""
    array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    kind = tf.as_dtype(dtype or getattr(value, "dtype", array.dtype))
    if kind == tf.string:
        return text_record(np.asarray(array, dtype=object))
    return record(kind.name, array.shape, np.ascontiguousarray(array).tobytes())


def to_array(given: Record) -> np.ndarray[Any, Any]:
    """Return the numpy array of a record, in TensorFlow's numpy dtypes."""
    if given["dtype"] == "string":
        return text_array(given)
    dtype = tf.as_dtype(given["dtype"]).as_numpy_dtype
    return np.frombuffer(data_of(given), dtype).reshape(given["shape"]).copy()


def blank(dtype: str, shape: list[int]) -> np.ndarray[Any, Any]:
    """Return an array of zeros, or of empty strings."""
    if dtype == "string":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, tf.as_dtype(dtype).as_numpy_dtype)
