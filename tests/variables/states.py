"""States of objects through JSON and back, and a way to compare them with their types."""

from __future__ import annotations

import collections
import json
from typing import Any

import numpy as np
import torch

from torchsaver.formats.json_text import canonical_json
from torchsaver.variables import state_tree
from torchsaver.variables.optimizers.named_state import NamedState
from torchsaver.variables.problems import Problems
from torchsaver.variables.state_tree import tensor_keys, unflatten


def flatten(key: str, state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return what state_tree.flatten gives, or raise what it noted."""
    problems = Problems()
    flat = state_tree.flatten(key, state, problems)
    problems.raise_if_any()
    return flat


def round_trip(state: Any) -> Any:
    tree, tensors = flatten("o", state)
    tree = json.loads(canonical_json(tree))
    assert tensor_keys(tree) == [key for key in tensor_keys(tree) if key in tensors]
    assert len(tensor_keys(tree)) == len(tensors)
    return unflatten(tree, tensors.__getitem__)


def described(value: Any) -> Any:
    """Return something whose == compares values and types, and the order where it is a part of the value."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return _described_array(value)
    if isinstance(value, NamedState):
        return NamedState, list(value.parameters), described([value.parameters, value.others, value.param_groups])
    if isinstance(value, dict):
        pairs = [(described(key), described(item)) for key, item in value.items()]
        return type(value), pairs if isinstance(value, collections.OrderedDict) else sorted(pairs, key=repr)
    if isinstance(value, (list, tuple)):
        return type(value), [described(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(map(repr, map(described, value)))
    return type(value), repr(value)


def _described_array(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return "tensor", value.dtype, value.tolist()
    fields = [described(value[name]) for name in value.dtype.names or ()]  # what is between them is no value
    return type(value), repr(value.dtype), value.shape, fields or value.tobytes()


class Holder:
    """An object that takes any state."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state
