"""String and variant tensors of a bundle: elements of any length, with checksums of their own.

    string   length of each element, varints | masked CRC-32C of the lengths, u32 | the elements
    variant  of each element: length, varint | a VariantTensorDataProto | masked CRC-32C so far, u32

The checksums cover a length as a u32, and as a u64 where it needs one or belongs to a variant; the bundle's own one
covers these lengths, the stored checksums and the elements, in the order of the file.

Source: ReadStringTensor and ReadVariantTensor in TensorFlow's tensor_bundle.cc.
"""

from __future__ import annotations

from typing import Literal

from torchsaver.formats.checksum import crc32c, crc32c_hex
from torchsaver.formats.tensorflow.sstable import masked
from torchsaver.formats.tensorflow.wire import read_varint

ByteOrder = Literal["little", "big"]


def parse_texts(data: bytes, count: int, order: ByteOrder) -> tuple[list[bytes], int]:
    """Return the elements of a string tensor, and the CRC-32C that the bundle has of them.

    Raises:
        ValueError: It is none of `count` elements, or the checksum of the lengths differs.
    """
    if count > len(data):
        raise ValueError(f"{count} strings cannot be in {len(data)} bytes")
    lengths, position = [], 0
    for _ in range(count):
        length, position = read_varint(data, position)
        lengths.append(length)
    checksum = crc32c(b"".join(length.to_bytes(8 if length >> 32 else 4, order) for length in lengths))
    stored = data[position : position + 4]
    _compare("the strings' lengths", stored, masked(checksum), order)
    position += 4
    if position + sum(lengths) != len(data):
        raise ValueError(f"the strings take {position + sum(lengths)} bytes, and {len(data)} are there")
    checksum = crc32c(data[position:], crc32c(stored, checksum))
    texts = []
    for length in lengths:
        texts.append(data[position : position + length])
        position += length
    return texts, checksum


def variants_checksum(data: bytes, count: int, order: ByteOrder) -> int:
    """Return the CRC-32C that the bundle has of a variant tensor; what the variants are is not looked at.

    Raises:
        ValueError: It is none of `count` elements, or a checksum in it differs.
    """
    if count > len(data):
        raise ValueError(f"{count} variants cannot be in {len(data)} bytes")
    checksum = position = 0
    for number in range(count):
        length, start = read_varint(data, position)
        position = start + length
        checksum = crc32c(data[start:position], crc32c(length.to_bytes(8, order), checksum))
        stored = data[position : position + 4]
        _compare(f"variant {number}", stored, masked(checksum), order)
        checksum = crc32c(stored, checksum)
        position += 4
    if position != len(data):
        raise ValueError(f"the variants take {position} bytes, and {len(data)} are there")
    return checksum


def _compare(what: str, stored: bytes, found: int, order: ByteOrder) -> None:
    if len(stored) < 4:
        raise ValueError(f"{what}: the bytes end before their checksum")
    if int.from_bytes(stored, order) != found:
        raise ValueError(
            f"checksum of {what}: {crc32c_hex(int.from_bytes(stored, order))} stored, {crc32c_hex(found)} found"
        )
