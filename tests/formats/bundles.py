"""Bundles as tests read them: what the index says, and what the data files hold, with every checksum compared."""

from __future__ import annotations

import os
from typing import Any

from torchsaver.formats.checksum import crc32c
from torchsaver.formats.regular_file import RegularFile
from torchsaver.formats.tensorflow.sstable import masked, read_table
from torchsaver.formats.tensorflow.wire import Schema, parse_message, read_varint

HEADER = Schema({1: ("num_shards", "int64"), 3: ("version", "bytes")})
ENTRY = Schema(
    {
        1: ("dtype", "int64"),
        2: ("shape", "bytes"),
        3: ("shard", "int64"),
        4: ("offset", "int64"),
        5: ("size", "int64"),
        6: ("crc32c", "fixed32"),
        7: ("slices", "bytes*"),
    }
)


def entries(index: str) -> dict[bytes, dict[str, Any]]:
    """Return what an index file says of each key, the header under the empty one."""
    return {key: parse_message(value, ENTRY if key else HEADER) for key, value in read_table(RegularFile(index))}


def shape(data: bytes) -> list[int]:
    """Return the sizes in a TensorShapeProto."""
    return [
        parse_message(dim, Schema({1: ("size", "int64")}))["size"]
        for dim in parse_message(data, Schema({2: ("dims", "bytes*")}))["dims"]
    ]


def stored(prefix: str) -> dict[bytes, bytes] | None:
    """Return the bytes under each key that has any, strings without their lengths; None when there is no index."""
    if not os.path.exists(f"{prefix}.index"):
        return None
    found = entries(f"{prefix}.index")
    count = found.pop(b"")["num_shards"]
    values = {}
    for key, entry in found.items():
        if not entry["slices"]:
            data = RegularFile(f"{prefix}.data-{entry['shard']:05d}-of-{count:05d}").read(
                entry["offset"], entry["size"]
            )
            values[key] = _texts(bytes(data), entry) if entry["dtype"] == 7 else _checked(bytes(data), entry)
    return values


def _checked(data: bytes, entry: dict[str, Any]) -> bytes:
    assert masked(crc32c(data)) == entry["crc32c"]
    return data


def _texts(data: bytes, entry: dict[str, Any]) -> bytes:
    position, lengths = 0, b""
    while masked(crc32c(lengths)) != int.from_bytes(data[position : position + 4], "little"):
        length, position = read_varint(data, position)
        lengths += length.to_bytes(4, "little")
    _checked(lengths + data[position:], entry)
    return data[position + 4 :]
