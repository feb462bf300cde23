"""Slices of partitioned variables, as TensorFlow writes them in keys and messages."""

from __future__ import annotations

import itertools
import time

import corpus
import pytest
from corpus import CORPUS
from hypothesis import given
from hypothesis import strategies as st

from torchsaver.formats.regular_file import RegularFile
from torchsaver.formats.tensorflow.slices import (
    Range,
    parse_slice,
    require_partition,
    slice_code,
    slice_key,
    split_slice_key,
)
from torchsaver.formats.tensorflow.sstable import read_table
from torchsaver.formats.tensorflow.wire import Schema, parse_message

ENTRY = Schema({1: ("dtype", "int64"), 7: ("slices", "bytes*")})  # of a BundleEntryProto
PARTITIONED = ["v2_partitioned", "v2_sharded_partitioned", "partitioned_dtypes", "max_shard_object"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(0, "80"), (63, "bf"), (-1, "7f"), (-64, "40"), (64, "c040"), (8191, "dfff"), (8192, "e02000"), (-65, "3fbf")],
)
def test_number_in_a_key_has_the_code_of_the_format(number: int, code: str) -> None:
    assert slice_key(b"", [Range(number, 0)]).hex() == f"0000010101{code}80"


@pytest.mark.parametrize(("name", "code"), [(b"a\x00b\xffc", "6100ff62ff0063"), (b"\x00\x01\xff\x01", "00ff01ff0001")])
def test_name_of_a_scalar_is_escaped_and_has_rank_zero(name: bytes, code: str) -> None:
    assert slice_key(name, []).hex() == f"00{code}000100"


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_keys_compare_as_their_numbers_do(one: int, two: int) -> None:
    assert (slice_key(b"v", [Range(one)]) < slice_key(b"v", [Range(two)])) == (one < two)


@pytest.mark.parametrize("case", PARTITIONED)
def test_every_slice_of_a_partitioned_variable_is_found_under_its_key(case: str) -> None:
    prefix = corpus.expected(case)["prefix"]
    table = dict(read_table(RegularFile(str(CORPUS / case / f"{prefix}.index"))))
    parts = {
        slice_key(key, parse_slice(part))
        for key, value in table.items()
        if key
        for part in parse_message(value, ENTRY)["slices"]
    }
    names = {corpus.key_of(tensor) for tensor in corpus.expected(case)["tensors"]}
    assert len(parts) > 1
    assert set(table) - {b""} == names | parts


@pytest.mark.parametrize(
    ("part", "size", "within"),
    [(Range(), 5, Range(0, 5)), (Range(2, 3), 5, Range(2, 3)), (Range(5, 0), 5, Range(5, 0))],
)
def test_range_within_a_dimension_has_its_length(part: Range, size: int, within: Range) -> None:
    assert part.within(size) == within


@pytest.mark.parametrize(
    "part", [Range(3, 3), Range(-1, 2), Range(0, -2), Range(1), Range(6, 0), Range(2**63 - 1, 2**63 - 1)]
)
def test_range_beyond_a_dimension_is_refused(part: Range) -> None:
    with pytest.raises(ValueError, match="in a dimension of 5"):
        part.within(5)


_RANGES = st.lists(st.builds(Range, st.integers(0, 9000), st.integers(-1, 9000)), max_size=3)


@given(st.lists(st.sampled_from([b"\x00", b"\x01", b"\xff", b"a"]), max_size=6).map(b"".join), _RANGES)
def test_key_of_a_slice_is_split_into_its_name_and_code(name: bytes, ranges: list[Range]) -> None:
    assert split_slice_key(slice_key(name, ranges)) == (name, slice_code(ranges))


@pytest.mark.parametrize("key", [b"", b"a", b"\x00", b"\x00a", b"\x00\xff\x00\x01", b"\x00\x00\x00\x01", b"a\x00\x01"])
def test_other_key_is_not_split(key: bytes) -> None:
    assert split_slice_key(key) is None


@given(st.lists(st.tuples(*[st.builds(Range, st.integers(0, 3), st.integers(1, 2))] * 2), min_size=1, max_size=5))
def test_slices_are_a_partition_if_every_element_is_in_one(slices: list[tuple[Range, Range]]) -> None:
    counts = [
        sum(all(r.start <= at < r.end for r, at in zip(ranges, place, strict=True)) for ranges in slices)
        for place in itertools.product(range(4), range(4))
    ]
    if set(counts) == {1} and all(each.end <= 4 for ranges in slices for each in ranges):
        assert require_partition([4, 4], slices) == slices
    else:
        with pytest.raises(ValueError, match=r"slice"):
            require_partition([4, 4], slices)


def test_thousands_of_slices_in_many_dimensions_are_compared_in_no_time() -> None:
    start = time.process_time()
    slices = list(itertools.product([Range(0, 1), Range(1, 1)], repeat=12))
    assert require_partition([2] * 12, slices) == slices
    with pytest.raises(ValueError, match="overlap"):
        require_partition([2] * 12, [*slices[:-1], slices[0]])
    assert time.process_time() - start < 5
