"""state_dict() trees <-> tensors under readable keys + JSON, with exact types and no pickle.

In JSON, null, true, false, numbers, texts and lists stand for themselves. An object has exactly one member, which says
what it is: {"dict": {..}}, {"items": [[key, value], ..]} for keys that are not all texts, {"tuple": [..]}, {"set": [..]},
{"tensor": KEY}, {"float": "nan"}, {"int": "0x.."}, {"bytes": BASE64}, {"complex": [re, im]}, {"size": [..]},
{"dtype": ".."}, {"device": ".."}, {"ordered": [[key, value], ..]}.
"""

from __future__ import annotations

import base64
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from torchsaver.errors import VarListError, VarListTypeError
from torchsaver.formats.manifest import MAX_DEPTH, depth
from torchsaver.formats.tensor_bytes import why_not_storable
from torchsaver.variables.var_list import Slots, Stateful

_PLAIN_INT_LIMIT = 1 << 63  # larger ones are not read alike by every JSON reader


def flatten(key: str, state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the JSON tree of an object's state, and its tensors by key: `key`, a dot, their path inside the object.

    Raises:
        VarListTypeError: A value or key of a type that has no place in JSON, with its path.
        VarListError: Two tensors would get one key, or it is nested too deep.
    """
    tensors: dict[str, torch.Tensor] = {}
    try:
        return _encode(state, key, tensors), tensors
    except RecursionError as error:
        raise VarListError([f"{key!r} has a state that is nested without end, or nearly; make it flatter"]) from error


def gather(slots: Slots) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return every tensor to write, those inside objects included, and the objects' trees.

    Raises:
        VarListError: Tensors that cannot be stored, or keys that stand twice: all of them.
    """
    tensors, trees, problems = dict(slots.tensors), {}, []
    for key, value in slots.objects.items():
        trees[key], inside = flatten(key, value.state_dict())
        if depth(trees[key]) > MAX_DEPTH:
            problems.append(f"{key!r} has a state nested over {MAX_DEPTH} deep; make it flatter")
        taken = [name for name in inside if name in tensors or name in slots.aliases]
        problems += [f"{name!r} is the key of two values; rename the object {key!r}" for name in taken]
        tensors.update(inside)
    for key, tensor in tensors.items():
        if (reason := why_not_storable(tensor)) is not None:
            problems.append(f"{key!r} {reason}")
    if problems:
        raise VarListError(problems)
    return tensors, trees


def unflatten(tree: Any, tensor_of: Callable[[str], torch.Tensor]) -> Any:
    """Return the state in a JSON tree; `tensor_of` gives the tensor stored under a key.

    Raises:
        ValueError: The tree is not one that `flatten` makes.
    """
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, list):
        return [unflatten(item, tensor_of) for item in tree]
    if not isinstance(tree, dict) or len(tree) != 1:
        raise ValueError("an object in a state tree has one member, its kind")
    (kind, value), *_ = tree.items()
    if kind == "tensor":
        return tensor_of(value)
    if kind == "dict":
        return {name: unflatten(item, tensor_of) for name, item in value.items()}
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](unflatten(item, tensor_of) for item in value)
    if kind in _SCALARS:
        return _SCALARS[kind](value)
    raise ValueError(f"a state tree has the unknown kind {kind!r}; a newer torchsaver may know it")


def tensor_keys(tree: Any) -> list[str]:
    """Return the keys of the tensors a tree refers to."""
    keys: list[str] = []

    def note(key: str) -> torch.Tensor:
        keys.append(key)
        return torch.empty(0)

    unflatten(tree, note)
    return keys


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


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {name!r}")
    return dtype


_CONTAINERS: dict[str, Callable[..., Any]] = {"tuple": tuple, "set": set, "items": dict, "ordered": OrderedDict}
_SCALARS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "int": lambda text: int(text, 16),
    "bytes": base64.b64decode,
    "complex": lambda parts: complex(float(parts[0]), float(parts[1])),
    "size": torch.Size,
    "dtype": _dtype,
    "device": torch.device,
}


def _encode(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        if path in tensors:
            raise VarListError([f"{path!r} is the key of two tensors inside one object; rename one of its entries"])
        tensors[path] = value
        return {"tensor": path}
    kind = type(value)
    if kind in _ENCODERS:
        return _ENCODERS[kind](value)
    if kind in (list, tuple, set):
        items = [_encode(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
        return items if kind is list else {kind.__name__: items}
    if kind in (dict, OrderedDict):
        return _encode_mapping(value, path, tensors)
    remedy = "numbers, texts, bytes, tensors, and dict, list, tuple and set of them can be stored"
    raise VarListTypeError([f"{path!r} is a {kind.__module__}.{kind.__qualname__}; {remedy}"])


def _encode_mapping(value: Mapping[Any, Any], path: str, tensors: dict[str, torch.Tensor]) -> Any:
    members = {key: _encode(item, f"{path}.{key}", tensors) for key, item in value.items()}
    if type(value) is dict and all(type(key) is str for key in members):
        return {"dict": members}
    pairs = [{"tuple": [_encode(key, f"{path} (key)", tensors), item]} for key, item in members.items()]
    return {"ordered" if isinstance(value, OrderedDict) else "items": pairs}


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
