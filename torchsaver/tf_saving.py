"""Saving tensors as a checkpoint that TensorFlow reads: what is given, checked, and cut into what a bundle stores."""

from __future__ import annotations

import itertools
import math
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from torchsaver import arguments
from torchsaver.formats.tensor_bytes import dtype_text, why_not_storable
from torchsaver.formats.tensorflow.bundle_writer import BundleWriter, Part, cut_into_shards
from torchsaver.formats.tensorflow.data_types import BY_TORCH_NAME, STRING, DataType
from torchsaver.formats.tensorflow.names import index_beside, is_index
from torchsaver.formats.tensorflow.slices import MOST_SLICES, Range
from torchsaver.formats.tensorflow.stored_value import key_bytes, key_text
from torchsaver.storage import paths
from torchsaver.storage.bundle_files import write_bundle
from torchsaver.variables.mapping.layouts import Layout
from torchsaver.variables.problems import Problems

Given: TypeAlias = "torch.Tensor | Layout | np.ndarray[Any, Any]"
Values: TypeAlias = "torch.Tensor | np.ndarray[Any, Any]"  # an array is one of bytes: a string tensor


def save_tf_checkpoint(
    save_path: str | os.PathLike[str],
    tensors: Mapping[str, Given],
    *,
    partitions: Mapping[str, Sequence[int]] | None = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
) -> str:
    """Save tensors as a TensorFlow checkpoint (V2) without TensorFlow: the bytes its own writer would write.

    `tf.train.load_checkpoint`, TF1's `Saver.restore` and this library read it. A save is all or nothing: whatever
    happens, there is no checkpoint of this name or a whole one. One that is replaced (`overwrite`) counts until the new
    one does; because TensorFlow fixes the names of data files, the new one then has a further, empty data file
    ("-of-00002"). No state file is written: `update_checkpoint_state` names the checkpoint as the latest.

    Args:
        save_path: Prefix of the checkpoint, "run/model.ckpt"; .index and .data-00000-of-00001 are added. Missing
            directories are made.
        tensors: By name, "dense/kernel"; written in this order. A Layout is written as it has it. A string
            tensor is a numpy array of dtype object whose elements are bytes. In a name surrogates stand for bytes that
            are not UTF-8 (os.fsdecode).
        partitions: {name: parts along each dimension}, [4, 1] for rows in four: stored as a partitioned variable of
            TF1, cut as its fixed_size_partitioner does, the first parts the larger ones. TensorFlow joins the parts of
            half, unsigned (but uint8), float8 and string variables only when it reads them one by one.
        max_shard_bytes: Start another data file when one would get larger; a larger part has a file of its own.
        overwrite: Replace a checkpoint of this name.

    Returns:
        The prefix.

    Raises:
        VarListError: Names, values or partitions that cannot be saved, all of them; VarListTypeError if a type is among
            them. Nothing has been written.
        FileExistsError: There is a TensorFlow checkpoint of this name, and `overwrite` is not given.
        TypeError, ValueError: Another argument has the wrong type or value.
        OSError: The disk is full, the directory may not be written, ...; what was there counts as before.
    """
    prefix = _new_prefix(save_path)
    limit = arguments.whole_number(max_shard_bytes, "max_shard_bytes", least=1)
    shards = cut_into_shards(_parts(tensors, {} if partitions is None else partitions), limit)
    write_bundle(prefix, BundleWriter(shards), overwrite=overwrite)
    return prefix


def _new_prefix(save_path: Any) -> str:
    """Return the prefix as text, after checking that a checkpoint can have this name."""
    prefix = paths.path_text(save_path)
    if not os.path.basename(prefix):
        raise ValueError(f"save_path {prefix!r} has no file name; add one: {os.path.join(prefix, 'model.ckpt')!r}")
    if is_index(prefix) or index_beside(prefix) is not None:
        raise ValueError(
            f"save_path {prefix!r} ends like a file of a checkpoint; leave {os.path.splitext(prefix)[1]} off"
        )
    return prefix


def _parts(tensors: Any, partitions: Any) -> list[Part]:
    """Return what is to be written, in order.

    Raises:
        VarListError: Any of it cannot be.
    """
    problems = Problems()
    parts: list[Part] = []
    if not isinstance(tensors, Mapping) or not isinstance(partitions, Mapping):
        what, given = ("tensors", tensors) if not isinstance(tensors, Mapping) else ("partitions", partitions)
        hint = "; pass its state_dict()" if isinstance(given, torch.nn.Module) else ""
        problems.add(f"{what} is a {type(given).__name__}, and a mapping by name was wanted{hint}", wrong_type=True)
        problems.raise_if_any()
    if not tensors:
        problems.add("there is nothing to save; pass tensors by name")
    for key in partitions:
        if key not in tensors:
            problems.add(f"partitions has {key!r}, which is not among the tensors")
    for key, value in tensors.items():
        name = _name(key, problems)
        values = _values(key, value, problems)
        if name is not None and values is not None:
            counts = _counts(key, partitions.get(key), values.shape, problems)
            if counts is not None:
                parts += _cut(name, values, counts)
    _note_doubled(parts, problems)
    problems.raise_if_any()
    return parts


def _name(key: Any, problems: Problems) -> bytes | None:
    """Return a key as the index has it, or note why it cannot."""
    if not isinstance(key, str):
        problems.add(f"key {key!r} is a {type(key).__name__}; keys are str", wrong_type=True)
        return None
    if not key:
        problems.add("a key is empty; give it a name")
        return None
    if (name := key_bytes(key)) is None:
        problems.add(f"key {key!r} holds a surrogate that stands for no byte; choose another")
    return name


def _values(key: Any, value: Any, problems: Problems) -> Values | None:
    """Return what a value is written as, or note why it cannot be; nothing else here asks what was given."""
    if isinstance(value, Layout):
        try:
            value = value.to_stored()
        except ValueError as error:
            problems.add(f"{key!r} cannot be laid out: {error}")
            return None
    if isinstance(value, torch.Tensor):
        reason = _why_not_written(value)
        if reason is not None:
            problems.add(f"{key!r} {reason}")
        return value if reason is None else None
    if not isinstance(value, np.ndarray):
        wanted = "a tensor, or a numpy array of bytes for strings, was wanted"
        problems.add(f"{key!r} is a {type(value).__name__}; {wanted}", wrong_type=True)
        return None
    reason = _why_no_texts(value)
    if reason is not None:
        problems.add(f"{key!r} {reason}", wrong_type=True)
    return value if reason is None else None


def _why_not_written(tensor: torch.Tensor) -> str | None:
    if dtype_text(tensor.dtype) not in BY_TORCH_NAME:
        return f"has dtype {dtype_text(tensor.dtype)}, which TensorFlow's checkpoints do not have; convert it first"
    return why_not_storable(tensor)


def _why_no_texts(array: np.ndarray[Any, Any]) -> str | None:
    """Return why an array is no string tensor."""
    if array.dtype != object:
        remedy = "its elements as bytes" if array.dtype.kind in "SUT" else "torch.from_numpy() of it"
        return f"is an array of {array.dtype}, and arrays are for strings, of dtype object; pass {remedy}"
    kinds = {type(each).__name__: each for each in array.ravel().tolist() if not isinstance(each, bytes)}
    if "str" in kinds:
        return "holds str, and TensorFlow's strings are bytes; encode them, each.encode() for UTF-8"
    return f"holds {', '.join(sorted(kinds))}, and bytes were wanted" if kinds else None


def _counts(key: str, given: Any, shape: Sequence[int], problems: Problems) -> tuple[int, ...] | None:
    """Return into how many parts each dimension is cut, or note why it cannot be."""
    if given is None:
        return (1,) * len(shape)
    integers = isinstance(given, Sequence) and all(
        isinstance(count, numbers.Integral) and not isinstance(count, bool) for count in given
    )
    if not integers:
        problems.add(f"partitions of {key!r} is {given!r}, and integers, [4, 1], were wanted", wrong_type=True)
        return None
    counts = tuple(map(int, given))
    if len(counts) != len(shape):
        problems.add(f"partitions of {key!r} has {len(counts)} numbers, and the tensor {len(shape)} dimensions")
    elif not all(1 <= count <= max(size, 1) for count, size in zip(counts, shape, strict=True)):
        problems.add(f"partitions of {key!r} is {list(counts)}, and from [1, ..] to {list(shape)} can be cut")
    elif math.prod(counts) > MOST_SLICES:
        problems.add(f"partitions of {key!r} makes {math.prod(counts)} parts, and {MOST_SLICES} can be read back")
    else:
        return counts
    return None


def _cut(name: bytes, values: Values, counts: Sequence[int]) -> Iterator[Part]:
    """Yield the parts of a variable, the last dimension's first; the only one, if so, is no slice."""
    whole = tuple(values.shape)
    if math.prod(counts) == 1:
        yield _part(name, values)
        return
    along = [_ranges(size, count) for size, count in zip(whole, counts, strict=True)]
    for ranges in itertools.product(*along):
        yield _part(name, values[tuple(slice(each.start, each.start + each.length) for each in ranges)], ranges, whole)


def _ranges(size: int, count: int) -> list[Range]:
    """Return a dimension in parts; as in TF, the first ones have one more where it does not come out even."""
    least, larger = divmod(size, count)
    lengths = [least + (number < larger) for number in range(count)]
    return [Range(sum(lengths[:number]), length) for number, length in enumerate(lengths)]


def _part(name: bytes, values: Values, ranges: tuple[Range, ...] | None = None, whole: tuple[int, ...] = ()) -> Part:
    content: torch.Tensor | Sequence[bytes]
    data_type: DataType
    if isinstance(values, torch.Tensor):
        data_type, content = BY_TORCH_NAME[dtype_text(values.dtype)], values
    else:
        data_type, content = STRING, values.ravel().tolist()
    return Part(name, data_type, tuple(values.shape), content, ranges, whole)


def _note_doubled(parts: Sequence[Part], problems: Problems) -> None:
    """Note keys that stand twice in the index: two spellings of the same bytes, or a name like a slice's own key."""
    seen = {part.name for part in parts if part.ranges is not None}
    for part in parts:
        if part.key in seen:
            problems.add(f"two tensors come to the same key in the index, {key_text(part.key)!r}; rename one")
        seen.add(part.key)
