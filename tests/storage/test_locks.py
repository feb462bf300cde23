"""Locks: one holder at a time, gone with the holder, let go for forked children too."""

from __future__ import annotations

import errno
import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from torchsaver.storage import locks

fcntl = pytest.importorskip("fcntl")


@pytest.fixture
def two(tmp_path: Path) -> Any:
    """Two descriptors of one file."""
    (tmp_path / "file").write_bytes(b"")
    fds = [os.open(tmp_path / "file", os.O_RDONLY) for _ in range(2)]
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(("first", "second", "both"), [(True, True, True), (True, False, False), (False, True, False)])
def test_acquire_shared_with_shared_only(two: list[int], first: bool, second: bool, both: bool) -> None:
    assert locks.acquire(two[0], shared=first) is True
    assert locks.acquire(two[1], shared=second) is both
    locks.release(two[0])
    assert locks.acquire(two[1], shared=second) is True


def test_release_lets_go_what_a_forked_child_has_inherited(two: list[int]) -> None:
    assert locks.acquire(two[0])
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent closes its end
        os._exit(0)
    try:
        locks.release(two[0])
        assert locks.acquire(two[1]) is True
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_acquire_without_locks_on_the_file_system_says_so(
    two: list[int], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert locks.acquire(two[0]) is None
    locks.release(two[0])


def test_everything_works_where_the_platform_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import torchsaver as ts

    monkeypatch.setattr(locks, "fcntl", None)
    saver = ts.Saver({"x": torch.ones(1)}, max_to_keep=1)
    for step in (1, 2):
        saver.save(tmp_path / "m", step)
    (tmp_path / ".torchsaver-0123456789abcdef.tmp").write_bytes(b"")
    saver.save(tmp_path / "m", 3)
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-3")
    assert sorted(os.listdir(tmp_path)) == [".torchsaver-0123456789abcdef.tmp", "checkpoint", "m-3.safetensors"]
    locks.unpin(str(tmp_path))


def test_directory_lock_is_free_after_an_error(tmp_path: Path) -> None:
    def failing() -> None:
        with locks.DirectoryLock(str(tmp_path)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    with locks.DirectoryLock(str(tmp_path)) as held:
        assert held


def test_directory_lock_of_an_interrupted_save_does_not_hold_up_the_next_one(tmp_path: Path) -> None:
    def interrupted_before_the_with_block() -> locks.DirectoryLock:
        lock = locks.DirectoryLock(str(tmp_path))
        assert lock.__enter__()
        return lock

    interrupted = interrupted_before_the_with_block()
    with locks.DirectoryLock(str(tmp_path)) as held:
        assert held
        interrupted.close()  # has nothing to close any more
        fd = os.open(tmp_path, os.O_RDONLY)
        assert locks.acquire(fd) is False
        os.close(fd)


def test_directory_lock_within_itself_is_refused_and_stays(tmp_path: Path) -> None:
    with locks.DirectoryLock(str(tmp_path)):
        with pytest.raises(RuntimeError, match="set a flag"), locks.DirectoryLock(str(tmp_path)):
            pytest.fail("not reached")
        fd = os.open(tmp_path, os.O_RDONLY)
        assert locks.acquire(fd) is False
        os.close(fd)


def test_forked_child_holds_no_lock_of_a_parent_that_is_gone(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    lives, is_alive = os.pipe()
    parent = os.fork()
    if parent == 0:
        lock = locks.DirectoryLock(str(tmp_path))
        lock.__enter__()
        if os.fork() == 0:
            os.close(writer)
            os.write(is_alive, b"1")
            os.read(reader, 1)  # lives on until the test closes its end
            os._exit(0)
        os.kill(os.getpid(), 9)
    os.waitpid(parent, 0)
    os.read(lives, 1)
    fd = os.open(tmp_path, os.O_RDONLY)
    assert locks.acquire(fd) is True
    for end in (fd, reader, writer, lives, is_alive):
        os.close(end)


def test_pin_waits_for_a_file_that_has_just_got_its_name(
    tmp_path: Path, two: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locks.acquire(two[1])
    monkeypatch.setattr("time.sleep", lambda _: locks.release(two[1]))
    assert locks.pin(str(tmp_path), {str(tmp_path / "file"): two[0]})
    locks.unpin(str(tmp_path))


def test_pins_of_many_threads_leave_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    before = len(os.listdir("/proc/self/fd"))

    def pin_often() -> None:
        fd = os.open(tmp_path / "file", os.O_RDONLY)
        for number in range(300):
            locks.pin(str(tmp_path if number % 2 else tmp_path / "."), {str(tmp_path / "file"): fd})
            with locks.unused([str(tmp_path / "file")]):
                pass
        os.close(fd)

    threads = [threading.Thread(target=pin_often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    locks.unpin(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_directory_lock_goes_with_its_object(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    locks.DirectoryLock(str(tmp_path)).__enter__()
    assert len(os.listdir("/proc/self/fd")) == before


def test_directory_lock_of_another_thread_is_waited_for(tmp_path: Path) -> None:
    order = []
    entered = threading.Event()

    def other() -> None:
        with locks.DirectoryLock(str(tmp_path)):
            entered.set()
            order.append("other")

    with locks.DirectoryLock(str(tmp_path)):
        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_forked_child_that_ends_does_not_let_go_of_its_parent_s_lock(tmp_path: Path) -> None:
    with locks.DirectoryLock(str(tmp_path)) as held:
        assert held
        pid = os.fork()
        if pid == 0:
            gc.collect()
            for lock in list(locks._held.values()):
                lock.close()
            os._exit(0)
        os.waitpid(pid, 0)
        fd = os.open(tmp_path, os.O_RDONLY)
        assert locks.acquire(fd) is False
        os.close(fd)


def test_directory_lock_of_a_missing_directory_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locks.DirectoryLock(str(tmp_path / "missing")):
        pytest.fail("not reached")


def test_pin_of_a_file_that_is_gone_or_another_by_now_fails_and_holds_nothing(tmp_path: Path, two: list[int]) -> None:
    path = tmp_path / "file"
    path.unlink()
    assert not locks.pin(str(tmp_path), {str(path): two[0]})
    path.write_bytes(b"another")
    assert not locks.pin(str(tmp_path), {str(path): two[0]})
    assert locks.acquire(two[1]) is True


def test_pin_replaces_the_pins_of_the_same_directory_only(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"")
    fds = {name: os.open(tmp_path / name / "file", os.O_RDONLY) for name in ("one", "two")}
    before = len(os.listdir("/proc/self/fd"))
    for name in ("one", "two", "one"):
        assert locks.pin(str(tmp_path / name), {str(tmp_path / name / "file"): fds[name]})
    assert len(os.listdir("/proc/self/fd")) == before + 2
    for name, fd in fds.items():
        locks.unpin(str(tmp_path / name))
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before - 2


def test_unused_of_a_link_or_a_file_closed_to_readers_is_free(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with locks.unused([str(tmp_path / "link"), str(tmp_path / "missing")]) as free:
        assert free


# ---- is it pinned?


def test_pinned_elsewhere_is_what_another_descriptor_has_locked_and_nothing_is_let_go(two: list[int]) -> None:
    path = os.readlink(f"/proc/self/fd/{two[0]}")
    assert not locks.is_pinned_elsewhere([path])
    assert locks.acquire(two[0], shared=True)
    assert locks.is_pinned_elsewhere(["/none", path])
    assert locks.is_pinned_elsewhere([path])  # asking has not let it go
    assert locks.acquire(two[1], shared=False) is False
    locks.release(two[0])
    assert not locks.is_pinned_elsewhere([path])
    assert locks.acquire(two[1]) is True  # and has left nothing locked


def test_pinned_elsewhere_is_not_what_this_process_has_pinned(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    fd = os.open(path, os.O_RDONLY)
    assert locks.pin(str(tmp_path), {str(path): fd})
    os.close(fd)
    assert not locks.is_pinned_elsewhere([str(path)])
    locks.unpin(str(tmp_path))


def test_pinned_elsewhere_is_none_of_links_special_files_and_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert not locks.is_pinned_elsewhere([str(tmp_path / name) for name in ("link", "fifo", "none")])


def test_pinned_elsewhere_is_none_where_there_are_no_locks(two: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.readlink(f"/proc/self/fd/{two[0]}")
    assert locks.acquire(two[0], shared=True)
    monkeypatch.setattr(locks, "fcntl", None)
    assert not locks.is_pinned_elsewhere([path])
