"""state_dict() trees <-> tensors under readable keys + JSON, with exact types and no pickle.

In JSON, null, true, false, numbers, texts and lists stand for themselves. An object has exactly one member, which says
what it is: {"dict": {..}}, {"items": [{"tuple": [key, value]}, ..]} for keys that are not texts in sorted order,
{"ordered": [..]}, {"counter": [..]}, {"tuple": [..]}, {"set": [..]}, {"frozenset": [..]}, {"tensor": KEY},
{"float": "nan"}, {"int": "0x.."}, {"bytes": BASE64}, {"bytearray": BASE64}, {"complex": [re, im]}, {"size": [..]},
{"dtype": ".."}, {"device": ".."}, {"timedelta": [days, seconds, microseconds]}, {"numpy": [dtype, BASE64]} for a numpy
number or bool, {"ndarray": KEY} for an array that is a tensor in the file, {"ndarray": [dtype, shape, BASE64]} for one
that cannot be, and {"optimizer": {"parameters": [[name, state], ..], "others": .., "param_groups": ..}}.
"""

from __future__ import annotations

import base64
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any, TypeAlias

import numpy as np
import torch

from torchsaver.formats.json_text import MAX_DEPTH, depth
from torchsaver.variables import numpy_values
from torchsaver.variables.optimizers.named_state import NamedState, named_state_of
from torchsaver.variables.problems import Problems
from torchsaver.variables.state_encoder import StateEncoder

_TensorOf: TypeAlias = Callable[[str], torch.Tensor]


def flatten(key: str, state: Any, problems: Problems) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the JSON tree of an object's state, and its tensors by key: `key`, a dot, their path inside the object.

    numpy arrays are among the tensors, where torch has their dtype; row-major, writable ones share their memory.
    What has no place in JSON, two tensors with one path, or too deep a state is noted in `problems`, with its path.
    """
    encoder = StateEncoder(problems)
    try:
        tree = encoder.encode(state, key)
        levels = depth(tree)
    except RecursionError:
        tree, levels = None, MAX_DEPTH + 1
    if levels > MAX_DEPTH:
        problems.add(f"{key!r} has a state nested over {MAX_DEPTH} deep; make it flatter")
    return tree, encoder.tensors


NO_VALUES = torch.empty(0, device="cpu")  # for who asks what a tree is like; making one each time takes long


def unflatten(tree: Any, tensor_of: _TensorOf) -> Any:
    """Return the state in a JSON tree; `tensor_of` gives the tensor of a key, and raises nothing.

    Arrays are writable, row-major and have memory of their own.

    Raises:
        ValueError: The tree is not one that `flatten` makes, or the tensor of an array has a dtype that numpy lacks.
    """
    seen: set[str] = set()

    def once(key: str) -> torch.Tensor:
        if key in seen:  # flatten gives each its own key; a small file must not become many copies of one tensor
            raise ValueError(f"not a state tree: {key!r} is the key of two tensors")
        seen.add(key)
        return tensor_of(key)

    try:
        return _decode(tree, once)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, TypeError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"not a state tree: {reason}") from error


def tensor_keys(tree: Any) -> list[str]:
    """Return the keys of the tensors a tree refers to, those that become numpy arrays too.

    Raises:
        ValueError: The tree is not one that `flatten` makes.
    """
    keys: list[str] = []

    def note(key: str) -> torch.Tensor:
        keys.append(key)
        return NO_VALUES

    unflatten(tree, note)
    return keys


def without_parameters(tree: Any, names: Collection[str]) -> Any:
    """Return the tree of an optimizer without the states of some parameters; another object's as it is."""
    if not names or not isinstance(tree, dict) or tree.keys() != {"optimizer"}:
        return tree
    parameters = [pair for pair in tree["optimizer"]["parameters"] if pair[0] not in names]
    return {"optimizer": {**tree["optimizer"], "parameters": parameters}}


def _decode(tree: Any, tensor_of: _TensorOf) -> Any:
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, list):
        return [_decode(item, tensor_of) for item in tree]
    if len(tree) != 1:
        raise ValueError("an object in a state tree has one member, its kind")
    ((kind, value),) = tree.items()
    if kind in _WITH_TENSORS:
        return _WITH_TENSORS[kind](value, tensor_of)
    if kind in _CONTAINERS and isinstance(value, list):
        return _CONTAINERS[kind](_decode(item, tensor_of) for item in value)
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    raise ValueError(f"a state tree has the unknown kind {kind!r}; a newer torchsaver may know it")


def _decode_tensor(key: Any, tensor_of: _TensorOf) -> torch.Tensor:
    if not isinstance(key, str):
        raise ValueError(f"a tensor's key is a text, not {key!r}")
    return tensor_of(key)


def _decode_array(value: Any, tensor_of: _TensorOf) -> np.ndarray[Any, Any]:
    return numpy_values.from_tensor(tensor_of(value)) if isinstance(value, str) else numpy_values.decode_array(value)


def _decode_dict(members: dict[str, Any], tensor_of: _TensorOf) -> dict[str, Any]:
    return {name: _decode(item, tensor_of) for name, item in members.items()}


def _decode_named_state(value: Any, tensor_of: _TensorOf) -> NamedState:
    if value.keys() != {"parameters", "others", "param_groups"}:
        raise ValueError("an optimizer's state has other members")
    parameters = {name: _decode(state, tensor_of) for name, state in value["parameters"]}
    if len(parameters) != len(value["parameters"]):
        raise ValueError("an optimizer's state names a parameter twice")
    others, groups = _decode(value["others"], tensor_of), _decode(value["param_groups"], tensor_of)
    return named_state_of(parameters, others, groups)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {name!r}")
    return dtype


def _timedelta(parts: Any) -> timedelta:
    days, seconds, microseconds = parts
    return timedelta(days, seconds, microseconds)


def _bytes(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)


_WITH_TENSORS: dict[str, Callable[[Any, _TensorOf], Any]] = {
    "tensor": _decode_tensor,
    "ndarray": _decode_array,
    "dict": _decode_dict,
    "optimizer": _decode_named_state,
}
_CONTAINERS: dict[str, Callable[..., Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "items": dict,
    "ordered": OrderedDict,
    "counter": lambda pairs: Counter(dict(pairs)),
}
_SCALARS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "int": lambda text: int(text, 16),
    "bytes": _bytes,
    "bytearray": lambda text: bytearray(_bytes(text)),
    "complex": lambda parts: complex(float(parts[0]), float(parts[1])),
    "size": torch.Size,
    "dtype": _dtype,
    "device": torch.device,
    "timedelta": _timedelta,
    "numpy": numpy_values.decode_scalar,
}
