"""From an object's state to its JSON tree and tensors; state_tree tells the form, and leads back."""

from __future__ import annotations

import base64
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import torch

from torchsaver.formats.json_text import canonical_json, is_unicode
from torchsaver.variables import numpy_values
from torchsaver.variables.optimizers.named_state import NamedState
from torchsaver.variables.problems import Problems

_PLAIN_INT_LIMIT = 1 << 63  # larger ones are not read alike by every JSON reader
_STORABLE = (
    "numbers, texts, bytes, timedelta, tensors, numpy arrays, and dict, list, tuple and set of them can be stored"
)


class StateEncoder:
    """Turns a state into a JSON tree; gathers its tensors, and what is wrong with it.

    Attributes:
        tensors: What the tree refers to, by key; numpy arrays among them.
    """

    def __init__(self, problems: Problems) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._problems = problems

    def encode(self, value: Any, path: str) -> Any:
        """Return the tree of a value, whose tensors are named from `path` on; what cannot be stored is noted."""
        kind = type(value)
        if (encode := _PLAIN.get(kind)) is not None:
            return encode(value)
        if (encode_at := _BY_PATH.get(kind)) is not None:
            return encode_at(self, value, path)
        if isinstance(value, torch.Tensor):
            return self._add_tensor("tensor", value, path)
        if numpy_values.is_scalar(value):
            return {"numpy": numpy_values.encode_scalar(value)}
        self._problems.add(f"{path!r} is a {kind.__module__}.{kind.__qualname__}; {_STORABLE}", wrong_type=True)
        return None

    def _add_tensor(self, kind: str, tensor: torch.Tensor, path: str) -> Any:
        if path in self.tensors:
            self._problems.add(f"{path!r} is the key of two tensors inside one object; rename one of its entries")
        self.tensors[path] = tensor
        return {kind: path}

    def _encode_text(self, text: str, path: str) -> Any:
        if not is_unicode(text):
            self._problems.add(f"{path!r} is a text with a lone surrogate, which UTF-8 cannot hold")
        return text

    def _encode_list(self, items: list[Any], path: str) -> Any:
        return [self.encode(item, f"{path}.{index}") for index, item in enumerate(items)]

    def _encode_tuple(self, items: tuple[Any, ...], path: str) -> Any:
        return {"tuple": self._encode_list(list(items), path)}

    def _encode_set(self, members: set[Any] | frozenset[Any], path: str) -> Any:
        trees = [self._encode_hashable(member, f"{path} (member)") for member in members]
        return {type(members).__name__: sorted(trees, key=canonical_json)}  # a set's own order differs from run to run

    def _encode_array(self, array: np.ndarray[Any, Any], path: str) -> Any:
        if (tensor := numpy_values.as_tensor(array)) is not None:
            return self._add_tensor("ndarray", tensor, path)
        try:
            return {"ndarray": numpy_values.encode_array(array)}
        except ValueError as error:
            self._problems.add(f"{path!r} {error}", wrong_type=True)
            return None

    def _encode_hashable(self, value: Any, path: str) -> Any:
        """Return the tree of a member of a set, or a key of a dict: a tensor there is found by identity alone."""
        if type(value) is str or type(value) in _PLAIN:
            return self.encode(value, path)
        inside = StateEncoder(self._problems)
        tree = inside.encode(value, path)
        if inside.tensors:
            self._problems.add(f"{path!r} is or has a tensor, which cannot be found again there; use a list of tensors")
        return tree

    def _encode_mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        members = {key: self.encode(item, f"{path}.{key}") for key, item in value.items()}
        keys = [self._encode_hashable(key, f"{path} (key)") for key in members]
        if type(value) is dict and all(type(key) is str for key in members) and list(members) == sorted(members):
            return {"dict": members}  # JSON objects are written sorted; any other order is kept as pairs
        pairs = [{"tuple": [key, item]} for key, item in zip(keys, members.values(), strict=True)]
        return {_MAPPINGS[type(value)]: pairs}

    def _encode_named_state(self, state: NamedState, path: str) -> Any:
        parameters = [
            [self.encode(name, f"{path} (name)"), self.encode(own, f"{path}.{name}")]
            for name, own in state.parameters.items()
        ]
        others, groups = self.encode(state.others, path), self.encode(state.param_groups, f"{path}.param_groups")
        return {"optimizer": {"parameters": parameters, "others": others, "param_groups": groups}}


def _encode_float(value: float) -> Any:
    return value if math.isfinite(value) else {"float": repr(value)}


def _base64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode("ascii")


_MAPPINGS: dict[type, str] = {dict: "items", OrderedDict: "ordered", Counter: "counter"}
_PLAIN: dict[type, Callable[[Any], Any]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    int: lambda value: value if -_PLAIN_INT_LIMIT <= value < _PLAIN_INT_LIMIT else {"int": hex(value)},
    float: _encode_float,
    bytes: lambda value: {"bytes": _base64(value)},
    bytearray: lambda value: {"bytearray": _base64(value)},
    complex: lambda value: {"complex": [repr(value.real), repr(value.imag)]},
    torch.Size: lambda value: {"size": list(value)},
    torch.dtype: lambda value: {"dtype": str(value).removeprefix("torch.")},
    torch.device: lambda value: {"device": str(value)},
    timedelta: lambda value: {"timedelta": [value.days, value.seconds, value.microseconds]},
}
_BY_PATH: dict[type, Callable[[StateEncoder, Any, str], Any]] = {
    str: StateEncoder._encode_text,
    list: StateEncoder._encode_list,
    tuple: StateEncoder._encode_tuple,
    **dict.fromkeys((set, frozenset), StateEncoder._encode_set),
    **dict.fromkeys(_MAPPINGS, StateEncoder._encode_mapping),
    np.ndarray: StateEncoder._encode_array,
    NamedState: StateEncoder._encode_named_state,
}
