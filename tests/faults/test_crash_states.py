"""The states a power loss may leave: of short lists of operations whose answers are known."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from faults import crash_states
from faults.crash_states import MODELS, Model, distinct, final_tree, materialise, snapshot, states
from faults.operations import ROOT, Recording

OLD, NEW = b"o" * 6000, b"n" * 6000


def _state_file(*, sync_file: bool = True, sync_directory: bool = True) -> Recording:
    """Return a recording of two saves of the file "state": temporary file, rename, acked."""
    recording = Recording()
    for step, data in enumerate((OLD, NEW)):
        recording.save_started(step)
        file = recording.create(f"tmp{step}")
        recording.write(file, data[:3000])
        recording.write(file, data[3000:])
        if sync_file:
            recording.fsync(file)
        recording.rename(f"tmp{step}", "state")
        if sync_directory:
            recording.fsync(ROOT)
        recording.save_acked(step)
    return recording


def _content(recording: Recording, model: Model, *, acked: int) -> set[bytes | None]:
    """Return what "state" may hold, None for no such file, once `acked` saves have returned."""
    found = [state for state in states(recording, model) if len(state.acked) == acked]
    assert found
    return {dict(state.tree.files).get("state") for state in found}


def test_docstring_example() -> None:
    assert doctest.testmod(crash_states).failed == 0


@pytest.mark.parametrize("model", MODELS)
def test_write_sync_rename_sync_shows_old_or_new_and_after_the_ack_new(model: Model) -> None:
    recording = _state_file()
    assert _content(recording, model, acked=0) == {None, OLD}
    assert _content(recording, model, acked=1) == {OLD, NEW}
    assert _content(recording, model, acked=2) == {NEW}


def test_forgotten_fsync_of_the_file_shows_torn_states() -> None:
    torn = _content(_state_file(sync_file=False), "weak", acked=2) - {OLD, NEW}
    assert torn == {
        b"",
        bytes(6000),
        b"n" * 2560,  # half, in whole sectors
        bytes(4096) + b"n" * 1904,  # the first page is missing
    }


def test_forgotten_fsync_of_a_new_file_shows_an_empty_one_in_a_journal_too() -> None:
    recording = Recording()
    file = recording.create("data")
    recording.write(file, NEW)
    recording.fsync(ROOT)
    assert _content_of(recording, "journalled", "data") == {None, b"", NEW[:2560], NEW}


def _content_of(recording: Recording, model: Model, path: str) -> set[bytes | None]:
    return {dict(state.tree.files).get(path) for state in states(recording, model)}


def test_rename_over_a_file_flushes_its_data_in_a_journal() -> None:
    """What auto_da_alloc gives: the forgotten fsync is harmless where a file is replaced, and only there."""
    recording = _state_file(sync_file=False)
    assert _content(recording, "journalled", acked=2) == {NEW}
    assert b"" in _content(recording, "journalled", acked=1)


def test_forgotten_fsync_of_the_directory_loses_an_acked_save() -> None:
    recording = _state_file(sync_directory=False)
    assert _content(recording, "weak", acked=2) == {OLD, NEW}


def test_name_changes_survive_in_order_in_a_journal_and_in_any_order_without() -> None:
    recording = Recording()
    recording.create("a")
    recording.create("b")
    names = {model: {tuple(name for name, _ in s.tree.files) for s in states(recording, model)} for model in MODELS}
    assert names["journalled"] == {(), ("a",), ("a", "b")}
    assert names["weak"] == {(), ("a",), ("b",), ("a", "b")}


def test_any_fsync_commits_a_journal_and_no_other_directory_without() -> None:
    recording = Recording()
    recording.make_directory("sub")
    recording.fsync(ROOT)
    recording.create("sub/a")
    recording.fsync(recording.create("b"))
    last = {model: [s for s in states(recording, model) if s.operations == 5] for model in MODELS}
    assert {tuple(name for name, _ in s.tree.files) for s in last["journalled"]} == {("b", "sub/a")}
    assert {tuple(name for name, _ in s.tree.files) for s in last["weak"]} == {(), ("b",), ("sub/a",), ("b", "sub/a")}


@pytest.mark.parametrize("model", MODELS)
def test_overwriting_in_place_loses_the_old_value(model: Model) -> None:
    recording = Recording()
    file = recording.create("state")
    for step, data in enumerate((OLD, NEW)):
        recording.save_started(step)
        recording.truncate(file, 0)
        recording.write(file, data, 0)
        recording.fsync(file)
        recording.save_acked(step)
    assert b"" in _content(recording, model, acked=1)
    assert _content(recording, model, acked=2) == {NEW}


def test_settled_operations_before_the_newest_save_are_durable() -> None:
    recording = _state_file(sync_file=False, sync_directory=False)
    old = {dict(state.tree.files).get("state") for state in states(recording, "weak") if state.in_flight == 1}
    old_unsettled = {
        dict(state.tree.files).get("state") for state in states(recording, "weak", settle=False) if state.in_flight == 1
    }
    assert None not in old
    assert {None, b""} < old_unsettled


def test_existing_files_are_durable_and_removal_may_be_lost(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"1")
    recording = Recording(str(tmp_path))
    recording.remove("sub/a")
    assert {state.tree.files for state in states(recording, "weak")} == {(), (("sub/a", b"1"),)}


def test_distinct_keeps_one_state_for_each_promise() -> None:
    recording = Recording()
    recording.save_started(1)
    recording.save_acked(1)
    (promises,) = distinct(states(recording, "weak")).values()
    assert [(state.acked, state.in_flight) for state in promises] == [((), None), ((), 1), ((1,), None)]


def test_final_tree_materialised_is_the_directory_read_back(tmp_path: Path) -> None:
    recording = _state_file()
    recording.make_directory("d")
    recording.link(recording.create("d/x"), "d/y")
    recording.truncate(recording.create("hole"), 3)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stale").write_bytes(b"gone")
    tree = final_tree(recording)
    materialise(tree, str(tmp_path / "run"))
    assert snapshot(str(tmp_path / "run")) == tree
    assert dict(tree.files) == {"state": NEW, "d/x": b"", "d/y": b"", "hole": b"\0\0\0"}
    assert tree.directories == ("d",)
