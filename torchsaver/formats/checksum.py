"""CRC-32C (Castagnoli), the checksum of iSCSI, ext4 and TensorFlow's bundles, by the `crc32c` wheel.

Source: RFC 3720, appendix B.4; crc32c(b"123456789") == 0xE3069283.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from crc32c import crc32c  # (data, value=0): of `data`, going on from `value`, the CRC-32C of what came before it

__all__ = ["crc32c", "crc32c_from_hexes", "crc32c_hex", "crc32c_hexes", "joined_crc32c"]

_POLYNOMIAL = 0x82F63B78  # its bits from the lowest power up, as those of a checksum: the top bit is x**0
_ONE = 1 << 31


def crc32c_hex(value: int) -> str:
    """Return a CRC-32C as our files hold it: eight lower-case hexadecimal digits."""
    return f"{value:08x}"


def crc32c_hexes(values: Sequence[int]) -> list[str]:
    """Return many as `crc32c_hex` does each, in a tenth of the time."""
    return struct.pack(f">{len(values)}I", *values).hex(",", 4).split(",") if values else []


def crc32c_from_hexes(texts: Sequence[str]) -> tuple[int, ...]:
    """Return the CRC-32Cs that our files hold as `texts`.

    Raises:
        ValueError: One of them is not eight hexadecimal digits.
    """
    data = bytes.fromhex("".join(texts))  # which passes over spaces
    if len(data) != 4 * len(texts) or set(map(len, texts)) - {8}:
        raise ValueError("a checksum that is not eight hexadecimal digits")
    return struct.unpack(f">{len(texts)}I", data)


def joined_crc32c(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32C of two pieces one after the other from that of each, so that several cores can share the work.

    `second_bytes` should take few different values: each is worked out once.
    Source: crc32_combine in zlib's crc32.c: n bytes more multiply a checksum by x**(8 n), modulo the polynomial.
    """
    return _product(_power(second_bytes), first) ^ second


@lru_cache(maxsize=64)
def _power(nbytes: int) -> int:
    """Return x**(8 nbytes) modulo the polynomial."""
    power, square = _ONE, _ONE >> 8
    while nbytes:
        if nbytes & 1:
            power = _product(power, square)
        square = _product(square, square)
        nbytes >>= 1
    return power


def _product(one: int, two: int) -> int:
    """Return the product of two polynomials modulo the polynomial."""
    product = 0
    while one:
        if one & _ONE:
            product ^= two
        one = (one << 1) & 0xFFFFFFFF
        two = (two >> 1) ^ _POLYNOMIAL if two & 1 else two >> 1
    return product
