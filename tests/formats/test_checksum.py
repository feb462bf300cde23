"""CRC-32C gives the published values, in one go or in parts."""

from __future__ import annotations

import pytest

from torchsaver.formats.checksum import crc32c, crc32c_hex

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
