"""Chunks cover extents byte for byte in order, within their limits, and their checksums join to those of extents."""

from __future__ import annotations

import ctypes
import itertools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchsaver.formats import chunks
from torchsaver.formats.checksum import crc32c
from torchsaver.formats.chunks import Chunk, Extent, cut_into_chunks, joined_by_owner
from torchsaver.formats.memory import memory_at
from torchsaver.formats.regular_file import MOST_BUFFERS

SMALL = 16  # bytes of a chunk here
ADDRESS = 1 << 40  # of memory that is never touched
EXTENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 70)), max_size=30)  # bytes left out before, bytes


@pytest.fixture(autouse=True)
def _chunks_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", SMALL)
    monkeypatch.setattr(chunks, "MOST_BUFFERS", 4)


def laid_out(sizes: Sequence[tuple[int, int]]) -> list[Extent]:
    """Return extents of (bytes left out before it, bytes), each with memory of its own."""
    extents, position = [], 0
    for number, (gap, nbytes) in enumerate(sizes):
        position += gap
        extents.append((position, position + nbytes, ADDRESS + 1000 * number))
        position += nbytes
    return extents


def pieces_of(found: Sequence[Chunk]) -> list[tuple[int, int, int]]:
    """Return (owner, start, end) for each piece."""
    pieces = []
    for chunk in found:
        ends = [chunk.start + total for total in itertools.accumulate(chunk.sizes, initial=0)]
        pieces += list(zip(chunk.owners, ends, ends[1:], strict=False))
    return pieces


@settings(max_examples=100)
@given(EXTENTS)
def test_cut_into_chunks_pieces_cover_exactly_the_extents_in_order(sizes: list[tuple[int, int]]) -> None:
    extents = laid_out(sizes)
    covered = [(owner, at) for owner, start, end in pieces_of(cut_into_chunks(extents)) for at in range(start, end)]
    assert covered == [(owner, at) for owner, (start, end, _) in enumerate(extents) for at in range(start, end)]


@settings(max_examples=100)
@given(EXTENTS)
def test_cut_into_chunks_any_extents_stay_within_the_limits(sizes: list[tuple[int, int]]) -> None:
    for chunk in cut_into_chunks(laid_out(sizes)):
        assert 0 < chunk.nbytes == sum(chunk.sizes) <= SMALL
        assert 0 < len(chunk.sizes) == len(chunk.owners) == len(chunk.memory) <= 4
        assert min(chunk.sizes) > 0


@settings(max_examples=100)
@given(EXTENTS)
def test_cut_into_chunks_memory_of_a_piece_is_its_part_of_the_extent_s(sizes: list[tuple[int, int]]) -> None:
    extents = laid_out(sizes)
    found = cut_into_chunks(extents)
    views = [view for chunk in found for view in chunk.memory]
    for (owner, start, end), view in zip(pieces_of(found), views, strict=True):
        begin, _, address = extents[owner]
        wanted = memory_at(address + start - begin, end - start)
        assert (_address(view), len(view)) == (_address(wanted), end - start)


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(view))


@settings(max_examples=100)
@given(EXTENTS)
def test_cut_into_chunks_all_pieces_of_an_extent_but_the_first_have_one_size(sizes: list[tuple[int, int]]) -> None:
    pieces = pieces_of(cut_into_chunks(laid_out(sizes)))
    for _, own in itertools.groupby(pieces, key=lambda piece: piece[0]):
        assert {end - start for _, start, end in list(own)[1:]} <= {SMALL}


@settings(max_examples=100)
@given(EXTENTS)
def test_cut_into_chunks_takes_no_more_chunks_than_the_limits_and_gaps_ask_for(sizes: list[tuple[int, int]]) -> None:
    found = cut_into_chunks(laid_out(sizes))
    for chunk, after in itertools.pairwise(found):
        is_gap = chunk.start + chunk.nbytes != after.start
        assert is_gap or chunk.nbytes + after.sizes[0] > SMALL or len(chunk.sizes) == 4


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([], []),
        ([(0, 0), (3, 0)], []),
        ([(0, 16)], [[16]]),
        ([(0, 17)], [[1], [16]]),
        ([(0, 40)], [[8], [16], [16]]),
        ([(5, 3), (0, 13)], [[3, 13]]),
        ([(0, 3), (0, 14)], [[3], [14]]),
        ([(0, 3), (0, 0), (0, 4)], [[3, 4]]),
        ([(0, 3), (1, 4)], [[3], [4]]),
        ([(0, 10), (0, 20), (0, 3)], [[10, 4], [16], [3]]),
        ([(0, 1)] * 9, [[1] * 4, [1] * 4, [1]]),
    ],
)
def test_cut_into_chunks_gives_these_sizes(sizes: list[tuple[int, int]], wanted: list[list[int]]) -> None:
    assert [chunk.sizes for chunk in cut_into_chunks(laid_out(sizes))] == wanted


def test_cut_into_chunks_extent_that_is_read_twice_has_both_its_memories() -> None:
    found = cut_into_chunks([(0, 5, ADDRESS), (0, 5, ADDRESS + 1000), (5, 8, ADDRESS + 2000)])
    assert [(chunk.start, chunk.owners) for chunk in found] == [(0, [0]), (0, [1, 2])]


def test_cut_into_chunks_as_many_tiny_tensors_as_one_call_takes_are_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = cut_into_chunks((at, at + 1, 0) for at in range(2 * MOST_BUFFERS + 1))
    assert [len(chunk.sizes) for chunk in found] == [MOST_BUFFERS, MOST_BUFFERS, 1]


@settings(max_examples=100)
@given(EXTENTS)
def test_joined_by_owner_pieces_checksums_give_those_of_the_extents(sizes: list[tuple[int, int]]) -> None:
    extents = laid_out(sizes)
    data = random.Random(len(sizes)).randbytes(3000)
    found = cut_into_chunks(extents)
    checksums = []
    for chunk in found:
        ends = [chunk.start + total for total in itertools.accumulate(chunk.sizes, initial=0)]
        checksums.append([crc32c(data[start:end]) for start, end in itertools.pairwise(ends)])
    wanted = [crc32c(data[start:end]) for start, end, _ in extents]
    assert joined_by_owner(found, checksums, len(extents)) == wanted


def test_joined_by_owner_first_piece_whose_checksum_is_zero_counts() -> None:
    first, second = b"1234Eo\xdam", bytes(range(16))
    assert crc32c(first) == 0
    found = cut_into_chunks([(0, 24, 0)])
    assert [chunk.sizes for chunk in found] == [[8], [16]]
    assert joined_by_owner(found, [[0], [crc32c(second)]], 1) == [crc32c(first + second)]


def test_joined_by_owner_checksums_of_another_number_of_pieces_are_refused() -> None:
    found = cut_into_chunks([(0, 24, 0)])
    for checksums in ([[1]], [[1], [2, 3]], [[1], [2], [3]]):
        with pytest.raises(ValueError, match="zip"):
            joined_by_owner(found, checksums, 1)
