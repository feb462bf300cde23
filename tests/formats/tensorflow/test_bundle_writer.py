"""Bundles written here are TensorFlow's own, byte for byte, for what it saved itself; any tensor's values are there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import corpus
import numpy as np
import pytest
import torch
from corpus import CORPUS
from formats import bundles
from formats.builders import EXPANDED, VIEWS, Sink, base_bytes, base_tensor, raw
from formats.bundles import ENTRY, HEADER

from torchsaver.formats.checksum import crc32c
from torchsaver.formats.regular_file import RegularFile
from torchsaver.formats.tensorflow import bundle_writer
from torchsaver.formats.tensorflow.bundle_writer import BundleWriter, Part, cut_into_shards
from torchsaver.formats.tensorflow.data_types import BY_TORCH_NAME, DATA_TYPES, STRING
from torchsaver.formats.tensorflow.slices import Range, parse_slice, slice_key
from torchsaver.formats.tensorflow.sstable import masked, read_table
from torchsaver.formats.tensorflow.wire import parse_message, read_varint

# Laid out on purpose as TensorFlow's Saver never does, or with variants, which only TensorFlow has.
NOT_WRITTEN = {"aligned_v2", "bigendian_v2", "restart1_v2", "snappy_v2", "tiny_blocks_v2", "variant_v2"}
NOT_WRITTEN |= {"table_iterator_variant"}
CASES = [case for case in corpus.CASES if corpus.expected(case)["kind"] != "v1" and case not in NOT_WRITTEN]


class Written(NamedTuple):
    index: bytes
    data: list[bytes]


def write(shards: Sequence[Sequence[Part]], shard_count: int | None = None) -> Written:
    """Return the files of a bundle."""
    writer, files = BundleWriter(shards), []
    for number in range(len(shards)):
        sink = Sink()
        writer.write_shard(number, sink)
        files.append(bytes(sink.data))
    return Written(writer.format_index(shard_count), files)


def entries(index: bytes, directory: Path) -> dict[bytes, dict[str, Any]]:
    """Return what an index says of each key, the header under the empty one."""
    path = directory / "read.index"
    path.write_bytes(index)
    return bundles.entries(str(path))


def _values(case: str) -> dict[bytes, tuple[dict[str, Any], Any]]:
    """Return (what is expected, bytes or strings) of every tensor of a case, by key."""
    arrays = np.load(CORPUS / case / "expected.npz")
    found: dict[bytes, tuple[dict[str, Any], Any]] = {}
    for tensor in corpus.expected(case)["tensors"]:
        kind = tensor["store"]
        if kind == "hex":
            value: Any = [bytes.fromhex(text) for text in tensor["hex"]]
        elif kind == "blob":
            start, nbytes = tensor["at"]
            value = arrays["blob"].tobytes()[start : start + nbytes]
        else:
            value = arrays[tensor["npz"]].tobytes()
        found[corpus.key_of(tensor)] = tensor, value
    return found


def _parts(case: str) -> tuple[list[list[Part]], int]:
    """Return the parts of a case as TensorFlow has saved them: in the order of its data files, with what it read."""
    path = CORPUS / case / (corpus.expected(case)["prefix"] + ".index")
    table = dict(read_table(RegularFile(str(path))))
    count = parse_message(table.pop(b""), HEADER)["num_shards"]
    messages = {key: parse_message(value, ENTRY) for key, value in table.items()}
    values = _values(case)
    placed: list[tuple[int, int, int, Part]] = []
    for name, (tensor, value) in values.items():
        message = messages[name]
        for part in map(parse_slice, message["slices"]) if message["slices"] else [None]:
            entry = message if part is None else messages[slice_key(name, part)]
            placed.append((entry["shard"], entry["offset"], entry["size"], _part(name, tensor, value, part)))
    assert len(placed) == sum(not message["slices"] for message in messages.values()), "every entry with data"
    placed.sort(key=lambda each: each[:3])
    return [[part for shard, *_, part in placed if shard == number] for number in range(count)], count


def _part(name: bytes, tensor: dict[str, Any], value: Any, ranges: tuple[Range, ...] | None) -> Part:
    data_type, shape = DATA_TYPES[tensor["enum"]], tuple(tensor["shape"])
    if data_type == STRING:
        elements = np.empty(len(value), object)
        elements[:] = value
        elements = elements.reshape(shape)
    else:
        elements = np.frombuffer(value, np.uint8).reshape(*shape, data_type.item_bytes)
    own = [each.within(size) for each, size in zip(ranges or (), shape, strict=bool(ranges))]
    elements = elements[tuple(slice(each.start, each.start + each.length) for each in own)] if ranges else elements
    if data_type == STRING:
        return Part(name, data_type, elements.shape, elements.ravel().tolist(), ranges, shape)
    return Part(name, data_type, elements.shape[:-1], torch.from_numpy(elements.copy()), ranges, shape)


@pytest.mark.parametrize("case", CASES)
def test_bundle_of_what_tensorflow_saved_is_its_own_byte_for_byte(case: str) -> None:
    prefix = CORPUS / case / corpus.expected(case)["prefix"]
    shards, count = _parts(case)
    written = write(shards)
    assert written.index == Path(f"{prefix}.index").read_bytes()
    for number, data in enumerate(written.data):
        path = Path(f"{prefix}.data-{number:05d}-of-{count:05d}")
        assert data == (path.read_bytes() if path.exists() else b"")


def test_cases_have_slices_strings_shards_and_every_dtype_but_variants() -> None:
    parts = [part for case in CASES for shard in _parts(case)[0] for part in shard]
    assert any(part.ranges for part in parts)
    assert {part.data_type.name for part in parts} == {each.name for each in DATA_TYPES.values()} - {"variant"}
    assert max(_parts(case)[1] for case in CASES) > 2


@pytest.mark.parametrize("view", [*VIEWS, *EXPANDED])
@pytest.mark.parametrize("name", [name for name in BY_TORCH_NAME if hasattr(torch, name)])
def test_tensor_of_any_dtype_and_strides_is_written_in_row_major_order(name: str, view: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    tensor = {**VIEWS, **EXPANDED}[view](base_tensor(base_bytes(dtype), dtype))
    index, (data,) = write([[Part(b"v", BY_TORCH_NAME[name], tuple(tensor.shape), tensor)]])
    entry = entries(index, tmp_path)[b"v"]
    assert data == raw(tensor)
    assert (entry["dtype"], entry["offset"], entry["size"]) == (BY_TORCH_NAME[name].number, 0, len(data))
    assert entry["crc32c"] == masked(crc32c(data))


@pytest.mark.parametrize("change", [torch.conj, lambda tensor: tensor.conj().imag, lambda tensor: tensor.conj().T])
def test_pending_conjugation_or_negation_is_carried_out(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensor = change(torch.tensor([[1 + 2j, 3 - 4j], [5j, -6j]]))
    _, (data,) = write([[Part(b"v", BY_TORCH_NAME["complex64"], tuple(tensor.shape), tensor)]])
    assert data == raw(tensor)


def test_tensor_through_many_windows_is_whole_and_small_ones_beside_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchsaver.formats.staging.WINDOW_BYTES", 64)
    monkeypatch.setattr(bundle_writer, "CHUNK_BYTES", 24)
    tensors = [torch.arange(12.0), torch.arange(600.0).reshape(20, 30).T, torch.tensor(1.0), torch.arange(100.0)]
    _, (data,) = write([[Part(b"%d" % n, BY_TORCH_NAME["float32"], (), tensor) for n, tensor in enumerate(tensors)]])
    assert data == b"".join(map(raw, tensors))


def test_many_small_tensors_go_in_few_calls() -> None:
    calls = []

    class Counting(Sink):
        def write(self, position: int, pieces: Sequence[bytes | memoryview]) -> None:
            calls.append(len(pieces))
            super().write(position, pieces)

    tensors = [torch.full((3,), float(number)) for number in range(3000)]
    sink = Counting()
    BundleWriter([[Part(b"%d" % n, BY_TORCH_NAME["float32"], (3,), t) for n, t in enumerate(tensors)]]).write_shard(
        0, sink
    )
    assert bytes(sink.data) == b"".join(map(raw, tensors))
    assert len(calls) == 3
    assert max(calls) <= 1024  # what a system takes in one call


@pytest.mark.parametrize("texts", [[], [b""], [b"a"], [b"", b"\x00\xff", b"x" * 127, b"y" * 128, b"z" * 70000]])
def test_strings_are_lengths_their_checksum_and_bytes(texts: list[bytes], tmp_path: Path) -> None:
    part = Part(b"s", STRING, (len(texts),), texts)
    index, (data,) = write([[part]])
    position = 0
    for text in texts:
        length, position = read_varint(data, position)
        assert length == len(text)
    lengths = b"".join(len(text).to_bytes(4, "little") for text in texts)
    assert data[position : position + 4] == masked(crc32c(lengths)).to_bytes(4, "little")
    assert data[position + 4 :] == b"".join(texts)
    assert entries(index, tmp_path)[b"s"]["crc32c"] == masked(crc32c(lengths + data[position:]))
    assert part.nbytes == len(data)


def test_part_without_elements_takes_no_bytes_and_has_its_shape(tmp_path: Path) -> None:
    index, (data,) = write([[Part(b"v", BY_TORCH_NAME["float32"], (0, 3), torch.zeros(0, 3))]])
    assert data == b""
    assert entries(index, tmp_path)[b"v"]["shape"] == bytes.fromhex("120012020803")


def test_index_may_count_more_data_files_than_have_anything_in_them(tmp_path: Path) -> None:
    index, _ = write([[Part(b"v", BY_TORCH_NAME["float32"], (), torch.tensor(1.0))]], shard_count=3)
    assert entries(index, tmp_path)[b""]["num_shards"] == 3


def test_empty_range_of_a_slice_is_no_whole_dimension(tmp_path: Path) -> None:
    ranges = [(Range(0, 1), Range(0, 0)), (Range(1, 1), Range(0, 0))]
    parts = [Part(b"v", BY_TORCH_NAME["float32"], (1, 0), torch.zeros(1, 0), each, (2, 0)) for each in ranges]
    index, _ = write([parts])
    found = entries(index, tmp_path)
    assert [parse_slice(each) for each in found[b"v"]["slices"]] == ranges
    assert set(found) == {b"", b"v", *(slice_key(b"v", each) for each in ranges)}


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [
        (None, [[10, 20, 5, 100, 1, 30]]),
        (30, [[10, 20], [5], [100], [1], [30]]),
        (35, [[10, 20, 5], [100], [1, 30]]),
        (1, [[10], [20], [5], [100], [1], [30]]),
    ],
)
def test_data_file_is_ended_before_it_gets_too_large(limit: int | None, sizes: list[list[int]]) -> None:
    uint8 = BY_TORCH_NAME["uint8"]
    parts = [Part(b"%d" % n, uint8, (n,), torch.zeros(n, dtype=torch.uint8)) for n in (10, 20, 5, 100, 1, 30)]
    shards = cut_into_shards(parts, limit)
    assert [[math.prod(part.shape) for part in shard] for shard in shards] == sizes


def test_nothing_to_write_is_one_empty_data_file() -> None:
    assert cut_into_shards([], 10) == [[]]
