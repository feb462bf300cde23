"""checkpoints_iterator: TF's rules of waiting, and the checkpoint that is looked at stays."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import torchsaver as ts
from torchsaver.loop import checkpoint_waiting
from torchsaver.loop.checkpoint_waiting import checkpoints_iterator
from torchsaver.storage import locks


class Clock:
    """Time that moves by sleeping only; `script` says what happens when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        self.script: dict[float, Callable[[], object]] = {}
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, secs: float) -> None:
        self.now += secs
        for at in [at for at in self.script if at <= self.now - 1_000_000.0]:
            self.script.pop(at)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def _saver(**settings: Any) -> ts.Saver:
    return ts.Saver({"x": torch.zeros(1)}, keep_checkpoint_every_n_hours=None, **settings)


def _save_elsewhere(directory: Path, steps: list[int], max_to_keep: int = 1) -> None:
    """Save in another process, going on with the list that is there."""

    def save() -> None:
        saver = _saver(max_to_keep=max_to_keep)
        state = ts.get_checkpoint_state(directory)
        saver.recover_last_checkpoints(state.all_model_checkpoint_paths if state else [])
        for step in steps:
            saver.save(directory / "m", step)

    process = multiprocessing.get_context("fork").Process(target=save)
    process.start()
    process.join()
    assert process.exitcode == 0


def _there(directory: Path) -> list[str]:
    return sorted(file.stem for file in directory.glob("*.safetensors"))


def test_each_new_checkpoint_comes_once_until_none_comes_in_time(tmp_path: Path, clock: Clock) -> None:
    saver = _saver()
    clock.script = {2: lambda: saver.save(tmp_path / "m", 1), 7: lambda: saver.save(tmp_path / "m", 2)}
    seen = [(path, clock.now) for path in checkpoints_iterator(tmp_path, timeout=10)]
    assert seen == [(str(tmp_path / "m-1"), 1_000_002.0), (str(tmp_path / "m-2"), 1_000_007.0)]
    assert clock.now == 1_000_017.0


def test_directory_that_is_not_there_yet_is_waited_for(tmp_path: Path, clock: Clock) -> None:
    clock.script = {3: lambda: _saver().save(tmp_path / "run" / "m", 1)}
    assert list(checkpoints_iterator(tmp_path / "run", timeout=5)) == [str(tmp_path / "run" / "m-1")]


def test_timeout_of_less_than_a_second_does_not_wait(tmp_path: Path, clock: Clock) -> None:
    assert list(checkpoints_iterator(tmp_path, timeout=0.9)) == []
    assert clock.now == 1_000_000.0


def test_clock_that_is_set_back_makes_the_pause_no_longer(tmp_path: Path, clock: Clock) -> None:
    _save_elsewhere(tmp_path, [1])
    steps = checkpoints_iterator(tmp_path, min_interval_secs=30, timeout=0)
    next(steps)
    _save_elsewhere(tmp_path, [2])
    clock.now -= 86_400
    before = clock.now
    assert next(steps) == str(tmp_path / "m-2")
    assert clock.now - before == 30


def test_state_file_that_is_damaged_is_an_error(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "checkpoint").write_text("")
    with pytest.raises(ts.CorruptCheckpointError):
        next(checkpoints_iterator(tmp_path))


def test_checkpoint_that_is_looked_at_is_left_by_another_process_until_the_next_is_asked_for(
    tmp_path: Path, clock: Clock
) -> None:
    _save_elsewhere(tmp_path, [1])
    steps = checkpoints_iterator(tmp_path, timeout=0)
    assert next(steps) == str(tmp_path / "m-1")
    _save_elsewhere(tmp_path, [2, 3])
    assert _there(tmp_path) == ["m-1", "m-3"]
    assert next(steps) == str(tmp_path / "m-3")
    _save_elsewhere(tmp_path, [4])
    assert _there(tmp_path) == ["m-3", "m-4"]


@pytest.mark.parametrize("how", ["close", "drop", "end"])
def test_iterator_that_is_over_holds_nothing(tmp_path: Path, clock: Clock, how: str) -> None:
    _save_elsewhere(tmp_path, [1])
    steps = checkpoints_iterator(tmp_path, timeout=0)
    next(steps)
    if how == "close":
        steps.close()  # type: ignore[attr-defined]
    elif how == "drop":
        del steps
    else:
        assert list(steps) == []
    _save_elsewhere(tmp_path, [2])
    assert _there(tmp_path) == ["m-2"]


def test_sharded_checkpoint_is_held_as_a_whole(tmp_path: Path, clock: Clock) -> None:
    def save(step: int) -> None:
        saver = ts.Saver(
            {"x": torch.zeros(9), "y": torch.zeros(9)},
            max_shard_bytes=40,
            max_to_keep=1,
            keep_checkpoint_every_n_hours=None,
        )
        saver.recover_last_checkpoints([str(tmp_path / "m-1")])
        saver.save(tmp_path / "m", step)

    save(1)
    steps = checkpoints_iterator(tmp_path, timeout=0)
    next(steps)
    process = multiprocessing.get_context("fork").Process(target=save, args=(2,))
    process.start()
    process.join()
    assert len(list(tmp_path.glob("m-1*"))) == 3


def test_checkpoint_rotated_away_before_it_is_held_is_not_yielded_but_the_next_one_is(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = _saver(max_to_keep=1)
    saver.save(tmp_path / "m", 1)
    newest = checkpoint_waiting.latest_checkpoint

    def newest_and_then_save(directory: str) -> str | None:
        path = newest(directory)
        saver.save(tmp_path / "m", 2)
        return path

    monkeypatch.setattr(checkpoint_waiting, "latest_checkpoint", newest_and_then_save)
    assert next(checkpoints_iterator(tmp_path, timeout=0)) == str(tmp_path / "m-2")


def test_checkpoint_that_is_being_removed_is_not_yielded(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _saver().save(tmp_path / "m", 1)
    monkeypatch.setattr(locks, "pin", lambda *_: False)
    assert list(checkpoints_iterator(tmp_path, timeout=3)) == []
    assert clock.now == 1_000_003.0


def test_shard_that_goes_with_its_index_is_not_yielded(tmp_path: Path, clock: Clock) -> None:
    saver = ts.Saver({"x": torch.zeros(9), "y": torch.zeros(9)}, max_shard_bytes=40)
    saver.save(tmp_path / "m", 1)
    os.remove(next(tmp_path.glob("m-1-00002*")))
    assert list(checkpoints_iterator(tmp_path, timeout=0)) == []


def test_damaged_checkpoint_is_yielded_and_restoring_tells(tmp_path: Path, clock: Clock) -> None:
    saver = _saver()
    saver.save(tmp_path / "m", 1)
    (tmp_path / "m-1.safetensors").write_bytes(b"junk")
    for path in checkpoints_iterator(tmp_path, timeout=0):
        with pytest.raises(ts.CorruptCheckpointError):
            saver.restore(path)


def test_saver_of_this_process_does_not_wait_for_its_own_iterator(tmp_path: Path, clock: Clock) -> None:
    saver = _saver(max_to_keep=1)
    saver.save(tmp_path / "m", 1)
    steps = checkpoints_iterator(tmp_path, timeout=0)
    next(steps)
    saver.save(tmp_path / "m", 2)
    assert _there(tmp_path) == ["m-2"]
    assert next(steps) == str(tmp_path / "m-2")


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("min_interval_secs", -1, ValueError),
        ("min_interval_secs", "1", TypeError),
        ("timeout", -1, ValueError),
        ("timeout", float("nan"), ValueError),
        ("timeout", True, TypeError),
        ("timeout_fn", True, TypeError),
    ],
)
def test_wrong_argument_is_refused_at_the_call(
    tmp_path: Path, argument: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=argument):
        checkpoints_iterator(tmp_path, **{argument: value})
    with contextlib.suppress(TypeError):
        checkpoints_iterator(3)  # type: ignore[arg-type]
        pytest.fail("a number is no directory")
