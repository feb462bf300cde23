"""Files of TensorFlow's formats that are small and ask for much: each is refused or read in 2 s and 500 MB.

Beside what the fuzzer makes (test_fuzz.py), which finds odd files but no large ones. Each is verified, planned
with, and read, every time in a process of its own, which is measured.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.fuzz.bounded import Bounded
from faults.fuzz.messages import Entry, Fixed, Message, encode, table

from torchsaver.formats.checksum import crc32c
from torchsaver.formats.tensorflow.sstable import masked
from torchsaver.formats.tensorflow.wire import format_bytes, format_varint

MOST_MB = 500  # over the interpreter with torch
MOST_CPU_SECS = 2
MACHINE_FACTOR = 3  # a busy machine counts waiting for memory and its other thread as ours
SIZE = 1_000_000  # about that many bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc")
HEADER: Entry = (b"", Message([(1, 1), (3, Message([(1, 1)]))]))
FLOAT, UINT8, STRING = 1, 4, 7
GRAPH_KEY = b"_CHECKPOINTABLE_OBJECT_GRAPH"
Files = dict[str, bytes]
CASES: dict[str, tuple[Callable[[], Files], str]] = {}


def case(outcome: str) -> Callable[[Callable[[], Files]], Callable[[], Files]]:
    """Add a case: what makes the files, and what must come of them, or how that begins."""

    def add(make: Callable[[], Files]) -> Callable[[], Files]:
        CASES[make.__name__] = make, outcome
        return make

    return add


def _entry(data_type: int, sizes: Any, nbytes: int, checksum: int = 0, slices: Any = ()) -> Message:
    shape = Message((2, Message([(1, size)])) for size in sizes)
    fields: list[tuple[int, Any]] = [(1, data_type), (2, shape), (5, nbytes)]
    return Message([*fields, (6, Fixed(masked(checksum).to_bytes(4, "little"))), *((7, each) for each in slices)])


def _bundle(*entries: Entry, data: bytes = b"") -> Files:
    index = table([HEADER, *sorted(entries, key=lambda entry: entry[0])])
    return {"m.index": index, "m.data-00000-of-00001": data}


def _graph(message: bytes) -> Files:
    """Return a bundle of nothing but an object graph."""
    lengths = len(message).to_bytes(4, "little")
    mark = masked(crc32c(lengths)).to_bytes(4, "little")
    data = format_varint(len(message)) + mark + message
    return _bundle((GRAPH_KEY, _entry(STRING, (), len(data), crc32c(lengths + mark + message))), data=data)


@case("taken")
def graph_of_a_million_empty_nodes() -> Files:
    return _graph(format_bytes(1, b"") * (SIZE // 2))


@case("taken")
def graph_of_one_node_with_a_million_empty_values() -> Files:
    return _graph(format_bytes(1, format_bytes(2, b"") * (SIZE // 2)))


@case("taken")
def graph_of_one_node_with_a_million_empty_slots() -> Files:
    return _graph(format_bytes(1, format_bytes(3, b"") * (SIZE // 2)))


@case("taken")
def graph_of_nodes_with_a_child_each() -> Files:
    child = format_bytes(1, b"")
    return _graph(format_bytes(1, child) * (SIZE // len(format_bytes(1, child))))


@case("taken")
def graph_of_small_nodes_with_values() -> Files:
    nodes = [Message([(2, Message([(3, b"%d" % number)]))]) for number in range(SIZE // 14)]
    return _graph(b"".join(format_bytes(1, encode(node)) for node in nodes))


@case("refused: CorruptCheckpointError")
def graph_that_is_a_chain_with_values() -> Files:
    count = SIZE // 28
    nodes = [
        Message([(1, Message([(1, (n + 1) % count), (2, b"child")])), (2, Message([(3, b"%d" % n)]))])
        for n in range(count)
    ]
    return _graph(b"".join(format_bytes(1, encode(node)) for node in nodes))


@case("taken")
def graph_whose_full_names_are_paths_with_many_ways() -> Files:
    """Every run of parts may be one name, and leads to all nodes."""
    names = ["/".join(["a"] * length) for length in range(1, 40)]
    count = 60
    children = [(1, Message([(1, n % count), (2, name.encode())])) for n, name in enumerate(names)]
    path = "/".join(["a"] * 200)
    values = [(2, Message([(1, b"x"), (2, f"{path}/{n}".encode()), (3, b"%d" % n)])) for n in range(600)]
    nodes = [Message([*children, *(values if number == 0 else [])]) for number in range(count)]
    return _graph(b"".join(format_bytes(1, encode(node)) for node in nodes))


@case("refused: CorruptCheckpointError")
def keys_that_share_a_beginning_of_a_hundred_thousand_bytes() -> Files:
    entry, length = encode(_entry(FLOAT, (0,), 0)), 100_000
    sizes = format_varint(len(entry))
    header = encode(HEADER[1])
    contents = b"\0\0" + format_varint(len(header)) + header
    contents += b"\0" + format_varint(length) + sizes + b"a" * length + entry
    contents += b"".join(
        format_varint(length) + b"\6" + sizes + b"%06d" % number + entry for number in range(SIZE // (12 + len(entry)))
    )
    return {"m.index": _table_of_one_block(contents)}


def _table_of_one_block(contents: bytes) -> bytes:
    """Return a table of one block, which has a whole key at its start alone."""
    block = contents + bytes(4) + (1).to_bytes(4, "little") + b"\0"
    empty = table([])
    handle = format_varint(0) + format_varint(len(block) - 1)
    index = b"\0\1" + format_varint(len(handle)) + b"z" + handle + bytes(4) + (1).to_bytes(4, "little") + b"\0"
    data = b"".join(each + masked(crc32c(each)).to_bytes(4, "little") for each in (block, index))
    handles = b"\0\0" + format_varint(len(block) + 4) + format_varint(len(index) - 1)
    return data + handles.ljust(40, b"\0") + empty[-8:]


@case("refused: UnsupportedCheckpointError")
def shape_of_a_hundred_thousand_huge_dimensions() -> Files:
    return _bundle((b"w", _entry(FLOAT, [2**63 - 1] * (SIZE // 12), 4)))


@case("refused: CorruptCheckpointError")
def tensor_that_would_take_all_memory() -> Files:
    return _bundle((b"w", _entry(UINT8, [2**40], 2**40)), data=b"x")


@case("refused: CorruptCheckpointError")
def text_that_would_take_all_memory() -> Files:
    return _bundle((b"w", _entry(STRING, [2**40], 5)), data=bytes(5))


def _sliced(sizes: list[int], cut: int) -> Files:
    """Return a bundle of one tensor cut in single elements, of which the first is there twice and the last not."""
    places = list(itertools.product(*(range(size) for size in sizes)))
    places = [*places[:-1], places[0]] if cut else places
    slices = [Message((1, Message([(1, start), (2, 1)])) for start in place) for place in places]
    return _bundle((b"w", _entry(FLOAT, sizes, 0, slices=slices)))


@case("refused: CorruptCheckpointError")
def slices_cut_in_twelve_dimensions_of_sixty() -> Files:
    return _sliced([1] * 48 + [2] * 12, cut=1)


@case("refused: CorruptCheckpointError")
def slices_without_a_key_of_their_own() -> Files:
    return _sliced([64, 64], cut=0)


@case("refused: CorruptCheckpointError")
def more_slices_than_anyone_would_cut() -> Files:
    whole = [Message([(1, Message([(1, number), (2, 1)]))]) for number in range(SIZE // 12)]
    return _bundle((b"w", _entry(FLOAT, [len(whole)], 0, slices=whole)))


@case("refused: CorruptCheckpointError")
def slices_of_a_variable_with_a_long_name_beside_keys_like_theirs() -> Files:
    slices = [Message([(1, Message([(1, number), (2, 1)]))]) for number in range(SIZE // 12)]
    name = b"n" * 100_000
    return _bundle((name, _entry(FLOAT, [1], 0, slices=slices)), (b"\0" + name, _entry(FLOAT, [0], 0)))


@case("refused: CorruptCheckpointError")
def v1_meta_of_a_slice_with_a_million_extents() -> Files:
    tensor = Message([(1, b"w"), (3, FLOAT), (4, Message([(1, Message())] * (SIZE // 2)))])
    return {"m": table([(b"", Message([(1, Message([(1, tensor)]))]))])}


@case("refused: CorruptCheckpointError")
def v1_meta_of_many_tensors_without_values() -> Files:
    tensors = [Message([(1, b"%d" % number), (3, FLOAT)]) for number in range(SIZE // 12)]
    return {"m": table([(b"", Message([(1, Message([(1, tensor) for tensor in tensors]))]))])}


@pytest.fixture(scope="module")
def bounded() -> Iterator[Bounded]:
    with Bounded() as process:
        yield process


@pytest.mark.parametrize("name", CASES)
def test_hostile_file_is_refused_or_read_in_bounded_time_and_memory(
    bounded: Bounded, tmp_path: Path, name: str
) -> None:
    make, outcome = CASES[name]
    for file, content in make().items():
        assert len(content) < 2 * SIZE
        (tmp_path / file).write_bytes(content)
    results = {door: bounded.open(door, tmp_path) for door in ("verify", "plan", "read")}
    for door, result in results.items():
        print(f"{name}, {door}: {result['cpu_secs']:.2f} s, {result['peak_mb']:.0f} MB")
        assert result["outcome"].startswith(("taken", "refused: ")), result
        assert result["peak_mb"] < MOST_MB
        assert result["cpu_secs"] < MOST_CPU_SECS * MACHINE_FACTOR
    assert results["read"]["outcome"].startswith(outcome), results
    if not name.startswith("graph"):  # which is sound as the string it is, whatever it says
        assert (results["verify"]["values"]["verdict"] == "valid") is (outcome == "taken")
