"""What reaches a healthy disk is whole, in the right order, under the right names and modes, and nothing else goes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faults.dying_disk import DyingDisk, install

import torchsaver as ts
from torchsaver.storage import disk, paths, writeback
from torchsaver.storage.checkpoint_files import make_ready


def _tensors() -> dict[str, torch.Tensor]:
    return {key: torch.ones(3) for key in "ab"}


def test_save_syncs_a_file_before_its_rename_and_the_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = install(monkeypatch)
    ts.Saver(_tensors()).save(tmp_path / "m")
    order = [call for call in counting.calls if call in ("fsync", "replace")]
    assert order == ["fsync", "replace", "fsync"] * 2


def test_write_atomic_through_short_writes_writes_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(DyingDisk):
        def _call(self, name: str, args: tuple, kwargs: dict) -> object:
            is_write = name == "pwritev"
            return super()._call(name, (args[0], [args[1][0][:3]], args[2]) if is_write else args, kwargs)

    short = Short()
    for module in (disk, writeback):
        monkeypatch.setattr(module, "os", short)
    disk.write_atomic(str(tmp_path / "file"), bytes(range(100)))
    assert short.calls.count("pwritev") == 34
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


@pytest.mark.parametrize("sizes", [(), (0,), (5, 5), (1 << 20, 1), (1, (1 << 20) + 1, 3), (700_000, 700_000, 700_000)])
def test_new_file_of_any_pieces_holds_them_in_order_after_its_start(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    pieces = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    with disk.Stage() as stage:
        file = stage.create(str(tmp_path / "file"))
        file.reserve(4 + sum(sizes))
        file.write(4, pieces)
        file.write(0, [b"he", memoryview(b"ad")])
        stage.publish()
    assert (tmp_path / "file").read_bytes() == b"head" + b"".join(pieces)


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077])
def test_save_gives_files_and_directories_the_modes_of_the_umask(tmp_path: Path, mask: int) -> None:
    with _umask(mask):
        ts.Saver(_tensors(), max_shard_bytes=12).save(tmp_path / "a" / "b" / "m")
    modes = {path.is_dir(): set() for path in (tmp_path / "a").rglob("*")}
    for path in [tmp_path / "a", *(tmp_path / "a").rglob("*")]:
        modes[path.is_dir()].add(stat.S_IMODE(path.stat().st_mode))
    assert modes == {False: {0o666 & ~mask}, True: {0o777 & ~mask}}


def test_write_atomic_over_a_planted_symlink_replaces_it_and_never_writes_through(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_bytes(b"precious")
    link.symlink_to(victim)
    disk.write_atomic(str(link), b"new")
    assert victim.read_bytes() == b"precious"
    assert (link.is_symlink(), link.read_bytes()) == (False, b"new")


def test_write_atomic_with_its_temporary_name_planted_fails_and_never_writes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, planted = tmp_path / "victim", tmp_path / ".torchsaver-0123456789abcdef.tmp"
    victim.write_bytes(b"precious")
    planted.symlink_to(victim)
    monkeypatch.setattr(paths, "temporary_file", lambda directory: str(planted))
    with pytest.raises(FileExistsError) as raised:
        disk.write_atomic(str(tmp_path / "file"), b"new")
    assert raised.value.filename == str(tmp_path / "file")
    assert victim.read_bytes() == b"precious"
    assert planted.is_symlink()


def test_stage_left_without_publish_removes_what_was_written(tmp_path: Path) -> None:
    with disk.Stage() as stage:
        stage.create(str(tmp_path / "one")).write(0, [b"1"])
        stage.create(str(tmp_path / "two")).write(0, [b"2"])
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == []


def test_sweep_removes_what_dead_writers_left_and_nothing_else(tmp_path: Path) -> None:
    others = ["m.safetensors", ".torchsaver-xyz.tmp", ".torchsaver-0123456789abcdef.tmp.bak", "checkpoint"]
    for name in [*others, ".torchsaver-0123456789abcdef.tmp"]:
        (tmp_path / name).write_bytes(b"")
    with disk.Stage() as stage:
        stage.create(str(tmp_path / "file")).write(0, [b"alive"])
        (live,) = set(os.listdir(tmp_path)) - {*others, ".torchsaver-0123456789abcdef.tmp"}
        disk.sweep(str(tmp_path))
        assert sorted(os.listdir(tmp_path)) == sorted([*others, live])
        stage.publish()
    assert (tmp_path / "file").read_bytes() == b"alive"


def test_sweep_over_planted_links_directories_and_pipes_touches_nothing_behind_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f".torchsaver-{'0' * 16}.tmp").symlink_to(victim)
    (tmp_path / f".torchsaver-{'1' * 16}.tmp").mkdir()
    os.mkfifo(tmp_path / f".torchsaver-{'2' * 16}.tmp")
    disk.sweep(str(tmp_path))
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / f".torchsaver-{'1' * 16}.tmp").is_dir()
    assert all("could not remove the leftover" in record.getMessage() for record in caplog.records)


def test_save_sweeps_its_directory_first(tmp_path: Path) -> None:
    leftover = tmp_path / ".torchsaver-0123456789abcdef.tmp"
    leftover.write_bytes(b"half a checkpoint")
    ts.Saver(_tensors()).save(tmp_path / "m")
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m.safetensors"]


@pytest.mark.parametrize("below", ["a", "a/b/c/d/e", "a//b/", "a/./b"])
def test_make_directories_at_any_depth_makes_them_all_and_syncs_each_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    counting = install(monkeypatch)
    disk.make_directories(os.path.join(tmp_path, below))
    assert (tmp_path / below).is_dir()
    assert counting.synced.count("directory") >= len(Path(below).parts)
    before = list(counting.calls)
    disk.make_directories(os.path.join(tmp_path, below))
    assert counting.calls == before


def test_make_directories_in_the_working_directory_makes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    disk.make_directories("")
    disk.make_directories("a/b")
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("below", ["file", "file/a", "file/a/b"])
def test_make_directories_with_a_file_in_the_way_names_it(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises((FileExistsError, NotADirectoryError)) as raised:
        disk.make_directories(str(tmp_path / below))
    assert "file" in raised.value.filename
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_make_directories_made_by_another_process_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Race(DyingDisk):
        def _call(self, name: str, args: tuple, kwargs: dict) -> object:
            if name == "mkdir":
                os.mkdir(*args)
            return super()._call(name, args, kwargs)

    monkeypatch.setattr(disk, "os", Race())
    disk.make_directories(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()


def test_make_ready_where_a_file_or_a_link_has_the_name_passes(tmp_path: Path) -> None:
    (tmp_path / "file.safetensors").write_bytes(b"")
    (tmp_path / "link.safetensors").symlink_to(tmp_path)
    for name in ("free", "file", "link"):
        make_ready(str(tmp_path / name), None)


@pytest.mark.parametrize(
    ("name", "number"), [("single", errno.EISDIR), ("sharded", errno.EISDIR), ("n" * 300, errno.ENAMETOOLONG)]
)
def test_make_ready_for_a_name_that_cannot_be_had_raises_with_the_path(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "single.safetensors").mkdir()
    (tmp_path / "sharded.safetensors.index.json").mkdir()
    with pytest.raises(OSError, match=name) as raised:
        make_ready(str(tmp_path / name), None)
    assert raised.value.errno == number


def test_remove_of_a_file_that_is_gone_is_no_error_and_of_a_link_removes_the_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    disk.remove(str(tmp_path / "gone"))
    disk.remove(str(tmp_path / "link"))
    assert os.listdir(tmp_path) == ["victim"]


# ---- another name of a file


def _two_files(directory: Path) -> tuple[str, str]:
    source, path = directory / "source", directory / "path"
    source.write_bytes(bytes(range(256)) * 5000)  # more than one copied piece
    path.write_bytes(b"old")
    return str(source), str(path)


def _no_links(number: int) -> object:
    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return link


@pytest.mark.parametrize("is_there", [True, False])
def test_link_atomic_makes_the_very_file_in_place_of_the_old_one_durably(
    tmp_path: Path, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = _two_files(tmp_path)
    if not is_there:
        os.unlink(path)
    counting = install(monkeypatch)
    disk.link_atomic(source, path)
    assert os.path.samefile(source, path)
    assert counting.synced == ["directory"]
    assert sorted(os.listdir(tmp_path)) == ["path", "source"]
    disk.link_atomic(source, path)  # it is already
    assert counting.synced == ["directory"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_link_atomic_without_hard_links_is_a_durable_copy(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = _two_files(tmp_path)
    monkeypatch.setattr(os, "link", _no_links(number))
    counting = install(monkeypatch)
    disk.link_atomic(source, path)
    assert not os.path.samefile(source, path)
    assert Path(path).read_bytes() == Path(source).read_bytes()
    assert counting.synced[0] == "file"
    assert counting.synced[-1] == "directory"
    assert sorted(os.listdir(tmp_path)) == ["path", "source"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOSPC])
def test_link_atomic_that_fails_names_the_path_and_leaves_the_old_file(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = _two_files(tmp_path)
    monkeypatch.setattr(os, "link", _no_links(number))
    with pytest.raises(OSError, match=r".") as caught:
        disk.link_atomic(source, path)
    assert (caught.value.errno, caught.value.filename) == (number, path)
    assert Path(path).read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["path", "source"]


def test_link_atomic_of_nothing_is_not_found_and_leaves_the_old_file(tmp_path: Path) -> None:
    source, path = _two_files(tmp_path)
    os.unlink(source)
    with pytest.raises(FileNotFoundError):
        disk.link_atomic(source, path)
    assert Path(path).read_bytes() == b"old"


def test_link_atomic_whose_temporary_name_another_process_sweeps_gets_there_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = _two_files(tmp_path)
    real = os.link

    def swept(old: str, new: str, **how: bool) -> None:
        real(old, new, **how)
        os.unlink(new)

    monkeypatch.setattr(os, "link", swept)
    disk.link_atomic(source, path)
    assert Path(path).read_bytes() == Path(source).read_bytes()
