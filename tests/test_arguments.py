"""What a Saver's arguments may be, value by value."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from torchsaver import arguments


@pytest.mark.parametrize(
    ("given", "step"),
    [
        (None, None),
        (0, 0),
        (-5, -5),
        (2**63 - 1, 2**63 - 1),
        (np.int64(7), 7),
        (np.uint8(7), 7),
        (torch.tensor(9), 9),
        (torch.tensor(9, dtype=torch.uint8), 9),
        (torch.tensor(2.9), 2),  # as in TF, a float variable is cut
        (torch.tensor(-2.9, dtype=torch.bfloat16), -2),
        (torch.nn.Parameter(torch.tensor(3.0)), 3),
    ],
)
def test_step_number_of_an_integer_or_0d_tensor_is_an_int(given: Any, step: int | None) -> None:
    found = arguments.step_number(given)
    assert found == step
    assert type(found) is type(step)


@pytest.mark.parametrize(
    "given",
    [
        True,
        False,
        np.bool_(True),
        "7",
        b"7",
        1.0,
        np.float64(1.0),
        [1],
        np.array([1]),
        torch.tensor([1]),
        torch.tensor(True),
        torch.tensor(1j),
        pytest.param(object(), id="object"),
    ],
    ids=repr,
)
def test_step_number_of_another_type_is_a_type_error_naming_global_step(given: Any) -> None:
    with pytest.raises(TypeError, match="global_step"):
        arguments.step_number(given)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_step_number_of_a_tensor_without_a_number_is_a_value_error(value: float) -> None:
    with pytest.raises(ValueError, match=r"inf|NaN|nan"):
        arguments.step_number(torch.tensor(value))


@pytest.mark.parametrize(
    ("given", "number"), [(None, None), (0, 0), (5, 5), (np.int32(5), 5), (np.uint64(2**63), 2**63)]
)
def test_whole_number_of_an_integer_or_none_is_an_int_or_none(given: Any, number: int | None) -> None:
    found = arguments.whole_number(given, "max_to_keep", least=0)
    assert (found, type(found)) == (number, type(number))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (2.5, TypeError),
        ("5", TypeError),
        (True, TypeError),
        (np.float32(2), TypeError),
        (torch.tensor(2), TypeError),
        (-1, ValueError),
        (np.int8(-1), ValueError),
    ],
    ids=repr,
)
def test_whole_number_of_anything_else_names_the_argument(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_to_keep"):
        arguments.whole_number(given, "max_to_keep", least=0)


def test_whole_number_below_least_says_both_numbers() -> None:
    with pytest.raises(ValueError, match="max_shard_bytes is 1 at least, not 0"):
        arguments.whole_number(0, "max_shard_bytes", least=1)


@pytest.mark.parametrize(
    ("given", "hours"),
    [
        (None, math.inf),
        (0, 0.0),
        (2, 2.0),
        (0.5, 0.5),
        (math.inf, math.inf),
        (np.float32(1.5), 1.5),
        (Fraction(1, 4), 0.25),
    ],
)
def test_hours_of_a_number_or_none_is_a_float(given: Any, hours: float) -> None:
    found = arguments.hours(given)
    assert (found, type(found)) == (hours, float)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("1", TypeError),
        (True, TypeError),
        (1j, TypeError),
        (torch.tensor(1.0), TypeError),
        ([1], TypeError),
        (-1, ValueError),
        (-0.001, ValueError),
        (math.nan, ValueError),
        (-math.inf, ValueError),
        (10**400, ValueError),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_hours_of_anything_else_names_the_argument(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="keep_checkpoint_every_n_hours"):
        arguments.hours(given)


@pytest.mark.parametrize("name", [None, "checkpoint", "état", ".hidden", "with space", "...", "a\\b"])
def test_require_plain_name_of_a_file_name_passes(name: str | None) -> None:
    arguments.require_plain_name(name)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("", ValueError),
        (".", ValueError),
        ("..", ValueError),
        ("a/b", ValueError),
        ("/abs", ValueError),
        ("a/", ValueError),
        ("a\x00b", ValueError),
        (b"checkpoint", TypeError),
        (3, TypeError),
    ],
)
def test_require_plain_name_of_anything_else_names_the_argument(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="latest_filename"):
        arguments.require_plain_name(name)
