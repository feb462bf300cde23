"""A direct read gives exactly the bytes asked for, or nothing at all; and nothing stays open or mapped."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from torchsaver.formats import direct_io
from torchsaver.formats.direct_io import ALIGNMENT, MARGIN_BYTES, DirectReads
from torchsaver.formats.regular_file import RegularFile

CONTENT = random.Random(2).randbytes(5 * ALIGNMENT + 123)
MOST = 3 * ALIGNMENT  # bytes of a read here
PLACES = [  # position and bytes
    (0, 1),
    (0, ALIGNMENT),
    (1, ALIGNMENT),
    (ALIGNMENT - 1, 2),
    (ALIGNMENT, MOST),
    (ALIGNMENT + 7, MOST),
    (5 * ALIGNMENT, 123),
    (5 * ALIGNMENT + 122, 1),
    (3 * ALIGNMENT - 5, 2 * ALIGNMENT + 128),
]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[RegularFile]:
    (tmp_path / "file").write_bytes(CONTENT)
    file = RegularFile(str(tmp_path / "file"))
    yield file
    file.close()


@pytest.fixture
def buffer() -> memoryview:
    return memoryview(mmap.mmap(-1, MOST + MARGIN_BYTES))


@pytest.fixture
def uncached(file: RegularFile, buffer: memoryview, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take nothing of the file to be in the cache, and skip the test where that leads to no direct read."""
    monkeypatch.setattr(DirectReads, "_is_cached", lambda *_: False)
    with DirectReads(file) as direct:
        if direct.read(0, 1, buffer) is None:
            pytest.skip("this file system has no direct I/O")


def drop_from_cache(file: RegularFile) -> None:
    """Have the page cache forget the file, and skip the test where it does not."""
    with open(file.path, "r+b") as writer:
        os.fsync(writer.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(writer.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with DirectReads(file) as direct:
        if direct._is_cached(0, file.nbytes):
            pytest.skip("this file system keeps its pages in the cache")


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(("position", "nbytes"), PLACES)
def test_direct_reads_at_any_place_give_exactly_its_bytes(
    position: int, nbytes: int, file: RegularFile, buffer: memoryview
) -> None:
    with DirectReads(file) as direct:
        found = direct.read(position, nbytes, buffer)
    assert found is not None
    assert bytes(found) == CONTENT[position : position + nbytes]


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize(("position", "nbytes"), [(5 * ALIGNMENT, 124), (5 * ALIGNMENT + 123, 1), (9 * ALIGNMENT, 5)])
def test_direct_reads_beyond_the_end_give_nothing(
    position: int, nbytes: int, file: RegularFile, buffer: memoryview
) -> None:
    with DirectReads(file) as direct:
        assert direct.read(position, nbytes, buffer) is None


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("nbytes", [5 * ALIGNMENT + 122, 5 * ALIGNMENT, 100, 0])
def test_direct_reads_of_a_file_cut_since_it_was_opened_give_what_is_there_or_nothing(
    nbytes: int, file: RegularFile, buffer: memoryview
) -> None:
    with DirectReads(file) as direct:
        os.truncate(file.path, nbytes)
        for position, wanted in PLACES:
            found = direct.read(position, wanted, buffer)
            is_there = position + wanted <= nbytes
            assert (None if found is None else bytes(found)) == (
                CONTENT[position : position + wanted] if is_there else None
            )


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("count", [0, 1, ALIGNMENT])
def test_direct_reads_that_come_short_give_nothing(
    count: int, file: RegularFile, buffer: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", lambda *_: count)
    with DirectReads(file) as direct:
        assert direct.read(ALIGNMENT + 1, ALIGNMENT, buffer) is None
        assert direct.read(2 * ALIGNMENT - 1, 1, buffer) is None or count == ALIGNMENT


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.ENOTSUP])
def test_direct_reads_that_fail_give_nothing(
    number: int, file: RegularFile, buffer: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", failing)
    with DirectReads(file) as direct:
        assert direct.read(0, 10, buffer) is None


def test_direct_reads_where_opening_for_them_is_refused_give_nothing(
    file: RegularFile, buffer: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def refusing(path: Any, flags: int, *rest: Any) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, "Invalid argument")
        return open_file(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr(DirectReads, "_is_cached", lambda *_: False)
    with DirectReads(file) as direct:
        assert direct.read(0, 10, buffer) is None


def test_direct_reads_on_another_system_open_nothing(
    file: RegularFile, buffer: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_io, "_LINUX", False)
    monkeypatch.setattr(direct_io, "_libc", None)
    monkeypatch.setattr(DirectReads, "_is_cached", lambda *_: False)
    before = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0
    with DirectReads(file) as direct:
        assert direct.read(0, 10, buffer) is None
        assert before == (len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0)


def test_direct_reads_of_what_is_in_the_cache_give_nothing(file: RegularFile, buffer: memoryview) -> None:
    file.read(0, file.nbytes)  # now it is
    with DirectReads(file) as direct:
        for position, nbytes in PLACES:
            assert direct.read(position, nbytes, buffer) is None


def test_direct_reads_of_what_is_not_in_the_cache_give_it_and_leave_the_cache_alone(
    file: RegularFile, buffer: memoryview
) -> None:
    drop_from_cache(file)
    with DirectReads(file) as direct:
        found = direct.read(ALIGNMENT - 1, 2, buffer)
        assert found is None or bytes(found) == CONTENT[ALIGNMENT - 1 : ALIGNMENT + 1]
        assert not direct._is_cached(0, file.nbytes)
        file.read(0, file.nbytes)
        assert direct._is_cached(0, file.nbytes)
        assert direct.read(ALIGNMENT - 1, 2, buffer) is None


def test_direct_reads_with_a_page_of_several_missing_in_the_cache_are_made(
    file: RegularFile, buffer: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mincore:
        def mincore(self, start: int, nbytes: int, pages: Any) -> int:
            asked.append((start, nbytes, len(pages)))
            pages[0], pages[len(pages) - 1] = 1, last
            return 0

        munmap = staticmethod(lambda *_: 0)

    if direct_io._libc is None:
        pytest.skip("this system has no direct I/O")
    asked: list[tuple[int, int, int]] = []
    with DirectReads(file) as direct:
        start, mapped = direct._mapped, direct._mapped
        assert start is not None
        with monkeypatch.context() as patch:
            patch.setattr(direct_io, "_libc", Mincore())
            page, last = mmap.PAGESIZE, 0
            assert not direct._is_cached(page + 5, page)
            last = 0xFF
            assert direct._is_cached(page + 5, page)
            last = 0xFE  # the other bits have no meaning
            assert not direct._is_cached(page + 5, page)
        assert asked == [(start + page, page + 5, 2)] * 3
        assert direct._mapped == mapped


@pytest.mark.parametrize("broken", ["mincore", "mmap"])
def test_direct_reads_where_nothing_tells_what_is_cached_take_all_to_be(
    broken: str, file: RegularFile, buffer: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(libc, name)

    libc = direct_io._libc
    if libc is None:
        pytest.skip("this system has no direct I/O")
    drop_from_cache(file)
    setattr(Broken, broken, lambda *_: direct_io._FAILED if broken == "mmap" else -1)
    monkeypatch.setattr(direct_io, "_libc", Broken())
    with DirectReads(file) as direct:
        assert direct._is_cached(0, 10)
        assert direct.read(0, 10, buffer) is None


def test_direct_reads_of_an_empty_file_give_nothing(tmp_path: Path, buffer: memoryview) -> None:
    (tmp_path / "empty").write_bytes(b"")
    file = RegularFile(str(tmp_path / "empty"))
    with DirectReads(file) as direct:
        assert direct.read(0, 1, buffer) is None
    file.close()


@pytest.mark.usefixtures("uncached")
def test_direct_reads_are_of_the_file_that_was_opened_when_its_name_is_another_s(
    file: RegularFile, buffer: memoryview, tmp_path: Path
) -> None:
    (tmp_path / "new").write_bytes(bytes(len(CONTENT)))
    os.replace(tmp_path / "new", file.path)
    with DirectReads(file) as direct:
        found = direct.read(5, 10, buffer)
    assert found is not None
    assert bytes(found) == CONTENT[5:15]


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors and mappings are listed in /proc")
def test_direct_reads_closed_leave_no_descriptor_and_no_mapping(file: RegularFile, buffer: memoryview) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count(file.path)

    before = held()
    with contextlib.suppress(RuntimeError), DirectReads(file) as direct:
        direct.read(0, 10, buffer)
        raise RuntimeError
    assert held() == before == (before[0], 0)
    direct.close()  # a second time does nothing
    assert direct.read(0, 10, buffer) is None


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no direct I/O")
def test_direct_reads_keep_their_descriptor_private(file: RegularFile) -> None:
    with DirectReads(file) as direct:
        if direct._fd is not None:
            assert not os.get_inheritable(direct._fd)
