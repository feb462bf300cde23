"""state_dict() trees through JSON and back: exact types, readable keys, and nothing hostile."""

from __future__ import annotations

import base64
import collections
import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from variables.states import described, flatten, round_trip

from torchsaver.errors import VarListError, VarListTypeError
from torchsaver.variables.state_tree import tensor_keys, unflatten

DTYPES = [dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)]
HASHABLE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(1 << 70), 1 << 70),
        st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
        st.binary(max_size=4),
        st.sampled_from([torch.device("cpu"), torch.device("cuda", 1), torch.Size([2, 3]), torch.Size([]), *DTYPES]),
    ),
    lambda children: st.lists(children, max_size=2).map(tuple),
    max_leaves=3,
)
VALUES = st.recursive(
    st.one_of(
        HASHABLE,
        st.floats(),
        st.complex_numbers(),
        st.lists(st.integers(-9, 9), max_size=3).map(lambda values: torch.tensor(values, dtype=torch.int16)),
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.sets(HASHABLE, max_size=3),
        st.dictionaries(st.sampled_from(["a", "dict", "tensor", "", "é"]), children, max_size=3),
        st.dictionaries(HASHABLE, children, max_size=3),
        st.dictionaries(HASHABLE, children, max_size=3).map(collections.OrderedDict),
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_state_through_json_comes_back_with_exact_types(state: Any) -> None:
    try:
        found = round_trip(state)
    except VarListError as error:  # the texts of two keys may be alike: {1: tensor, "1": tensor}
        assume("two tensors" not in str(error))
        raise
    assert described(found) == described(state)


def test_flatten_keys_its_tensors_by_their_path_in_the_object() -> None:
    tensor = torch.zeros(1)
    tree, tensors = flatten("opt", {"state": {0: {"exp_avg": tensor}}, "list": [(tensor + 1,)]})
    assert list(tensors) == ["opt.state.0.exp_avg", "opt.list.0.0"]
    assert tensors["opt.state.0.exp_avg"] is tensor
    assert tensor_keys(tree) == list(tensors)


@pytest.mark.parametrize("state", [{"a": {"b": 0}, "a.b": 0}, {1: 0, "1": 0}, {"a.0": 0, "a": [0]}])
def test_flatten_of_two_tensors_with_one_path_is_a_value_error(state: dict[Any, Any]) -> None:
    with pytest.raises(VarListError, match="two tensors inside one object"):
        flatten("o", _filled(state))


def _filled(tree: Any) -> Any:
    """Return `tree` with a tensor in place of each number."""
    if isinstance(tree, dict):
        return {key: _filled(item) for key, item in tree.items()}
    return [_filled(item) for item in tree] if isinstance(tree, list) else torch.zeros(1)


class Color(enum.IntEnum):
    """An int that is none."""

    RED = 1


Point = collections.namedtuple("Point", "x")


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(1),
        Color.RED,
        Point(1),
        collections.defaultdict(list),
        frozenset([1]),
        bytearray(b"x"),
        range(3),
        object(),
        len,
        torch.nn.Linear(1, 1),
        Path("x"),
        collections.deque([1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_flatten_of_a_type_json_has_no_place_for_names_the_path_and_the_type(value: Any) -> None:
    with pytest.raises(VarListTypeError) as raised:
        flatten("opt", {"a": [0, {"b": value}]})
    assert "'opt.a.1.b'" in str(raised.value)
    assert type(value).__qualname__ in str(raised.value)
    assert "can be stored" in str(raised.value)


HOSTILE: list[Any] = [
    {},
    {"dict": {}, "list": []},
    {"pickle": "x"},
    {"dict": 3},
    {"dict": []},
    {"tuple": 3},
    {"items": 3},
    {"items": [3]},
    {"items": [[1, 2, 3]]},
    {"items": [[[], 1]]},
    {"ordered": [{"tuple": [1]}]},
    {"set": [[1]]},
    {"set": [{"dict": {}}]},
    {"float": "x"},
    {"float": []},
    {"int": "x"},
    {"int": 3},
    {"bytes": 3},
    {"bytes": "?"},
    {"bytes": "é"},
    {"complex": []},
    {"complex": {}},
    {"complex": 3},
    {"complex": ["x", "y"]},
    {"size": 3},
    {"size": ["x"]},
    {"dtype": 3},
    {"dtype": "Tensor"},
    {"dtype": "__class__"},
    {"device": "nonsense"},
    {"device": []},
    {"device": -7},
    {"tensor": 3},
    {"tensor": []},
    {"tensor": None},
]


@pytest.mark.parametrize("tree", HOSTILE, ids=str)
def test_unflatten_of_a_hostile_tree_is_a_value_error_or_type_error(tree: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        unflatten([tree], {"o": torch.zeros(1)}.__getitem__)


def test_unflatten_of_a_tree_too_deep_is_a_value_error() -> None:
    tree: Any = 1
    for _ in range(20_000):
        tree = [tree]
    with pytest.raises(ValueError, match="deep"):
        unflatten(tree, {}.__getitem__)


def test_unflatten_bytes_is_what_base64_says() -> None:
    assert unflatten({"bytes": base64.b64encode(b"\0\xff").decode()}, lambda key: torch.zeros(1)) == b"\0\xff"


# ---- real objects
