"""What the list of checkpoints does under two writers, after failures, and for what it has only been told."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import no_room_for_the_state_file

import torchsaver as ts
from torchsaver.retention.window import Record, TFRules
from torchsaver.storage import disk, locks, paths
from torchsaver.storage.catalog import read_commit


def _saver(**settings: Any) -> ts.Saver:
    return ts.Saver({"x": torch.ones(2)}, **settings)


def _names(directory: Path) -> list[str]:
    return sorted(path.name.removesuffix(".safetensors") for path in directory.iterdir() if path.name != "checkpoint")


def _listed(directory: Path) -> list[str]:
    state = ts.get_checkpoint_state(directory)
    assert state is not None
    assert state.model_checkpoint_path == state.all_model_checkpoint_paths[-1]
    return [os.path.basename(path) for path in state.all_model_checkpoint_paths]


class _PowerCut(BaseException):
    """Ends a save where it is, as a kill would: nothing of ours catches it to clear up afterwards."""


def _die_before_the_state_file(directory: Path, step: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Leave what a process leaves that is killed after its checkpoint has got its name."""
    saver = _saver(**settings)
    saver.resume(directory)

    def killed(*_: Any) -> None:
        raise _PowerCut

    with monkeypatch.context() as patch:
        patch.setattr("torchsaver.rotation.write_state", killed)
        with pytest.raises(_PowerCut):
            saver.save(directory / "m", step)
    assert f"m-{step}" in _names(directory)


# ---- two writers


def test_two_savers_that_take_turns_both_stay_listed_and_remove_only_their_own(tmp_path: Path) -> None:
    one, two = _saver(max_to_keep=2), _saver(max_to_keep=1)
    for step in range(1, 5):
        one.save(tmp_path / "a", step)
        two.save(tmp_path / "b", step)
    assert _listed(tmp_path) == ["a-3", "a-4", "b-4"]
    assert _names(tmp_path) == ["a-3", "a-4", "b-4"]


def test_first_save_of_a_saver_that_was_told_nothing_drops_the_past_as_tf_does(tmp_path: Path) -> None:
    for step in (1, 2):
        _saver().save(tmp_path / "m", step)
    assert _listed(tmp_path) == ["m-2"]
    assert _names(tmp_path) == ["m-1", "m-2"]


def test_saver_that_resumed_keeps_what_another_lists_later(tmp_path: Path) -> None:
    _saver().save(tmp_path / "m", 1)
    resumed, other = _saver(max_to_keep=2), _saver()
    resumed.resume(tmp_path)
    other.resume(tmp_path)
    other.save(tmp_path / "o", 7)
    for step in (2, 3):
        resumed.save(tmp_path / "m", step)
    assert _listed(tmp_path) == ["o-7", "m-2", "m-3"]


def test_another_saver_s_checkpoint_that_is_gone_is_not_listed_any_more(tmp_path: Path) -> None:
    one, two = _saver(), _saver()
    one.save(tmp_path / "a", 1)
    two.save(tmp_path / "b", 1)
    ts.remove_checkpoint(tmp_path / "b-1")
    one.save(tmp_path / "a", 2)
    assert _listed(tmp_path) == ["a-1", "a-2"]


def test_checkpoint_that_another_saver_has_replaced_is_not_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = _saver(max_to_keep=1), _saver()
    one.save(tmp_path / "m", 1)
    two.save(tmp_path / "m", 1)
    one.save(tmp_path / "m", 2)
    assert _names(tmp_path) == ["m-1", "m-2"]
    assert "another save has replaced it" in caplog.text


def test_save_waits_for_a_process_that_is_committing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    fd = os.open(tmp_path, os.O_RDONLY)
    assert locks.acquire(fd)
    monkeypatch.setattr("time.sleep", pauses.append)
    ticks = iter(range(0, 1000, 20))
    monkeypatch.setattr("time.monotonic", lambda: float(next(ticks)))
    with pytest.raises(TimeoutError, match="another process has been saving here") as caught:
        _saver().save(tmp_path / "m", 1)
    os.close(fd)
    assert caught.value.filename == str(tmp_path)
    assert pauses == sorted(pauses) != []
    assert os.listdir(tmp_path) == []
    _saver().save(tmp_path / "m", 1)


def test_state_file_is_read_again_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = _saver(), _saver()
    one.save(tmp_path / "a", 1)
    two.save(tmp_path / "b", 1)
    once = iter([True])
    real = locks.DirectoryLock
    calls: list[str] = []

    def two_saves_before(directory: str) -> Any:
        if len(seen := [*calls, directory]) == 2 and next(once, False):  # between one's plan and its commit
            two.save(tmp_path / "b", 2)
        calls[:] = seen
        return real(directory)

    monkeypatch.setattr("torchsaver.rotation.locks.DirectoryLock", two_saves_before)
    one.save(tmp_path / "a", 2)
    assert _listed(tmp_path) == ["a-1", "b-1", "b-2", "a-2"]


# ---- what dead writers leave


def test_checkpoint_whose_save_died_before_the_state_file_goes_with_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _saver()
    for step in (1, 2):
        first.save(tmp_path / "m", step)
    _die_before_the_state_file(tmp_path, 3, monkeypatch)
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-2")  # never listed, so never taken
    saver = _saver()
    saver.resume(tmp_path)
    saver.save(tmp_path / "m", 4)
    assert _names(tmp_path) == _listed(tmp_path) == ["m-1", "m-2", "m-4"]


def test_sharded_checkpoint_whose_save_died_goes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sharded() -> ts.Saver:
        return ts.Saver({key: torch.ones(4) for key in "ab"}, max_shard_bytes=16)

    sharded().save(tmp_path / "m", 1)
    saver = sharded()
    saver.resume(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("torchsaver.rotation.write_state", lambda *_: (_ for _ in ()).throw(_PowerCut))
        with pytest.raises(_PowerCut):
            saver.save(tmp_path / "m", 2)
    (tmp_path / "m-2.safetensors.index.json").unlink()  # its shards alone
    again = sharded()
    again.resume(tmp_path)
    again.save(tmp_path / "m", 3)
    assert [name for name in os.listdir(tmp_path) if name.startswith("m-2")] == []
    assert len([name for name in os.listdir(tmp_path) if name.startswith("m-1")]) == 3


def test_first_checkpoint_ever_whose_save_died_is_found_and_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _die_before_the_state_file(tmp_path, 1, monkeypatch)
    assert ts.latest_checkpoint(tmp_path) is None
    assert ts.newest_valid_checkpoint(tmp_path) == str(tmp_path / "m-1")
    _saver().save(tmp_path / "m", 2)
    assert _listed(tmp_path) == ["m-1", "m-2"]


def test_checkpoint_that_was_to_be_removed_when_the_process_died_goes_with_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = _saver(max_to_keep=2)
    for step in (1, 2):
        saver.save(tmp_path / "m", step)
    with monkeypatch.context() as patch:
        patch.setattr("torchsaver.rotation.remove_unpinned", lambda _: (_ for _ in ()).throw(_PowerCut))
        with pytest.raises(_PowerCut):
            saver.save(tmp_path / "m", 3)
    assert _listed(tmp_path) == ["m-2", "m-3"]
    assert _names(tmp_path) == ["m-1", "m-2", "m-3"]
    again = _saver(max_to_keep=2)
    again.resume(tmp_path)
    again.save(tmp_path / "m", 4)
    assert _names(tmp_path) == _listed(tmp_path) == ["m-3", "m-4"]


def test_removal_that_failed_is_done_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saver = _saver(max_to_keep=1)
    with monkeypatch.context() as patch:
        patch.setattr("torchsaver.rotation.remove_unpinned", lambda _: (_ for _ in ()).throw(OSError(5, "EIO")))
        for step in (1, 2, 3):
            saver.save(tmp_path / "m", step)
    assert "could not remove the old checkpoint" in caplog.text
    again = _saver(max_to_keep=1)
    again.resume(tmp_path)
    again.save(tmp_path / "m", 4)
    assert _names(tmp_path) == ["m-4"]


def test_leftovers_of_a_live_writer_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another is between its checkpoint's name and the state file, it holds the directory, and we wait."""
    one, two = _saver(), _saver()
    one.save(tmp_path / "a", 1)
    two.resume(tmp_path)
    held: list[bool | None] = []
    fd = os.open(tmp_path, os.O_RDONLY)

    def looking(*arguments: Any) -> None:
        held.append(locks.acquire(fd))
        write(*arguments)

    from torchsaver import rotation

    write = rotation.write_state
    monkeypatch.setattr(rotation, "write_state", looking)
    two.save(tmp_path / "b", 1)
    os.close(fd)
    assert held == [False]


@pytest.mark.parametrize("what", ["kept for ever", "never listed", "set back", "a saver that keeps all", "a copy"])
def test_unlisted_checkpoint_that_nobody_was_to_remove_stays(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    saver = _saver(max_to_keep=1, keep_checkpoint_every_n_hours=0.0 if what == "kept for ever" else None)
    for step in (1, 2):
        saver.save(run / "m", step)
    if what == "never listed":
        saver.save(run / "export", write_state=False)
        stays = "export"
    elif what == "set back":
        later = _saver()
        later.resume(run)
        later.save(run / "m", 3)
        ts.update_checkpoint_state(run, "m-2")  # the very text that 3 has replaced
        os.utime(run / "checkpoint", (9e9, 9e9))  # clocks are coarse
        stays = "m-3"
    elif what == "a saver that keeps all":
        _die_before_the_state_file(run, 3, monkeypatch, max_to_keep=0)
        stays = "m-3"
    elif what == "a copy":
        _die_before_the_state_file(run, 3, monkeypatch)
        run = shutil.copytree(run, tmp_path / "copy")
        stays = "m-3"
    else:
        stays = "m-1"
    again = _saver(max_to_keep=0 if what == "a saver that keeps all" else 1)
    again.resume(run)
    for step in (5, 6):
        again.save(run / "m", step)
    assert stays in _names(run)


def test_first_checkpoint_copied_into_a_new_directory_is_not_taken_over(tmp_path: Path) -> None:
    _saver().save(tmp_path / "old" / "m", 1)
    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "old" / "m-1.safetensors", tmp_path / "new")
    saver = _saver(max_to_keep=1)
    for step in (2, 3):
        saver.save(tmp_path / "new" / "m", step)
    assert _names(tmp_path / "new") == ["m-1", "m-3"]


# ---- a save that fails


def test_commit_that_failed_after_the_state_file_was_there_counts_at_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = _saver(max_to_keep=2)
    for step in (1, 2):
        saver.save(tmp_path / "m", step)
    calls = []
    sync = disk.sync_directory

    def failing(directory: str) -> None:
        calls.append(directory)
        if len(calls) == 2:  # the checkpoint's, then the state file's
            raise OSError(5, "Input/output error", directory)
        sync(directory)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync_directory", failing)
        with pytest.raises(OSError, match="Input/output"):
            saver.save(tmp_path / "m", 3)
    assert [os.path.basename(path) for path in saver.last_checkpoints] == ["m-1", "m-2"]
    saver.save(tmp_path / "m", 4)
    assert _names(tmp_path) == _listed(tmp_path) == ["m-3", "m-4"]


def test_save_that_failed_on_the_state_file_leaves_a_leftover_for_the_same_saver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = _saver()
    saver.save(tmp_path / "m", 1)
    for step in (2, 3):
        with no_room_for_the_state_file():
            saver.save(tmp_path / "m", step)
    saver.save(tmp_path / "m", 4)
    assert _names(tmp_path) == _listed(tmp_path) == ["m-1", "m-4"]


def test_checkpoint_over_which_a_save_failed_is_removed_in_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = _saver(max_to_keep=2)
    for step in (1, 2):
        saver.save(tmp_path / "m", step)
    with no_room_for_the_state_file():
        saver.save(tmp_path / "m", 2)
    for step in (3, 4):
        saver.save(tmp_path / "m", step)
    assert _names(tmp_path) == _listed(tmp_path) == ["m-3", "m-4"]


# ---- what it was only told


@pytest.mark.parametrize("place", ["../other", "{0}/other", "sub"])
def test_told_checkpoint_of_another_directory_is_never_removed(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    victim = os.path.join(tmp_path / "run", place.format(tmp_path))
    _saver().save(os.path.join(victim, "m"), 1)
    saver = _saver(max_to_keep=1)
    saver.recover_last_checkpoints([os.path.join(victim, "m-1")])
    for step in (2, 3):
        saver.save(tmp_path / "run" / "m", step)
    assert ts.checkpoint_exists(os.path.join(victim, "m-1"))
    assert "is left alone" in caplog.text
    assert _listed(tmp_path / "run") == ["m-3"]


def test_told_file_that_is_no_checkpoint_of_ours_is_never_removed(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "pretrained.safetensors")
    (tmp_path / "notes.safetensors").write_text("precious")
    (tmp_path / "real").mkdir()
    _saver().save(tmp_path / "real" / "m", 1)
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "real" / "m-1.safetensors")
    saver = _saver(max_to_keep=1)
    saver.recover_last_checkpoints([str(tmp_path / name) for name in ("pretrained", "notes", "link")])
    for step in range(2, 7):
        saver.save(tmp_path / "m", step)
    assert {"pretrained", "notes", "link", "real"} < set(_names(tmp_path))
    assert ts.checkpoint_exists(tmp_path / "real" / "m-1")


def test_told_checkpoint_of_the_same_directory_is_removed_in_its_turn(tmp_path: Path) -> None:
    _saver().save(tmp_path / "m", 1)
    saver = _saver(max_to_keep=1)
    saver.recover_last_checkpoints([str(tmp_path / "m-1")])
    saver.save(tmp_path / "m", 2)
    assert _names(tmp_path) == ["m-2"]


# ---- the record


def test_record_says_where_the_save_stands(tmp_path: Path) -> None:
    saver = _saver(max_to_keep=2)
    for step in (1, 2, 3):
        saver.save(tmp_path / "m", step)
    commit = read_commit(str(tmp_path / "m-3"))
    assert commit is not None
    assert (commit.sequence, commit.state_file) == (3, "checkpoint")
    assert (commit.kept, commit.expired) == (("m-2", "m-3"), ("m-1",))
    assert read_commit(str(tmp_path / "m-1")) is None


def test_checkpoint_that_is_not_to_be_listed_has_no_record(tmp_path: Path) -> None:
    _saver().save(tmp_path / "m", write_state=False)
    assert read_commit(str(tmp_path / "m")) is None


def test_order_of_commit_goes_on_beyond_unlisted_checkpoints(tmp_path: Path) -> None:
    saver = _saver()
    for step in (1, 2, 3):
        saver.save(tmp_path / "m", step)
    ts.update_checkpoint_state(tmp_path, "m-1")
    again = _saver()
    again.resume(tmp_path)
    again.save(tmp_path / "n", 1)
    commit = read_commit(str(tmp_path / "n-1"))
    assert commit is not None
    assert commit.sequence == 4


def test_header_of_another_checkpoint_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = _saver(max_to_keep=2)
    _saver().save(tmp_path / "export", 1)
    saver.save(tmp_path / "m", 1)
    read: list[str] = []
    from torchsaver.storage import catalog

    real = catalog.read_commit
    monkeypatch.setattr(catalog, "read_commit", lambda prefix: (read.append(prefix), real(prefix))[1])
    for step in (2, 3, 4):
        saver.save(tmp_path / "m", step)
    assert read == []


def test_prefix_that_looks_outside_has_no_own_name(tmp_path: Path) -> None:
    directory = str(tmp_path)
    for text in ("../m", "/etc/m", "sub/m", "m\0", ".", "..", "", "m-00001-of-00002"):
        assert paths.own_name(directory, os.path.join(directory, text)) is None
    assert paths.own_name(directory, os.path.join(directory, "m-1")) == "m-1"


def test_logging_of_a_leftover_names_it_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _saver().save(tmp_path / "m", 1)
    _die_before_the_state_file(tmp_path, 2, monkeypatch)
    caplog.set_level(logging.INFO, "torchsaver")
    saver = _saver()
    saver.resume(tmp_path)
    saver.save(tmp_path / "m", 3)
    assert "m-2" in caplog.text
    assert "by saves that did not end" in caplog.text


def test_leftover_that_another_save_has_replaced_since_it_was_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _saver(max_to_keep=1)
    for step in (1, 2):
        first.save(tmp_path / "m", step)
    _die_before_the_state_file(tmp_path, 3, monkeypatch, max_to_keep=1)
    saver = _saver(max_to_keep=1)
    saver.resume(tmp_path)
    ninth = Record(str(tmp_path / "m-9"), 0.0, str(tmp_path / "m-9"))
    saver._rotation.plan(ninth, os.path.dirname(ninth.prefix), None)  # has read the header of 3
    other = _saver(keep_checkpoint_every_n_hours=0.0)
    other.save(tmp_path / "m", 3)
    ts.update_checkpoint_state(tmp_path, "m-2")  # as if it had left the other's list for ever
    saver.save(tmp_path / "m", 4)
    assert "m-3" in _names(tmp_path)


def test_saver_remembers_no_more_than_its_window(tmp_path: Path) -> None:
    for keep, remembered in ((2, 3), (0, 0)):
        saver = _saver(max_to_keep=keep)
        for step in range(9):
            saver.save(tmp_path / str(keep) / "m", step)
        assert len(saver._rotation._known) == remembered


def test_checkpoint_that_a_signal_handler_saves_while_a_save_is_planned_is_remembered_and_goes_in_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, original = _saver(max_to_keep=2), TFRules.choose
    saver.save(tmp_path / "m", 1)

    def interrupted(*args: Any) -> Any:
        monkeypatch.undo()
        saver.save(tmp_path / "signal")
        return original(*args)

    monkeypatch.setattr(TFRules, "choose", interrupted)
    saver.save(tmp_path / "m", 2)
    assert saver.last_checkpoints == [str(tmp_path / name) for name in ("signal", "m-2")]
    assert _names(tmp_path) == ["m-2", "signal"]
    saver.save(tmp_path / "m", 3)
    assert _names(tmp_path) == ["m-2", "m-3"]
