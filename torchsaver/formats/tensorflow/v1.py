"""TensorFlow's V1 checkpoints: one table file or several, which hold everything; what it wrote before release 0.12.

    key ""           SavedTensorSlices.meta: name, shape, dtype and slices of every tensor of this file
    key of a slice   SavedTensorSlices.data: its name, the slice, and a TensorProto of nothing but its values

A tensor that is not partitioned is one slice too. The parts of a sharded checkpoint are complete files; only their
names tell how many there are.

Source: saved_tensor_slice.proto, tensor_slice_reader.cc and tensor_slice_set.cc in TensorFlow.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import NamedTuple, TypeVar

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.regular_file import RegularFile
from torchsaver.formats.tensorflow.data_types import STRING, DataType
from torchsaver.formats.tensorflow.messages import FOR_OTHER_READERS, is_for_other_readers, parse_shape
from torchsaver.formats.tensorflow.slices import Range, parse_slice, slice_key
from torchsaver.formats.tensorflow.sstable import read_block, read_index
from torchsaver.formats.tensorflow.stored_value import key_text, known_type
from torchsaver.formats.tensorflow.v1_values import Span, is_number, parse_numbers, parse_record, parse_strings
from torchsaver.formats.tensorflow.wire import Schema, parse_message

_MOST_DIMENSIONS = 254  # TensorShape::MaxDimensions
_MOST_GROWTH = 22  # of a compressed block; and a value takes a byte at least

_SAVED = Schema({1: ("metas", "bytes*")})
_META = Schema({1: ("tensors", "bytes*"), 2: ("versions", "bytes")})
_TENSOR = Schema({1: ("name", "bytes"), 2: ("shape", "bytes"), 3: ("type", "int64"), 4: ("slices", "bytes*")})

_T = TypeVar("_T")


class V1Tensor(NamedTuple):
    """What the meta says of a tensor; nothing is checked until it is asked for.

    Attributes:
        name: As it was saved.
        type_number: Its dtype's number in DataType, perhaps an unknown one.
        shape: Of the tensor as a whole; () where its rank is not known.
        slices: The parts that have its values, with their lengths as stored; to have none is damage.
        has_unknown_rank: That is damage, too.
    """

    name: bytes
    type_number: int
    shape: tuple[int, ...]
    slices: tuple[tuple[Range, ...], ...]
    has_unknown_rank: bool = False


class V1File:
    """One V1 file, open: its meta is read, and the values of a slice when they are asked for.

    Owns a file descriptor until `close`, or its own end, and keeps the block it read last, that of a large tensor too.
    Several threads may read at once.

    Args:
        path: The file.

    Attributes:
        tensors: Those its meta lists, by name.

    Raises:
        CorruptCheckpointError: Not a file, not a table, a damaged one, or one without a meta.
        UnsupportedCheckpointError: It says that this version cannot read it, or a block's compression is unknown.
        OSError: As the system gave it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = RegularFile(path)
        self._block: tuple[int, dict[bytes, bytes]] | None = None  # its number in the index, and its entries
        try:
            index = read_index(self._file)
            self._separators = [separator for separator, _, _ in index]
            self._handles = [(offset, nbytes) for _, offset, nbytes in index]
            self.tensors = self._read_meta()
        except BaseException:
            self.close()
            raise

    def _read_meta(self) -> dict[bytes, V1Tensor]:
        data, offset = self._find(b"")
        if data is None:
            raise CorruptCheckpointError(self.path, offset, "it has no meta, key '', with which a V1 checkpoint starts")
        try:
            tensors, is_for_others = _parse_meta(data)
        except ValueError as error:
            raise CorruptCheckpointError(self.path, offset, f"meta: {error}") from error
        if is_for_others:
            raise UnsupportedCheckpointError(self.path, FOR_OTHER_READERS)
        return tensors

    def _find(self, key: bytes) -> tuple[bytes | None, int]:
        """Return the value under a key, or None, and the offset of the only block that can have it."""
        number = bisect_left(self._separators, key)
        if number == len(self._handles):
            return None, 0
        offset, nbytes = self._handles[number]
        block = self._block
        if block is None or block[0] != number:
            self._block = block = None  # or there would be two of them
            block = self._block = number, dict(read_block(self._file, offset, nbytes))
        return block[1].get(key), offset

    def data_type(self, tensor: V1Tensor) -> DataType:
        """Return the dtype of a tensor.

        Raises:
            UnsupportedCheckpointError: It is unknown.
        """
        return known_type(tensor.type_number, key_text(tensor.name), self.path)

    def slice_within(self, tensor: V1Tensor, ranges: Sequence[Range]) -> tuple[Range, ...]:
        """Return a slice with its lengths in elements, which are no more than the file can hold.

        Raises:
            CorruptCheckpointError: They are more, or it does not fit the tensor's shape, or that is none.
        """
        try:
            return _within(tensor, ranges, _MOST_GROWTH * self._file.nbytes)
        except ValueError as error:
            raise self.damage(tensor, str(error)) from error

    def read_numbers(self, tensor: V1Tensor, ranges: Sequence[Range]) -> memoryview:
        """Return the values of a slice of numbers, after verifying their block's checksum.

        Args:
            tensor: One of this file, or of a V1Files with this file.
            ranges: One of its slices in this file, as stored.

        Returns:
            Little-endian bytes in C order, item_bytes for each value; perhaps read-only.

        Raises:
            CorruptCheckpointError: The file is damaged, or has no such slice.
            UnsupportedCheckpointError: The dtype is none of numbers in V1, or unknown; or the compression is.
        """
        data_type = self.data_type(tensor)
        if not is_number(data_type):
            raise UnsupportedCheckpointError(self.path, f"{_text(tensor.name)}: numbers of {data_type.debug_name}")
        return self._read(tensor, ranges, partial(parse_numbers, data_type=data_type))

    def read_text(self, tensor: V1Tensor, ranges: Sequence[Range]) -> list[bytes]:
        """Return the strings of a slice of a string tensor in C order; arguments as `read_numbers`.

        Raises:
            CorruptCheckpointError: The file is damaged, or has no such slice.
            UnsupportedCheckpointError: The dtype is another one, or a block's compression is unknown.
        """
        if (data_type := self.data_type(tensor)) != STRING:
            raise UnsupportedCheckpointError(self.path, f"{_text(tensor.name)}: text of {data_type.debug_name}")
        return self._read(tensor, ranges, parse_strings)

    def _read(self, tensor: V1Tensor, ranges: Sequence[Range], parse: Callable[[bytes, Span, int], _T]) -> _T:
        count = math.prod(each.length for each in self.slice_within(tensor, ranges))
        data, offset = self._find(slice_key(tensor.name, ranges))
        what = f"the values of {_text(tensor.name)} from {_starts(ranges)} on"
        if data is None:
            raise CorruptCheckpointError(self.path, offset, f"{what} are missing")
        try:
            return parse(data, _values_span(tensor, ranges, data), count)
        except ValueError as error:
            raise CorruptCheckpointError(self.path, offset, f"{what}: {error}") from error

    def damage(self, tensor: V1Tensor, reason: str) -> CorruptCheckpointError:
        """Return the error for what the meta says of a tensor."""
        return CorruptCheckpointError(self.path, self._handles[0][0], f"{_text(tensor.name)}: {reason}")

    def fileno(self) -> int:
        """Return the descriptor, which stays the file's."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._block = None
        self._file.close()

    def __enter__(self) -> V1File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class V1Files:
    """The files of one V1 checkpoint, open, and which of them has which slice; owns the files until `close`.

    Args:
        files: All of them; a missing one cannot be noticed here.

    Attributes:
        tensors: The union of theirs, by name, with the slices of all files.

    Raises:
        CorruptCheckpointError: Two files disagree on a tensor's shape or dtype.
    """

    def __init__(self, files: Sequence[V1File]) -> None:
        self.files = tuple(files)
        self.tensors: dict[bytes, V1Tensor] = {}
        self._owners: dict[bytes, list[V1File]] = {}  # those that list the tensor
        for file in self.files:
            for name, tensor in file.tensors.items():
                known = self.tensors.get(name)
                if known is None:
                    self.tensors[name], self._owners[name] = tensor, [file]
                    continue
                if known._replace(slices=()) != tensor._replace(slices=()):
                    other = self._owners[name][0].path
                    raise file.damage(tensor, f"{_brief(tensor)}, and {_brief(known)} in {other!r}")
                self.tensors[name] = known._replace(slices=known.slices + tensor.slices)
                self._owners[name].append(file)

    def slices_of(self, name: bytes) -> list[tuple[V1File, tuple[Range, ...]]]:
        """Return the slices of a tensor as stored, each with the file that has it.

        Each lies within the tensor and has no more values than its file can hold; whether they cover it is not checked.

        Raises:
            KeyError: There is no such tensor.
            CorruptCheckpointError: It has no slices, its shape is none, or a slice does not fit it.
        """
        tensor, owners = self.tensors[name], self._owners[name]
        slices = [(file, ranges) for file in owners for ranges in file.tensors[name].slices]
        if not slices:
            raise owners[0].damage(tensor, "it has no slices")
        for file, ranges in slices:
            file.slice_within(tensor, ranges)
        return slices

    def close(self) -> None:
        """Close the files; a second time does nothing."""
        for file in self.files:
            file.close()

    def __enter__(self) -> V1Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_v1(paths: Sequence[str]) -> V1Files:
    """Return the checkpoint of all these files, opened; errors as V1File and V1Files."""
    with ExitStack() as stack:
        checkpoint = V1Files([stack.enter_context(V1File(path)) for path in paths])
        stack.pop_all()
        return checkpoint


def _parse_meta(data: bytes) -> tuple[dict[bytes, V1Tensor], bool]:
    """Return the tensors of the record under the key "", and whether it is for other readers."""
    metas = parse_message(data, _SAVED)["metas"]
    if not metas:
        raise ValueError("the record has none")
    meta = parse_message(metas[-1], _META)
    tensors: dict[bytes, V1Tensor] = {}
    for each in meta["tensors"]:
        message = parse_message(each, _TENSOR)
        if message["name"] in tensors:
            raise ValueError(f"{_text(message['name'])} is there twice")
        shape = parse_shape(message["shape"])
        slices = tuple(map(parse_slice, message["slices"]))
        tensors[message["name"]] = V1Tensor(message["name"], message["type"], shape or (), slices, shape is None)
    return tensors, is_for_other_readers(meta["versions"])


def _within(tensor: V1Tensor, ranges: Sequence[Range], most_values: int) -> tuple[Range, ...]:
    rank = len(tensor.shape)
    if tensor.has_unknown_rank or rank > _MOST_DIMENSIONS or min(tensor.shape, default=0) < 0:
        raise ValueError("its rank is unknown or above 254, or a size is negative")
    if len(ranges) != rank:
        raise ValueError(f"a slice of {len(ranges)} dimensions of a tensor of {rank}")
    within = tuple(each.within(size) for each, size in zip(ranges, tensor.shape, strict=True))
    if math.prod(each.length for each in within) > most_values:
        raise ValueError(f"a slice of {[each.length for each in within]} values is more than the file can hold")
    return within


def _values_span(tensor: V1Tensor, ranges: Sequence[Range], data: bytes) -> Span:
    """Return where the TensorProto is in a slice's record, after checking that it is this slice's."""
    record = parse_record(data)
    if record.name != tensor.name or record.ranges != tuple(ranges):
        raise ValueError(f"the record is that of {_text(record.name)} from {_starts(record.ranges)} on")
    return record.tensor


def _text(name: bytes) -> str:
    return repr(name.decode(errors="backslashreplace"))


def _starts(ranges: Sequence[Range]) -> str:
    return str([each.start for each in ranges])


def _brief(tensor: V1Tensor) -> str:
    return f"shape {list(tensor.shape)} and dtype {tensor.type_number}"
