"""What is converted: the values of a checkpoint of any format that can be read, each of them unread."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats.manifest import Manifest
from torchsaver.formats.regular_file import read_regular
from torchsaver.formats.shard_index import MAX_INDEX_BYTES, parse_index
from torchsaver.formats.tensor_bytes import dtype_text, why_not_storable
from torchsaver.formats.tensorflow.data_types import VARIANT
from torchsaver.formats.tensorflow.object_graph import OBJECT_GRAPH_KEY
from torchsaver.formats.torch_file import ENDINGS, TorchFile, is_torch_file, read_torch_file, verify_torch_file
from torchsaver.reader import CheckpointReader, load_checkpoint
from torchsaver.storage import paths
from torchsaver.torch_checkpoint.content import encode, sort_content, tie
from torchsaver.torch_checkpoint.states import listed_tensors, name_from_file

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
    is_in_object: bool = False  # whose tensors are its own, as a Saver writes them


@contextlib.contextmanager
def opened_source(
    source: str | os.PathLike[str], *, with_objects: bool = False, with_metadata: bool = False
) -> Iterator[Source]:
    """Yield the source; errors as `convert_checkpoint`.

    Args:
        source: As `convert_checkpoint`.
        with_objects: Of a file of torch.save, give the states of objects too; else their tensors are what others are.
        with_metadata: Of a file of torch.save, take plain values at its top for metadata.
    """
    path = paths.path_text(source, "source")
    if path.endswith(_INDEX_ENDINGS) and os.path.isfile(path):
        yield _torch_source(path, *_read_torch_shards(path))
    elif os.path.isfile(path) and is_torch_file(path):
        yield _read_whole(path) if with_objects else _read_tensors(path, with_metadata=with_metadata)
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
    return _unsorted(path, read_torch_file(path))


def _unsorted(path: str, found: TorchFile) -> tuple[list[_Mapped], dict[str, str]]:
    verify = functools.cache(functools.partial(verify_torch_file, path))
    return [_Mapped(key, tensor, verify) for key, tensor in found.tensors], dict.fromkeys(found.others, "no tensor")


def _read_tensors(path: str, *, with_metadata: bool) -> Source:
    """Return the tensors of a file of torch.save, wherever they hang."""
    found = read_torch_file(path)
    metadata = sort_content(found).metadata if with_metadata else {}
    mapped, left_out = _unsorted(path, found)
    left_out = {name: reason for name, reason in left_out.items() if name not in metadata}
    return _torch_source(path, mapped, left_out)._replace(manifest=Manifest(metadata=metadata or None))


def _read_whole(path: str) -> Source:
    """Return all of a file of torch.save as a Saver would write it: optimizers by the names of their parameters."""
    content = sort_content(read_torch_file(path))
    verify = functools.cache(functools.partial(verify_torch_file, path))
    named = name_from_file(content)
    left_out, trees, inside = {}, {}, set[str]()
    for name, state in {**content.objects, **content.optimizers}.items():
        try:
            trees[name], tensors = encode(name, named.states.get(name, state))
            inside |= tensors.keys()
        except ValueError as error:
            left_out[name] = str(error)
    for name, reason in named.reasons.items():
        trees.pop(name, None)
        left_out[name] = reason
    found = listed_tensors(content, named.states)
    mapped = [_Mapped(key, each, verify, key in inside) for key, each in found if not _is_within(key, left_out)]
    source = _torch_source(path, mapped, left_out)
    return source._replace(manifest=Manifest(objects=trees, metadata=content.metadata or None))


def _is_within(key: str, paths: Container[str]) -> bool:
    """Return whether a key begins with one of the paths, up to a dot."""
    return any(key[:at] in paths for at, sign in enumerate(key) if sign == ".")


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
    values = []
    free = [each for each in mapped if not each.is_in_object]
    for one in tie([(each.key, each.tensor) for each in free]):
        names = tuple(free[other].key for other in one.others)
        values.append(_value(free[one.first], names, one.problem))
    values += [_value(each, (), why_not_storable(each.tensor) or "") for each in mapped if each.is_in_object]
    return Source(path, values, Manifest(), False, left_out)


def _value(mapped: _Mapped, aliases: tuple[str, ...], problem: str) -> Value:
    shape = () if problem else tuple(mapped.tensor.shape)  # a nested one has none
    return Value(mapped.key, dtype_text(mapped.tensor.dtype), shape, _reader(mapped), aliases, problem)


def _reader(mapped: _Mapped) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        mapped.verify()
        return mapped.tensor

    return read
