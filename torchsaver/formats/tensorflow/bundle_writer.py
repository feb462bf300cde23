"""Writing TensorFlow's V2 checkpoints, bundles, byte for byte as its own writer does.

A data file is a stream from tensor memory: the tensors one after the other, with no padding, in the order of saving.
What the index says of them (shard, offset, size, checksum) is known when they have been written, so it comes last.

Source: tensor_bundle.proto, BundleWriter and MergeBundles in TensorFlow's tensor_bundle.cc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from torchsaver.formats.checksum import crc32c
from torchsaver.formats.chunks import CHUNK_BYTES
from torchsaver.formats.regular_file import MOST_BUFFERS
from torchsaver.formats.safetensors_writer import Sink
from torchsaver.formats.tensor_bytes import is_dense, row_major_bytes
from torchsaver.formats.tensorflow.data_types import DataType
from torchsaver.formats.tensorflow.names import MOST_SHARDS
from torchsaver.formats.tensorflow.slices import WHOLE, Range, slice_key
from torchsaver.formats.tensorflow.sstable import masked
from torchsaver.formats.tensorflow.table_writer import format_table
from torchsaver.formats.tensorflow.wire import format_bytes, format_fixed32, format_number, format_varint

_VERSION = format_number(1, 1)  # VersionDef: producer 1, which has been TensorFlow's since 2016


class Unread(NamedTuple):
    """A tensor that is read when its turn comes, and kept by nobody.

    Attributes:
        nbytes: Its size.
        read: Reads it.
    """

    nbytes: int
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Part:
    """What is written in one run of bytes: a tensor, or a slice of a partitioned variable.

    Attributes:
        name: The variable's.
        data_type: What the index calls its elements.
        shape: Its own.
        content: A tensor whose row-major bytes are written as they are, perhaps unread; or a string tensor's elements.
        ranges: What it is of each dimension of the variable; None: it is all of it.
        whole: Shape of the variable it is a slice of.
    """

    name: bytes
    data_type: DataType
    shape: tuple[int, ...]
    content: torch.Tensor | Unread | Sequence[bytes]
    ranges: tuple[Range, ...] | None = None
    whole: tuple[int, ...] = ()

    @property
    def key(self) -> bytes:
        """The key it has in the index."""
        return self.name if self.ranges is None else slice_key(self.name, self.ranges)

    @property
    def nbytes(self) -> int:
        """Its size in a data file."""
        if isinstance(self.content, (torch.Tensor, Unread)):
            return self.content.nbytes
        return 4 + sum(len(text) + max(1, (len(text).bit_length() + 6) // 7) for text in self.content)


def cut_into_shards(parts: Iterable[Part], max_shard_bytes: int | None) -> list[list[Part]]:
    """Return the parts of each data file, of at most `max_shard_bytes`, in their order; a larger part has its own.

    Raises:
        ValueError: They are more than can be named.
    """
    shards: list[list[Part]] = [[]]
    filled = 0
    for part in parts:
        nbytes = part.nbytes
        if max_shard_bytes is not None and filled + nbytes > max_shard_bytes and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(part)
        filled += nbytes
    if len(shards) > MOST_SHARDS:
        raise ValueError(
            f"max_shard_bytes {max_shard_bytes} makes {len(shards)} data files, and {MOST_SHARDS} can be named"
        )
    return shards


class BundleWriter:
    """Writes the data files of a bundle, each once, and then its index.

    Args:
        shards: The parts of each data file. No key stands twice, and none is empty; the slices of a variable agree in
            dtype and whole shape, and cover it.
    """

    def __init__(self, shards: Sequence[Sequence[Part]]) -> None:
        self._shards = shards
        self._entries: dict[bytes, bytes] = {}  # BundleEntryProto of what has data
        self._slices: dict[bytes, list[bytes]] = {}  # by variable: its entry's fields, one after the other

    @property
    def shard_count(self) -> int:
        """How many data files there are to write."""
        return len(self._shards)

    def write_shard(self, number: int, out: Sink) -> None:
        """Write a data file; memory above the tensors stays within one window of WINDOW_BYTES.

        Args:
            number: Of the data file, from 0.
            out: An empty file.
        """
        parts = self._shards[number]
        out.reserve(sum(part.nbytes for part in parts))
        stream = _Stream(out)
        for part in parts:
            start = stream.position
            if isinstance(part.content, torch.Tensor):
                checksum = stream.add_tensor(part.content)
            elif isinstance(part.content, Unread):
                checksum = stream.add_tensor(part.content.read())
            else:
                checksum = stream.add_texts(part.content)
            nbytes = stream.position - start
            assert nbytes == part.nbytes, "it is what was announced"
            place = format_number(4, start) + format_number(5, nbytes) + format_fixed32(6, masked(checksum))
            self._entries[part.key] = _format_entry(part.data_type, part.shape, number) + place
            if part.ranges is not None:  # TensorFlow notes the data file of the first slice for the variable
                fields = self._slices.setdefault(part.name, [_format_entry(part.data_type, part.whole, number)])
                fields.append(format_bytes(7, _format_slice(part.ranges)))
        stream.flush()

    def format_index(self, shard_count: int | None = None) -> bytes:
        """Return the index file, when all data files have been written.

        Args:
            shard_count: How many data files the index speaks of, if there are more than those written here: further
                ones have nothing in them. It is a part of every data file's name.
        """
        header = format_number(1, shard_count or len(self._shards)) + format_bytes(3, _VERSION)
        wholes = {name: b"".join(fields) for name, fields in self._slices.items()}
        return format_table(sorted({b"": header, **self._entries, **wholes}.items()))


def _format_entry(data_type: DataType, shape: Sequence[int], shard: int) -> bytes:
    """Return the fields that every BundleEntryProto has."""
    dims = b"".join(format_bytes(2, format_number(1, size)) for size in shape)
    return format_number(1, data_type.number) + format_bytes(2, dims) + format_number(3, shard)


def _format_slice(ranges: Sequence[Range]) -> bytes:
    """Return a TensorSliceProto; an extent that has a whole dimension is empty."""
    extents = (
        b"" if each.length == WHOLE else format_number(1, each.start) + format_number(2, each.length, keeps_zero=True)
        for each in ranges
    )
    return b"".join(format_bytes(1, extent) for extent in extents)


class _Stream:
    """Bytes on their way into a file, one after the other, those of many small tensors in one call.

    Attributes:
        position: Where the next ones come.
    """

    def __init__(self, out: Sink) -> None:
        self._out = out
        self._waiting: list[bytes | memoryview] = []
        self._waiting_bytes = 0
        self.position = 0

    def add_tensor(self, tensor: torch.Tensor) -> int:
        """Write a tensor's values in row-major order, and return their CRC-32C."""
        checksum, stays = 0, is_dense(tensor)
        for piece in row_major_bytes(tensor):
            for start in range(0, len(piece), CHUNK_BYTES):
                chunk = piece[start : start + CHUNK_BYTES]
                checksum = crc32c(chunk, checksum)
                self._add(chunk)
            if not stays:
                self.flush()  # the next piece takes the memory of this one
        return checksum

    def add_texts(self, texts: Sequence[bytes]) -> int:
        """Write the elements of a string tensor, and return the CRC-32C that a bundle has of them.

        Their lengths come first, with a checksum of their own; texts.py describes both, and reads them.
        """
        lengths = list(map(len, texts))
        checksum = crc32c(b"".join(length.to_bytes(8 if length >> 32 else 4, "little") for length in lengths))
        stored = masked(checksum).to_bytes(4, "little")
        self._add(b"".join(map(format_varint, lengths)) + stored)
        checksum = crc32c(stored, checksum)
        for text in filter(None, texts):
            checksum = crc32c(text, checksum)
            self._add(text)
        return checksum

    def _add(self, piece: bytes | memoryview) -> None:
        self._waiting.append(piece)
        self._waiting_bytes += len(piece)
        self.position += len(piece)
        if self._waiting_bytes >= CHUNK_BYTES or len(self._waiting) == MOST_BUFFERS:
            self.flush()

    def flush(self) -> None:
        """Write what has been added."""
        if self._waiting:
            self._out.write(self.position - self._waiting_bytes, self._waiting)
            self._waiting, self._waiting_bytes = [], 0
