"""Objects with state_dict() and load_state_dict(): their states gathered for a save, and given back, all or none."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from torchsaver.errors import VarListError
from torchsaver.formats.tensor_bytes import dtype_text, why_not_storable
from torchsaver.variables.state_tree import flatten
from torchsaver.variables.var_list import Slots, Stateful

# Optimizer state that has its parameter's shape (torch.optim; others, as Adafactor's row_var, have shapes of their own).
_SHAPED_AS_PARAMETER = {
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg"),
    *("acc_delta", "sum", "prev", "step_size", "mu_product", "ax"),
}


class ObjectRefusedError(Exception):
    """The object `key` refused its state, or changed it; `reason` says how."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason


def gather(slots: Slots) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return every tensor to write, those inside objects included, and the objects' trees.

    Raises:
        VarListError: Tensors that cannot be stored, or keys that stand twice: all of them.
    """
    tensors, trees, problems = dict(slots.tensors), {}, []
    for key, value in slots.objects.items():
        trees[key], inside = flatten(key, value.state_dict())
        taken = [name for name in inside if name in tensors or name in slots.aliases]
        problems += [f"{name!r} is the key of two values; rename the object {key!r}" for name in taken]
        tensors.update(inside)
    for key, tensor in tensors.items():
        if (reason := why_not_storable(tensor)) is not None:
            problems.append(f"{key!r} {reason}")
    if problems:
        raise VarListError(problems)
    return tensors, trees


@contextlib.contextmanager
def loaded(objects: Mapping[str, Stateful], states: Mapping[str, Any]) -> Iterator[None]:
    """Give each object its new state for good, unless an error comes, here or inside the `with` block: then none.

    Raises:
        ObjectRefusedError: An object raised, or does not have the state it was given.
    """
    for key, state in states.items():
        value = objects[key]
        if isinstance(value, torch.optim.Optimizer) and (reason := _why_not_for(value, state)) is not None:
            raise ObjectRefusedError(key, reason)
    before: list[tuple[Stateful, Any]] = []
    try:
        for key, state in states.items():
            before.append((objects[key], _state_to_go_back_to(objects[key])))
            _load(key, objects[key], state)
        yield
    except BaseException:
        for value, state in reversed(before):
            with contextlib.suppress(Exception):  # the first error is what counts, and the others must go back too
                value.load_state_dict(state)
        raise


def _load(key: str, value: Stateful, state: Any) -> None:
    try:
        value.load_state_dict(state)
    except Exception as error:
        raise ObjectRefusedError(key, f"load_state_dict() raised {type(error).__name__}: {error}") from error
    if isinstance(value, torch.optim.Optimizer):
        taken = flatten(key, value.state_dict())[1]
        for path, tensor in flatten(key, state)[1].items():
            if path in taken and taken[path].dtype != tensor.dtype:
                stored, cast = dtype_text(tensor.dtype), dtype_text(taken[path].dtype)
                reason = (
                    f"{path!r} is {stored} in checkpoint, and the optimizer makes it {cast}; convert its parameters"
                )
                raise ObjectRefusedError(key, reason)


def _state_to_go_back_to(value: Stateful) -> Any:
    """Return a state that loading another one does not change."""
    state = value.state_dict()
    # An optimizer takes new tensors in place of its old ones: copying those would hold its state twice for nothing.
    return state if isinstance(value, torch.optim.Optimizer) else copy.deepcopy(state)


def _why_not_for(optimizer: torch.optim.Optimizer, state: Any) -> str | None:
    """Return why a state is another optimizer's: load_state_dict() goes by position, and notices neither order nor shape."""
    parameters: dict[int, torch.Tensor] = {}
    try:
        if len(optimizer.param_groups) != len(state["param_groups"]):
            return f"has {len(optimizer.param_groups)} parameter groups, and {len(state['param_groups'])} in checkpoint"
        for group, stored in zip(optimizer.param_groups, state["param_groups"], strict=True):
            if len(group["params"]) != len(stored["params"]):
                return f"has a group of {len(group['params'])} parameters, and {len(stored['params'])} in checkpoint"
            names, stored_names = group.get("param_names"), stored.get("param_names")
            if names and stored_names and list(names) != list(stored_names):
                return (
                    f"has the parameters {list(names)}, and {list(stored_names)} in checkpoint; give them in that order"
                )
            parameters.update(zip(stored["params"], group["params"], strict=True))
        for index, values in state["state"].items():
            for name, value in values.items() if index in parameters else ():
                shape = parameters[index].shape
                if (
                    name in _SHAPED_AS_PARAMETER
                    and isinstance(value, torch.Tensor)
                    and value.dim()
                    and value.shape != shape
                ):
                    return (
                        f"{name!r} of parameter {index} has shape {list(value.shape)} in checkpoint, {list(shape)} here"
                    )
    except (AttributeError, KeyError, TypeError):
        return None  # no state of torch.optim's own form: load_state_dict() itself is to judge it
    return None
