"""TensorFlow's V2 checkpoints: an index, which is a table, and data files.

    PREFIX.index                   "" -> BundleHeaderProto, every other key -> BundleEntryProto
    PREFIX.data-00000-of-0000N     the tensors' bytes, wherever the entries say

A variable that was saved in slices has an entry without data under its key, and one for each slice under the slice's.

Source: tensor_bundle.proto and tensor_bundle.cc in TensorFlow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torchsaver.errors import CorruptCheckpointError, UnsupportedCheckpointError
from torchsaver.formats.file_layout import TensorSpec
from torchsaver.formats.regular_file import RegularFile
from torchsaver.formats.tensor_file import TensorFile
from torchsaver.formats.tensorflow.data_file import DataFile, require_no_pointer
from torchsaver.formats.tensorflow.data_types import STRING, DataType
from torchsaver.formats.tensorflow.messages import FOR_OTHER_READERS, is_for_other_readers, parse_shape
from torchsaver.formats.tensorflow.names import INDEX_ENDING, MOST_SHARDS, data_file
from torchsaver.formats.tensorflow.object_graph import OBJECT_GRAPH_KEY, ObjectGraph, parse_object_graph
from torchsaver.formats.tensorflow.slices import (
    Range,
    parse_slice,
    require_partition,
    slice_code,
    slice_key,
    split_slice_key,
)
from torchsaver.formats.tensorflow.sstable import read_table, unmasked
from torchsaver.formats.tensorflow.stored_value import (
    Piece,
    StoredValue,
    key_bytes,
    key_text,
    known_type,
    require_shape,
)
from torchsaver.formats.tensorflow.texts import ByteOrder
from torchsaver.formats.tensorflow.wire import Schema, parse_message

_HEADER = Schema({1: ("num_shards", "int64"), 2: ("endianness", "int64"), 3: ("version", "bytes")})
_ENTRY = Schema(
    {
        1: ("dtype", "int64"),
        2: ("shape", "bytes"),
        3: ("shard_id", "int64"),
        4: ("offset", "int64"),
        5: ("size", "int64"),
        6: ("crc32c", "fixed32"),
        7: ("slices", "bytes*"),
    }
)


class _Entry(NamedTuple):
    """A BundleEntryProto."""

    type_number: int
    shape: tuple[int, ...]
    shard: int
    start: int
    nbytes: int
    checksum: int
    slices: tuple[tuple[Range, ...], ...]


def _parse_entry(data: bytes) -> _Entry:
    """Return an entry, as far as it can be checked by itself.

    Raises:
        ValueError: It is none.
    """
    message = parse_message(data, _ENTRY)
    if (shape := parse_shape(message["shape"])) is None:
        raise ValueError("its shape is unknown")
    if min(message["offset"], message["size"]) < 0:
        raise ValueError(f"{message['size']} bytes at {message['offset']}")
    return _Entry(
        type_number=message["dtype"],
        shape=shape,
        shard=message["shard_id"],
        start=message["offset"],
        nbytes=message["size"],
        checksum=unmasked(message["crc32c"]),
        slices=tuple(parse_slice(each) for each in message["slices"]),
    )


class Bundle:
    """An open V2 checkpoint. Its index is read at once; what it says of a tensor is checked when that is asked for.

    Owns the descriptors of the data files opened so far, until `close`.

    Args:
        index_path: The file PREFIX.index.

    Raises:
        CorruptCheckpointError: The index is damaged or none.
        UnsupportedCheckpointError: It is of a newer version.
        OSError: As the system gave it.
    """

    def __init__(self, index_path: str) -> None:
        self.path = index_path
        self._prefix = index_path.removesuffix(INDEX_ENDING)
        file = RegularFile(index_path)
        try:
            require_no_pointer(file)
            self._table = dict(read_table(file))
        finally:
            file.close()
        self.shard_count, self._order = self._read_header()
        self._shards: dict[int, DataFile] = {}
        self._found: dict[str, StoredValue] = {}
        self._graph: ObjectGraph | None = None
        self._keys: list[str] | None = None

    def _read_header(self) -> tuple[int, ByteOrder]:
        try:
            header = parse_message(self._table.pop(b""), _HEADER)
            is_for_others = is_for_other_readers(header["version"])
        except KeyError as error:
            raise CorruptCheckpointError(self.path, 0, "the index has no header, under the empty key") from error
        except ValueError as error:
            raise CorruptCheckpointError(self.path, 0, f"header of the index: {error}") from error
        if is_for_others:
            raise UnsupportedCheckpointError(self.path, FOR_OTHER_READERS)
        if header["endianness"] not in (0, 1):
            raise UnsupportedCheckpointError(self.path, f"byte order {header['endianness']}; 0 and 1 are known")
        if not 0 < header["num_shards"] <= MOST_SHARDS:
            raise CorruptCheckpointError(self.path, 0, f"the index counts {header['num_shards']} data files")
        return header["num_shards"], "big" if header["endianness"] else "little"

    @property
    def files(self) -> list[TensorFile]:
        """The data files of the tensors that have been asked for, in the order in which they were."""
        return list(self._shards.values())

    @property
    def paths(self) -> list[str]:
        """The paths of the index and of all data files."""
        return [self.path, *(data_file(self._prefix, n, self.shard_count) for n in range(self.shard_count))]

    def keys(self) -> list[str]:
        """Return the keys, sorted as bytes; those of slices are none."""
        if self._keys is None:
            hidden = self._slice_keys()
            self._keys = [key_text(key) for key in self._table if key not in hidden]
        return self._keys

    def _slice_keys(self) -> set[bytes]:
        """Return the keys of slices: not by how they look alone, because a variable may be called so too."""
        codes: dict[bytes, set[bytes]] = {}  # of the slices of each variable that has some
        keys = set()
        for key in self._table:
            if (parts := split_slice_key(key)) is not None and parts[0] in self._table:
                name, code = parts
                if name not in codes:
                    codes[name] = self._slice_codes(name)
                if code in codes[name]:
                    keys.add(key)
        return keys

    def _slice_codes(self, name: bytes) -> set[bytes]:
        try:
            return {slice_code(parse_slice(each)) for each in parse_message(self._table[name], _ENTRY)["slices"]}
        except ValueError:
            return set()  # it is told when this key is asked for

    def find(self, key: str) -> StoredValue | None:
        """Return what is stored under a key, or under another name the object graph has for it; None without it.

        Raises:
            CorruptCheckpointError: What the index says of it cannot be, or the object graph is damaged.
            UnsupportedCheckpointError: A dtype that no checkpoint has, or more dimensions than torch takes.
        """
        if key not in self._found:
            raw = key_bytes(key)
            if raw in self._table and raw:
                self._found[key] = self._value(key, raw)
            elif (graph := self.object_graph()) is not None:
                stored_key = graph.find(key)
                return None if stored_key is None or stored_key == key else self.find(stored_key)
            else:
                return None
        return self._found[key]

    def object_graph(self) -> ObjectGraph | None:
        """Return the graph of the objects that were saved, None in a checkpoint that has only names.

        Raises:
            CorruptCheckpointError: It is damaged, or its data file is missing.
        """
        if self._graph is None and OBJECT_GRAPH_KEY.encode() in self._table:
            value = self.find(OBJECT_GRAPH_KEY)
            assert value is not None, "it is in the table"
            piece = value.pieces[0]
            if value.data_type != STRING or value.shape:
                raise CorruptCheckpointError(self.path, 0, f"{OBJECT_GRAPH_KEY!r} is no string")
            try:
                self._graph = parse_object_graph(piece.file.read_texts(piece.spec)[0])
            except ValueError as error:
                raise CorruptCheckpointError(piece.file.path, piece.spec.start, f"object graph: {error}") from error
        return self._graph

    def _value(self, key: str, raw: bytes) -> StoredValue:
        data_type, entry = self._entry(key, self._table[raw])
        if not entry.slices:
            piece = self._piece(key, data_type, entry, tuple(Range(0, size) for size in entry.shape))
            is_plain = bool(data_type.stored) and (self._order == "little" or data_type.item_bytes == 1)
            return StoredValue(key, data_type, entry.shape, (piece,), self._order, is_plain)
        try:
            partition = require_partition(entry.shape, entry.slices)
        except ValueError as error:
            raise CorruptCheckpointError(self.path, 0, f"{key!r}: {error}") from error
        pieces = []
        for stored, ranges in zip(entry.slices, partition, strict=True):
            slice_raw = slice_key(raw, stored)
            name = f"{key}[{','.join(f'{each.start}:{each.end}' for each in ranges)}]"
            if slice_raw not in self._table:
                raise CorruptCheckpointError(self.path, 0, f"{name} is missing")
            if key_bytes(name) in self._table:  # a variable is called so
                name = key_text(slice_raw)
            part_type, part = self._entry(name, self._table[slice_raw])
            if part_type != data_type or part.shape != tuple(each.length for each in ranges):
                reason = f"{name} is {part_type.name} {list(part.shape)}, and its tensor is {data_type.name}"
                raise CorruptCheckpointError(self.path, 0, reason)
            pieces.append(self._piece(name, part_type, part, ranges))
        return StoredValue(key, data_type, entry.shape, tuple(pieces), self._order, is_plain=False)

    def _piece(self, name: str, data_type: DataType, entry: _Entry, ranges: tuple[Range, ...]) -> Piece:
        if data_type.item_bytes and math.prod(entry.shape) * data_type.item_bytes != entry.nbytes:
            reason = f"{name!r} is {data_type.name} {list(entry.shape)} in {entry.nbytes} bytes"
            raise CorruptCheckpointError(self.path, 0, reason)
        if not 0 <= entry.shard < self.shard_count:
            reason = f"{name!r} is in data file {entry.shard} of {self.shard_count}"
            raise CorruptCheckpointError(self.path, 0, reason)
        if entry.shard not in self._shards:
            path = data_file(self._prefix, entry.shard, self.shard_count)
            self._shards[entry.shard] = DataFile(path, self._order)
        file = self._shards[entry.shard]
        spec = TensorSpec(name, data_type.name, entry.shape, entry.start, entry.start + entry.nbytes)
        file.note(spec, entry.checksum)
        return Piece(file, spec, ranges)

    def _entry(self, key: str, value: bytes) -> tuple[DataType, _Entry]:
        try:
            entry = _parse_entry(value)
        except ValueError as error:
            raise CorruptCheckpointError(self.path, 0, f"what the index has of {key!r}: {error}") from error
        data_type = known_type(entry.type_number, key, self.path)
        require_shape(entry.shape, key, self.path)
        return data_type, entry

    def close(self) -> None:
        """Close the data files; a second time does nothing."""
        for file in self._shards.values():
            file.close()
