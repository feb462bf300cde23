"""state_dict() trees through JSON and back: exact types, readable keys, and nothing hostile."""

from __future__ import annotations

import base64
import collections
import dataclasses
import enum
import functools
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from variables.states import described, flatten, round_trip

from torchsaver.errors import VarListError, VarListTypeError
from torchsaver.formats.json_text import canonical_json
from torchsaver.variables.optimizers.named_state import NamedState
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
        st.timedeltas(),
        st.sampled_from([torch.device("cpu"), torch.device("cuda", 1), torch.Size([2, 3]), torch.Size([]), *DTYPES]),
    ),
    lambda children: st.one_of(st.lists(children, max_size=2).map(tuple), st.frozensets(children, max_size=2)),
    max_leaves=3,
)
ARRAYS = nps.arrays(nps.scalar_dtypes(), nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
NAMES = st.sampled_from(["a", "fc.weight", "param_groups", "0"])
VALUES = st.recursive(
    st.one_of(
        HASHABLE,
        st.floats(),
        st.complex_numbers(),
        st.binary(max_size=4).map(bytearray),
        ARRAYS,
        ARRAYS.map(lambda array: array[(0,) * array.ndim] if array.size else array),
        st.lists(st.integers(-9, 9), max_size=3).map(lambda values: torch.tensor(values, dtype=torch.int16)),
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.sets(HASHABLE, max_size=3),
        st.dictionaries(st.sampled_from(["a", "dict", "tensor", "", "é"]), children, max_size=3),
        st.dictionaries(HASHABLE, children, max_size=3),
        st.dictionaries(HASHABLE, children, max_size=3).map(collections.OrderedDict),
        st.builds(NamedState, st.dictionaries(NAMES, st.dictionaries(NAMES, children, max_size=2), max_size=2)),
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
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


class Mood(str, enum.Enum):
    """A text that is none."""

    GOOD = "good"


class Meters(float):
    """A float that is none."""


class Label(str):
    """A text that is none."""


class Half(np.float16):
    """A numpy number that is none."""


class Delta(timedelta):
    """A time that is none."""


@dataclasses.dataclass
class Record:
    """Plain data that would come back as something else."""

    x: int = 1


Point = collections.namedtuple("Point", "x")


@pytest.mark.parametrize(
    "value",
    [
        Color.RED,
        Mood.GOOD,
        Meters(1),
        Label("x"),
        Half(1),
        Delta(1),
        Record(),
        np.str_("x"),
        np.ma.masked_array([1.0]),
        np.rec.array([(1, 2.0)]),
        np.zeros((), "i4,f8")[()],
        datetime(2020, 1, 1, tzinfo=timezone.utc),
        Point(1),
        collections.defaultdict(list),
        range(3),
        object(),
        len,
        lambda: 1,
        functools.partial(len),
        torch.Generator(),
        torch.nn.Linear,
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


@pytest.mark.parametrize(
    "state", [{torch.zeros(1): 1}, {(torch.zeros(1), 2): 1}, {torch.zeros(1)}, {(torch.zeros(1),)}]
)
def test_flatten_of_a_tensor_in_a_set_or_a_key_says_that_it_is_lost_there(state: Any) -> None:
    with pytest.raises(VarListError, match=r"'o.a \((key|member)\)' is or has a tensor") as raised:
        flatten("o", {"a": state})
    assert len(raised.value.problems) == 1


@pytest.mark.parametrize("text", ["\ud800", {"\ud800": 1}, {1: "\ud800"}, {("\ud800",): 1}, {"\ud800"}])
def test_flatten_of_a_text_that_utf8_cannot_hold_is_a_value_error_wherever_it_stands(text: Any) -> None:
    with pytest.raises(VarListError, match="lone surrogate"):
        flatten("o", text)


@pytest.mark.parametrize(
    "state", [[1, True, 1.0, "1"], {1: "a"}, {True: "a"}, {1.0: "a"}, {None: "a"}, {(1, b"1"): "a"}]
)
def test_keys_that_are_equal_and_not_the_same_come_back_as_they_were(state: Any) -> None:
    assert described(round_trip(state)) == described(state)


def test_an_order_of_keys_comes_back() -> None:
    assert list(round_trip({"b": 1, "a": 2, 3: 4})) == ["b", "a", 3]
    assert list(round_trip(NamedState({"b": {}, "a": {}})).parameters) == ["b", "a"]


def test_flatten_keys_an_optimizers_tensors_by_the_names_of_parameters() -> None:
    state = NamedState(
        {"model.fc.weight": {"exp_avg": torch.ones(2), "step": 3}, "": {"x": torch.ones(1)}},
        {"old_dirs": [torch.zeros(3)], "n": 1},
        [{"lr": torch.tensor(0.5), "betas": (0.9, 0.99), "params": ["model.fc.weight"]}],
    )
    _, tensors = flatten("opt", state)
    assert list(tensors) == [
        *("opt.model.fc.weight.exp_avg", "opt..x", "opt.old_dirs.0", "opt.param_groups.0.lr"),
    ]
    assert described(round_trip({"inside": state})) == described({"inside": state})


def test_flatten_of_a_parameter_and_a_group_with_one_key_is_a_value_error() -> None:
    state = NamedState({"param_groups.0": {"lr": torch.ones(1)}}, {}, [{"lr": torch.ones(1), "params": []}])
    with pytest.raises(VarListError, match=r"'o\.param_groups\.0\.lr' is the key of two tensors"):
        flatten("o", state)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_sets_of_one_content_and_another_order_are_written_alike(kind: type) -> None:
    one, other = kind([0, 8, 16, (8, "x")]), kind([(8, "x"), 16, 8, 0])  # 0, 8 and 16 have one place in the table
    assert (one, list(one) == list(other)) == (other, False)
    assert canonical_json(flatten("o", one)[0]) == canonical_json(flatten("o", other)[0])


@given(st.sets(HASHABLE, max_size=5))
@settings(max_examples=50, deadline=None)
def test_equal_sets_are_written_alike(members: set[Any]) -> None:
    exact = {canonical_json(flatten("o", member)[0]): member for member in members}
    one, other = (set(order) for order in (exact.values(), reversed(exact.values())))
    assert flatten("o", one) == flatten("o", other)


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
    {"tensor": ["o"]},
    {"frozenset": 3},
    {"frozenset": [[1]]},
    {"bytearray": 3},
    {"bytearray": "?"},
    {"timedelta": 3},
    {"timedelta": [1, 2]},
    {"timedelta": ["1", 2, 3]},
    {"timedelta": [1 << 62, 0, 0]},
    {"timedelta": [float("nan"), 0, 0]},
    {"optimizer": 3},
    {"optimizer": {}},
    {"optimizer": {"parameters": [], "others": {"dict": {}}}},
    {"optimizer": {"parameters": 3, "others": {"dict": {}}, "param_groups": []}},
    {"optimizer": {"parameters": ["ab"], "others": {"dict": {}}, "param_groups": []}},
    {"optimizer": {"parameters": [["a"]], "others": {"dict": {}}, "param_groups": []}},
    {"optimizer": {"parameters": [["a", 3]], "others": {"dict": {}}, "param_groups": []}},
    {"optimizer": {"parameters": [["a", {"dict": {}}]] * 2, "others": {"dict": {}}, "param_groups": []}},
    {"optimizer": {"parameters": [[["a"], {"dict": {}}]], "others": {"dict": {}}, "param_groups": []}},
    {"optimizer": {"parameters": [], "others": [], "param_groups": []}},
    {"optimizer": {"parameters": [], "others": {"items": [{"tuple": [1, 2]}]}, "param_groups": []}},
    {"optimizer": {"parameters": [], "others": {"dict": {}}, "param_groups": {"dict": {}}}},
    {"optimizer": {"parameters": [], "others": {"dict": {}}, "param_groups": [3]}},
    {"optimizer": {"parameters": [], "others": {"dict": {}}, "param_groups": [{"dict": {}}]}},
    {"optimizer": {"parameters": [], "others": {"dict": {}}, "param_groups": [{"dict": {"params": [0]}}]}},
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


@pytest.mark.parametrize("kind", ["tensor", "ndarray"])
def test_unflatten_of_one_key_twice_is_a_value_error(kind: str) -> None:
    with pytest.raises(ValueError, match="'o' is the key of two tensors"):
        unflatten([{kind: "o"}, {kind: "o"}], {"o": torch.zeros(1)}.__getitem__)


JSON_TREES = st.recursive(
    st.one_of(st.none(), st.integers(-2, 1 << 70), st.sampled_from(["", "o", "AAAA", "<f4", "|O", "float32", "nan"])),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.tuples(st.sampled_from(sorted({key for tree in HOSTILE for key in tree})), children).map(
            lambda p: dict([p])
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(JSON_TREES)
def test_unflatten_of_any_tree_gives_a_state_or_a_value_error(tree: Any) -> None:
    tree = json.loads(canonical_json(tree))
    try:
        unflatten(tree, lambda key: torch.zeros(1))
    except ValueError:
        return
