"""Snappy blocks: every kind of element, and damage."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchsaver.formats.tensorflow.snappy import decompress
from torchsaver.formats.tensorflow.wire import format_varint


def _literal(data: bytes) -> bytes:
    size = len(data) - 1
    if size < 60:
        return bytes([size << 2]) + data
    extra = (size.bit_length() + 7) // 8
    return bytes([59 + extra << 2]) + size.to_bytes(extra, "little") + data


def _block(plain_bytes: int, *elements: bytes) -> bytes:
    return format_varint(plain_bytes) + b"".join(elements)


@pytest.mark.parametrize("nbytes", [1, 60, 61, 256, 257, 65536, 65537])
def test_literal_of_any_length_comes_back(nbytes: int) -> None:
    data = bytes(number % 251 for number in range(nbytes))
    assert decompress(_block(nbytes, _literal(data))) == data


@pytest.mark.parametrize(
    ("copy", "plain"),
    [
        (bytes([0b000_000_01, 4]), b"abcdabcd"),  # length 4, 4 back
        (bytes([0b000_011_01, 2]), b"abcdcdcdcdc"),  # length 7, 2 back: reaches into what it makes
        (bytes([9 << 2 | 2, 1, 0]), b"abcd" + b"d" * 10),
        (bytes([2 << 2 | 2, 3, 0]), b"abcdbcd"),
        (bytes([4 << 2 | 3, 4, 0, 0, 0]), b"abcdabcda"),
    ],
)
def test_copy_by_each_size_of_offset(copy: bytes, plain: bytes) -> None:
    assert decompress(_block(len(plain), _literal(b"abcd"), copy)) == plain


def test_copy_from_more_than_255_back_takes_the_upper_bits_of_its_tag() -> None:
    data = bytes(range(256)) * 2
    assert decompress(_block(len(data) + 4, _literal(data), bytes([0b001_000_01, 44]))) == data + data[-300:-296]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (_block(8, _literal(b"abcd"), bytes([0b000_000_01, 0])), "0 bytes back"),
        (_block(8, _literal(b"abcd"), bytes([0b000_000_01, 5])), "5 bytes back"),
        (_block(5, _literal(b"abcd")), "4 bytes, and 5"),
        (_block(3, _literal(b"abcd")), "4 bytes, and 3"),
        (_block(4, _literal(b"abcd")[:-1]), "ends beyond"),
        (_block(4, _literal(b"abcd"), b"\x01"), "within an element"),
        (_block(1 << 31, _literal(b"abcd")), "cannot hold"),
        (b"\xff" * 6, "does not end"),
        (b"", "does not end"),
    ],
)
def test_damaged_block_is_refused(block: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decompress(block)


@given(st.integers(0, 300), st.binary(max_size=64))
def test_any_bytes_are_a_block_of_the_announced_size_or_a_value_error(nbytes: int, elements: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert len(decompress(_block(nbytes, elements))) == nbytes
