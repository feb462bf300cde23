"""Snappy's raw format, decompressed: Google has compressed the index of many a checkpoint by it.

Source: format_description.txt of github.com/google/snappy.
"""

from __future__ import annotations

from torchsaver.formats.tensorflow.wire import read_varint

_MOST_GROWTH = 22  # a copy of 64 bytes takes three; so no block is larger than this many times its compressed size


def decompress(data: bytes) -> bytes:
    """Return the plain bytes of a block.

    Raises:
        ValueError: It is damaged: an element ends beyond the block or reaches back before it, or the size differs.
    """
    nbytes, position = read_varint(data, 0, most_bytes=5)
    if nbytes > _MOST_GROWTH * len(data):
        raise ValueError(f"snappy: {len(data)} bytes cannot hold {nbytes}")
    plain = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        extra = _extra_bytes(tag)
        operand = data[position : position + extra]
        position += extra
        if len(operand) < extra:
            raise ValueError("snappy: the block ends within an element")
        if tag & 3 == 0:
            length = (tag >> 2 if not extra else int.from_bytes(operand, "little")) + 1
            literal = data[position : position + length]
            position += length
            if len(literal) < length:
                raise ValueError(f"snappy: a literal of {length} bytes ends beyond the block")
            plain += literal
        else:
            length = (tag >> 2 & 7) + 4 if tag & 3 == 1 else (tag >> 2) + 1
            offset = int.from_bytes(operand, "little") + (tag >> 5 << 8 if tag & 3 == 1 else 0)
            if not 0 < offset <= len(plain):
                raise ValueError(f"snappy: a copy from {offset} bytes back, where there are {len(plain)}")
            source = bytes(plain[-offset:][:length])
            plain += (source * (length // len(source) + 1))[:length]  # a copy may reach into what it makes
        if len(plain) > nbytes:
            break
    if len(plain) != nbytes:
        raise ValueError(f"snappy: {len(plain)} bytes, and {nbytes} were announced")
    return bytes(plain)


def _extra_bytes(tag: int) -> int:
    """Return how many bytes after the tag belong to it: of a literal's length, or of a copy's offset."""
    kind, upper = tag & 3, tag >> 2
    if kind == 0:
        return max(0, upper - 59)
    return (0, 1, 2, 4)[kind]
