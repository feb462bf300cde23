"""Collections name variables, hold them weakly, and find what a module has now."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import torchsaver as ts
from torchsaver.variables.collection import current_collection, name_of
from torchsaver.variables.var_list import read_var_list, resolve


@pytest.fixture(autouse=True)
def _own_collection() -> Iterator[None]:
    with ts.Collection():
        yield


def _keys() -> list[str]:
    return list(resolve(read_var_list(None)).tensors)


def test_variable_with_a_taken_name_gets_the_next_free_number() -> None:
    variables = [ts.Variable(1.0, name=name) for name in ("v1", "v1", "v1", "v1_1", "b")]
    assert [name_of(variable) for variable in variables] == ["v1", "v1_1", "v1_2", "v1_1_1", "b"]
    assert _keys() == ["v1", "v1_1", "v1_2", "v1_1_1", "b"]


def test_variable_that_is_gone_frees_its_name_and_is_not_saved() -> None:
    first, second = ts.Variable(1.0, name="v1"), ts.Variable(2.0, name="v1")
    del first
    gc.collect()
    assert _keys() == ["v1_1"]
    third = ts.Variable(3.0, name="v1")
    assert (name_of(third), name_of(second)) == ("v1", "v1_1")


def test_variable_without_a_name_is_called_variable() -> None:
    variables = [ts.Variable(1.0), ts.Variable(2.0)]
    assert [name_of(variable) for variable in variables] == ["Variable", "Variable_1"]


@pytest.mark.parametrize(("name", "error"), [("", ValueError), (None, TypeError), (3, TypeError), (b"v", TypeError)])
def test_variable_with_a_bad_name_says_so_and_is_not_made(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="name is"):
        ts.Variable(1.0, name=name)
    assert list(current_collection().members()) == []


@pytest.mark.parametrize(
    ("initial", "dtype", "found", "wants_grad"),
    [
        (1.0, None, torch.float32, True),
        (1, None, torch.int64, False),
        (True, None, torch.bool, False),
        (1j, None, torch.complex64, True),
        ([[1.0, 2.0]], None, torch.float32, True),
        ([], None, torch.float32, True),
        (np.zeros(2), None, torch.float64, True),
        (torch.zeros(2, dtype=torch.float16), None, torch.float16, True),
        (1, torch.float64, torch.float64, True),
        (1.5, torch.int8, torch.int8, False),
        (torch.zeros(2), torch.bfloat16, torch.bfloat16, True),
    ],
)
def test_variable_has_the_dtype_of_its_value_or_the_one_asked_for(
    initial: Any, dtype: torch.dtype | None, found: torch.dtype, wants_grad: bool
) -> None:
    variable = ts.Variable(initial, name="v", dtype=dtype)
    assert isinstance(variable, torch.nn.Parameter)
    assert (variable.dtype, variable.requires_grad) == (found, wants_grad)
    assert variable.shape == torch.as_tensor(initial).shape


def test_variable_not_trainable_gets_no_gradient_and_is_saved_all_the_same() -> None:
    variable = ts.Variable(1.0, name="v", trainable=False)
    assert not variable.requires_grad
    assert _keys() == ["v"]


@pytest.mark.parametrize("make", [torch.zeros, np.zeros, lambda n: torch.nn.Parameter(torch.zeros(n))])
def test_variable_copies_its_initial_value(make: Any) -> None:
    initial = make(2)
    variable = ts.Variable(initial, name="v")
    with torch.no_grad():
        variable += 1
    assert list(initial) == [0.0, 0.0]


def test_variable_made_from_a_part_of_a_graph_is_a_leaf() -> None:
    assert ts.Variable(torch.ones(2, requires_grad=True) * 2, name="v").is_leaf


def test_name_of_a_tensor_that_is_no_variable_is_none() -> None:
    variable = ts.Variable(1.0, name="v")
    assert [name_of(t) for t in (torch.zeros(1), variable.detach(), variable.clone())] == [None, None, None]


def test_collection_keeps_nothing_alive_and_saver_keeps_what_it_saves() -> None:
    variable, module = ts.Variable(1.0, name="v"), ts.track(torch.nn.Linear(1, 1), "m")
    saver = ts.Saver()
    del variable, module
    gc.collect()
    assert [name for name, _ in current_collection().members()] == ["v", "m"]
    del saver
    gc.collect()
    assert list(current_collection().members()) == []


def test_collection_nested_sees_its_own_variables_only() -> None:
    outer = ts.Variable(1.0, name="v")
    with ts.Collection() as inside:
        assert _keys() == []
        inner = ts.Variable(2.0, name="v")
        assert name_of(inner) == "v"
        with ts.Collection():
            assert _keys() == []
        assert current_collection() is inside
    assert [id(tensor) for tensor in resolve(read_var_list(None)).tensors.values()] == [id(outer)]


def test_collection_entered_again_and_left_by_an_error_gives_back_the_one_before() -> None:
    before, again = current_collection(), ts.Collection()
    with pytest.raises(KeyError), again, again:
        raise KeyError
    assert current_collection() is before
    with again:
        assert current_collection() is again


def test_collection_is_not_seen_by_other_threads_which_have_the_default() -> None:
    found: list[Any] = []
    with ts.Collection() as mine:
        thread = threading.Thread(target=lambda: found.append(current_collection()))
        thread.start()
        thread.join()
        assert found[0] is not mine
    fresh = threading.Thread(target=lambda: found.append(current_collection()))
    fresh.start()
    fresh.join()
    assert found[1] is found[0]


def test_track_puts_a_modules_keys_under_its_name_or_as_they_are() -> None:
    named, plain, second = torch.nn.Linear(1, 1), torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 1, bias=False)
    assert ts.track(named, "net") is named
    ts.track(plain)
    ts.track(second, "net")
    batch_norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert _keys() == ["net.weight", "net.bias", "net_1.weight", *batch_norm]


def test_track_of_a_tracked_module_changes_nothing() -> None:
    module = torch.nn.Linear(1, 1)
    ts.track(module, "net")
    ts.track(module, "net")
    assert _keys() == ["net.weight", "net.bias"]
    with pytest.raises(ValueError, match="'net' already"):
        ts.track(module, "other")


@pytest.mark.parametrize("given", [None, torch.zeros(1), torch.nn.Linear, {}])
def test_track_of_no_module_is_a_type_error(given: Any) -> None:
    with pytest.raises(TypeError, match=r"Variable\(\)"):
        ts.track(given)


def test_tracked_module_is_looked_up_anew_after_its_tensors_are_replaced() -> None:
    module = torch.nn.BatchNorm1d(2)
    ts.track(module)
    entries = read_var_list(None)
    for change in (
        module.double,  # replaces buffers
        lambda: module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True),
        lambda: setattr(module, "weight", torch.nn.Parameter(torch.zeros(2))),
    ):
        old = resolve(entries).tensors
        change()
        new = resolve(entries).tensors
        assert any(new[key] is not old[key] for key in new)
        assert all(new[key] is getattr(module, key) for key in new)


def test_variable_that_is_a_tracked_modules_parameter_is_saved_once_in_either_order() -> None:
    outcomes = []
    for variable_first in (True, False):
        with ts.Collection():
            module = torch.nn.Module()
            if not variable_first:
                ts.track(module, "net")
            module.w = ts.Variable(1.0, name="w")
            ts.track(module, "net")
            slots = resolve(read_var_list(None))
            outcomes.append((len(slots.tensors), {*slots.tensors, *slots.aliases}))
    assert outcomes == [(1, {"w", "net.w"})] * 2
