"""What torch.optim.Optimizer.load_state_dict leaves to the caller: whose state it is, exact dtypes, the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchsaver.formats.tensor_bytes import dtype_text

# State of torch.optim's optimizers with its parameter's shape and dtype; other state (row_var, step, eta) has its own.
_LIKE_PARAMETER = {
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg"),
    *("acc_delta", "sum", "prev", "step_size", "ax"),
}


def why_not_for(optimizer: torch.optim.Optimizer, state: Any) -> str | None:
    """Return why a state is another optimizer's, None when it fits, or has a form that only the optimizer can judge.

    load_state_dict() goes by position: it notices neither another order of parameters nor other shapes or dtypes.
    """
    if not _is_usual(state):
        return None
    groups, stored_groups = optimizer.param_groups, state["param_groups"]
    if len(groups) != len(stored_groups):
        return f"has {len(groups)} parameter groups, and {len(stored_groups)} in checkpoint"
    for group, stored in zip(groups, stored_groups, strict=True):
        if len(group["params"]) != len(stored["params"]):
            return f"has a group of {len(group['params'])} parameters, and {len(stored['params'])} in checkpoint"
        names, stored_names = group.get("param_names"), stored.get("param_names")
        if names and stored_names and list(names) != list(stored_names):
            return f"has the parameters {list(names)}, and {list(stored_names)} in checkpoint; give them in that order"
    return _why_not_these_values(optimizer, state) if type(optimizer).__module__.startswith("torch.optim") else None


def _why_not_these_values(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> str | None:
    for index, parameter in _parameters(optimizer, state).items():
        for name, value in state["state"].get(index, {}).items():
            if name in _LIKE_PARAMETER and isinstance(value, torch.Tensor) and value.dim():
                stored, wanted = (value.shape, value.dtype), (parameter.shape, parameter.dtype)
                if stored != wanted:
                    words = [f"{list(shape)} {dtype_text(dtype)}" for shape, dtype in (stored, wanted)]
                    return f"{name!r} of parameter {index} is {words[0]} in checkpoint, and the parameter {words[1]}"
    return None


def put_back_dtypes(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Give state tensors the dtypes they are stored with: load_state_dict() casts them to their parameter's."""
    if not _is_usual(state):
        return
    for index, parameter in _parameters(optimizer, state).items():
        live = optimizer.state.get(parameter, {})
        for name, value in state["state"].get(index, {}).items():
            now = live.get(name)
            if isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor) and now.dtype != value.dtype:
                live[name] = value.to(now.device)


def way_back(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Return what undoes a load_state_dict(): tensors and groups are the very ones of before, none is copied."""
    groups, values = optimizer.param_groups, optimizer.state
    group_items = [dict(group) for group in groups]
    value_items = {parameter: dict(items) for parameter, items in values.items()}

    def back() -> None:
        for group, items in zip(groups, group_items, strict=True):
            group.clear()
            group.update(items)
        values.clear()
        values.update(value_items)
        optimizer.param_groups, optimizer.state = groups, values

    return back


def _is_usual(state: Any) -> bool:
    """Return whether a state has the form torch.optim.Optimizer.state_dict() gives it."""
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict):
        return False
    groups, values = state.get("param_groups"), state["state"].values()
    has_groups = isinstance(groups, list) and all(
        isinstance(g, dict) and isinstance(g.get("params"), list) for g in groups
    )
    return has_groups and all(isinstance(items, dict) for items in values)


def _parameters(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[int, torch.Tensor]:
    """Return the parameter each index in a state stands for."""
    indexes = [index for group in state["param_groups"] for index in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return dict(zip(indexes, parameters, strict=True))
