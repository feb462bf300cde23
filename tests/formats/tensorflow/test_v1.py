"""V1 checkpoints: those of TensorFlow are read bit by bit, and no damage passes for a tensor."""

from __future__ import annotations

import glob
import json
import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import corpus
import numpy as np
import pytest
from corpus import CORPUS, CORRUPT
from hypothesis import example, given
from hypothesis import strategies as st

from torchsaver.errors import CorruptCheckpointError, TorchSaverError, UnsupportedCheckpointError
from torchsaver.formats.checksum import crc32c
from torchsaver.formats.tensorflow import v1
from torchsaver.formats.tensorflow.data_types import STRING
from torchsaver.formats.tensorflow.slices import WHOLE, Range, slice_key
from torchsaver.formats.tensorflow.sstable import MAGIC, masked
from torchsaver.formats.tensorflow.v1 import V1File, V1Files, V1Tensor, open_v1
from torchsaver.formats.tensorflow.v1_values import parse_varints
from torchsaver.formats.tensorflow.wire import format_varint, read_varint, signed

CASES = [case for case in corpus.CASES if corpus.expected(case)["kind"] == "v1"]
DAMAGED = sorted(path.name for path in CORRUPT.glob("v1_*") if path.name != "v1_shard_missing")  # the caller's to see
HALF, BOOL, FLOAT, COMPLEX128 = 19, 10, 1, 18
WHOLE_VECTOR = (Range(),)


def _read(checkpoint: V1Files, name: bytes) -> bytes | list[bytes]:
    """Return a tensor's bytes, or its strings, assembled from its slices."""
    tensor, slices = checkpoint.tensors[name], checkpoint.slices_of(name)
    item_bytes = slices[0][0].data_type(tensor).item_bytes
    whole = np.empty(tensor.shape, f"V{item_bytes}" if item_bytes else object)
    for file, ranges in slices:
        within = [each.within(size) for each, size in zip(ranges, tensor.shape, strict=True)]
        part = np.empty(math.prod(each.length for each in within), whole.dtype)
        if item_bytes:
            values = file.read_numbers(tensor, ranges)
            assert len(values) == part.nbytes
            part[:] = np.frombuffer(values, part.dtype) if part.size else part
        else:
            part[:] = file.read_text(tensor, ranges)
        place = tuple(slice(each.start, each.end) for each in within)
        whole[place] = part.reshape([each.length for each in within])
    return whole.tobytes() if item_bytes else list(whole.ravel())


def _read_all(paths: Sequence[Path]) -> dict[bytes, bytes | list[bytes]]:
    with open_v1(list(map(str, paths))) as checkpoint:
        return {name: _read(checkpoint, name) for name in checkpoint.tensors}


def _paths(case: str) -> list[Path]:
    pattern = str(CORPUS / case / corpus.expected(case)["prefix"])
    return [Path(path) for path in sorted(glob.glob(pattern))]


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return format_varint(number << 3) + format_varint(value % 2**64)
    return format_varint(number << 3 | 2) + format_varint(len(value)) + value


def _extents(ranges: Sequence[Range]) -> bytes:
    return b"".join(
        _field(1, b"" if each.length == WHOLE else _field(1, each.start) + _field(2, each.length)) for each in ranges
    )


def _meta(tensor: V1Tensor) -> bytes:
    shape = b"".join(_field(2, _field(1, size)) for size in tensor.shape) + _field(3, int(tensor.has_unknown_rank))
    slices = b"".join(_field(4, _extents(ranges)) for ranges in tensor.slices)
    return _field(1, _field(1, tensor.name) + _field(2, shape) + _field(3, tensor.type_number) + slices)


def _record(name: bytes, ranges: Sequence[Range], values: bytes) -> bytes:
    return _field(2, _field(1, name) + _field(2, _extents(ranges)) + _field(3, values))


def _block(entries: Sequence[tuple[bytes, bytes]]) -> bytes:
    contents = b"".join(
        b"\x00" + format_varint(len(key)) + format_varint(len(value)) + key + value for key, value in entries
    )
    plain = contents + struct.pack("<II", 0, 1) + b"\x00"
    return plain + struct.pack("<I", masked(crc32c(plain)))


def _table(blocks: Sequence[Sequence[tuple[bytes, bytes]]], separators: Sequence[bytes] = ()) -> bytes:
    data, index = b"", []
    for entries, separator in zip(blocks, separators or [entries[-1][0] for entries in blocks], strict=True):
        block = _block(entries)
        index.append((separator, format_varint(len(data)) + format_varint(len(block) - 5)))
        data += block
    index_block = _block(index)
    handles = b"\x00\x00" + format_varint(len(data)) + format_varint(len(index_block) - 5)
    return data + index_block + handles.ljust(40, b"\x00") + MAGIC


def _write(path: Path, tensors: Sequence[V1Tensor], values: Sequence[bytes], versions: bytes = b"") -> str:
    """Write a file in which each tensor's every slice has the same values, a block for each; return its path."""
    meta = b"".join(map(_meta, tensors)) + _field(2, versions)
    records = {
        slice_key(tensor.name, ranges): _record(tensor.name, ranges, value)
        for tensor, value in zip(tensors, values, strict=True)
        for ranges in tensor.slices
    }
    path.write_bytes(_table([[(b"", _field(1, meta))], *([entry] for entry in sorted(records.items()))]))
    return str(path)


def _vector(name: bytes, type_number: int, size: int) -> V1Tensor:
    return V1Tensor(name, type_number, (size,), (WHOLE_VECTOR,))


@pytest.mark.parametrize("case", CASES)
def test_checkpoint_of_tensorflow_is_read_bit_by_bit(case: str) -> None:
    arrays = np.load(CORPUS / case / "expected.npz")
    tensors = corpus.expected(case)["tensors"]
    with open_v1(list(map(str, _paths(case)))) as checkpoint:
        assert set(checkpoint.tensors) == {corpus.key_of(each) for each in tensors}
        for each in tensors:
            name = corpus.key_of(each)
            tensor = checkpoint.tensors[name]
            assert (tensor.name, list(tensor.shape), tensor.type_number) == (name, each["shape"], each["enum"])
            if each["store"] == "hex":
                assert _read(checkpoint, name) == [bytes.fromhex(text) for text in each["hex"]]
            else:
                assert _read(checkpoint, name) == arrays[each["npz"]].tobytes()


def test_cases_have_slices_several_files_and_strings() -> None:
    assert {"v1_partitioned", "v1_sharded", "strings_v1", "dtypes_v1", "scalars_empty_v1"} < set(CASES)


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_checkpoint_of_the_corpus_is_refused_when_it_must_be(case: str) -> None:
    expect = json.loads((CORRUPT / case / "expect.json").read_text())
    path = str(CORRUPT / case / "m")
    if expect["when"] == "open":
        with pytest.raises(CorruptCheckpointError) as caught:
            V1File(path)
    else:
        name = expect["key"].encode()
        with open_v1([path]) as checkpoint:
            assert name in checkpoint.tensors
            with pytest.raises(CorruptCheckpointError) as caught:
                _read(checkpoint, name)
        assert repr(expect["key"]) in caught.value.reason
    assert caught.value.path == path


@pytest.mark.parametrize("case", ["v1_partitioned", "scalars_empty_v1"])
def test_file_cut_anywhere_is_refused(case: str, tmp_path: Path) -> None:
    whole, cut = _paths(case)[0].read_bytes(), tmp_path / "cut"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpointError):
            V1File(str(cut))


@pytest.mark.parametrize("case", ["v1_partitioned", "scalars_empty_v1"])
def test_file_with_any_byte_flipped_is_refused_or_holds_the_same(case: str, tmp_path: Path) -> None:
    whole, wanted, flipped = _paths(case)[0].read_bytes(), _read_all(_paths(case)), tmp_path / "flipped"
    unseen = 0
    for position, byte in enumerate(whole):
        flipped.write_bytes(whole[:position] + bytes([byte ^ 0x10]) + whole[position + 1 :])
        try:
            assert _read_all([flipped]) == wanted
            unseen += 1
        except CorruptCheckpointError:
            pass
    assert unseen <= 13 + 40  # the metaindex block that nobody reads, its handle and the footer's padding


def test_record_with_any_byte_flipped_is_a_tensor_or_a_documented_error(tmp_path: Path) -> None:
    tensors = [V1Tensor(b"ab", 3, (2, 3), ((Range(), Range(0, 2)), (Range(), Range(2, 1)))), _vector(b"s", 7, 2)]
    record = _record(b"ab", tensors[0].slices[0], _field(7, bytes([1, 0x80, 1, *[0xFF] * 9, 1, 4])))
    text = _record(b"s", WHOLE_VECTOR, _field(8, b"xy") + _field(8, b""))
    meta = _field(1, b"".join(map(_meta, tensors)))
    slices = [(b"", meta), (slice_key(b"ab", tensors[0].slices[0]), record), (slice_key(b"s", WHOLE_VECTOR), text)]
    path, seen = tmp_path / "m", set()
    for number, (key, value) in enumerate(slices):
        for position in range(len(value)):
            for flip in (1, 0x10, 0x80):
                damaged = value[:position] + bytes([value[position] ^ flip]) + value[position + 1 :]
                path.write_bytes(_table([[*slices[:number], (key, damaged), *slices[number + 1 :]]]))
                try:
                    with open_v1([str(path)]) as checkpoint:
                        for tensor in checkpoint.tensors.values():
                            for file, ranges in checkpoint.slices_of(tensor.name)[:1]:
                                read = file.read_text if tensor.type_number == 7 else file.read_numbers
                                read(tensor, ranges)
                    seen.add("read")
                except TorchSaverError as error:
                    seen.add(type(error).__name__)
    assert seen == {"read", "CorruptCheckpointError", "UnsupportedCheckpointError"}


def _varints_one_by_one(data: bytes) -> list[int]:
    numbers, position = [], 0
    while position < len(data):
        number, position = read_varint(data, position)
        numbers.append(signed(number))
    return numbers


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300)), st.integers(10, 40))
def test_varints_decoded_at_once_are_those_read_one_by_one(numbers: list[int], piece_bytes: int) -> None:
    data = b"".join(format_varint(number % 2**64) for number in numbers)
    assert _varints_one_by_one(data) == numbers
    assert parse_varints(data, len(numbers), "<i8", piece_bytes).tolist() == numbers


@given(st.lists(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0x81, 0xFF]), max_size=48).map(bytes), st.integers(10, 40))
@example(b"\x05" + b"\x80" * 9 + b"\x01", 10)
@example(b"\x05" + b"\x80" * 9 + b"\x02", 10)
@example(b"\x05" + b"\x80" * 10 + b"\x00", 40)
def test_any_bytes_are_the_same_varints_or_damage_to_both_decoders(data: bytes, piece_bytes: int) -> None:
    count = sum(byte < 0x80 for byte in data)
    try:
        wanted = _varints_one_by_one(data)
    except ValueError:
        with pytest.raises(ValueError, match="number"):
            parse_varints(data, count, "<i8", piece_bytes)
    else:
        assert parse_varints(data, count, "<i8", piece_bytes).tolist() == wanted


def test_varints_of_several_pieces_of_the_usual_size_are_all_read() -> None:
    numbers = np.arange(-100_000, 400_000)
    data = b"".join(format_varint(int(number) % 2**64) for number in numbers)
    assert len(data) > 2 << 20
    assert np.array_equal(parse_varints(data, len(numbers), "<i4"), numbers)


@pytest.mark.parametrize(
    ("type_number", "field", "values", "beyond"),
    [
        (3, 7, [-(2**31), 2**31 - 1], [2**31, -(2**31) - 1]),
        (13, 7, [-(2**31), 2**31 - 1], [2**31]),
        (5, 7, [-(2**15), 2**15 - 1], [2**15, -(2**15) - 1]),
        (6, 7, [-128, 127], [128, -129]),
        (11, 7, [-128, 127], [128]),
        (4, 7, [0, 255], [256, -1]),
        (12, 7, [0, 255], [256]),
        (17, 7, [0, 65535], [65536, -1]),
        (16, 7, [0, 65535], [65536]),
        (9, 10, [-(2**63), 2**63 - 1], []),
        (BOOL, 11, [0, 1], [2, -1]),
        (HALF, 13, [0, 65535], [65536, -1]),
    ],
)
def test_numbers_of_a_dtype_are_read_up_to_its_limits_and_refused_beyond(
    type_number: int, field: int, values: list[int], beyond: list[int], tmp_path: Path
) -> None:
    packed = [b"".join(format_varint(number % 2**64) for number in numbers) for numbers in (values, values[:1])]
    tensor = _vector(b"v", type_number, 3)
    one_by_one = b"".join(_field(field, number) for number in values + values[:1])
    wanted = b""
    for coded in (
        _field(field, packed[0] + packed[1]),
        one_by_one,
        _field(field, packed[0]) + _field(field, values[0]),
    ):
        with V1File(_write(tmp_path / "m", [tensor], [coded])) as file:
            found = bytes(file.read_numbers(tensor, WHOLE_VECTOR))
            wanted = wanted or b"".join(
                (number % 2**64).to_bytes(8, "little")[: file.data_type(tensor).item_bytes]
                for number in values + values[:1]
            )
            assert found == wanted
    for number in beyond:
        path = _write(tmp_path / "m", [tensor], [_field(field, packed[0]) + _field(field, number)])
        with V1File(path) as file, pytest.raises(CorruptCheckpointError, match=r"'v'.*in a dtype of"):
            file.read_numbers(tensor, WHOLE_VECTOR)


@pytest.mark.parametrize(
    ("type_number", "tag", "size", "values"),
    [(1, 5 << 3 | 5, 4, 2), (2, 6 << 3 | 1, 8, 2), (8, 9 << 3 | 5, 4, 4), (18, 12 << 3 | 1, 8, 4)],
)
def test_fixed_numbers_are_read_packed_one_by_one_and_mixed(
    type_number: int, tag: int, size: int, values: int, tmp_path: Path
) -> None:
    data, tensor = bytes(range(size * values)), _vector(b"v", type_number, 2)
    singles = b"".join(format_varint(tag) + data[at : at + size] for at in range(0, len(data), size))
    mixed = singles[: size + 1] + _field(tag >> 3, data[size:])
    for coded in (_field(tag >> 3, data), singles, mixed):
        with V1File(_write(tmp_path / "m", [tensor], [coded])) as file:
            assert bytes(file.read_numbers(tensor, WHOLE_VECTOR)) == data


@pytest.mark.parametrize(
    ("type_number", "values", "reason"),
    [
        (FLOAT, _field(5, bytes(4)), "4 bytes in field 5, and 2 values take 8"),
        (FLOAT, _field(5, bytes(12)), "12 bytes in field 5"),
        (FLOAT, _field(5, bytes(3)) + _field(5, bytes(5)), "3 bytes of packed numbers"),
        (FLOAT, _field(6, bytes(16)), "0 bytes in field 5"),
        (FLOAT, _field(5, 1), "wire type 0, and 5 was wanted"),
        (FLOAT, _field(4, bytes(8)), "0 bytes in field 5"),
        (COMPLEX128, _field(12, bytes(16)), "16 bytes in field 12, and 2 values take 32"),
        (3, _field(7, b"\x01"), "1 numbers, and 2 were wanted"),
        (3, _field(7, b"\x01\x02\x03"), "3 numbers, and 2 were wanted"),
        (3, _field(7, b"\x01\x02\x80"), "does not end"),
        (3, _field(7, b"\x01\x80") + _field(7, b"\x01"), "does not end"),
        (3, _field(7, b"\x01" + b"\x80" * 10 + b"\x00"), "beyond 64 bits"),
        (3, b"\x3d\x01\x00\x00\x00\x3d\x01\x00\x00\x00", "wire type 5, and 0 was wanted"),
        (7, _field(8, b"a"), "1 strings, and 2 were wanted"),
        (7, _field(8, b"a") * 3, "3 strings, and 2 were wanted"),
        (7, _field(8, 1) * 2, "wire type 0, and 2 was wanted"),
        (3, b"\x3a\x7f\x01", "ends beyond its message"),
        (3, b"\x02\x00", "field 0"),
        (3, b"\x3b", "wire type 3"),
    ],
)
def test_values_that_are_not_the_slice_s_are_refused(
    type_number: int, values: bytes, reason: str, tmp_path: Path
) -> None:
    tensor = _vector(b"v", type_number, 2)
    with V1File(_write(tmp_path / "m", [tensor], [values])) as file:
        read = file.read_text if type_number == STRING.number else file.read_numbers
        with pytest.raises(CorruptCheckpointError, match=reason) as caught:
            read(tensor, WHOLE_VECTOR)
    assert "the values of 'v' from [0] on" in caught.value.reason


def test_opening_reads_the_first_block_alone_and_every_other_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [b"a", b"a/b", b"b\x00", b"b\xff", b"c" * 300, b"d"]
    tensors = [_vector(name, FLOAT, 2) for name in names]
    meta = (b"", _field(1, b"".join(map(_meta, tensors))))
    records = [
        (slice_key(name, WHOLE_VECTOR), _record(name, WHOLE_VECTOR, _field(5, bytes([number] * 8))))
        for number, name in enumerate(names)
    ]
    records.sort()
    # Separators are any keys between the blocks; TensorFlow makes them short.
    separators = [b"", records[1][0] + b"~", records[3][0], b"\x01"]
    path = tmp_path / "m"
    path.write_bytes(_table([[meta], records[:2], records[2:4], records[4:]], separators))
    reads: list[int] = []
    read_block = v1.read_block
    monkeypatch.setattr(
        v1, "read_block", lambda file, offset, size: (reads.append(offset), read_block(file, offset, size))[1]
    )
    with V1File(str(path)) as file:
        assert reads == [0]
        found = {name: bytes(file.read_numbers(file.tensors[name], WHOLE_VECTOR)) for name in sorted(names)}
    assert len(reads) == len(set(reads)) == 4
    assert found == {name: bytes([number] * 8) for number, name in enumerate(names)}


def test_blocks_whose_keys_do_not_ascend_are_refused(tmp_path: Path) -> None:
    meta, key = (b"", _field(1, _meta(_vector(b"v", FLOAT, 1)))), slice_key(b"v", WHOLE_VECTOR)
    path = tmp_path / "m"
    path.write_bytes(_table([[meta, (key, b""), (key, b"")]]))
    with pytest.raises(CorruptCheckpointError, match="comes after"):
        V1File(str(path))


@pytest.mark.parametrize(
    ("name", "ranges"), [(b"w", (Range(0, 2),)), (b"v", (Range(1, 2),)), (b"v", WHOLE_VECTOR), (b"v", ())]
)
def test_record_of_another_slice_is_refused(name: bytes, ranges: tuple[Range, ...], tmp_path: Path) -> None:
    part = (Range(0, 2),)
    tensor, path = V1Tensor(b"v", FLOAT, (3,), (part,)), tmp_path / "m"
    record = _record(name, ranges, _field(5, bytes(8)))
    path.write_bytes(_table([[(b"", _field(1, _meta(tensor))), (slice_key(b"v", part), record)]]))
    with V1File(str(path)) as file, pytest.raises(CorruptCheckpointError, match="the record is that of"):
        file.read_numbers(tensor, part)


def test_tensor_of_an_unknown_dtype_is_listed_and_only_its_values_are_refused(tmp_path: Path) -> None:
    tensors = [_vector(b"a", 99, 1), _vector(b"b", FLOAT, 1), _vector(b"c", 14, 1), _vector(b"d", -1, 1)]
    with V1File(_write(tmp_path / "m", tensors, [_field(5, bytes(4))] * 4)) as file:
        assert list(file.tensors.values()) == tensors
        assert bytes(file.read_numbers(tensors[1], WHOLE_VECTOR)) == bytes(4)
        for tensor in (tensors[0], tensors[3]):
            with pytest.raises(
                UnsupportedCheckpointError, match=f"'.' is of TensorFlow's dtype number {tensor.type_number}"
            ):
                file.read_numbers(tensor, WHOLE_VECTOR)
        with pytest.raises(UnsupportedCheckpointError, match="'c': numbers of DT_BFLOAT16"):  # V1 has no place for it
            file.read_numbers(tensors[2], WHOLE_VECTOR)


def test_strings_are_not_read_as_numbers_nor_numbers_as_strings(tmp_path: Path) -> None:
    tensors = [_vector(b"s", 7, 1), _vector(b"v", FLOAT, 1)]
    with V1File(_write(tmp_path / "m", tensors, [b"", b""])) as file:
        with pytest.raises(UnsupportedCheckpointError, match="'s': numbers of DT_STRING"):
            file.read_numbers(tensors[0], WHOLE_VECTOR)
        with pytest.raises(UnsupportedCheckpointError, match="'v': text of DT_FLOAT"):
            file.read_text(tensors[1], WHOLE_VECTOR)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (V1Tensor(b"v", FLOAT, (), ((),), has_unknown_rank=True), "rank is unknown"),
        (V1Tensor(b"v", FLOAT, (-1,), (WHOLE_VECTOR,)), "size is negative"),
        (V1Tensor(b"v", FLOAT, (1,) * 255, ((Range(),) * 255,)), "above 254"),
        (V1Tensor(b"v", FLOAT, (2**63 - 1,) * 254, ((Range(),) * 254,)), "more than the file can hold"),
        (V1Tensor(b"v", FLOAT, (10**6,), (WHOLE_VECTOR,)), "more than the file can hold"),
        (V1Tensor(b"v", FLOAT, (2,), ((),)), "0 dimensions of a tensor of 1"),
        (V1Tensor(b"v", FLOAT, (2,), ((Range(1, 2),),)), "in a dimension of 2"),
        (V1Tensor(b"v", FLOAT, (2,), ((Range(-1, 1),),)), "in a dimension of 2"),
        (V1Tensor(b"v", FLOAT, (2,), ()), "no slices"),
    ],
)
def test_shape_or_slice_that_cannot_be_is_damage_when_the_tensor_is_asked_for(
    tensor: V1Tensor, reason: str, tmp_path: Path
) -> None:
    path = _write(tmp_path / "m", [tensor, _vector(b"w", FLOAT, 1)], [_field(5, bytes(4))] * 2)
    with open_v1([path]) as checkpoint:
        assert checkpoint.tensors[b"v"] == tensor
        assert _read(checkpoint, b"w") == bytes(4)
        with pytest.raises(CorruptCheckpointError, match=f"'v': .*{reason}"):
            checkpoint.slices_of(b"v")
        for ranges in tensor.slices:
            with pytest.raises(CorruptCheckpointError, match=reason):
                checkpoint.files[0].read_numbers(tensor, ranges)


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        (b"", "meta: the record has none"),
        (_field(1, _meta(_vector(b"v", FLOAT, 1)) * 2), "'v' is there twice"),
        (_field(1, b"\x0a\x7f"), "ends beyond"),
        (_field(1, _field(1, _field(2, b"\x12\x01\xff"))), "does not end"),
        (_field(1, _field(1, _field(4, b"\x0a\x01\xff"))), "does not end"),
        (b"\x08\x01", "wire type 0"),  # what the index of a bundle has there
    ],
)
def test_meta_that_is_none_is_damage_at_once(meta: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(_table([[(b"", meta)]]))
    with pytest.raises(CorruptCheckpointError, match=reason):
        V1File(str(path))


@pytest.mark.parametrize("versions", [_field(1, 9) + _field(2, 2), _field(3, 7) + _field(3, 1)])
def test_file_for_later_readers_only_is_not_supported(versions: bytes, tmp_path: Path) -> None:
    path = _write(tmp_path / "m", [], [], versions)
    with pytest.raises(UnsupportedCheckpointError, match="version 1"):
        V1File(path)


def test_file_of_a_later_writer_that_lets_us_read_it_is_read(tmp_path: Path) -> None:
    with V1File(_write(tmp_path / "m", [], [], _field(1, 9) + _field(2, 1) + _field(3, 2))) as file:
        assert file.tensors == {}


def test_slices_of_one_tensor_in_several_files_are_joined(tmp_path: Path) -> None:
    parts = [(Range(0, 2),), (Range(2, 1),), (Range(3, 2),)]
    paths = [
        _write(tmp_path / "0", [V1Tensor(b"v", 4, (5,), (parts[1],))], [_field(7, b"\x03")]),
        _write(tmp_path / "1", [V1Tensor(b"v", 4, (5,), (parts[0], parts[2]))], [_field(7, b"\x01\x02")]),
        _write(tmp_path / "2", [_vector(b"w", 4, 1)], [_field(7, b"\x09")]),
    ]
    with open_v1(paths) as checkpoint:
        assert [file.path for file in checkpoint.files] == paths
        assert checkpoint.tensors[b"v"] == V1Tensor(b"v", 4, (5,), (parts[1], parts[0], parts[2]))
        assert [(file.path, ranges) for file, ranges in checkpoint.slices_of(b"v")] == [
            (paths[0], parts[1]),
            (paths[1], parts[0]),
            (paths[1], parts[2]),
        ]
        assert _read(checkpoint, b"v") == bytes([1, 2, 3, 1, 2])
        assert _read(checkpoint, b"w") == b"\x09"
        with pytest.raises(KeyError):
            checkpoint.slices_of(b"x")


@pytest.mark.parametrize("other", [_vector(b"v", FLOAT, 3), _vector(b"v", 3, 2), V1Tensor(b"v", FLOAT, (2, 1), ())])
def test_files_that_disagree_on_a_tensor_are_refused_and_closed(
    other: V1Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    close = V1File.close
    monkeypatch.setattr(V1File, "close", lambda file: (closed.append(file.path), close(file))[1])
    paths = [_write(tmp_path / "0", [_vector(b"v", FLOAT, 2)], [b""]), _write(tmp_path / "1", [other], [b""])]
    with pytest.raises(CorruptCheckpointError, match=r"'v': shape .* and dtype .* in ") as caught:
        open_v1(paths)
    assert caught.value.path == paths[1]
    assert sorted(closed) == paths


def test_closed_file_reads_nothing_more_and_closes_again(tmp_path: Path) -> None:
    tensor = _vector(b"v", FLOAT, 1)
    file = V1File(_write(tmp_path / "m", [tensor], [_field(5, bytes(4))]))
    values = file.read_numbers(tensor, WHOLE_VECTOR)
    assert os.fstat(file.fileno()).st_size > 0
    file.close()
    file.close()
    assert bytes(values) == bytes(4)
    with pytest.raises(ValueError, match="is closed"):
        file.read_numbers(tensor, WHOLE_VECTOR)
