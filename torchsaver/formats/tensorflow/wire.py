"""Protocol buffers' wire format, as much as TensorFlow's checkpoints use of it; nothing is believed unchecked.

Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_VARINT_BYTES = 10  # of 64 bits, 7 in a byte
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIRE_TYPES = {"int64": _VARINT, "fixed32": _FIXED32, "bytes": _BYTES}
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
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


class Schema:
    """The fields of a message.

    Args:
        fields: {number: (name, kind)}. Kinds are `int64` (any varint, signed), `fixed32` and `bytes` (strings, messages
            within messages), with a `*` at the end if the field is repeated.
    """

    def __init__(self, fields: Mapping[int, tuple[str, str]]) -> None:
        kinds = {number: (name, kind.rstrip("*"), kind.endswith("*")) for number, (name, kind) in fields.items()}
        self.fields = {number: (name, _WIRE_TYPES[kind], many) for number, (name, kind, many) in kinds.items()}
        self._singles = {name: _DEFAULTS[kind] for name, kind, many in kinds.values() if not many}
        self._repeated = [name for name, _, many in kinds.values() if many]

    def empty(self) -> dict[str, Any]:
        """Return a message without fields: each has its default, 0, b"" or []."""
        message: dict[str, Any] = dict(self._singles)
        for name in self._repeated:
            message[name] = []
        return message


def parse_message(data: bytes, schema: Schema) -> dict[str, Any]:
    """Return {name: value} of a message, as protobuf does: the last of a field counts, unknown fields do not.

    Args:
        data: The whole message.
        schema: Its fields; what is not there has its default.

    Raises:
        ValueError: It is no message, or a field has another wire type than its kind; the reason names the byte.
    """
    message, fields = schema.empty(), schema.fields
    position, end = 0, len(data)
    while position < end:
        start = position
        tag = data[position]
        if tag < 0x80:  # as nearly all varints here; a call for each would take longer than all the rest
            position += 1
        else:
            tag, position = read_varint(data, position)
        wire_type = tag & 7
        value: Any
        if wire_type in (_VARINT, _BYTES):
            if position < end and data[position] < 0x80:
                value = data[position]
                position += 1
            else:
                value, position = read_varint(data, position)
        else:
            value = _FIXED_BYTES.get(wire_type)
            if value is None:
                raise ValueError(f"wire type {wire_type} at byte {start} is none that TensorFlow writes")
        if wire_type != _VARINT:
            stop = position + value
            if stop > end:
                raise ValueError(f"a field of {value} bytes at byte {position} ends beyond its message")
            value, position = data[position:stop], stop
        if not tag >> 3:
            raise ValueError(f"a field at byte {start} has number 0")
        if (field := fields.get(tag >> 3)) is not None:
            _add(message, field, wire_type, value, start)
    return message


def _add(message: dict[str, Any], field: tuple[str, int, bool], wire_type: int, value: Any, start: int) -> None:
    """Put the value of a field into its message."""
    name, wanted, is_repeated = field
    if wire_type == _BYTES and is_repeated and wanted == _VARINT:
        message[name] += _packed(value)
        return
    if wire_type != wanted:
        raise ValueError(f"{name}, at byte {start}, has wire type {wire_type}, and {wanted} was wanted")
    if wanted == _VARINT:
        value = signed(value)
    elif wanted == _FIXED32:
        value = int.from_bytes(value, "little")
    if is_repeated:
        message[name].append(value)
    else:
        message[name] = value


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
