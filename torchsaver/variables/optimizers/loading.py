"""Loading a state into an optimizer as a restore wants it: exact dtypes, its own devices, and a way back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch


def load(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Have an optimizer load a state, on the devices where it has such values.

    Raises:
        ValueError: The state is another optimizer's.
        Exception: Whatever the optimizer raises.
    """
    devices = [_devices(group) for group in optimizer.param_groups]
    options = _own_options(optimizer)
    optimizer.load_state_dict(state)
    if lost := sorted(set[str]().union(*(options - group.keys() for group in optimizer.param_groups))):
        raise ValueError(f"it is of another optimizer, and has no {', '.join(lost)} for the groups of this one")
    for group, own in zip(optimizer.param_groups, devices, strict=True):
        group |= {key: group[key].to(own[key]) for key in _devices(group).keys() & own.keys()}
        if isinstance(optimizer, torch.optim.Optimizer):
            _complete(optimizer, group)


def _own_options(optimizer: torch.optim.Optimizer) -> set[str]:
    """Return the options that the optimizer gives each group itself; a scheduler or a user may have added others."""
    return set(getattr(optimizer, "defaults", ())).intersection(*optimizer.param_groups)


def put_back_values(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give state what is stored where load_state_dict() makes something else of it.

    It casts tensors to the dtype of their parameter, and of a text it makes the text of a Python object.
    """
    indexes = [index for group in state["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in dict(zip(indexes, parameters, strict=True)).items():
        live = optimizer.state.get(parameter, {})
        for name, value in state["state"].get(index, {}).items():
            if name in live:
                live[name] = _as_stored(live[name], value)


def _as_stored(now: Any, value: Any) -> Any:
    """Return what a part of a state is to be: what it is now, or, where that is another thing, what is stored."""
    if isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor):
        return now if now.dtype == value.dtype else value.to(now.device)
    if type(now) is not type(value):
        return now
    if isinstance(value, (str, bytes)):
        return value
    if isinstance(value, (list, tuple)) and len(now) == len(value):
        return type(value)([_as_stored(each, stored) for each, stored in zip(now, value, strict=True)])
    if isinstance(value, dict) and now.keys() == value.keys():
        return {key: _as_stored(now[key], stored) for key, stored in value.items()}
    return now


def _devices(values: Mapping[str, Any]) -> dict[str, torch.device]:
    """Return where those values are that are tensors: a learning rate may be one."""
    return {key: value.device for key, value in values.items() if isinstance(value, torch.Tensor)}


def _complete(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Do what two optimizers of torch do at their start only, and load_state_dict() does not do again."""
    for parameter in group["params"]:
        state = optimizer.state.get(parameter, {})
        if isinstance(optimizer, torch.optim.Adagrad) and not state:  # it has sums before the first step
            options = {key: group[key] for key in ("initial_accumulator_value", "fused") if group.get(key)}
            optimizer.state[parameter] = torch.optim.Adagrad([parameter], **options).state[parameter]
        elif isinstance(optimizer, torch.optim.ASGD) and "step" in state:
            state["step"] = state["step"].to(parameter.device)


def way_back(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return what gives an optimizer the state back that it has now: the very groups and tensors, if it is torch's."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        state = copy.deepcopy(optimizer.state_dict())
        return lambda: optimizer.load_state_dict(state)
    groups, values = optimizer.param_groups, optimizer.state
    group_items = [dict(group) for group in groups]
    value_items = {key: dict(items) if isinstance(items, dict) else items for key, items in values.items()}

    def back() -> None:
        for group, items in zip(groups, group_items, strict=True):
            group.clear()
            group.update(items)
        values.clear()
        values.update(value_items)
        optimizer.param_groups, optimizer.state = groups, values

    return back
