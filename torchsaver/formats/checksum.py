"""CRC-32C (Castagnoli), the checksum of iSCSI, ext4 and TensorFlow's bundles, by the `crc32c` wheel.

Source: RFC 3720, appendix B.4; crc32c(b"123456789") == 0xE3069283.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from crc32c import crc32c  # (data, value=0): of `data`, going on from `value`, the CRC-32C of what came before it

__all__ = ["crc32c", "crc32c_hex", "crc32cs_from_hex", "crc32cs_hex", "joined_crc32c"]

_POLYNOMIAL = 0x82F63B78  # its bits from the lowest power up, as those of a checksum: the top bit is x**0
_ONE = 1 << 31


def crc32c_hex(value: int) -> str:
    """Return a CRC-32C as our files hold it: eight lower-case hexadecimal digits."""
    return f"{value:08x}"


def crc32cs_hex(values: Sequence[int]) -> str:
    """Return many, one after the other, as `crc32c_hex` has each."""
    return struct.pack(f">{len(values)}I", *values).hex()


def crc32cs_from_hex(text: str, count: int) -> tuple[int, ...]:
    """Return the `count` CRC-32Cs that `crc32cs_hex` made `text` of.

    Raises:
        ValueError: It is not eight hexadecimal digits for each.
    """
    if len(text) != 8 * count:
        raise ValueError(f"{len(text)} characters, and {count} checksums take {8 * count}")
    try:
        return struct.unpack(f">{count}I", bytes.fromhex(text))
    except (ValueError, struct.error) as error:  # spaces are passed over, and then bytes are missing
        raise ValueError("not all of hexadecimal digits") from error


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
