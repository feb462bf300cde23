"""Writing ahead of the device changes no byte, whatever of it the system has; a disk without room is told at once."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from roundtrip import SORTS, require_round_trip

import torchsaver as ts
from torchsaver.storage import disk, writeback
from torchsaver.storage.writeback import Writeback, write_pieces


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def _files_are_large_and_there_is_no_room_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "_LARGE_BYTES", 1)
    monkeypatch.setattr(writeback, "_START_BYTES", 100_000)
    monkeypatch.setattr(writeback, "_BEHIND_BYTES", 300_000)
    monkeypatch.setattr(writeback, "_CACHED_BYTES", 0)


def short_writes(patch: pytest.MonkeyPatch) -> None:
    pwritev = os.pwritev
    patch.setattr(os, "pwritev", lambda fd, pieces, at: pwritev(fd, [*pieces[:2], *[p[:9] for p in pieces[2:3]]], at))


def shortest_writes(patch: pytest.MonkeyPatch) -> None:
    pwritev = os.pwritev
    patch.setattr(os, "pwritev", lambda fd, pieces, at: pwritev(fd, [pieces[0][:50_001]], at))


def no_pwritev(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(os, "pwritev", raising=False)


def no_pwritev_and_short_writes(patch: pytest.MonkeyPatch) -> None:
    no_pwritev(patch)
    write = os.write
    patch.setattr(os, "write", lambda fd, data: write(fd, data[:50_001]))


def no_fadvise(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(os, "posix_fadvise", raising=False)


def failing_fadvise(patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    patch.setattr(os, "posix_fadvise", fail, raising=False)


def no_fallocate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(writeback, "_fallocate", None)


def failing_fallocate(patch: pytest.MonkeyPatch) -> None:
    fallocate_says(errno.EOPNOTSUPP, patch)


def fallocate_says(number: int, patch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Have the system refuse to set room aside, and return what it is asked for."""
    asked: list[tuple[int, ...]] = []

    def refuse(*arguments: int) -> int:
        asked.append(arguments)
        return -1

    patch.setattr(writeback, "_fallocate", refuse)
    patch.setattr("ctypes.get_errno", lambda: number)
    return asked


WAYS: list[Any] = [
    lambda _: None,
    short_writes,
    shortest_writes,
    no_pwritev,
    no_pwritev_and_short_writes,
    no_fadvise,
    failing_fadvise,
    no_fallocate,
    failing_fallocate,
]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("way", WAYS)
def test_save_on_any_system_comes_back_bit_for_bit(
    way: Callable[[pytest.MonkeyPatch], None], sort: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = SORTS[sort]()
    if sort == "many" and "short" in getattr(way, "__name__", ""):
        tensors["large"] = tensors["large"][:300_000]  # the way is long
    way(monkeypatch)
    require_round_trip(tmp_path, tensors)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("sort", SORTS)
def test_save_without_room_is_refused_before_a_byte_is_written_and_leaves_all_as_it_was(
    sort: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*_: object) -> int:
        raise AssertionError("a write")

    saver = ts.Saver(SORTS[sort]())
    saver.save(tmp_path / "m", 1)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with monkeypatch.context() as patch:
        fallocate_says(number, patch)
        patch.setattr(os, "pwritev", unwanted)
        with pytest.raises(OSError, match="free space and save again") as caught:
            saver.save(tmp_path / "m", 2)
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "m-2.safetensors"))
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
    assert saver.last_checkpoints == [str(tmp_path / "m-1")]
    saver.save(tmp_path / "m", 2)


def test_save_into_an_empty_directory_without_room_leaves_it_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallocate_says(errno.ENOSPC, monkeypatch)
    with pytest.raises(OSError, match="No space"):
        ts.Saver(SORTS["many"](), max_shard_bytes=1 << 20).save(tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_writeback_of_a_large_file_sets_its_size_aside_and_of_a_small_one_nothing(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    asked = fallocate_says(errno.EOPNOTSUPP, monkeypatch)
    for nbytes in ((8 << 20) - 1, 8 << 20, 20 << 20):
        Writeback(fd, nbytes).reserve()
    assert asked == [(fd, 1, 0, 8 << 20), (fd, 1, 0, 20 << 20)]


def test_writeback_of_more_than_there_is_room_for_takes_none_of_it_from_others(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fallocate_says(errno.EOPNOTSUPP, monkeypatch)
    room = os.statvfs_result([4096, 4096, 900, 800, 700, 9, 9, 9, 0, 255])  # 700 blocks are not root's alone
    monkeypatch.setattr(os, "fstatvfs", lambda _: room)
    for nbytes in (700 * 4096, 700 * 4096 + 1):
        Writeback(fd, nbytes).reserve()
    assert asked == [(fd, 1, 0, 700 * 4096)]


@pytest.mark.skipif(writeback._fallocate is None, reason="this system sets no room aside")
def test_writeback_reserve_leaves_the_file_s_size_and_content_as_they_are(fd: int, tmp_path: Path) -> None:
    Writeback(fd, 1 << 20).reserve()
    assert os.fstat(fd).st_size == 0
    write_pieces(fd, 0, [b"abc"])
    Writeback(fd, 1 << 20).reserve()
    assert (tmp_path / "file").read_bytes() == b"abc"


@pytest.mark.parametrize("way", [lambda _: None, short_writes, shortest_writes, no_pwritev])
def test_write_pieces_any_way_writes_each_after_the_other_and_nothing_else(
    way: Callable[[pytest.MonkeyPatch], None], fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = random.Random(3)
    pieces: list[Any] = [numbers.randbytes(size) for size in (0, 1, 5, 0, 120_000, 3, 0)]
    pieces[1:3] = map(memoryview, pieces[1:3])
    os.pwrite(fd, b"\xee" * 130_000, 0)
    way(monkeypatch)
    assert write_pieces(fd, 7, pieces) == 7 + 120_009
    assert (tmp_path / "file").read_bytes() == b"\xee" * 7 + b"".join(pieces) + b"\xee" * (130_000 - 120_016)


def advice(patch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return the list that (start, end) of what the cache need not hold will be in."""
    told: list[tuple[int, int]] = []

    def note(_: int, start: int, nbytes: int, what: int) -> None:
        assert what == os.POSIX_FADV_DONTNEED
        told.append((start, start + nbytes))

    patch.setattr(os, "posix_fadvise", note)
    return told


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
def test_writeback_tells_the_device_to_begin_with_each_large_part_once(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writeback, "_CACHED_BYTES", 1 << 40)
    told = advice(monkeypatch)
    written = Writeback(fd, 1_000_000)
    for end in (99_999, 100_000, 150_000, 199_999, 200_001, 500_000, 599_999, 64):  # the header comes last
        written.note_written(end)
    written.note_synced()
    assert told == [(0, 100_000), (100_000, 200_001), (200_001, 500_000)]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
def test_writeback_of_a_file_beyond_the_cache_leaves_none_of_what_is_on_the_device_in_it(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = advice(monkeypatch)
    written = Writeback(fd, 1_000_000)
    for end in range(100_000, 1_000_001, 100_000):
        written.note_written(end)
        left = sum(_times(told, at) > 1 for at in range(0, end, 100_000)) * 100_000  # told to begin, and to leave
        assert left == max(end - 300_000, 0)  # the device may not have the rest yet
    told.clear()
    written.note_synced()
    assert [_times(told, at) for at in (0, 500_000, 999_999)] == [1, 1, 1]


def _times(told: list[tuple[int, int]], at: int) -> int:
    """Return how often a byte was told of."""
    return sum(start <= at < stop for start, stop in told)


def test_new_file_written_without_being_reserved_holds_its_bytes(tmp_path: Path) -> None:
    with disk.Stage() as stage:
        stage.create(str(tmp_path / "new")).write(0, [b"abc"])
        stage.publish()
    assert (tmp_path / "new").read_bytes() == b"abc"
