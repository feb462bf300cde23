"""A path that is no regular file is refused at once, and leaves no descriptor open."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from torchsaver.errors import CorruptCheckpointError
from torchsaver.formats.regular_file import open_regular, read_regular


@pytest.fixture(autouse=True)
def _nothing_hangs_or_stays_open() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else None
    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)
    assert before is None or len(os.listdir("/proc/self/fd")) == len(before)


def open_and_close(path: str) -> int:
    fd, nbytes = open_regular(path)
    os.close(fd)
    return nbytes


READERS: list[Callable[[str], object]] = [open_and_close, lambda path: read_regular(path, 100)]


@pytest.mark.parametrize("read", READERS)
def test_regular_file_fifo_without_writer_is_refused_at_once(read: Callable[[str], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CorruptCheckpointError, match="no regular file"):
        read(str(tmp_path / "fifo"))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_regular_file_device_is_refused(read: Callable[[str], object], device: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=device):
        read(device)


@pytest.mark.parametrize("read", READERS)
def test_regular_file_directory_or_nothing_there_is_an_oserror(read: Callable[[str], object], tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as directory:
        read(str(tmp_path))
    assert directory.value.filename == str(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "none"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="loop"):
        read(str(tmp_path / "loop"))


def test_open_regular_file_or_link_to_one_gives_its_size_and_a_private_descriptor(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        fd, nbytes = open_regular(str(tmp_path / name))
        with open(fd, "rb") as file:
            assert (file.read(), nbytes, os.get_inheritable(fd)) == (b"abc", 3, False)


def test_read_regular_file_of_the_limit_is_read_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert read_regular(str(path), 3) == b"abc"
    with pytest.raises(CorruptCheckpointError, match="3 bytes are too many") as caught:
        read_regular(str(path), 2)
    assert (caught.value.path, caught.value.offset) == (str(path), 2)


def test_read_regular_sparse_file_of_a_terabyte_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptCheckpointError, match="too many"):
        read_regular(str(tmp_path / "file"), 1 << 20)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs a file whose size is not known before")
def test_read_regular_of_unknown_size_is_read_to_its_end_or_the_limit() -> None:
    assert os.stat("/proc/self/maps").st_size == 0
    content = read_regular("/proc/self/maps", 1 << 24)
    assert content.endswith(b"\n")
    assert read_regular("/proc/self/maps", 100) == content[:100]


def test_read_regular_any_size_up_to_the_limit_is_read_whole(tmp_path: Path) -> None:
    for nbytes in (0, 1, 65_535, 65_536, 65_537, 200_000):
        content = os.urandom(nbytes)
        (tmp_path / "file").write_bytes(content)
        assert read_regular(str(tmp_path / "file"), 200_000) == content
    with pytest.raises(CorruptCheckpointError, match="200000 bytes are too many: 199999"):
        read_regular(str(tmp_path / "file"), 199_999)
