"""Checkpoints of TensorFlow as an enemy would make them: bundles, V1 files and object graphs, valid or damaged.

A document is JSON: {"files": {name: base64}, "wanted": {key: [dtype, shape, hexadecimal bytes or texts]}}; "wanted" is
there if nothing has been damaged, and the checkpoint is to be taken and to have just that.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
from typing import Any, NamedTuple

from faults.fuzz.choices import Choices, pick
from faults.fuzz.messages import TEXTS, Entry, Fixed, Message, damage, encode, table

from torchsaver.formats.checksum import crc32c
from torchsaver.formats.tensorflow.data_types import DATA_TYPES, STRING, VARIANT, DataType
from torchsaver.formats.tensorflow.slices import WHOLE, Range, slice_key
from torchsaver.formats.tensorflow.sstable import masked
from torchsaver.formats.tensorflow.wire import format_varint

GRAPH_KEY = b"_CHECKPOINTABLE_OBJECT_GRAPH"
NAMES = (b"w", b"b", b"a/b", b"dense/kernel", b"dense/bias", b"\xff", b"\x00", b"\x00w\x00\x01\x00", b"k" * 200)
PATHS = ("w", "dense/kernel", "dense/bias", "a.b", "with/slash", "_kernel", "", "\u00e9", "w/w", "optimizer")
_ATTRIBUTES = "/.ATTRIBUTES/VARIABLE_VALUE"
_V1_FIELDS = {1: 5, 2: 6, 8: 9, 18: 12, 3: 7, 4: 7, 5: 7, 6: 7, 17: 7, 9: 10, 10: 11, 19: 13, 7: 8}
_PLAIN_TYPES = [each for each in DATA_TYPES.values() if each not in (STRING, VARIANT)]


class Tensor(NamedTuple):
    """A tensor to be stored: of the whole and, if it is partitioned, of each slice; texts of a string tensor."""

    name: bytes
    data_type: DataType
    shape: tuple[int, ...]
    data: bytes
    texts: list[bytes]
    slices: list[tuple[tuple[Range, ...], bytes]]


def _tensors(choices: Choices, types: list[DataType]) -> list[Tensor]:
    """Return up to five tensors with names of their own."""
    tensors = {}
    for _ in range(1 + choices.below(5)):
        name, data_type = pick(choices, NAMES), pick(choices, types)
        shape = tuple(choices.below(4) for _ in range(choices.below(4)))
        count = math.prod(shape)
        texts = [pick(choices, TEXTS) for _ in range(count)] if data_type == STRING else []
        data = choices.data(24).ljust(count * data_type.item_bytes, b"\1")[: count * data_type.item_bytes]
        if data_type.name == "bool":
            data = bytes(byte & 1 for byte in data)
        slices = _slices(data_type, shape, data, choices) if choices.below(2) else []
        tensors[name] = Tensor(name, data_type, shape, data, texts, slices)
    return list(tensors.values())


def _slices(
    data_type: DataType, shape: tuple[int, ...], data: bytes, choices: Choices
) -> list[tuple[tuple[Range, ...], bytes]]:
    """Return a tensor cut in two along some of its dimensions."""
    if not shape or not data:
        return []
    along = []
    for size in shape:
        cut = 1 + choices.below(size - 1) if size > 1 and choices.below(2) else size
        along.append([Range(0, cut), Range(cut, size - cut)] if cut < size else [Range(0, size)])
    item, slices = data_type.item_bytes, []
    for ranges in itertools.product(*along):
        places = itertools.product(*(range(each.start, each.end) for each in ranges))
        positions = [_position(place, shape) for place in places]
        part = b"".join(data[item * position : item * (position + 1)] for position in positions)
        slices.append((ranges, part))
    return slices if len(slices) > 1 else []


def _moved(tensor: Tensor, choices: Choices) -> Tensor:
    """Return a tensor with one of its slices shifted, shortened or left out, and the others as they are."""
    slices = list(tensor.slices)
    position = choices.below(len(slices))
    ranges, data = slices.pop(position)
    if choices.below(4):
        axis = choices.below(len(ranges))
        start, length = ranges[axis]
        moved = pick(choices, (Range(start + 1, length), Range(max(start - 1, 0), length), Range(start, length + 1)))
        ranges = (*ranges[:axis], moved, *ranges[axis + 1 :])
        nbytes = math.prod(each.length for each in ranges) * tensor.data_type.item_bytes
        if ranges not in dict(slices):
            slices.insert(position, (ranges, data.ljust(nbytes, b"\1")[:nbytes]))
    return tensor._replace(slices=slices)


def _position(place: tuple[int, ...], shape: tuple[int, ...]) -> int:
    position = 0
    for index, size in zip(place, shape, strict=True):
        position = position * size + index
    return position


def _shape(shape: tuple[int, ...]) -> Message:
    return Message((2, Message([(1, size)] if size else [])) for size in shape)


def _slice(ranges: tuple[Range, ...]) -> Message:
    return Message((1, Message([] if each.length == WHOLE else [(1, each.start), (2, each.length)])) for each in ranges)


def _document(files: dict[str, bytes], tensors: list[Tensor] | None) -> bytes:
    document: dict[str, Any] = {"files": {name: base64.b64encode(data).decode() for name, data in files.items()}}
    if tensors is not None:
        document["wanted"] = {
            each.name.decode("utf-8", "surrogateescape"): [
                each.data_type.number,
                each.shape,
                [text.hex() for text in each.texts] if each.data_type == STRING else each.data.hex(),
            ]
            for each in tensors
        }
    return json.dumps(document).encode()


def stored_texts(texts: list[bytes]) -> tuple[bytes, int]:
    """Return a string tensor as a bundle has it, and its checksum."""
    lengths = b"".join(len(text).to_bytes(4, "little") for text in texts)
    mark = masked(crc32c(lengths)).to_bytes(4, "little")
    stored = b"".join(format_varint(len(text)) for text in texts) + mark + b"".join(texts)
    return stored, crc32c(lengths + mark + b"".join(texts))


class _Files:
    """The data files of a bundle, on their way."""

    def __init__(self, count: int) -> None:
        self.parts = [b""] * count

    def add(self, data: bytes, choices: Choices) -> list[tuple[int, Any]]:
        """Put bytes somewhere, and return the fields shard_id, offset and size."""
        number = choices.below(len(self.parts))
        start = len(self.parts[number])
        self.parts[number] += data
        return [(3, number), (4, start), (5, len(data))]


def _entry(data_type: DataType, shape: tuple[int, ...], place: list[tuple[int, Any]], checksum: int) -> Message:
    crc = Fixed(masked(checksum).to_bytes(4, "little"))
    return Message([(1, data_type.number), (2, _shape(shape)), *place, (6, crc)])


def _stored(tensor: Tensor, files: _Files, choices: Choices) -> list[Entry]:
    """Return a tensor's entries, after putting its bytes into the data files."""
    if tensor.data_type == STRING:
        data, checksum = stored_texts(tensor.texts)
        return [(tensor.name, _entry(STRING, tensor.shape, files.add(data, choices), checksum))]
    if not tensor.slices:
        place = files.add(tensor.data, choices)
        return [(tensor.name, _entry(tensor.data_type, tensor.shape, place, crc32c(tensor.data)))]
    whole = Message([(1, tensor.data_type.number), (2, _shape(tensor.shape))])
    whole += [(7, _slice(ranges)) for ranges, _ in tensor.slices]
    entries: list[Entry] = [(tensor.name, whole)]
    for ranges, data in tensor.slices:
        shape = tuple(each.length for each in ranges)
        part = _entry(tensor.data_type, shape, files.add(data, choices), crc32c(data))
        entries.append((slice_key(tensor.name, ranges), part))
    return entries


def bundle_document(choices: Choices) -> bytes:
    """Return a bundle: valid, or with messages, entries, blocks or data files damaged."""
    tensors = _tensors(choices, [*_PLAIN_TYPES, *[STRING] * 5])
    is_damaged = choices.below(8) > 0
    if is_damaged:
        tensors = _with_slices_moved(tensors, choices)
    files = _Files(1 + choices.below(3))
    entries = [entry for tensor in tensors for entry in _stored(tensor, files, choices)]
    if len({key for key, _ in entries}) < len(entries):  # a name like the key of a slice
        tensors, entries = tensors[:1], [entry for entry in entries if entry[0] == tensors[0].name]
        if tensors[0].slices:
            return bundle_document(_Plainest())
    if choices.below(4) == 3:
        data, checksum = stored_texts([encode(graph_message(choices, [tensor.name for tensor in tensors]))])
        entries.append((GRAPH_KEY, _entry(STRING, (), files.add(data, choices), checksum)))
    header = Message([(1, len(files.parts)), (3, Message([(1, 1)]))])
    rows: list[Entry] = [(b"", header), *sorted(entries, key=lambda entry: entry[0])]
    if is_damaged and choices.below(4):
        rows = _damaged_rows(rows, choices)
    parts = {f"m.data-{n:05d}-of-{len(files.parts):05d}": part for n, part in enumerate(files.parts)}
    if is_damaged and choices.below(4) == 3:
        parts = {name: damaged_bytes(part, choices) for name, part in parts.items()}
    index = table(rows, choices if is_damaged and choices.below(4) == 3 else None)
    return _document({"m.index": index, **parts}, None if is_damaged or GRAPH_KEY in dict(rows) else tensors)


def _with_slices_moved(tensors: list[Tensor], choices: Choices) -> list[Tensor]:
    return [_moved(tensor, choices) if tensor.slices and choices.below(2) else tensor for tensor in tensors]


class _Plainest:
    """Choices that are the plainest, always."""

    def below(self, bound: int) -> int:
        return 0

    def data(self, most: int) -> bytes:
        return b""


def _damaged_rows(rows: list[Entry], choices: Choices) -> list[Entry]:
    """Return entries, one or more of them damaged, sorted again most of the time."""
    for _ in range(1 + choices.below(2)):
        position = choices.below(len(rows))
        key, message = rows[position]
        kind = choices.below(8)
        if kind == 0:
            rows[position] = pick(choices, (*NAMES, *TEXTS, GRAPH_KEY)), message
        elif kind == 1:
            rows.append((pick(choices, (*NAMES, GRAPH_KEY)), message))
        elif kind == 2 and len(rows) > 1:
            del rows[position]
        elif kind == 3:  # two have each other's
            other = choices.below(len(rows))
            rows[position], rows[other] = (key, rows[other][1]), (rows[other][0], message)
        elif isinstance(message, Message):
            rows[position] = key, damage(message, choices)
    return rows if choices.below(16) == 15 else sorted(dict(rows).items())


def damaged_bytes(data: bytes, choices: Choices) -> bytes:
    """Return bytes cut, changed or continued."""
    kind = choices.below(4)
    position = choices.below(len(data) + 1)
    if kind == 0:
        return data[:position]
    if kind == 1:
        return data + b"x" * choices.below(20)
    return data[:position] + choices.data(4) + data[position + choices.below(5) :]


def v1_document(choices: Choices) -> bytes:
    """Return a V1 checkpoint in one file or two: valid, or with messages, entries or blocks damaged."""
    tensors = _tensors(choices, [DATA_TYPES[number] for number in _V1_FIELDS])
    is_damaged = choices.below(8) > 0
    if is_damaged:
        tensors = _with_slices_moved(tensors, choices)
    count = 1 + choices.below(2)
    files = {}
    for number in range(count):
        rows = _v1_rows([tensor for n, tensor in enumerate(tensors) if n % count == number])
        if is_damaged and choices.below(4):
            rows = _damaged_rows(rows, choices)
        name = "m" if count == 1 else f"m-{number:05d}-of-00002"
        files[name] = table(rows, choices if is_damaged and choices.below(4) == 3 else None)
    return _document(files, None if is_damaged else tensors)


def _v1_rows(tensors: list[Tensor]) -> list[Entry]:
    metas, rows = Message(), []
    for tensor in tensors:
        parts = tensor.slices or [(tuple(Range() for _ in tensor.shape), tensor.data)]
        slices: list[tuple[int, Any]] = [(4, _slice(ranges)) for ranges, _ in parts]
        fields = [(1, tensor.name), (2, _shape(tensor.shape)), (3, tensor.data_type.number), *slices]
        metas.append((1, Message(fields)))
        for ranges, data in parts:
            saved = Message([(1, tensor.name), (2, _slice(ranges)), (3, _v1_values(tensor, data))])
            rows.append((slice_key(tensor.name, ranges), Message([(2, saved)])))
    versions: tuple[int, Any] = (2, Message([(1, 1)]))
    return [(b"", Message([(1, Message([*metas, versions]))])), *sorted(rows, key=lambda row: row[0])]


def _v1_values(tensor: Tensor, data: bytes) -> Message:
    field = _V1_FIELDS[tensor.data_type.number]
    if tensor.data_type == STRING:
        return Message((field, text) for text in tensor.texts)
    if field in (5, 6, 9, 12):
        return Message([(field, data)])
    width = tensor.data_type.item_bytes
    is_signed = tensor.data_type.name.startswith("int")
    numbers = [int.from_bytes(data[at : at + width], "little", signed=is_signed) for at in range(0, len(data), width)]
    return Message([(field, b"".join(format_varint(number % 2**64) for number in numbers))])


def graph_message(choices: Choices, keys: list[bytes]) -> Message:
    """Return an object graph whose values have these keys, among others; some of them damaged."""
    count = 1 + choices.below(6)
    nodes = Message()
    for _ in range(count):
        node = Message()
        for _ in range(choices.below(4)):
            node.append((1, Message([(1, choices.below(count)), (2, pick(choices, PATHS).encode())])))
        for _ in range(choices.below(3)):
            key = pick(choices, (*keys, *(f"{path}{_ATTRIBUTES}".encode() for path in PATHS)))
            name = pick(choices, (b"VARIABLE_VALUE", b"VARIABLE_VALUE", b"other"))
            node.append((2, Message([(1, name), (2, pick(choices, PATHS).encode()), (3, key)])))
        if choices.below(4) == 3:
            node.append((3, Message([(1, choices.below(count)), (2, b"m"), (3, choices.below(count))])))
        nodes.append((1, node))
    return damage(nodes, choices) if choices.below(2) else nodes


def graph_document(choices: Choices) -> bytes:
    """Return an object graph's message."""
    data = encode(graph_message(choices, [name for name in NAMES if name.isascii()]))
    return damaged_bytes(data, choices) if choices.below(8) == 7 else data
