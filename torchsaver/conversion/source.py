"""What is converted: the values of a checkpoint of any format that can be read, each of them unread."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from torchsaver.formats.manifest import Manifest
from torchsaver.formats.tensor_bytes import dtype_text
from torchsaver.formats.tensorflow.data_types import VARIANT
from torchsaver.formats.tensorflow.object_graph import OBJECT_GRAPH_KEY
from torchsaver.formats.torch_file import is_torch_file, read_torch_file
from torchsaver.reader import CheckpointReader, load_checkpoint
from torchsaver.storage import paths


class Value(NamedTuple):
    """A value of the source, unread.

    Attributes:
        key: What it is stored under.
        dtype: torch's name; "string" for a string tensor.
        shape: As stored.
        read: Reads it: a tensor; of strings, a numpy array.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Any]


class Source(NamedTuple):
    """A checkpoint to be converted, open.

    Attributes:
        path: As given.
        values: What it holds and can be converted.
        manifest: What it says of itself.
        is_tensorflow: Whether its values are laid out as TensorFlow does.
        left_out: {what it holds and cannot be: why}.
    """

    path: str
    values: Sequence[Value]
    manifest: Manifest
    is_tensorflow: bool
    left_out: Mapping[str, str]


@contextlib.contextmanager
def opened_source(source: str | os.PathLike[str]) -> Iterator[Source]:
    """Yield the source; arguments and errors as `convert_checkpoint`."""
    path = paths.path_text(source, "source")
    if os.path.isfile(path) and is_torch_file(path):
        tensors, others = read_torch_file(path)
        values = [Value(key, dtype_text(t.dtype), tuple(t.shape), _giver(t)) for key, t in tensors.items()]
        yield Source(path, values, Manifest(), False, dict.fromkeys(others, "no tensor"))
        return
    with load_checkpoint(path) as reader:
        yield _stored_values(reader)


def _giver(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def _stored_values(reader: CheckpointReader) -> Source:
    values, left_out = [], {}
    for key in reader.keys():
        stored = reader.stored(key)
        if key == OBJECT_GRAPH_KEY:
            left_out[key] = "the graph of TensorFlow's objects"
        elif stored.dtype_name == VARIANT.name:
            left_out[key] = "a variant, the state of a TensorFlow object"
        else:
            values.append(Value(key, stored.dtype_name, tuple(stored.shape), stored.read))
    return Source(reader.save_path, values, reader.manifest, reader.is_tensorflow, left_out)
