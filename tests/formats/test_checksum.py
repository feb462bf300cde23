"""CRC-32C gives the published values, in one go or in parts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchsaver.formats.checksum import crc32c, crc32c_hex, crc32cs_from_hex, crc32cs_hex, joined_crc32c

VECTORS = [  # RFC 3720, appendix B.4, and the check value of the CRC catalogue
    (b"", 0),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
]


@pytest.mark.parametrize(("data", "value"), VECTORS)
def test_crc32c_published_vector_gives_published_value(data: bytes, value: int) -> None:
    assert crc32c(data) == value


def test_crc32c_data_in_two_parts_gives_the_value_of_the_whole() -> None:
    data = bytes(range(100))
    assert {crc32c(data[at:], crc32c(data[:at])) for at in range(101)} == {crc32c(data)}


def test_crc32c_any_kind_of_buffer_gives_the_same_value() -> None:
    data = bytes(range(100))
    assert crc32c(bytearray(data)) == crc32c(memoryview(data)) == crc32c(memoryview(bytearray(data))) == crc32c(data)


@pytest.mark.parametrize(("value", "text"), [(0, "00000000"), (0xE3069283, "e3069283"), (0xFFFFFFFF, "ffffffff")])
def test_crc32c_hex_any_value_has_eight_digits(value: int, text: str) -> None:
    assert crc32c_hex(value) == text


@given(values=st.lists(st.integers(0, (1 << 32) - 1), max_size=20))
def test_crc32cs_hex_any_values_are_as_each_by_itself_and_come_back(values: list[int]) -> None:
    text = crc32cs_hex(values)
    assert text == "".join(map(crc32c_hex, values))
    assert list(crc32cs_from_hex(text, len(values))) == values


@pytest.mark.parametrize(
    "text", ["", "0", "0" * 15, "0" * 17, "0" * 24, "0" * 15 + "g", "0x" + "0" * 14, "0000 000" * 2, "\u0660" * 16]
)
def test_crc32cs_from_hex_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{len(text)} characters, and 2 .* 16$|^not all of hexadecimal digits"):
        crc32cs_from_hex(text, 2)


@given(first=st.binary(max_size=300), second=st.binary(max_size=300))
def test_joined_crc32c_any_two_pieces_give_the_value_of_both_together(first: bytes, second: bytes) -> None:
    assert joined_crc32c(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


@pytest.mark.parametrize("second_bytes", [0, 1, 7, 8, 255, 256, 4095, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_joined_crc32c_second_piece_of_any_size_gives_the_value_of_both_together(second_bytes: int) -> None:
    first, second = b"what comes before", random.Random(second_bytes).randbytes(second_bytes)
    assert joined_crc32c(crc32c(first), crc32c(second), second_bytes) == crc32c(first + second)


def test_joined_crc32c_with_an_empty_piece_or_a_checksum_of_zero_is_that_of_both_together() -> None:
    zero = b"1234Eo\xdam"  # four bytes and the four that bring the checksum to nothing
    assert crc32c(zero) == 0
    for first, second in [(b"", b""), (b"", b"x"), (b"x", b""), (zero, b"x"), (b"x", zero), (zero, zero), (zero, b"")]:
        assert joined_crc32c(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


def test_joined_crc32c_piece_by_piece_in_any_grouping_gives_the_value_of_the_whole() -> None:
    pieces = [random.Random(size).randbytes(size) for size in (0, 1, 1000, 3, 4096, 4096, 5)]
    left, right, right_bytes = 0, 0, 0
    for piece in pieces:
        left = joined_crc32c(left, crc32c(piece), len(piece))
    for piece in reversed(pieces):
        right = joined_crc32c(crc32c(piece), right, right_bytes)
        right_bytes += len(piece)
    assert left == right == crc32c(b"".join(pieces))
