"""CheckpointManager: TF2's numbers, list and hours; what golden/ does not say is here."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torchsaver as ts
from torchsaver.manager import CheckpointManager, ManagerRules
from torchsaver.retention.window import Record, Window
from torchsaver.storage import state_file

HOUR = 3600.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def _manager(directory: Path, max_to_keep: int | None = 2, **settings: Any) -> CheckpointManager:
    return CheckpointManager({"x": torch.zeros(1)}, directory, max_to_keep, **settings)


def _there(directory: Path) -> list[str]:
    return sorted(file.stem for file in directory.glob("*.safetensors"))


def test_counter_goes_on_after_restoring_and_begins_anew_without(tmp_path: Path, clock: list[float]) -> None:
    first = _manager(tmp_path, None)
    assert [first.save(), first.save()] == [str(tmp_path / "ckpt-1"), str(tmp_path / "ckpt-2")]
    clock[0] += 10
    second = _manager(tmp_path, None)
    assert second.restore_or_initialize() == str(tmp_path / "ckpt-2")
    assert second.save() == str(tmp_path / "ckpt-3")
    assert _manager(tmp_path, None).save() == str(tmp_path / "ckpt-1")


def test_module_is_saved_under_its_own_names_beside_the_counter(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    CheckpointManager(model, tmp_path, 1).save()
    ts.Saver(model).restore(tmp_path / "ckpt-1")
    counter = ts.Counter()
    ts.Saver({"save_counter": counter}).restore(tmp_path / "ckpt-1")
    assert int(counter) == 1


def test_counter_may_be_the_caller_s(tmp_path: Path) -> None:
    counter = ts.Counter(40)
    manager = CheckpointManager({"x": torch.zeros(1), "save_counter": counter}, tmp_path, 1)
    assert manager.save() == str(tmp_path / "ckpt-41")
    assert int(counter) == 41


def test_save_that_fails_changes_neither_counter_nor_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    steps = ts.Counter(5)
    manager = _manager(tmp_path, 1, step_counter=steps, checkpoint_interval=1)
    manager.save()
    steps.increment()
    with monkeypatch.context() as broken:
        broken.setattr("torchsaver.rotation.write_state", fail)
        with pytest.raises(OSError, match="No space left"):
            manager.save()
    assert manager.latest_checkpoint == str(tmp_path / "ckpt-1")
    assert manager.checkpoints == [str(tmp_path / "ckpt-1")]
    assert manager.save() == str(tmp_path / "ckpt-2")
    assert _there(tmp_path) == ["ckpt-2"]


def test_what_a_plain_saver_has_listed_is_left_alone(tmp_path: Path, clock: list[float]) -> None:
    saver = ts.Saver({"x": torch.zeros(1)})
    for step in (1, 2):
        saver.save(tmp_path / "model.ckpt", step)
    clock[0] += 10
    manager = _manager(tmp_path, 1)
    assert (manager.checkpoints, manager.latest_checkpoint) == ([], str(tmp_path / "model.ckpt-2"))
    manager.save()
    manager.save()
    assert _there(tmp_path) == ["ckpt-2", "model.ckpt-1", "model.ckpt-2"]
    state = ts.get_checkpoint_state(tmp_path)
    assert state is not None
    assert state.all_model_checkpoint_paths == [str(tmp_path / "ckpt-2")]


def test_checkpoint_deleted_behind_its_back_stays_in_the_list_until_it_leaves_it(
    tmp_path: Path, clock: list[float]
) -> None:
    manager = _manager(tmp_path, 2)
    for _ in range(2):
        clock[0] += 10
        manager.save()
    os.remove(tmp_path / "ckpt-1.safetensors")
    again = _manager(tmp_path, 2)
    assert again.checkpoints == [str(tmp_path / "ckpt-1"), str(tmp_path / "ckpt-2")]
    again.save(7)
    assert again.checkpoints == [str(tmp_path / "ckpt-2"), str(tmp_path / "ckpt-7")]


def test_newest_that_is_gone_is_an_error_and_no_older_one_is_taken(tmp_path: Path) -> None:
    manager = _manager(tmp_path)
    manager.save()
    manager.save()
    os.remove(tmp_path / "ckpt-2.safetensors")
    with pytest.raises(ts.CheckpointNotFoundError):
        _manager(tmp_path).restore_or_initialize()


def test_directory_that_was_moved_goes_on(tmp_path: Path, clock: list[float]) -> None:
    _manager(tmp_path / "a", 1).save()
    (tmp_path / "a").rename(tmp_path / "b")
    clock[0] += 10
    manager = _manager(tmp_path / "b", 1)
    manager.restore_or_initialize()
    manager.save()
    assert _there(tmp_path / "b") == ["ckpt-2"]


def test_checkpoint_another_process_has_listed_keeps_its_place_and_gets_its_time(
    tmp_path: Path, clock: list[float]
) -> None:
    manager = _manager(tmp_path, 5)
    manager.save()
    clock[0] += 10
    _manager(tmp_path, 5, checkpoint_name="other").save()
    clock[0] += 10
    manager.save()
    state = ts.get_checkpoint_state(tmp_path)
    assert state is not None
    assert [os.path.basename(path) for path in state.all_model_checkpoint_paths] == ["ckpt-1", "other-1", "ckpt-2"]
    assert state.all_model_checkpoint_timestamps == [1_000_000.0, 1_000_010.0, 1_000_020.0]


def test_first_save_that_died_before_the_state_file_is_taken_over(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("torchsaver.rotation.write_state", die)
        with pytest.raises(KeyboardInterrupt):
            _manager(tmp_path).save(1)
    clock[0] += 10
    manager = _manager(tmp_path)
    manager.save(2)
    assert manager.checkpoints == [str(tmp_path / "ckpt-1"), str(tmp_path / "ckpt-2")]
    state = ts.get_checkpoint_state(tmp_path)
    assert state is not None
    assert state.all_model_checkpoint_timestamps == [1_000_000.0, 1_000_010.0]


def test_old_checkpoint_goes_only_after_the_state_file_has_let_go_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    write = state_file.write_state

    def note(path: str, state: Any) -> None:
        seen.append(_there(tmp_path))
        write(path, state)

    monkeypatch.setattr("torchsaver.rotation.write_state", note)
    manager = _manager(tmp_path, 1)
    manager.save()
    manager.save()
    assert seen == [["ckpt-1"], ["ckpt-1", "ckpt-2"]]
    assert _there(tmp_path) == ["ckpt-2"]


def test_restoring_sets_the_step_the_interval_counts_from(tmp_path: Path) -> None:
    values = {"step": torch.tensor(10)}
    CheckpointManager(values, tmp_path, 1, step_counter=values["step"], checkpoint_interval=5).save()
    values["step"].fill_(0)
    manager = CheckpointManager(values, tmp_path, 1, step_counter=values["step"], checkpoint_interval=5)
    manager.restore_or_initialize()
    values["step"].fill_(14)
    assert manager.save() is None
    values["step"].fill_(15)
    assert manager.save() == str(tmp_path / "ckpt-2")


def test_last_checkpoint_step_is_where_the_interval_counts_from(tmp_path: Path) -> None:
    steps = ts.Counter(12)
    manager = _manager(tmp_path, step_counter=steps, checkpoint_interval=5, last_checkpoint_step=10)
    assert manager.save() is None
    assert manager.save(check_interval=False) is not None


def test_init_fn_is_called_without_a_checkpoint_only(tmp_path: Path) -> None:
    calls = []
    assert _manager(tmp_path, init_fn=lambda: calls.append(1)).restore_or_initialize() is None
    assert _manager(tmp_path).restore_or_initialize() is None
    _manager(tmp_path).save()
    _manager(tmp_path, init_fn=lambda: calls.append(2)).restore_or_initialize()
    assert calls == [1]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"max_to_keep": 0}, ValueError),
        ({"max_to_keep": 2.5}, TypeError),
        ({"checkpoint_interval": 2}, ValueError),
        ({"checkpoint_interval": 0, "step_counter": ts.Counter()}, ValueError),
        ({"keep_checkpoint_every_n_hours": -1}, ValueError),
        ({"var_list": [torch.zeros(1)]}, TypeError),
        ({"var_list": {"save_counter": torch.zeros(1)}}, TypeError),
        ({"last_checkpoint_step": "1"}, TypeError),
        ({"step_counter": 3}, TypeError),
        ({"init_fn": 3}, TypeError),
    ],
)
def test_wrong_argument_is_refused(tmp_path: Path, settings: dict[str, Any], error: type[Exception]) -> None:
    given_or = {"var_list": {"x": torch.zeros(1)}, "directory": tmp_path, "max_to_keep": 1}
    with pytest.raises(error):
        CheckpointManager(**{**given_or, **settings})


# ---- the rules alone


def _tf_sweep(
    times: list[float], limit: int | None, hours: float | None, preserved: float
) -> tuple[list[float], list[float], float]:
    """TF2's algorithm after each save: what is managed in the end, what is deleted, the last that was preserved."""
    managed: list[float] = []
    deleted: list[float] = []
    for saved in times:
        managed.append(saved)
        while limit and len(managed) > limit:
            oldest = managed.pop(0)
            if hours and oldest - hours * HOUR >= preserved:
                preserved = oldest
            else:
                deleted.append(oldest)
    return managed, deleted, preserved


@settings(max_examples=50, deadline=None)
@given(
    gaps=st.lists(st.sampled_from([0.0, 1.0, 1800.0, 3600.0, 5400.0]), max_size=12),
    limit=st.none() | st.integers(1, 4),
    hours=st.none() | st.sampled_from([0.5, 1.0, 1.5]),
)
def test_rules_are_tensorflow_s(gaps: list[float], limit: int | None, hours: float | None) -> None:
    times = [1e6 + sum(gaps[: n + 1]) for n in range(len(gaps))]
    rules = ManagerRules(limit, hours or float("inf"), 1e6 - 1)
    window, deleted = rules.open_window(1e6), []
    for number, saved in enumerate(times):
        window = rules.record_save(window, Record(f"m-{number}", saved, f"/m-{number}"))
        window, decisions = rules.choose(window)
        deleted += [decision.record.time for decision in decisions if not decision.keep]
    managed = [record.time for record in window.last]
    assert (managed, deleted, window.next_kept_time) == _tf_sweep(times, limit, hours, 1e6 - 1)


def test_plan_says_what_stays_and_goes_and_why() -> None:
    records = tuple(Record(f"m-{n}", n * HOUR, f"/m-{n}") for n in range(1, 5))
    rules = ManagerRules(2, 2.0, 0.0)
    window = Window(last=records[2:], doomed=records[:2], next_kept_time=0.0)
    assert [str(decision) for decision in rules.plan(window)] == [
        "m-1 goes: older than the last max_to_keep checkpoints",
        "m-2 stays: 2 hours after the last one that was kept",
        "m-3 stays: one of the last 2",
        "m-4 stays: one of the last 2",
    ]
    assert rules.aliases(window) == {}
