"""Protocol buffers' wire format, as much as TensorFlow's checkpoints use of it; nothing is believed unchecked.

A message is described by a schema, {field number: (name, kind)}. Kinds are `int64` (any varint, signed), `fixed32` and
`bytes` (strings, messages within messages), with a `*` at the end if the field is repeated.

Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Schema: TypeAlias = Mapping[int, tuple[str, str]]

MOST_VARINT_BYTES = 10  # of 64 bits, 7 in a byte
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIRE_TYPES = {"int64": _VARINT, "fixed32": _FIXED32, "bytes": _BYTES}
_DEFAULTS = {"int64": 0, "fixed32": 0, "bytes": b""}


def read_varint(data: bytes, position: int, most_bytes: int = MOST_VARINT_BYTES) -> tuple[int, int]:
    """Return the unsigned number at `position`, and where it ends.

    Raises:
        ValueError: It does not end within `data` or within `most_bytes`, or is beyond 64 bits.
    """
    value = shift = 0
    for byte in data[position : position + most_bytes]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if value >> 64:
                raise ValueError(f"the number at byte {position} is beyond 64 bits")
            return value, position + shift // 7
    raise ValueError(f"the number at byte {position} does not end")


def format_varint(value: int) -> bytes:
    """Return an unsigned number in the bytes `read_varint` reads."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def signed(value: int) -> int:
    """Return an unsigned number of 64 bits as the signed one that has the same bits."""
    return value - (1 << 64) if value >> 63 else value


def parse_message(data: bytes, schema: Schema) -> dict[str, Any]:
    """Return {name: value} of a message, as protobuf does: the last of a field counts, unknown fields do not.

    Args:
        data: The whole message.
        schema: Its fields; what is not there has its default, 0, b"" or [].

    Raises:
        ValueError: It is no message, or a field has another wire type than its kind; the reason names the byte.
    """
    message: dict[str, Any] = {name: [] if kind.endswith("*") else _DEFAULTS[kind] for name, kind in schema.values()}
    position, end = 0, len(data)
    while position < end:
        start = position
        tag, position = read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        value, position = _read_value(data, position, wire_type)
        if not number:
            raise ValueError(f"a field at byte {start} has number 0")
        if number not in schema:
            continue
        name, kind = schema[number]
        is_repeated = kind.endswith("*")
        wanted = _WIRE_TYPES[kind.rstrip("*")]
        if wire_type == _BYTES and is_repeated and wanted == _VARINT:
            message[name] += _packed(value)
            continue
        if wire_type != wanted:
            raise ValueError(f"{name}, at byte {start}, has wire type {wire_type}, and {wanted} was wanted")
        value = signed(value) if wanted == _VARINT else value
        if is_repeated:
            message[name].append(value)
        else:
            message[name] = value
    return message


def _read_value(data: bytes, position: int, wire_type: int) -> tuple[Any, int]:
    if wire_type == _VARINT:
        return read_varint(data, position)
    if wire_type == _BYTES:
        nbytes, position = read_varint(data, position)
    elif wire_type in (_FIXED32, _FIXED64):
        nbytes = 4 if wire_type == _FIXED32 else 8
    else:
        raise ValueError(f"wire type {wire_type} at byte {position} is none that TensorFlow writes")
    end = position + nbytes
    if end > len(data):
        raise ValueError(f"a field of {nbytes} bytes at byte {position} ends beyond its message")
    value = data[position:end]
    return value if wire_type == _BYTES else int.from_bytes(value, "little"), end


def _packed(data: bytes) -> list[int]:
    values, position = [], 0
    while position < len(data):
        value, position = read_varint(data, position)
        values.append(signed(value))
    return values


def format_number(field: int, value: int, *, keeps_zero: bool = False) -> bytes:
    """Return a field of kind int64; none for 0, its default, unless that it is there matters."""
    if not value and not keeps_zero:
        return b""
    return format_varint(field << 3 | _VARINT) + format_varint(value & (1 << 64) - 1)


def format_fixed32(field: int, value: int) -> bytes:
    """Return a field of kind fixed32; none for 0, its default."""
    return format_varint(field << 3 | _FIXED32) + value.to_bytes(4, "little") if value else b""


def format_bytes(field: int, value: bytes) -> bytes:
    """Return a field of kind bytes, a message within a message, say; it is there even if it is empty."""
    return format_varint(field << 3 | _BYTES) + format_varint(len(value)) + value
