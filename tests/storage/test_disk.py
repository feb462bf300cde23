"""What reaches the disk is whole and durable, or not there: on a disk that dies at every call, and on a healthy one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from storage.dying_disk import DyingDisk, Fault, faults, install, open_files

import torchsaver as ts
from torchsaver.formats.manifest import Manifest
from torchsaver.storage import disk, paths
from torchsaver.storage.checkpoint_files import write_checkpoint

FORMS: dict[str, int | None] = {"single": None, "sharded": 12}  # max_shard_bytes: a tensor of three floats a shard


def _tensors(value: float) -> dict[str, torch.Tensor]:
    return {key: torch.full((3,), value + index) for index, key in enumerate("ab")}


def _loaded(prefix: str) -> float | None:
    """Return the value of `_tensors` that a checkpoint holds, having read all of it; None when there is none."""
    if not ts.checkpoint_exists(prefix):
        return None
    with ts.load_checkpoint(prefix) as reader:
        reader.verify()
        value = reader.get_tensor("a")[0].item()
        assert reader.keys() == ["a", "b"]
        assert all(torch.equal(reader.get_tensor(key), tensor) for key, tensor in _tensors(value).items())
    return value


class WriteAtomic:
    """disk.write_atomic, over nothing or an old file."""

    def __init__(self, root: Path, old: str) -> None:
        self.path = root / "file"
        if old != "nothing":
            self.path.write_bytes(b"1.0")

    def act(self) -> None:
        disk.write_atomic(str(self.path), b"2.0")

    def value(self) -> float | None:
        return float(self.path.read_bytes()) if self.path.exists() else None


class WriteCheckpoint:
    """write_checkpoint in one form, over nothing or a checkpoint of one form."""

    def __init__(self, root: Path, old: str, new: str) -> None:
        self.prefix, self.new = str(root / "m"), new
        if old != "nothing":
            write_checkpoint(self.prefix, _tensors(1.0), Manifest(), FORMS[old])

    def act(self) -> None:
        write_checkpoint(self.prefix, _tensors(2.0), Manifest(), FORMS[self.new])

    def value(self) -> float | None:
        return _loaded(self.prefix)


class Save:
    """A whole Saver.save: into new directories, over a checkpoint of the same prefix, or beside one that then goes."""

    def __init__(self, root: Path, old: str, new: str, step: int) -> None:
        self.directory = str(root / "runs" / "one")
        self.prefix, self.step = os.path.join(self.directory, "m"), step
        self.variables = _tensors(1.0)
        self.listed = []
        if old != "nothing":
            self.listed = [ts.Saver(self.variables, max_shard_bytes=FORMS[old]).save(self.prefix, 1)]
        self.saver = ts.Saver(self.variables, max_to_keep=1, max_shard_bytes=FORMS[new])
        self.saver.recover_last_checkpoints(self.listed)
        self.variables.update((key, tensor.add_(1.0)) for key, tensor in self.variables.items())

    def act(self) -> None:
        try:
            self.listed = [self.saver.save(self.prefix, self.step)]
        finally:
            assert self.saver.last_checkpoints == self.listed

    def value(self) -> float | None:
        latest = ts.latest_checkpoint(self.directory)
        return None if latest is None else _loaded(latest)


Operation = WriteAtomic | WriteCheckpoint | Save
OPERATIONS: dict[str, tuple[Callable[[Path], Operation], float | None]] = {}
for _old, _before in (("nothing", None), ("single", 1.0), ("sharded", 1.0)):
    if _old != "sharded":
        OPERATIONS[f"atomic-over-{_old}"] = (lambda root, old=_old: WriteAtomic(root, old), _before)
    for _new in FORMS:
        make: Callable[[Path], Operation] = lambda root, old=_old, new=_new: WriteCheckpoint(root, old, new)  # noqa: E731
        OPERATIONS[f"{_new}-over-{_old}"] = (make, _before)
        for _step in (1, 2):
            if _old != "nothing" or _step == 1:
                make = lambda root, old=_old, new=_new, step=_step: Save(root, old, new, step)  # noqa: E731
                where = "over" if _step == 1 else "after"
                OPERATIONS[f"save-{_new}-{where}-{_old}"] = (make, _before)


@dataclass
class Outcome:
    """What one fault did: to the caller, to the disk, and to the next try on a healthy disk."""

    fault: Fault
    failed: list[str]
    error: BaseException | None
    value: object  # what is there afterwards, or the error of reading it
    leaked: int
    temporary: list[str] = field(default_factory=list)
    again: object = None  # what the next try left, or its error
    temporary_after: list[str] = field(default_factory=list)
    extra: set[str] = field(default_factory=set)  # files that a try without a fault would not have left

    def __str__(self) -> str:
        return f"{self.fault} in {self.failed[0]}"


def _files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def _temporary(root: Path) -> list[str]:
    return [name for name in _files(root) if paths.is_temporary(os.path.basename(name))]


def _attempt(function: Callable[[], object]) -> object:
    try:
        return function()
    except Exception as error:
        return error


def _one_outcome(root: Path, make: Callable[[Path], Operation], fault: Fault, healthy: list[str]) -> Outcome | None:
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        operation = make(root)
        dying = install(patch, fault)
        before = open_files()
        error = _attempt(operation.act)
        leaked = open_files() - before
        install(patch)
        if not dying.failed:
            assert error is None
            return None
        assert error is None or isinstance(error, BaseException)
        outcome = Outcome(fault, dying.failed, error, _attempt(operation.value), leaked, _temporary(root))
        outcome.again = _attempt(lambda: (operation.act(), operation.value())[1])
    outcome.temporary_after = _temporary(root)
    after = [name for name in _files(root) if name not in outcome.temporary_after]
    if len(after) != len(healthy):  # names may differ: a shard's name that is taken gets a mark
        outcome.extra = set(after) - set(healthy)
    return outcome


@pytest.fixture(scope="module", params=OPERATIONS)
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """What every fault does to an operation, up to the call it does not make any more."""
    make, _ = OPERATIONS[request.param]
    root = tmp_path_factory.mktemp("dying")
    (root / "healthy").mkdir()
    make(root / "healthy").act()
    healthy = _files(root / "healthy")
    found = []
    for number, fault in enumerate(faults()):
        if (outcome := _one_outcome(root / str(number), make, fault, healthy)) is None:
            return found
        found.append(outcome)
    raise AssertionError


def _before(request: pytest.FixtureRequest) -> float | None:
    return OPERATIONS[request.node.callspec.params["outcomes"]][1]


def test_dying_disk_is_reached_at_every_kind_of_call(outcomes: list[Outcome]) -> None:
    assert len(outcomes) > 8
    assert {"open", "pwrite", "fsync", "replace", "close"} <= {outcome.failed[0] for outcome in outcomes}


def test_failed_write_raises_an_oserror_that_names_a_path(outcomes: list[Outcome]) -> None:
    raised = [outcome for outcome in outcomes if outcome.error is not None]
    wrong = [
        f"{outcome}: {outcome.error!r}"
        for outcome in raised
        if not isinstance(outcome.error, OSError)
        or outcome.error.errno != outcome.fault.errno
        or not outcome.error.filename
    ]
    assert raised
    assert wrong == []


def test_failed_write_leaves_the_old_checkpoint_or_the_new_one_whole(
    outcomes: list[Outcome], request: pytest.FixtureRequest
) -> None:
    before = _before(request)
    wrong = [
        f"{outcome}: {outcome.value!r}"
        for outcome in outcomes
        if outcome.value not in ((2.0,) if outcome.error is None else (before, 2.0))
    ]
    assert wrong == []


def test_failed_write_once_leaves_no_temporary_file(outcomes: list[Outcome]) -> None:
    once = [outcome for outcome in outcomes if not outcome.fault.sticky and "unlink" not in outcome.failed]
    assert [f"{outcome}: {outcome.temporary}" for outcome in once if outcome.temporary] == []


def test_failed_write_leaks_no_file_descriptor(outcomes: list[Outcome]) -> None:
    assert [f"{outcome}: {outcome.leaked}" for outcome in outcomes if outcome.leaked] == []


def test_failed_write_can_be_done_again(outcomes: list[Outcome]) -> None:
    assert [f"{outcome}: {outcome.again!r}" for outcome in outcomes if outcome.again != 2.0] == []


def test_failed_write_done_again_leaves_only_what_an_undisturbed_one_leaves(
    outcomes: list[Outcome], request: pytest.FixtureRequest
) -> None:
    once = [o for o in outcomes if not o.fault.sticky and (o.failed != ["unlink"] or o.error is not None)]
    wrong = [f"{outcome}: {sorted(outcome.extra)}" for outcome in once if outcome.extra]
    if "save" in request.node.callspec.params["outcomes"]:  # only a save sweeps
        wrong += [f"{outcome}: {outcome.temporary_after}" for outcome in outcomes if outcome.temporary_after]
    assert wrong == []


def test_failed_write_for_want_of_space_says_to_free_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Fault(2, errno.ENOSPC, sticky=False))
    with pytest.raises(OSError, match="free space and save again") as raised:
        disk.write_atomic(str(tmp_path / "file"), b"data")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))


# ---- a healthy disk


@pytest.mark.parametrize("max_shard_bytes", FORMS.values(), ids=FORMS)
def test_save_into_an_existing_directory_syncs_each_file_once_and_the_directory_for_each_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_shard_bytes: int | None
) -> None:
    saver = ts.Saver(_tensors(1.0), max_shard_bytes=max_shard_bytes)
    counting = install(monkeypatch)
    saver.save(tmp_path / "m")
    commits = 2 if max_shard_bytes is None else 3  # (shards,) checkpoint, state file
    shards = 0 if max_shard_bytes is None else 1  # two files share the first commit
    assert counting.synced.count("file") == commits + shards
    assert counting.synced.count("directory") == commits
    assert counting.synced[-2:] == ["file", "directory"]


def test_save_syncs_a_file_before_its_rename_and_the_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = install(monkeypatch)
    ts.Saver(_tensors(1.0)).save(tmp_path / "m")
    order = [call for call in counting.calls if call in ("fsync", "replace")]
    assert order == ["fsync", "replace", "fsync"] * 2


def test_write_atomic_through_short_writes_writes_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(DyingDisk):
        def _call(self, name: str, args: tuple, kwargs: dict) -> object:
            return super()._call(name, (args[0], args[1][:3], args[2]) if name == "pwrite" else args, kwargs)

    monkeypatch.setattr(disk, "os", Short())
    disk.write_atomic(str(tmp_path / "file"), bytes(range(100)))
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


@pytest.mark.parametrize("sizes", [(), (0,), (5, 5), (1 << 20, 1), (1, (1 << 20) + 1, 3), (700_000, 700_000, 700_000)])
def test_new_file_of_any_pieces_holds_them_in_order_after_its_start(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    pieces = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    with disk.Stage() as stage:
        file = stage.create(str(tmp_path / "file"))
        file.skip(4)
        for piece in pieces:
            file.write(memoryview(piece))
        file.write_start(b"head")
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
        ts.Saver(_tensors(1.0), max_shard_bytes=12).save(tmp_path / "a" / "b" / "m")
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
        stage.create(str(tmp_path / "one")).write(b"1")
        stage.create(str(tmp_path / "two")).write(b"2")
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == []


def test_sweep_removes_what_dead_writers_left_and_nothing_else(tmp_path: Path) -> None:
    others = ["m.safetensors", ".torchsaver-xyz.tmp", ".torchsaver-0123456789abcdef.tmp.bak", "checkpoint"]
    for name in [*others, ".torchsaver-0123456789abcdef.tmp"]:
        (tmp_path / name).write_bytes(b"")
    with disk.Stage() as stage:
        stage.create(str(tmp_path / "file")).write(b"alive")
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
    ts.Saver(_tensors(1.0)).save(tmp_path / "m")
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


def test_make_directories_after_a_failed_sync_syncs_the_parent_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        install(patch, Fault(3, errno.EIO, sticky=False))  # mkdir, open, fsync
        with pytest.raises(OSError, match="Input/output error"):
            disk.make_directories(str(tmp_path / "a"))
    counting = install(monkeypatch)
    disk.make_directories(str(tmp_path / "a"))
    assert counting.synced == ["directory"]


def test_require_room_for_a_free_name_a_file_or_a_link_passes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("free", "file", "link"):
        disk.require_room_for(str(tmp_path / name))


@pytest.mark.parametrize(("name", "number"), [("directory", errno.EISDIR), ("n" * 300, errno.ENAMETOOLONG)])
def test_require_room_for_a_name_that_cannot_be_had_raises_with_the_path(
    tmp_path: Path, name: str, number: int
) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match=name) as raised:
        disk.require_room_for(str(tmp_path / name))
    assert raised.value.errno == number


def test_remove_of_a_file_that_is_gone_is_no_error_and_of_a_link_removes_the_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    disk.remove(str(tmp_path / "gone"))
    disk.remove(str(tmp_path / "link"))
    assert os.listdir(tmp_path) == ["victim"]
