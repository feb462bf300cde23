"""Protocol buffers and tables as an enemy would make them: valid ones, damaged, with the checksums right again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, Union

from faults.fuzz.choices import Choices, pick

from torchsaver.formats.checksum import crc32c
from torchsaver.formats.tensorflow.sstable import FOOTER_BYTES, MAGIC, masked
from torchsaver.formats.tensorflow.wire import format_varint

Value: TypeAlias = Union[int, bytes, "Fixed", "Message"]
Entry: TypeAlias = "tuple[bytes, Message | bytes]"

NUMBERS = (0, 1, 2, 3, 5, 7, 21, 64, 127, 128, 255, 4096, 99_999, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -1)
TEXTS = (b"", b"a", b"a/b", b"\xff", b"\x00", b"\x00a\x00\x01\x00", b"\x08\x01", b"\x0a" * 9, b"x" * 300, b".S", b"..")
_MOST_DEPTH = 6  # of messages in messages: one more than there are, because each depth may double what is in it


class Fixed(bytes):
    """A field's value of four or eight bytes."""


class Message(list[tuple[int, Value]]):
    """A message's fields in order: number and value."""


def encode(value: Message | bytes) -> bytes:
    """Return the bytes of a message."""
    if not isinstance(value, Message):
        return bytes(value)
    return b"".join(_field(number, each) for number, each in value)


def _field(number: int, value: Value) -> bytes:
    if isinstance(value, int):
        return format_varint(number << 3) + format_varint(value % 2**64)
    if isinstance(value, Fixed):
        return format_varint(number << 3 | (5 if len(value) == 4 else 1)) + value
    data = encode(value)
    return format_varint(number << 3 | 2) + format_varint(len(data)) + data


def damage(message: Message, choices: Choices, depth: int = 0) -> Message:
    """Return a message with up to three fields changed, doubled, dropped, renumbered, added or moved."""
    message = Message(message)
    for _ in range(pick(choices, (1, 1, 2, 3))):
        kind = choices.below(10)
        if kind == 0 or not message:
            message.insert(choices.below(len(message) + 1), (1 + choices.below(8), _other(0, choices)))
            continue
        position = choices.below(len(message))
        number, value = message[position]
        if kind == 1:
            message.append((number, value))
        elif kind == 2:
            del message[position]
        elif kind == 3:
            message[position] = pick(choices, (number + 1, max(number - 1, 0), 0, 2**29)), value
        elif kind == 4:
            message.append(message.pop(position))
        elif isinstance(value, Message) and depth < _MOST_DEPTH:
            message[position] = number, damage(value, choices, depth + 1)
        else:
            message[position] = number, _other(value, choices)
    return message


def _other(value: Value, choices: Choices) -> Value:
    """Return a value that takes this one's place: near it, or of the same type, or any."""
    kind = choices.below(8)
    if isinstance(value, int) and kind < 4:
        return value + pick(choices, (1, -1, 4, -4, 8))
    if isinstance(value, bytes) and not isinstance(value, Fixed) and kind < 3:
        return pick(choices, (*TEXTS, value + b"x", value[:-1], value * 2))
    if kind == 7:
        others: tuple[Value, ...] = (Message(), b"", Fixed(bytes(4)), Fixed(b"\xff" * 8), 0)
        return pick(choices, others)
    return pick(choices, NUMBERS)


def table(entries: Sequence[Entry], choices: Choices | None = None) -> bytes:
    """Return the file of a table; with `choices`, one in a form that TensorFlow would not write, or damaged."""
    per_block = 1000 if choices is None else pick(choices, (1000, 1000, 1, 2, 5))
    data, index = b"", []
    for start in range(0, len(entries), per_block):
        some = [(key, encode(value)) for key, value in entries[start : start + per_block]]
        contents = _contents(some, choices)
        size = len(contents)
        if choices is not None and choices.below(64) == 63:
            size = pick(choices, (0, size - 1, size + 1, 2**31, 2**63))
        index.append((some[-1][0], format_varint(len(data)) + format_varint(size)))
        data += _block(contents, choices)
    if choices is not None and choices.below(32) == 31 and index:
        index.append(pick(choices, index))
    index_contents = _contents(index, choices)
    handles = b"\0\0" + format_varint(len(data)) + format_varint(len(index_contents))
    return data + _block(index_contents, None) + handles.ljust(FOOTER_BYTES - len(MAGIC), b"\0") + MAGIC


def _block(contents: bytes, choices: Choices | None) -> bytes:
    """Return a block with its type and checksum; with `choices` perhaps as snappy has it, in literals and copies."""
    kind = 0 if choices is None else choices.below(16)
    if kind in (14, 15):
        contents = _snappy(contents)
        if kind == 15 and choices is not None:
            position = choices.below(len(contents))
            contents = contents[:position] + choices.data(3) + contents[position + choices.below(4) :]
    typed = contents + (b"\1" if kind in (14, 15) else b"\2" if kind == 13 else b"\0")
    return typed + masked(crc32c(typed)).to_bytes(4, "little")


def _snappy(contents: bytes) -> bytes:
    """Return a block compressed: four equal bytes become a literal of one and a copy of the rest."""
    packed, position = format_varint(len(contents)), 0
    while position < len(contents):
        run = contents[position : position + 5]
        packed += bytes([0, run[0]])
        if run == run[:1] * 5:
            packed += bytes([0b00000001, 1])  # a copy of four bytes from one back
            position += 5
        else:
            position += 1
    return packed


def _contents(entries: Sequence[tuple[bytes, bytes]], choices: Choices | None) -> bytes:
    """Return a block's contents, each key without what it shares with the one before."""
    data, restarts, last = b"", [0], b""
    interval = 16 if choices is None else pick(choices, (16, 16, 1, 1000))
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % interval:
            while shared < min(len(last), len(key)) and last[shared] == key[shared]:
                shared += 1
        elif number:
            restarts.append(len(data))
        sizes = [shared, len(key) - shared, len(value)]
        if choices is not None and choices.below(64) == 63:
            sizes[choices.below(3)] = pick(choices, (0, 1, 200, 2**28, 2**32 - 1, 2**35))
        data += b"".join(map(format_varint, sizes)) + key[shared:] + value
        last = key
    count = len(restarts)
    if choices is not None and choices.below(64) == 63:
        count = pick(choices, (0, 1, count + 1, 2**31, 2**32 - 1))
    return data + b"".join(each.to_bytes(4, "little") for each in (*restarts, count))
