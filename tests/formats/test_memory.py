"""Memory by address is the tensors' own, and pieces of it are copied and counted to the byte."""

from __future__ import annotations

import itertools

import pytest
import torch

from torchsaver.formats.memory import memory_at, rest_of


def test_memory_at_shares_the_tensor_s_memory_both_ways() -> None:
    tensor = torch.arange(10, dtype=torch.uint8)
    view = memory_at(tensor.data_ptr() + 2, 5)
    assert (bytes(view), view.readonly, view.itemsize) == (bytes(range(2, 7)), False, 1)
    view[1:3] = b"\xff\xfe"
    assert tensor.tolist() == [0, 1, 2, 255, 254, 5, 6, 7, 8, 9]
    tensor.zero_()
    assert bytes(view) == bytes(5)


def test_memory_at_no_bytes_at_no_address_is_an_empty_view() -> None:
    assert bytes(memory_at(0, 0)) == b""


def test_memory_at_keeps_nothing_alive() -> None:
    tensor = torch.zeros(1000)
    weak = torch.multiprocessing.reductions.StorageWeakRef(tensor.untyped_storage())
    view = memory_at(tensor.data_ptr(), tensor.nbytes)
    del tensor
    assert weak.expired()
    del view


@pytest.mark.parametrize("sizes", [(), (0,), (3,), (2, 0, 3), (0, 4, 0), (1, 1, 1, 5)])
def test_rest_of_any_pieces_after_any_number_of_bytes_is_what_follows_without_empty_ones(
    sizes: tuple[int, ...],
) -> None:
    numbers = itertools.count()
    pieces = [bytes(next(numbers) for _ in range(size)) for size in sizes]
    whole = b"".join(pieces)
    for done in range(len(whole) + 1):
        rest = rest_of(pieces, done)
        assert b"".join(rest) == whole[done:]
        assert all(len(piece) for piece in rest)


def test_rest_of_memory_is_still_the_same_memory() -> None:
    first, second = bytearray(3), bytearray(3)
    rest = rest_of([memoryview(first), memoryview(second)], 2)
    rest[0][0] = 7
    rest[1][2] = 8
    assert (first, second) == (b"\0\0\7", b"\0\0\10")
