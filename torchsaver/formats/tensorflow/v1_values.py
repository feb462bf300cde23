"""The record of one slice in a V1 file: a SavedSlice with the values in one of a TensorProto's repeated fields.

Large ones are the rule, so nothing is copied that need not be, and packed numbers are decoded by numpy.

Source: saved_tensor_slice.proto, tensor.proto and saved_tensor_slice_util.h in TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from torchsaver.formats.tensorflow.data_types import DataType
from torchsaver.formats.tensorflow.slices import Range, parse_slice
from torchsaver.formats.tensorflow.wire import MOST_VARINT_BYTES, read_varint

Span: TypeAlias = tuple[int, int]  # [start, end) of a field's value in its record

_DATA = 2  # fields: of SavedTensorSlices,
_NAME, _SLICE, _TENSOR = 1, 2, 3  # of SavedSlice,
_STRINGS = 8  # and of TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_PIECE_BYTES = 1 << 20  # of varints decoded at once: the temporary arrays are many times as large

# Of each dtype that V1 has a place for: the field of TensorProto, its wire type, and numpy's dtype for varints.
_FIELDS = {
    1: (5, _FIXED32, ""),
    2: (6, _FIXED64, ""),
    8: (9, _FIXED32, ""),  # complex: two numbers for each value
    18: (12, _FIXED64, ""),
    **dict.fromkeys((3, 13), (7, _VARINT, "<i4")),
    **dict.fromkeys((5, 15), (7, _VARINT, "<i2")),
    **dict.fromkeys((16, 17), (7, _VARINT, "<u2")),
    **dict.fromkeys((6, 11), (7, _VARINT, "<i1")),
    **dict.fromkeys((4, 12), (7, _VARINT, "<u1")),
    9: (10, _VARINT, "<i8"),
    10: (11, _VARINT, "?"),
    19: (13, _VARINT, "<u2"),  # the bits of a half
}


class Record(NamedTuple):
    """A slice's record: whose values it has, and where they are in it."""

    name: bytes
    ranges: tuple[Range, ...]
    tensor: Span


def is_number(data_type: DataType) -> bool:
    """Return whether `parse_numbers` knows the dtype."""
    return data_type.number in _FIELDS


def parse_record(data: bytes) -> Record:
    """Return what is in a slice's record.

    Raises:
        ValueError: It is none.
    """
    saved = _last(data, (0, len(data)), _DATA)
    (name_start, name_end), (slice_start, slice_end) = _last(data, saved, _NAME), _last(data, saved, _SLICE)
    ranges = parse_slice(data[slice_start:slice_end])
    return Record(data[name_start:name_end], ranges, _last(data, saved, _TENSOR))


def parse_numbers(data: bytes, tensor: Span, count: int, data_type: DataType) -> memoryview:
    """Return the little-endian bytes of the `count` numbers in a TensorProto, which a fixed size lets share `data`.

    Raises:
        ValueError: There are more or fewer of them, or they are not of that dtype.
    """
    field, wire_type, dtype = _FIELDS[data_type.number]
    parts = []
    for number, found, start, end in _fields(data, tensor):
        if number == field:
            _require_whole(data, (start, end), found, wire_type)
            parts.append(memoryview(data)[start:end])
    values = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
    if wire_type == _VARINT:
        return parse_varints(values, count, dtype).view(np.uint8).data
    if len(values) != count * data_type.item_bytes:
        raise ValueError(
            f"{len(values)} bytes in field {field}, and {count} values take {count * data_type.item_bytes}"
        )
    return values


def parse_strings(data: bytes, tensor: Span, count: int) -> list[bytes]:
    """Return the `count` strings in a TensorProto.

    Raises:
        ValueError: There are more or fewer of them.
    """
    strings = []
    for number, wire_type, start, end in _fields(data, tensor):
        if number == _STRINGS:
            _require_wire_type(number, wire_type, _BYTES)
            strings.append(data[start:end])
    if len(strings) != count:
        raise ValueError(f"{len(strings)} strings, and {count} were wanted")
    return strings


def parse_varints(
    data: bytes | memoryview, count: int, dtype: str, piece_bytes: int = _PIECE_BYTES
) -> npt.NDArray[np.generic]:
    """Return the `count` numbers in packed varints.

    Args:
        data: One number after the other.
        count: How many there must be.
        dtype: What numpy calls theirs.
        piece_bytes: How many bytes to decode at once.

    Raises:
        ValueError: There are more or fewer, one does not end, is beyond 64 bits, or beyond its dtype.
    """
    raw = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
    pieces = range(0, len(raw), piece_bytes)
    found = sum(int(np.count_nonzero(raw[start : start + piece_bytes] < 0x80)) for start in pieces)
    if found != count:
        raise ValueError(f"{found} numbers, and {count} were wanted")
    numbers: npt.NDArray[np.generic] = np.empty(count, dtype)
    lowest, highest = (0, 1) if dtype == "?" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    filled = position = 0
    while position < len(raw):
        piece = raw[position : position + piece_bytes]
        ends = np.flatnonzero(piece < 0x80)
        if not len(ends):
            raise ValueError(f"the number at byte {position} of the packed ones does not end")
        values = _decode(piece, ends)
        if values.min() < lowest or values.max() > highest:
            raise ValueError(f"numbers from {values.min()} to {values.max()}, in a dtype of {lowest} to {highest}")
        numbers[filled : filled + len(values)] = values
        filled += len(values)
        position += int(ends[-1]) + 1
    return numbers


def _decode(raw: npt.NDArray[np.uint8], ends: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    """Return the numbers whose last bytes are at `ends`."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > MOST_VARINT_BYTES or (raw[ends[lengths == MOST_VARINT_BYTES]] > 1).any():
        raise ValueError("a packed number is beyond 64 bits")
    values = (raw[starts] & 0x7F).astype(np.uint64)
    for group in range(1, longest):
        longer = np.flatnonzero(lengths > group)
        values[longer] |= (raw[starts[longer] + group] & 0x7F).astype(np.uint64) << np.uint64(7 * group)
    numbers: npt.NDArray[np.int64] = values.view(np.int64)
    return numbers


def _fields(data: bytes, message: Span) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, wire type, start, end) of every field's value; what a varint or fixed one is, packed ones are."""
    position, message_end = message
    while position < message_end:
        tag, start = read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, end = read_varint(data, start)
        elif wire_type == _BYTES:
            nbytes, start = read_varint(data, start)
            end = start + nbytes
        elif wire_type in _FIXED_BYTES:
            end = start + _FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"wire type {wire_type} at byte {position} is none that TensorFlow writes")
        if not number or end > message_end:
            raise ValueError(f"field {number} at byte {position} of its record ends beyond its message, or is none")
        yield number, wire_type, start, end
        position = end


def _last(data: bytes, message: Span, field: int) -> Span:
    """Return where the last value of a field of bytes is in a message: as in protobuf, that one counts."""
    span = (message[0], message[0])
    for number, wire_type, start, end in _fields(data, message):
        if number == field:
            _require_wire_type(number, wire_type, _BYTES)
            span = start, end
    return span


def _require_wire_type(field: int, found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"field {field} has wire type {found}, and {wanted} was wanted")


def _require_whole(data: bytes, span: Span, found: int, wanted: int) -> None:
    """Check one part of a field of numbers, packed or a single one: that its wire type is right, and its last ends."""
    start, end = span
    if found not in (_BYTES, wanted):
        raise ValueError(f"numbers of wire type {found}, and {wanted} was wanted")
    if wanted == _VARINT and start < end and data[end - 1] >= 0x80:
        raise ValueError("the last of packed numbers does not end")
    if wanted != _VARINT and (end - start) % _FIXED_BYTES[wanted]:
        raise ValueError(f"{end - start} bytes of packed numbers of {_FIXED_BYTES[wanted]} bytes")
