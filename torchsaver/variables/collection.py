"""Collections: what `Saver()` saves when it is given no var_list (TF: the graph's GLOBAL_VARIABLES).

A collection holds weak references: it never keeps a variable or module alive. There is always a current one; a `with
Collection():` block makes another current, so that tests and notebooks do not see each other's variables.
"""

from __future__ import annotations

import contextvars
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch

_current: contextvars.ContextVar[Collection] = contextvars.ContextVar("torchsaver_collection")
# Names live beside the tensors: an attribute would be lost in copies, and a tensor's == is no way to look it up.
_names: dict[int, tuple[weakref.ref[torch.Tensor], str]] = {}


class Collection:
    """A set of named variables and modules, weakly referenced, in the order they were added.

    Used as a context it is the current collection: where `Variable` and `track` put things and `Saver()` finds them.
    """

    def __init__(self) -> None:
        self._members: dict[str, weakref.ref[Any]] = {}
        self._unnamed: list[weakref.ref[torch.nn.Module]] = []
        self._asked: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()  # names asked for
        self._tokens: list[contextvars.Token[Collection]] = []

    def members(self) -> Iterator[tuple[str, torch.Tensor | torch.nn.Module]]:
        """Yield (name, value) for what is alive; a module tracked without a name has the name ""."""
        for name, reference in list(self._members.items()):
            if (value := reference()) is not None:
                yield name, value
        for unnamed in list(self._unnamed):
            if (module := unnamed()) is not None:
                yield "", module

    def _add(self, value: torch.Tensor | torch.nn.Module, name: str) -> str:
        """Add `value` under `name`, or `name_1`, `name_2`, ... where that is taken; return the name it got."""
        free, number = name, 0
        while (taken := self._members.get(free)) is not None and taken() is not None:
            number += 1
            free = f"{name}_{number}"
        self._members[free] = weakref.ref(value)
        return free

    def __enter__(self) -> Collection:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._tokens.pop())


_default = Collection()


def current_collection() -> Collection:
    """Return the collection of the innermost `with Collection():` block, or the default one."""
    return _current.get(_default)


def Variable(  # noqa: N802 - TF's name
    initial_value: Any, *, name: str = "Variable", trainable: bool = True, dtype: torch.dtype | None = None
) -> torch.nn.Parameter:
    """Return a new named parameter, and put it into the current collection.

    As in TF, a name that is taken becomes `name_1`, `name_2`, and so on.

    Args:
        initial_value: Number, nested list, array or tensor; it is copied.
        name: Its key in checkpoints.
        trainable: Whether it gets gradients; an integer or bool parameter never does.
        dtype: Its dtype; torch's own choice for `initial_value` by default.

    Returns:
        A parameter on torch's default device (or on `initial_value`'s); `Saver()` and `Saver([v1, v2])` know its name.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is a str, not {type(name).__name__}")
    if not name:
        raise ValueError("name is empty; leave it out for a name of TF's making")
    source = (
        initial_value.detach() if isinstance(initial_value, torch.Tensor) else torch.tensor(initial_value, dtype=dtype)
    )
    value = source.to(dtype=source.dtype if dtype is None else dtype, copy=True)
    differentiable = value.dtype.is_floating_point or value.dtype.is_complex
    parameter = torch.nn.Parameter(value, requires_grad=trainable and differentiable)
    _remember_name(parameter, current_collection()._add(parameter, name))
    return parameter


def track(module: torch.nn.Module, name: str = "") -> torch.nn.Module:
    """Put a module's parameters and persistent buffers into the current collection, and return the module.

    They are looked up anew at each save and restore, so `module.to()` and `load_state_dict(assign=True)` are seen.

    Args:
        module: Referenced weakly; tracking it a second time under the same name changes nothing.
        name: Put before its keys with a dot; a taken name becomes `name_1`. Without one, its keys stand as they are.

    Raises:
        TypeError: Not a module.
        ValueError: It is tracked already under another name.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"track() takes a torch.nn.Module, not {type(module).__name__}; use Variable() for a single value"
        )
    collection = current_collection()
    if any(value is module for _, value in collection.members()):
        if (known := collection._asked[module]) != name:
            raise ValueError(f"this module is tracked as {known!r} already; give it one name in a collection")
        return module
    collection._asked[module] = name
    if name:
        collection._add(module, name)
    else:
        collection._unnamed.append(weakref.ref(module))
    return module


def name_of(tensor: torch.Tensor) -> str | None:
    """Return the name `Variable` gave this very tensor, or None."""
    reference, name = _names.get(id(tensor), (None, ""))
    return name if reference is not None and reference() is tensor else None


def _remember_name(tensor: torch.Tensor, name: str) -> None:
    key = id(tensor)

    def forget(dead: weakref.ref[torch.Tensor]) -> None:
        if key in _names and _names[key][0] is dead:
            del _names[key]

    _names[key] = (weakref.ref(tensor, forget), name)
