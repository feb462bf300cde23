"""Reading many chunks gives the same values and checksums whichever way they are read, or one error and no thread."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats import bulk_read, chunks
from torchsaver.formats.bulk_read import read_chunks
from torchsaver.formats.checksum import crc32c
from torchsaver.formats.chunks import Chunk, Extent, cut_into_chunks, joined_by_owner
from torchsaver.formats.parallel import cores
from torchsaver.formats.regular_file import RegularFile

BASE = 1003  # where the data starts: aligned to nothing
CHUNK = 1 << 16  # bytes of a chunk here
# Bytes of the extents: chunks of many pieces, of one, of parts of one, and of less than a page.
SIZES = [5, 0, 1, *[33] * 1100, CHUNK + 5, 3 * CHUNK, 4096, 0, 2 * CHUNK - 1, 3]


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(1).randbytes(BASE + sum(SIZES))


@pytest.fixture
def file(content: bytes, tmp_path: Path) -> Iterator[RegularFile]:
    (tmp_path / "file").write_bytes(content)
    file = RegularFile(str(tmp_path / "file"))
    yield file
    file.close()


@pytest.fixture(autouse=True)
def _chunks_are_small_and_no_thread_or_file_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", CHUNK)

    def held() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    gc.collect()  # what other tests have left is closed here, and not in the midst of this one
    before = held()
    yield
    assert held() == before


class Target:
    """Memory for extents, with a byte that nobody may touch before and after each."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.memory = [bytearray(b"\xee" * (size + 2)) for size in sizes]
        self.extents = [
            (start, end, _address(memory) + 1)
            for (start, end, _), memory in zip(laid_out(sizes), self.memory, strict=True)
        ]

    def holds(self, content: bytes) -> bool:
        wanted = [content[BASE + start : BASE + end] for start, end, _ in self.extents]
        return self.memory == [b"\xee" + data + b"\xee" for data in wanted]


def laid_out(sizes: Sequence[int]) -> list[Extent]:
    """Return extents without memory."""
    ends = itertools.accumulate(sizes, initial=0)
    return [(start, end, 0) for start, end in itertools.pairwise(ends)]


def _address(memory: bytearray) -> int:
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(memory))


def few(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bulk_read, "_FEW_BYTES", 1 << 40)


def threads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bulk_read, "_FEW_BYTES", 0)


WAYS = [few, threads]


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_read_chunks_every_way_gives_the_same_values_and_checksums(
    way: Callable[[pytest.MonkeyPatch], None],
    *,
    checksum: bool,
    fill: bool,
    file: RegularFile,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way(monkeypatch)
    target = Target(SIZES)
    cut = cut_into_chunks(target.extents)
    found = read_chunks(file, BASE, cut, fill=fill, checksum=checksum)
    if checksum:
        wanted = [crc32c(content[BASE + start : BASE + end]) for start, end, _ in target.extents]
        assert joined_by_owner(cut, found, len(SIZES)) == wanted
    if fill:
        assert target.holds(content)
    else:
        assert set(b"".join(target.memory)) == {0xEE}


@pytest.mark.parametrize("way", WAYS)
def test_read_chunks_with_gaps_and_in_another_order_fills_each_with_its_own(
    way: Callable[[pytest.MonkeyPatch], None], file: RegularFile, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    target = Target(SIZES)
    cut = cut_into_chunks([extent if number % 3 else (0, 0, 0) for number, extent in enumerate(target.extents)])
    read_chunks(file, BASE, list(reversed(cut)), fill=True)
    for number in range(0, len(SIZES), 3):
        start, end, _ = target.extents[number]
        target.memory[number][1:-1] = content[BASE + start : BASE + end]
    assert target.holds(content)


def test_read_chunks_of_nothing_reads_nothing(file: RegularFile) -> None:
    assert read_chunks(file, BASE, [], fill=True, checksum=True) == []


def test_read_chunks_of_few_bytes_are_read_here_and_of_more_shared_among_threads(
    file: RegularFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[tuple[int, int]] = []
    monkeypatch.setattr(bulk_read, "share", lambda count, threads, _: shared.append((count, threads)))
    monkeypatch.setattr(bulk_read, "_FEW_BYTES", 4 * CHUNK)
    for nbytes in (4 * CHUNK, 4 * CHUNK + 1):
        read_chunks(file, BASE, cut_into_chunks([(0, nbytes, 0)]))
    assert shared == [(4, 1), (5, min(2 * cores(), 8))]
    shared.clear()
    for number in (1, 3, 64):
        monkeypatch.setattr(bulk_read, "cores", lambda number=number: number)
        read_chunks(file, BASE, cut_into_chunks([(0, 4 * CHUNK + 1, 0)]))
    assert shared == [(5, 2), (5, 6), (5, 8)]


@pytest.mark.parametrize(("pieces", "threads"), [(15, 6), (16, 6), (17, 3)])
def test_read_chunks_in_small_pieces_are_shared_among_as_many_threads_as_processors(
    pieces: int, threads: int, file: RegularFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[tuple[int, int]] = []
    monkeypatch.setattr(bulk_read, "share", lambda count, threads, _: shared.append((count, threads)))
    monkeypatch.setattr(bulk_read, "_FEW_BYTES", 0)
    monkeypatch.setattr(bulk_read, "cores", lambda: 3)
    small = [(start, start + CHUNK // pieces, 0) for start in range(0, CHUNK // pieces * pieces, CHUNK // pieces)]
    read_chunks(file, BASE, [chunk for _ in range(4) for chunk in cut_into_chunks(small)])
    assert shared == [(4, threads)]


@pytest.mark.parametrize("way", WAYS)
def test_read_chunks_of_a_file_cut_before_or_while_it_is_read_is_a_corrupt_checkpoint(
    way: Callable[[pytest.MonkeyPatch], None],
    *,
    file: RegularFile,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way(monkeypatch)
    cut = cut_into_chunks(laid_out(SIZES))
    preadv, calls = os.preadv, iter(range(1000))

    def cutting(*arguments: Any) -> int:
        if next(calls) == 2:
            os.truncate(file.path, BASE + 100)
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", cutting)
    for _ in range(2):  # while, and before
        with pytest.raises(CorruptCheckpointError, match="bytes early") as caught:
            read_chunks(file, BASE, cut, checksum=True)
        assert caught.value.path == file.path
        assert BASE + 100 <= caught.value.offset < len(content)


@pytest.mark.parametrize("way", WAYS)
def test_read_chunks_of_a_file_one_byte_too_short_says_where_it_ends(
    way: Callable[[pytest.MonkeyPatch], None], file: RegularFile, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    target = Target(SIZES)
    os.truncate(file.path, len(content) - 1)
    with pytest.raises(CorruptCheckpointError, match="the file ends 1 bytes early") as caught:
        read_chunks(file, BASE, cut_into_chunks(target.extents), fill=True)
    assert caught.value.offset == len(content) - 1


@pytest.mark.parametrize("nth", [0, 3, 7])
@pytest.mark.parametrize("way", WAYS)
def test_read_chunks_with_a_device_that_fails_once_raises_its_error_and_names_the_file(
    way: Callable[[pytest.MonkeyPatch], None], nth: int, file: RegularFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    target = Target(SIZES)
    preadv, calls = os.preadv, iter(range(1000))

    def failing(descriptor: int, buffers: Any, position: int) -> int:
        if next(calls) == nth:
            raise OSError(5, "Input/output error")
        return preadv(descriptor, buffers, position)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(OSError, match="Input/output error") as caught:
        read_chunks(file, BASE, cut_into_chunks(target.extents), fill=True, checksum=True)
    assert (caught.value.errno, caught.value.filename) == (5, file.path)


def test_read_chunks_after_an_error_in_one_thread_the_others_read_no_further_chunk(
    file: RegularFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(monkeypatch)
    cut = [Chunk(0, 1, [1], [0], [memoryview(bytearray(1))])] * 200_000
    calls: list[int] = []

    def failing(*_: object) -> None:
        calls.append(1)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(RegularFile, "read_into", failing)
    with pytest.raises(OSError, match="Input/output"):
        read_chunks(file, BASE, cut, fill=True)
    assert len(calls) <= 2 * 2 * cores()


@pytest.mark.parametrize("way", WAYS)
def test_read_chunks_through_short_reads_gives_every_byte(
    way: Callable[[pytest.MonkeyPatch], None], file: RegularFile, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    way(monkeypatch)
    preadv = os.preadv

    def short(descriptor: int, buffers: list[memoryview], position: int) -> int:
        return preadv(descriptor, [*buffers[:2], *[b[:10] for b in buffers[2:3]]], position)

    monkeypatch.setattr(os, "preadv", short)
    target = Target(SIZES)
    cut = cut_into_chunks(target.extents)
    found = read_chunks(file, BASE, cut, fill=True, checksum=True)
    assert target.holds(content)
    wanted = [crc32c(content[BASE + start : BASE + end]) for start, end, _ in target.extents]
    assert joined_by_owner(cut, found, len(SIZES)) == wanted
