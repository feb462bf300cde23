"""CRC-32C (Castagnoli), the checksum of iSCSI, ext4 and TensorFlow's bundles, by the `crc32c` wheel.

Source: RFC 3720, appendix B.4; crc32c(b"123456789") == 0xE3069283.
"""

from __future__ import annotations

from typing import TypeAlias

from crc32c import crc32c as _crc32c

Buffer: TypeAlias = "bytes | bytearray | memoryview"


def crc32c(data: Buffer, value: int = 0) -> int:
    """Return the CRC-32C of `data`, going on from `value`, the CRC-32C of what came before it."""
    return int(_crc32c(data, value))


def crc32c_hex(value: int) -> str:
    """Return a CRC-32C as our files hold it: eight lower-case hexadecimal digits."""
    return f"{value:08x}"
