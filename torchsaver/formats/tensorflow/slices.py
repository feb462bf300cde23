"""Slices of partitioned variables: a part of a tensor, as a message and as the key under which a table has its values.

    key   00 | name, 00 as 00 ff and ff as ff 00 | 00 01 | rank | start and length of each dimension

Numbers in a key are of as few bytes as they need, and compare as they do. A whole dimension is start 0, length -1.

Source: ordered_code.cc and saved_tensor_slice_util.cc in TensorFlow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from torchsaver.formats.tensorflow.wire import Schema, parse_message

WHOLE = -1  # as a length: all of the dimension
MOST_SLICES = 4096  # comparing them takes a second at most, and grows as the square of their number

_SLICE = Schema({1: ("extents", "bytes*")})
_EXTENT = Schema({1: ("start", "int64"), 2: ("lengths", "int64*")})  # whether there is a length matters
_ESCAPED = re.compile(rb"[\x00\xff]")
_ESCAPE = re.compile(rb"\x00\xff|\xff\x00")
_SLICE_KEY = re.compile(rb"\x00((?:[^\x00\xff]|\x00\xff|\xff\x00)*)\x00\x01")


class Range(NamedTuple):
    """What a slice has of one dimension: `length` elements from `start` on, or WHOLE."""

    start: int = 0
    length: int = WHOLE

    @property
    def end(self) -> int:
        """Where a range whose length is known ends."""
        return self.start + self.length

    def within(self, size: int) -> Range:
        """Return the range of a dimension of `size` elements, with its length in elements.

        Raises:
            ValueError: It reaches beyond the dimension.
        """
        length = size - self.start if self.length == WHOLE else self.length
        if self.start < 0 or length < 0 or self.start + length > size or (self.length == WHOLE and self.start):
            raise ValueError(f"a slice of {self.length} elements from {self.start} on, in a dimension of {size}")
        return Range(self.start, length)


def parse_slice(data: bytes) -> tuple[Range, ...]:
    """Return the ranges of a TensorSliceProto, one for each dimension.

    Raises:
        ValueError: It is none.
    """
    ranges = []
    for extent in parse_message(data, _SLICE)["extents"]:
        message = parse_message(extent, _EXTENT)
        ranges.append(Range(message["start"], message["lengths"][-1] if message["lengths"] else WHOLE))
    return tuple(ranges)


def require_partition(shape: Sequence[int], slices: Sequence[Sequence[Range]]) -> list[tuple[Range, ...]]:
    """Return the slices with their lengths in elements, after checking that they cover a tensor without overlaps.

    Raises:
        ValueError: One has another rank or reaches beyond the tensor, two overlap, or they leave a gap.
    """
    if len(slices) > MOST_SLICES:
        raise ValueError(f"{len(slices)} slices are more than {MOST_SLICES}")
    resolved = []
    for ranges in slices:
        if len(ranges) != len(shape):
            raise ValueError(f"a slice of {len(ranges)} dimensions of a tensor of {len(shape)}")
        resolved.append(tuple(each.within(size) for each, size in zip(ranges, shape, strict=True)))
    total = sum(math.prod(each.length for each in ranges) for ranges in resolved)
    if total != math.prod(shape):
        raise ValueError(f"the slices have {total} elements, and the tensor has {math.prod(shape)}: gap or overlap")
    if total:
        _require_disjoint([ranges for ranges in resolved if all(each.length for each in ranges)], len(shape))
    return resolved


def _require_disjoint(slices: Sequence[tuple[Range, ...]], rank: int) -> None:
    """Check that no two slices, of which none is empty, have an element in common.

    Sets of slices are the bits of an integer, and ended and started ones are added up in order: to compare all pairs in
    all dimensions would take minutes.
    """
    meeting = [(1 << len(slices)) - 1] * len(slices)  # of each, those it meets in the dimensions so far
    for axis in range(rank):
        starts, ends = [ranges[axis].start for ranges in slices], [ranges[axis].end for ranges in slices]
        started = _below(starts, ends)
        ended = _below([end - 1 for end in ends], starts)
        meeting = [bits & one & ~two for bits, one, two in zip(meeting, started, ended, strict=True)]
    for number, bits in enumerate(meeting):
        if others := bits & ~(1 << number):
            other = slices[others.bit_length() - 1]
            raise ValueError(f"slices overlap: {_text(slices[number])} and {_text(other)}")


def _below(values: Sequence[int], limits: Sequence[int]) -> list[int]:
    """Return for each limit the bits of the values below it."""
    ascending = sorted(range(len(values)), key=values.__getitem__)
    below, bits, count = [0] * len(limits), 0, 0
    for number in sorted(range(len(limits)), key=limits.__getitem__):
        while count < len(ascending) and values[ascending[count]] < limits[number]:
            bits |= 1 << ascending[count]
            count += 1
        below[number] = bits
    return below


def _text(ranges: Sequence[Range]) -> str:
    return f"[{','.join(f'{each.start}:{each.end}' for each in ranges)}]"


def slice_key(name: bytes, ranges: Sequence[Range]) -> bytes:
    """Return the key under which a table has the values of a slice of the tensor `name`."""
    escaped = _ESCAPED.sub(lambda match: b"\x00\xff" if match[0] == b"\x00" else b"\xff\x00", name)
    return b"\x00" + escaped + b"\x00\x01" + slice_code(ranges)


def slice_code(ranges: Sequence[Range]) -> bytes:
    """Return the part of a slice's key that comes after the name."""
    return _unsigned(len(ranges)) + b"".join(_signed(number) for each in ranges for number in each)


def split_slice_key(key: bytes) -> tuple[bytes, bytes] | None:
    """Return the name and the code in a key, if it is that of a slice; a variable may be called so too."""
    match = _SLICE_KEY.match(key)
    if match is None:
        return None
    return _ESCAPE.sub(lambda escape: escape[0][:1], match[1]), key[match.end() :]


def _unsigned(value: int) -> bytes:
    nbytes = (value.bit_length() + 7) // 8
    return bytes([nbytes]) + value.to_bytes(nbytes, "big")


def _signed(value: int) -> bytes:
    """Return a number in n bytes whose n topmost bits, for a number that is not negative, are ones and then a zero."""
    magnitude = ~value if value < 0 else value
    nbytes = magnitude.bit_length() // 7 + 1
    bits = 8 * nbytes
    ones = (1 << nbytes) - 1 << bits - nbytes
    return ((value & (1 << bits) - 1) ^ ones).to_bytes(nbytes, "big")
