"""Protocol buffers' wire format: what protobuf reads is read the same, and no input makes anything but a ValueError."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchsaver.formats.tensorflow.wire import Schema, format_varint, parse_message, read_varint, signed

SCHEMA = Schema(
    {
        1: ("dtype", "int64"),
        2: ("name", "bytes"),
        6: ("crc32c", "fixed32"),
        7: ("extents", "int64*"),
        8: ("slices", "bytes*"),
    }
)
DEFAULTS = {"dtype": 0, "name": b"", "crc32c": 0, "extents": [], "slices": []}


@given(st.integers(0, 2**64 - 1))
def test_varint_of_any_64_bits_comes_back(value: int) -> None:
    data = format_varint(value)
    assert read_varint(b"x" + data + b"y", 1) == (value, 1 + len(data))


def test_varint_of_minus_one_has_ten_bytes_as_protobuf_writes_it() -> None:
    value, _ = read_varint(b"\xff" * 9 + b"\x01", 0)
    assert signed(value) == -1


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9, b"\xff" * 10 + b"\x01", b"\xff" * 9 + b"\x02"])
def test_varint_without_end_or_beyond_64_bits_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="number at byte 0"):
        read_varint(data, 0)


def test_message_without_fields_has_the_defaults() -> None:
    assert parse_message(b"", SCHEMA) == DEFAULTS


def test_message_in_any_order_with_unknown_fields_keeps_the_last_of_a_field() -> None:
    data = bytes.fromhex(
        "350a000000"  # crc32c: 10
        "1202 6162"  # name: "ab"
        "0801"  # dtype: 1
        "9a06 03 787878 a1060102030405060708"  # fields 99 and 100, unknown: bytes and fixed64
        "0803"  # dtype: 3
    )
    assert parse_message(data, SCHEMA) == {**DEFAULTS, "dtype": 3, "name": b"ab", "crc32c": 10}


def test_repeated_field_is_read_packed_and_one_by_one() -> None:
    data = bytes.fromhex("3805 3a0306ff01 38ffffffffffffffffff01 420161 4200")
    wanted = {**DEFAULTS, "extents": [5, 6, 255, -1], "slices": [b"a", b""]}
    assert parse_message(data, SCHEMA) == wanted


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("0a0161", "dtype, at byte 0, has wire type 2"),
        ("1005", "name, at byte 0, has wire type 0"),
        ("3001", "crc32c, at byte 0, has wire type 0"),
        ("12056162", "ends beyond its message"),
        ("12ffffffffffffffffff01", "ends beyond its message"),
        ("35010203", "ends beyond its message"),
        ("0001", "number 0"),
        ("0b", "wire type 3"),
        ("0c", "wire type 4"),
        ("3a0180", "does not end"),
    ],
)
def test_damaged_message_is_refused_with_its_place(data: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_message(bytes.fromhex(data), SCHEMA)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert parse_message(data, SCHEMA).keys() == DEFAULTS.keys()
