"""state_dict() trees <-> tensors under readable keys + JSON, with exact types and no pickle.

In JSON, null, true, false, numbers, texts and lists stand for themselves. An object has exactly one member, which says
what it is: {"dict": {..}}, {"items": [{"tuple": [key, value]}, ..]} for keys that are not texts in sorted order,
{"ordered": [..]}, {"counter": [..]}, {"tuple": [..]}, {"set": [..]}, {"tensor": KEY}, {"float": "nan"},
{"int": "0x.."}, {"bytes": BASE64}, {"complex": [re, im]}, {"size": [..]}, {"dtype": ".."}, {"device": ".."}, and
{"numpy": [dtype, BASE64]} for a numpy number or bool.
"""

from __future__ import annotations

import base64
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from torchsaver.formats.json_text import MAX_DEPTH, depth, is_unicode
from torchsaver.variables.var_list import Problems

_PLAIN_INT_LIMIT = 1 << 63  # larger ones are not read alike by every JSON reader


def flatten(key: str, state: Any, problems: Problems) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the JSON tree of an object's state, and its tensors by key: `key`, a dot, their path inside the object.

    What has no place in JSON, two tensors with one path, or too deep a state is noted in `problems`, with its path.
    """
    encoder = _Encoder(problems)
    try:
        tree = encoder.encode(state, key)
        levels = depth(tree)
    except RecursionError:
        tree, levels = None, MAX_DEPTH + 1
    if levels > MAX_DEPTH:
        problems.add(f"{key!r} has a state nested over {MAX_DEPTH} deep; make it flatter")
    return tree, encoder.tensors


def unflatten(tree: Any, tensor_of: Callable[[str], torch.Tensor]) -> Any:
    """Return the state in a JSON tree; `tensor_of` gives the tensor of a key, and raises nothing.

    Raises:
        ValueError: The tree is not one that `flatten` makes.
    """
    try:
        return _decode(tree, tensor_of)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, TypeError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"not a state tree: {reason}") from error


def tensor_keys(tree: Any) -> list[str]:
    """Return the keys of the tensors a tree refers to.

    Raises:
        ValueError: The tree is not one that `flatten` makes.
    """
    keys: list[str] = []

    def note(key: str) -> torch.Tensor:
        keys.append(key)
        return torch.empty(0, device="cpu")

    unflatten(tree, note)
    return keys


def _decode(tree: Any, tensor_of: Callable[[str], torch.Tensor]) -> Any:
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, list):
        return [_decode(item, tensor_of) for item in tree]
    if len(tree) != 1:
        raise ValueError("an object in a state tree has one member, its kind")
    ((kind, value),) = tree.items()
    if kind == "tensor" and isinstance(value, str):
        return tensor_of(value)
    if kind == "dict":
        return {name: _decode(item, tensor_of) for name, item in value.items()}
    if kind in _CONTAINERS and isinstance(value, list):
        return _CONTAINERS[kind](_decode(item, tensor_of) for item in value)
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    raise ValueError(f"a state tree has the unknown kind {kind!r}; a newer torchsaver may know it")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {name!r}")
    return dtype


_CONTAINERS: dict[str, Callable[..., Any]] = {
    "tuple": tuple,
    "set": set,
    "items": dict,
    "ordered": OrderedDict,
    "counter": lambda pairs: Counter(dict(pairs)),
}
_MAPPINGS: dict[type, str] = {dict: "items", OrderedDict: "ordered", Counter: "counter"}
_SCALARS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "int": lambda text: int(text, 16),
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "complex": lambda parts: complex(float(parts[0]), float(parts[1])),
    "size": torch.Size,
    "dtype": _dtype,
    "device": torch.device,
    "numpy": lambda parts: np.frombuffer(base64.b64decode(parts[1], validate=True), np.dtype(parts[0]))[0],
}


class _Encoder:
    """Turns a state into a JSON tree; gathers its tensors, and what is wrong with it."""

    def __init__(self, problems: Problems) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._problems = problems

    def encode(self, value: Any, path: str) -> Any:
        kind = type(value)
        if isinstance(value, torch.Tensor):
            if path in self.tensors:
                self._problems.add(f"{path!r} is the key of two tensors inside one object; rename one of its entries")
            self.tensors[path] = value
            return {"tensor": path}
        if kind is str and not is_unicode(value):
            self._problems.add(f"{path!r} is a text with a lone surrogate, which UTF-8 cannot hold")
            return None
        encode_scalar = _encode_numpy if isinstance(value, (np.number, np.bool_)) else _ENCODERS.get(kind)
        if encode_scalar is not None:
            return encode_scalar(value)
        if kind in (list, tuple, set):
            items = [self.encode(item, f"{path}.{index}") for index, item in enumerate(value)]
            return items if kind is list else {kind.__name__: items}
        if kind in _MAPPINGS:
            return self._encode_mapping(value, path)
        remedy = "numbers, texts, bytes, tensors, and dict, list, tuple and set of them can be stored"
        self._problems.add(f"{path!r} is a {kind.__module__}.{kind.__qualname__}; {remedy}", wrong_type=True)
        return None

    def _encode_mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        members = {key: self.encode(item, f"{path}.{key}") for key, item in value.items()}
        if type(value) is dict and all(type(key) is str for key in members) and list(members) == sorted(members):
            return {"dict": members}  # JSON objects are written sorted; any other order is kept as pairs
        pairs = [{"tuple": [self.encode(key, f"{path} (key)"), item]} for key, item in members.items()]
        return {_MAPPINGS[type(value)]: pairs}


def _encode_numpy(value: np.generic) -> Any:
    return {"numpy": [value.dtype.str, base64.b64encode(value.tobytes()).decode("ascii")]}


def _encode_float(value: float) -> Any:
    return value if math.isfinite(value) else {"float": repr(value)}


_ENCODERS: dict[type, Callable[[Any], Any]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    str: lambda value: value,
    int: lambda value: value if -_PLAIN_INT_LIMIT <= value < _PLAIN_INT_LIMIT else {"int": hex(value)},
    float: _encode_float,
    bytes: lambda value: {"bytes": base64.b64encode(value).decode("ascii")},
    complex: lambda value: {"complex": [repr(value.real), repr(value.imag)]},
    torch.Size: lambda value: {"size": list(value)},
    torch.dtype: lambda value: {"dtype": str(value).removeprefix("torch.")},
    torch.device: lambda value: {"device": str(value)},
}
