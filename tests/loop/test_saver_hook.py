"""CheckpointSaverHook: TF's rules, told by the loop instead of a session."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import torchsaver as ts
from torchsaver.loop.saver_hook import CheckpointSaverHook, CheckpointSaverListener
from torchsaver.saving import writer as saving


class Listener(CheckpointSaverListener):
    """Writes down what it is told, and asks to stop at a step."""

    def __init__(self, events: list[str], name: str = "", stop_at: int | None = None) -> None:
        self._events = events
        self._name = name
        self._stop_at = stop_at

    def begin(self) -> None:
        self._events.append(f"{self._name}begin")

    def before_save(self, global_step: int) -> None:
        self._events.append(f"{self._name}before {global_step}")

    def after_save(self, global_step: int) -> bool:
        self._events.append(f"{self._name}after {global_step}")
        return global_step == self._stop_at

    def end(self, global_step: int) -> None:
        self._events.append(f"{self._name}end {global_step}")


@pytest.fixture
def saver() -> ts.Saver:
    return ts.Saver({"x": torch.zeros(1)}, max_to_keep=20)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def _loop(hook: CheckpointSaverHook, steps: int, first: int = 0) -> int:
    """Run a loop as the docstring has it, and return the step it ended at."""
    hook.begin()
    hook.after_create_session(first)
    step = first
    while step < first + steps:
        step += 1
        if hook.after_run(step):
            break
    hook.end(step)
    return step


def _saved(directory: Path) -> list[int]:
    return sorted(int(file.stem.split("-")[1]) for file in directory.glob("*.safetensors"))


def test_hook_saves_at_the_start_when_due_and_at_the_end(tmp_path: Path, saver: ts.Saver) -> None:
    _loop(CheckpointSaverHook(tmp_path, save_steps=3, saver=saver), 8, first=10)
    assert _saved(tmp_path) == [10, 13, 16, 18]


def test_end_on_a_mark_is_not_saved_again(tmp_path: Path, saver: ts.Saver) -> None:
    events: list[str] = []
    _loop(CheckpointSaverHook(tmp_path, save_steps=2, saver=saver, listeners=[Listener(events)]), 2)
    assert events == ["begin", "before 0", "after 0", "before 2", "after 2", "end 2"]


def test_seconds_count_from_the_last_save(tmp_path: Path, saver: ts.Saver, clock: list[float]) -> None:
    hook = CheckpointSaverHook(tmp_path, save_secs=2.5, saver=saver)
    hook.begin()
    hook.after_create_session(0)
    for step in range(1, 8):
        clock[0] += 1
        hook.after_run(step)
    assert _saved(tmp_path) == [0, 3, 6]


def test_every_listener_is_told_and_one_stops_the_loop(tmp_path: Path, saver: ts.Saver) -> None:
    events: list[str] = []
    listeners = [Listener(events, "a ", stop_at=4), Listener(events, "b ")]
    assert _loop(CheckpointSaverHook(tmp_path, save_steps=2, saver=saver, listeners=listeners), 9) == 4
    assert events[-6:] == ["a before 4", "b before 4", "a after 4", "b after 4", "a end 4", "b end 4"]


def test_listener_of_nothing_is_a_listener(tmp_path: Path, saver: ts.Saver) -> None:
    hook = CheckpointSaverHook(tmp_path, save_steps=2, saver=saver, listeners=[CheckpointSaverListener()])
    assert _loop(hook, 3) == 3


def test_save_that_failed_does_not_count_as_one(
    tmp_path: Path, saver: ts.Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError

    hook = CheckpointSaverHook(tmp_path, save_steps=2, saver=saver)
    hook.begin()
    hook.after_create_session(0)
    with monkeypatch.context() as broken:
        broken.setattr(saver, "save", fail)
        with pytest.raises(OSError):  # noqa: PT011, it is that one
            hook.after_run(2)
    hook.end(2)
    assert _saved(tmp_path) == [0, 2]


def test_save_that_a_busy_saver_skips_is_made_up_at_the_end(
    tmp_path: Path, saver: ts.Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    hook = CheckpointSaverHook(tmp_path, save_steps=2, saver=saver, listeners=[Listener(events, stop_at=2)])
    hook.after_create_session(0)
    with monkeypatch.context() as busy:
        busy.setattr(saver, "save", lambda *_: None)
        assert hook.after_run(2) is False
    assert events == ["before 0", "after 0", "before 2"]  # it has not been made
    assert hook.after_run(3) is False
    hook.end(2)
    assert events[3:] == ["before 2", "after 2", "end 2"]
    assert _saved(tmp_path) == [0, 2]


def test_step_may_be_a_tensor(tmp_path: Path, saver: ts.Saver) -> None:
    hook = CheckpointSaverHook(tmp_path, save_steps=2, saver=saver)
    hook.after_create_session(torch.tensor(4))
    assert hook.after_run(torch.tensor(6)) is False
    hook.end(torch.tensor(6))
    assert _saved(tmp_path) == [4, 6]


def test_name_of_the_checkpoints_can_be_given(tmp_path: Path, saver: ts.Saver) -> None:
    CheckpointSaverHook(tmp_path / "run", save_steps=2, saver=saver, checkpoint_basename="m").after_create_session(1)
    assert ts.latest_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "m-1")


def test_without_a_saver_the_collection_is_saved(tmp_path: Path) -> None:
    with ts.Collection():
        hook = CheckpointSaverHook(tmp_path, save_steps=2)
        variable = ts.Variable(3.0, name="v")
        hook.begin()
    _loop(hook, 1)
    assert ts.load_variable(tmp_path, "v") == variable


def test_without_a_saver_and_variables_begin_is_an_error(tmp_path: Path) -> None:
    hook = CheckpointSaverHook(tmp_path, save_steps=2)
    with ts.Collection(), pytest.raises(RuntimeError, match="pass saver=Saver"):
        hook.begin()


def test_end_waits_for_a_saver_that_works_in_the_background(
    tmp_path: Path, saver: ts.Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    monkeypatch.setattr(saver, "wait", lambda: events.append("wait"))
    _loop(CheckpointSaverHook(tmp_path, save_steps=5, saver=saver, listeners=[Listener(events)]), 1)
    assert events[-5:] == ["wait", "before 1", "after 1", "wait", "end 1"]


def test_end_saves_although_an_earlier_save_in_the_background_has_failed_and_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("too late")

    events: list[str] = []
    saver = ts.Saver({"x": torch.zeros(1)}, background=True)
    hook = CheckpointSaverHook(tmp_path, save_steps=2, saver=saver, listeners=[Listener(events)])
    with monkeypatch.context() as broken:
        broken.setattr(saving, "make_ready", fail)
        hook.after_create_session(0)
        saver._writer.background.join()
    with pytest.raises(OSError, match="too late"):
        hook.end(1)
    assert _saved(tmp_path) == [1]
    assert events == ["before 0", "after 0", "before 1", "after 1"]  # nobody is told of an end that has failed


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, ValueError),
        ({"save_secs": 1, "save_steps": 1}, ValueError),
        ({"save_secs": 0}, ValueError),
        ({"save_steps": 0}, ValueError),
        ({"save_steps": 1.5}, TypeError),
        ({"save_secs": "1"}, TypeError),
        ({"save_steps": 1, "saver": "saver"}, TypeError),
        ({"save_steps": 1, "listeners": CheckpointSaverListener()}, TypeError),
        ({"save_steps": 1, "listeners": [CheckpointSaverListener]}, TypeError),
    ],
)
def test_wrong_argument_is_refused(tmp_path: Path, settings: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        CheckpointSaverHook(tmp_path, **settings)


def test_no_step_is_refused(tmp_path: Path, saver: ts.Saver) -> None:
    with pytest.raises(TypeError, match="global_step"):
        CheckpointSaverHook(tmp_path, save_steps=1, saver=saver).after_run(None)  # type: ignore[arg-type]
