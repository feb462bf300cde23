"""A counter counts, goes where an integer does, and is saved and restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchsaver as ts
from torchsaver.variables.counter import Counter


def test_counter_counts_in_place() -> None:
    step = counter = Counter(3)
    step += 1
    assert step is counter
    assert step.increment() == 5
    assert step.increment(-2) == 3
    step.value = 10
    assert (counter.value, repr(counter)) == (10, "Counter(10)")


def test_counter_goes_where_an_integer_does() -> None:
    step = Counter(2)
    assert int(step) == 2
    assert list(range(step, 4)) == [2, 3]
    assert "abc"[step] == "c"
    assert f"{int(step):03d}" == "002"


@pytest.mark.parametrize("value", [np.int64(7), Counter(7), 7])
def test_counter_takes_any_integer_and_keeps_an_int(value: Any) -> None:
    assert type(Counter(value).value) is int
    assert Counter(value).value == 7
    step = Counter()
    step += value
    assert (step.value, type(step.value)) == (7, int)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, np.True_, np.float32(1)])
def test_counter_of_no_integer_is_a_type_error_and_keeps_its_value(value: Any) -> None:
    step = Counter(5)
    with pytest.raises(TypeError, match=f"a counter's value is an integer, not {type(value).__name__}"):
        Counter(value)
    with pytest.raises(TypeError, match="a counter's value is an integer"):
        step.value = value
    with pytest.raises(TypeError, match="by is an integer"):
        step.increment(value)
    with pytest.raises(TypeError, match="by is an integer"):
        step += value
    assert step.value == 5


def test_counters_are_equal_only_if_they_are_one() -> None:
    one, other = Counter(1), Counter(1)
    assert (one == one, one == other, len({one, other})) == (True, False, 2)  # noqa: PLR0124


@pytest.mark.parametrize("state", [3, {}, {"value": 1.0}, {"value": True}, {"value": None}, {"value": 1, "more": 2}])
def test_load_state_dict_of_another_state_is_a_value_error_and_keeps_the_value(state: Any) -> None:
    step = Counter(5)
    with pytest.raises(ValueError, match="a counter's state is"):
        step.load_state_dict(state)
    assert step.value == 5


@pytest.mark.parametrize("value", [0, -3, 1 << 80])
def test_counter_through_a_checkpoint_comes_back(tmp_path: Path, value: int) -> None:
    prefix = ts.Saver({"step": Counter(value)}).save(tmp_path / "m")
    step = Counter(1)
    ts.Saver({"step": step}).restore(prefix)
    assert step.value == value


def test_save_takes_a_counter_as_global_step(tmp_path: Path) -> None:
    step = Counter(41)
    saver = ts.Saver({"step": step})
    step += 1
    assert saver.save(tmp_path / "m", global_step=step) == str(tmp_path / "m-42")
