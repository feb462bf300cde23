"""Objects with state_dict() and load_state_dict(): their states gathered for a save, and given back, all or none."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch

from torchsaver.errors import VarListError
from torchsaver.formats.tensor_bytes import why_not_storable
from torchsaver.variables.state_tree import flatten, unflatten
from torchsaver.variables.var_list import Slots, Stateful


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


def load_states(objects: Mapping[str, Stateful], states: Mapping[str, Any]) -> None:
    """Give each object its new state; when one refuses, all have their old states again.

    Raises:
        ObjectRefusedError: With the key of the object that raised.
    """
    done: list[tuple[Stateful, Any]] = []
    key = ""
    try:
        for key, state in states.items():
            done.append((objects[key], _copy_of_state(objects[key])))
            objects[key].load_state_dict(state)
    except BaseException as error:
        for changed, old in reversed(done):
            with contextlib.suppress(Exception):  # the first refusal is what counts, and the others must go back too
                changed.load_state_dict(old)
        if isinstance(error, Exception):
            raise ObjectRefusedError(key, error) from error
        raise


class ObjectRefusedError(Exception):
    """The object `key` raised `error` when it was given its state."""

    def __init__(self, key: str, error: Exception) -> None:
        super().__init__(key, error)
        self.key = key
        self.error = error


def _copy_of_state(value: Stateful) -> Any:
    """Return a state that loading another one does not change."""
    state = value.state_dict()
    if isinstance(value, torch.optim.Optimizer):  # it takes new tensors in place of its old ones: no copy is needed
        return state
    tree, tensors = flatten("", state)
    copies = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    return unflatten(tree, copies.__getitem__)
