"""What is converted: the values of a checkpoint of any format that can be read, each of them unread."""

from __future__ import annotations

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.regular_file import read_regular
from torchsaver.formats.shard_index import MAX_INDEX_BYTES, parse_index
from torchsaver.formats.tensor_bytes import dtype_text, why_not_storable
from torchsaver.formats.tensorflow.data_types import VARIANT
from torchsaver.formats.tensorflow.object_graph import OBJECT_GRAPH_KEY
from torchsaver.formats.torch_file import ENDINGS, is_torch_file, read_torch_file, verify_torch_file
from torchsaver.reader import CheckpointReader, load_checkpoint
from torchsaver.storage import paths

_INDEX_ENDINGS = tuple(f"{ending}.index.json" for ending in ENDINGS)


class Value(NamedTuple):
    """A value of the source, unread.

    Attributes:
        key: What it is stored under.
        dtype: torch's name; "string" for a string tensor.
        shape: As stored.
        read: Reads it: a tensor; of strings, a numpy array.
        aliases: Other names of it: it is tied.
        problem: Why nothing can be made of it, or "".
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Any]
    aliases: tuple[str, ...] = ()
    problem: str = ""


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


class _Mapped(NamedTuple):
    """A tensor of a file of torch.save."""

    key: str
    tensor: torch.Tensor
    verify: Callable[[], None]  # its file, the first time


@contextlib.contextmanager
def opened_source(source: str | os.PathLike[str]) -> Iterator[Source]:
    """Yield the source; arguments and errors as `convert_checkpoint`."""
    path = paths.path_text(source, "source")
    if path.endswith(_INDEX_ENDINGS) and os.path.isfile(path):
        yield _torch_source(path, *_read_torch_shards(path))
    elif os.path.isfile(path) and is_torch_file(path):
        yield _torch_source(path, *_read_torch(path))
    else:
        with load_checkpoint(path) as reader:
            yield _stored_source(reader)


def _stored_source(reader: CheckpointReader) -> Source:
    values, left_out = [], {}
    aliases: dict[str, list[str]] = {}
    for alias, key in sorted(reader.aliases.items()):
        aliases.setdefault(key, []).append(alias)
    for key in reader.keys():
        stored = reader.stored(key)
        if key == OBJECT_GRAPH_KEY:
            left_out[key] = "the graph of TensorFlow's objects"
        elif stored.dtype_name == VARIANT.name:
            left_out[key] = "a variant, the state of a TensorFlow object"
        else:
            names = tuple(aliases.get(key, ()))
            values.append(Value(key, stored.dtype_name, tuple(stored.shape), stored.read, names))
    return Source(reader.save_path, values, reader.manifest, reader.is_tensorflow, left_out)


def _read_torch(path: str) -> tuple[list[_Mapped], dict[str, str]]:
    """Return a file's tensors, and {path of all else: why it is left out}."""
    found, verify = read_torch_file(path), functools.cache(functools.partial(verify_torch_file, path))
    return [_Mapped(key, tensor, verify) for key, tensor in found.tensors], dict.fromkeys(found.others, "no tensor")


def _read_torch_shards(index_path: str) -> tuple[list[_Mapped], dict[str, str]]:
    """Return the tensors of all files of an index of Hugging Face's, and what else is in them."""
    weight_map, _ = parse_index(read_regular(index_path, MAX_INDEX_BYTES), index_path)
    mapped: list[_Mapped] = []
    left_out: dict[str, str] = {}
    for name in sorted(set(weight_map.values())):
        try:
            tensors, others = _read_torch(os.path.join(os.path.dirname(index_path), name))
        except FileNotFoundError as error:
            raise CorruptCheckpointError(index_path, 0, f"its shard {name!r} is missing") from error
        wanted = {key for key, shard in weight_map.items() if shard == name}
        if missing := sorted(wanted - {each.key for each in tensors}):
            raise CorruptCheckpointError(index_path, 0, f"{missing[0]!r} is not in its shard {name!r}")
        mapped += [each for each in tensors if each.key in wanted]
        left_out.update({each.key: f"not for {name!r} in the index" for each in tensors if each.key not in wanted})
        left_out.update(others)
    return mapped, left_out


def _torch_source(path: str, mapped: Sequence[_Mapped], left_out: Mapping[str, str]) -> Source:
    counts = Counter(each.key for each in mapped)
    tied: dict[Any, list[_Mapped]] = {}
    for number, each in enumerate(mapped):
        is_one = counts[each.key] == 1 and not why_not_storable(each.tensor) and each.tensor.numel() > 0
        tied.setdefault(_place(each.tensor) if is_one else number, []).append(each)
    values = []
    for first, *others in tied.values():
        problem = why_not_storable(first.tensor) or ""
        if counts[first.key] > 1:
            problem = "stands twice in it, as a key and as keys within each other; save it under other ones"
        shape = () if problem else tuple(first.tensor.shape)  # a nested one has none
        names = tuple(other.key for other in others)
        values.append(Value(first.key, dtype_text(first.tensor.dtype), shape, _reader(first), names, problem))
    return Source(path, values, Manifest(), False, left_out)


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what is equal for two tensors that are the same memory, read the same way."""
    kind = tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg()
    return (tensor.data_ptr(), *kind)


def _reader(mapped: _Mapped) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        mapped.verify()
        return mapped.tensor

    return read
