"""Every form of var_list, every problem of one, and tensors that are found where they are now."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.parametrizations import orthogonal, weight_norm
from torch.optim.swa_utils import AveragedModel

import torchsaver as ts
from torchsaver.variables.var_list import Slots, read_var_list, resolve


@pytest.fixture(autouse=True)
def _own_collection() -> Iterator[None]:
    with ts.Collection():
        yield


class Net(torch.nn.Module):
    """Parameters, persistent and other buffers, and a frozen part."""

    KEYS = ("fc.weight", "fc.bias", "scale", "mean")

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(2, 2)
        self.scale = torch.nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("cache", torch.zeros(2), persistent=False)


class Tied(torch.nn.Module):
    """`head.weight` is `body.weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
        self.head.weight = self.body.weight


class Counted(torch.nn.Module):
    """State that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))
        self.count: Any = 0

    def get_extra_state(self) -> Any:
        return {"count": self.count}

    def set_extra_state(self, state: Any) -> None:
        self.count = state["count"]


def _slots(var_list: Any, names_from: torch.nn.Module | None = None) -> Slots:
    return resolve(read_var_list(var_list, names_from))


def _variables() -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    return ts.Variable(1.0, name="v1"), ts.Variable(2.0, name="v2")


@pytest.mark.parametrize(
    ("form", "keys"),
    [
        (lambda a, b: {"x": a, "y": b}, ["x", "y"]),
        (lambda a, b: OrderedDict(y=b, x=a), ["y", "x"]),
        (lambda a, b: MappingProxyType({"a:0": a, "a b\n": b}), ["a:0", "a b\n"]),
        (lambda a, b: {"v1": b, "v2": a}, ["v1", "v2"]),  # swapped
        (lambda a, b: [a, b], ["v1", "v2"]),
        (lambda a, b: (b, a), ["v2", "v1"]),
        (lambda a, b: [[a], ([b],)], ["v1", "v2"]),
        (lambda a, b: [{a}, frozenset([b])], ["v1", "v2"]),
        (lambda a, b: (v for v in (a, b)), ["v1", "v2"]),
        (lambda a, b: {"i": a, "j": b}.values(), ["v1", "v2"]),
        (lambda a, b: [("x", a), ("y", b)], ["x", "y"]),
        (lambda a, b: [("x", a), b], ["x", "v2"]),
        (lambda a, b: zip("xy", (a, b), strict=True), ["x", "y"]),
        (lambda a, b: {"x": a.detach(), "y": b * 2}, ["x", "y"]),  # any tensor may be assigned to
        (lambda a, b: None, ["v1", "v2"]),
    ],
)
def test_var_list_of_variables_in_any_form_has_its_keys(form: Callable[..., Any], keys: list[str]) -> None:
    a, b = _variables()
    assert list(_slots(form(a, b)).tensors) == keys


def test_var_list_that_is_a_set_has_all_of_its_variables() -> None:
    assert set(_slots(set(_variables())).tensors) == {"v1", "v2"}


def test_var_list_swapped_gives_each_key_the_other_tensor() -> None:
    a, b = _variables()
    tensors = _slots({"v1": b, "v2": a}).tensors
    assert tensors["v1"] is b
    assert tensors["v2"] is a


@pytest.mark.parametrize(
    ("form", "keys"),
    [
        (lambda net: net, Net.KEYS),
        (lambda net: {"": net}, Net.KEYS),
        (lambda net: {"model": net}, [f"model.{key}" for key in Net.KEYS]),
        (lambda net: {"model.": net}, [f"model..{key}" for key in Net.KEYS]),
        (lambda net: [("model", net)], [f"model.{key}" for key in Net.KEYS]),
        (lambda net: {"a": net.fc, "b": net.mean}, ["a.weight", "a.bias", "b"]),
        (lambda net: net.named_parameters(), ["scale", "fc.weight", "fc.bias"]),
        (lambda net: list(net.named_buffers()), ["mean", "cache"]),
        (lambda net: net.state_dict(keep_vars=True), Net.KEYS),
        (lambda net: {"cache": net.cache}, ["cache"]),  # asked for by key, it is saved
    ],
)
def test_var_list_of_modules_has_their_state_dict_keys_and_no_other_buffers(
    form: Callable[[Net], Any], keys: list[str]
) -> None:
    assert sorted(_slots(form(Net())).tensors) == sorted(keys)


def test_var_list_with_names_from_finds_names_and_takes_a_generator() -> None:
    net, extra = Net(), ts.Variable(1.0, name="extra")
    assert list(_slots(net.parameters(), net).tensors) == ["scale", "fc.weight", "fc.bias"]
    assert list(_slots([net.mean, net.cache, extra], net).tensors) == ["mean", "cache", "extra"]


def test_var_list_of_a_tracked_modules_tensors_has_the_names_it_is_tracked_under() -> None:
    net = Net()
    ts.track(net, "net")
    assert list(_slots([net.fc.weight, net.mean]).tensors) == ["net.fc.weight", "net.mean"]
    assert list(_slots([net.fc.weight], net).tensors) == ["fc.weight"]  # names_from comes first


def test_var_list_of_objects_takes_anything_with_a_state_dict() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.fc.parameters(), lr=0.1)
    slots = _slots({"model": net.fc, "optimizer": optimizer, "step": torch.tensor(3)})
    assert (list(slots.tensors), list(slots.objects)) == (["step", "model.weight", "model.bias"], ["optimizer"])


def _replaced(net: Net) -> list[Callable[[], Any]]:
    return [
        net.double,
        lambda: net.load_state_dict({key: value.clone() for key, value in net.state_dict().items()}, assign=True),
    ]


@pytest.mark.parametrize(
    "form", [lambda n: n, lambda n: {"k": n.mean, "w": n.fc.weight}, lambda n: [n.mean, n.fc.weight]]
)
@pytest.mark.parametrize("change", [0, 1])
def test_var_list_of_a_module_whose_tensors_are_replaced_finds_the_new_ones(
    form: Callable[[Net], Any], change: int
) -> None:
    net = Net()
    entries = read_var_list(form(net), net)
    _replaced(net)[change]()
    assert {id(net.mean), id(net.fc.weight)} <= {id(tensor) for tensor in resolve(entries).tensors.values()}


NOT_GIVEN: list[tuple[Any, type[Exception], str]] = [
    ("v1", ts.VarListTypeError, "it is a str"),
    (b"v1", ts.VarListTypeError, "it is a bytes"),
    (3, ts.VarListTypeError, "it is a int"),
    (torch.zeros(2), ts.VarListTypeError, "it is a Tensor"),
    (torch.optim.SGD([torch.zeros(1)], lr=1.0), ts.VarListTypeError, "it is a SGD"),
    ([None], ts.VarListTypeError, "a list element is a NoneType"),
    (["v1"], ts.VarListTypeError, "a list element is a str"),
    ([np.zeros(2)], ts.VarListTypeError, "a list element is a ndarray"),
    ([torch.zeros(2, 3)], ts.VarListTypeError, r"shape \[2, 3\] has no name.*Saver\(\{.*names_from=model"),
    ([("x", 1.0)], ts.VarListTypeError, "'x' is a float"),
    ({"x": 1.0}, ts.VarListTypeError, "'x' is a float"),
    ({"x": np.zeros(2)}, ts.VarListTypeError, "'x' is a ndarray"),
    ({"x": {"y": torch.zeros(1)}}, ts.VarListTypeError, "'x' is a nested dict"),
    ({"x": [torch.zeros(1)]}, ts.VarListTypeError, "'x' is a list"),
    ({"x": ts.Collection()}, ts.VarListTypeError, "'x' is a Collection"),
    ({"x": torch.nn.Linear}, ts.VarListTypeError, "'x' is a type"),
    ({"x": None}, ts.VarListError, "'x' is None"),
    ({3: torch.zeros(1)}, ts.VarListTypeError, "key 3 is a int"),
    ({"a": torch.zeros(1), 3: torch.ones(1)}, ts.VarListTypeError, "key 3 is a int"),
    ({"": torch.zeros(1)}, ts.VarListError, "a key is empty"),
    ({"__metadata__": torch.zeros(1)}, ts.VarListError, "'__metadata__' is safetensors' own"),
    ({"a\udcff": torch.zeros(1)}, ts.VarListError, "surrogate"),
    ([("x", torch.zeros(1)), ("x", torch.ones(1))], ts.VarListError, "'x' is the key of two values"),
    ({"fc": torch.nn.Linear(1, 1), "fc.bias": torch.zeros(1)}, ts.VarListError, "'fc.bias' is the key of two values"),
    (
        [("o", torch.zeros(1)), ("o", torch.optim.SGD([torch.zeros(1)], lr=1.0))],
        ts.VarListError,
        "'o' is the key of two",
    ),
]


@pytest.mark.parametrize(("given", "error", "text"), NOT_GIVEN, ids=[text for _, _, text in NOT_GIVEN])
def test_var_list_that_cannot_be_saved_says_what_and_what_to_do(given: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text) as raised:
        _slots(given)
    assert type(raised.value) is error
    assert len(raised.value.problems) == 1


@pytest.mark.parametrize("given", [[], {}, (), set(), None, iter([]), torch.nn.Module()])
def test_saver_of_nothing_is_a_value_error_unless_allowed(given: Any) -> None:
    with pytest.raises(ts.VarListError, match="allow_empty=True"):
        ts.Saver(given)
    ts.Saver(given, allow_empty=True)


@pytest.mark.parametrize("form", [lambda v: [v, v], lambda v: [[v], (v,)], lambda v: {"v": v, "w": v}])
def test_var_list_with_one_tensor_twice_names_both_keys(form: Callable[..., Any]) -> None:
    with pytest.raises(ts.VarListError, match=r"'[vw]' and 'v' are the same tensor"):
        _slots(form(ts.Variable(1.0, name="v")))


def test_var_list_with_two_variables_of_one_name_is_a_value_error() -> None:
    one = ts.Variable(1.0, name="v")
    with ts.Collection():
        other = ts.Variable(1.0, name="v")
    with pytest.raises(ts.VarListError, match="'v' is the key of two values"):
        _slots([one, other])


def test_var_list_with_many_problems_tells_all_of_them_at_once() -> None:
    bad: dict[Any, Any] = {"": torch.zeros(1), "none": None, "__metadata__": torch.zeros(1), "\ud800": torch.zeros(1)}
    with pytest.raises(ts.VarListError, match="4 problems") as raised:
        _slots(bad)
    assert type(raised.value) is ts.VarListError
    bad |= {3: torch.zeros(1), "number": 1.0, "dict": {}}
    with pytest.raises(ts.VarListTypeError, match="7 problems") as raised:
        _slots(bad)
    assert len(raised.value.problems) == 7
    with pytest.raises(ts.VarListTypeError) as raised:
        _slots([None, torch.zeros(1), [("", torch.zeros(1))], ("x", 3)])
    assert len(raised.value.problems) == 4


def test_resolve_with_doubled_keys_and_tensors_tells_all_of_them_at_once() -> None:
    v = torch.zeros(1)
    with pytest.raises(ts.VarListError) as raised:
        _slots([("a", v), ("b", v), ("c", torch.ones(1)), ("c", torch.ones(1))])
    assert len(raised.value.problems) == 2


def test_names_from_that_is_no_module_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="names_from"):
        _slots([], {"w": torch.zeros(1)})  # type: ignore[arg-type]


def test_module_with_tied_weights_stores_the_first_name_and_has_the_other_as_an_alias() -> None:
    tied = Tied()
    slots = _slots(tied)
    assert (list(slots.tensors), slots.aliases) == (["body.weight"], {"head.weight": "body.weight"})
    assert slots.tensors["body.weight"] is tied.head.weight


def test_modules_with_tied_weights_across_a_dict_are_stored_once() -> None:
    one, two = Net(), Net()
    two.fc.weight, two.mean = one.fc.weight, one.mean
    slots = _slots({"one": one, "two": two})
    assert slots.aliases == {"two.fc.weight": "one.fc.weight", "two.mean": "one.mean"}
    assert sorted(slots.tensors) == sorted([*(f"one.{key}" for key in Net.KEYS), "two.fc.bias", "two.scale"])


def test_module_under_two_keys_is_stored_once() -> None:
    net = Net()
    slots = _slots({"a": net, "b": net})
    assert slots.aliases == {f"b.{key}": f"a.{key}" for key in Net.KEYS}


def test_tensor_given_beside_the_module_that_has_it_is_treated_alike_in_either_order() -> None:
    net = Net()
    outcomes: list[Any] = []
    for given in ({"model": net, "w": net.fc.weight}, {"w": net.fc.weight, "model": net}):
        try:
            slots = _slots(given)
        except ts.VarListError as error:
            outcomes.append(type(error))
        else:
            outcomes.append({*slots.tensors, *slots.aliases})
    assert outcomes[0] == outcomes[1]


def test_module_with_extra_state_saves_and_restores_it(tmp_path: Path) -> None:
    net = torch.nn.Sequential(Counted(), Counted())
    net[0].count, net[1].count = 3, {"nested": [1, None]}
    saver = ts.Saver({"model": net})
    assert sorted(_slots({"model": net}).objects) == ["model.0._extra_state", "model.1._extra_state"]
    prefix = saver.save(tmp_path / "m")
    net[0].count, net[1].count = 0, 0
    saver.restore(prefix)
    assert (net[0].count, net[1].count) == (3, {"nested": [1, None]})


def test_module_whose_state_dict_gives_copies_is_refused_with_every_such_key() -> None:
    net = Net()
    net._register_state_dict_hook(lambda module, state, *_: {key: value.clone() for key, value in state.items()})
    with pytest.raises(ts.VarListError, match="gives a copy") as raised:
        _slots({"model": net})
    assert [problem.split(":")[0] for problem in raised.value.problems] == [
        repr(f"model.{key}") for key in net.state_dict()
    ]


WRAPPED: dict[
    str, tuple[Callable[[], torch.nn.Module], str]
] = {  # and a key; tests/variables/test_wrappers.py has more
    "compile": (lambda: torch.compile(Net(), backend="eager"), "fc.weight"),
    "weight_norm": (lambda: weight_norm(torch.nn.Linear(2, 2)), "parametrizations.weight.original1"),
    "orthogonal": (lambda: orthogonal(torch.nn.Linear(2, 2)), "parametrizations.weight.original"),
    "averaged": (lambda: AveragedModel(Net()), "fc.weight"),
    "parallel": (lambda: torch.nn.DataParallel(Net()), "fc.weight"),
    "parameter_list": (lambda: torch.nn.ParameterList([torch.zeros(1), torch.ones(2)]), "1"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_module_is_saved_and_restored(tmp_path: Path, name: str) -> None:
    make, key = WRAPPED[name]
    module = make()
    saver = ts.Saver(module)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    prefix = saver.save(tmp_path / "m")
    for value in module.state_dict().values():
        value.zero_()
    assert saver.restore(prefix).missing == ()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    stored = ts.load_checkpoint(prefix).keys()
    assert key in stored
    assert len(stored) == len(state)
