"""Objects with state_dict() and load_state_dict(): their states gathered for a save, and given back, all or none."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from torchsaver.formats.tensor_bytes import footprint, why_not_storable
from torchsaver.variables import optimizers
from torchsaver.variables.state_tree import flatten
from torchsaver.variables.var_list import Problems, Slots, Stateful

_Result = TypeVar("_Result")


class ObjectRefusedError(Exception):
    """The object `key` refused its state; `reason` says how."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason


def gather(slots: Slots, storable: Any = None) -> tuple[dict[str, torch.Tensor], dict[str, Any], Any]:
    """Return every tensor to write, those inside objects included, the objects' trees, and the tensors' footprint.

    Args:
        slots: What to save.
        storable: A footprint that was returned before; tensors that have it again need no second check.

    Raises:
        VarListError: Tensors that cannot be stored, values of objects that have no place in JSON, or keys that stand
            twice: all of them.
    """
    problems = Problems()
    tensors = {**slots.tensors, **_laid_out(slots, problems)}
    trees = _flatten_objects(slots, tensors, problems)
    places = footprint(tensors.values())
    if places is None or places != storable:
        for key, tensor in tensors.items():
            if (reason := why_not_storable(tensor)) is not None:
                problems.add(f"{key!r} {reason}")
    problems.raise_if_any()
    return tensors, trees, places


def require_storable_objects(slots: Slots) -> None:
    """Check what `gather` asks of objects; a tensor may still be on the meta device, and get its memory later.

    Raises:
        VarListError: As `gather`.
    """
    problems = Problems()
    for key, layout in slots.layouts.items():
        if not any(map(torch.nn.parameter.is_lazy, layout.tensors)):
            _unless_refused(key, layout.stored_shape, problems)
    _flatten_objects(slots, {**slots.tensors, **dict.fromkeys(slots.layouts, torch.empty(0))}, problems)
    problems.raise_if_any()


def _laid_out(slots: Slots, problems: Problems) -> dict[str, torch.Tensor]:
    """Return the stored values of layouts."""
    tensors = {}
    for key, layout in slots.layouts.items():
        reason = next(filter(None, map(why_not_storable, layout.tensors)), None)
        if reason is not None:
            problems.add(f"{key!r} {reason}")
        elif (value := _unless_refused(key, layout.to_stored, problems)) is not None:
            tensors[key] = value
    return tensors


def _unless_refused(key: str, laid_out: Callable[[], _Result], problems: Problems) -> _Result | None:
    """Return what a layout's function gives; None, and a problem, if its transform is not for the shapes."""
    try:
        return laid_out()
    except ValueError as error:
        problems.add(f"{key!r} cannot be laid out: {error}")
        return None


def _flatten_objects(slots: Slots, tensors: dict[str, torch.Tensor], problems: Problems) -> dict[str, Any]:
    """Return the trees of objects, and add the tensors inside them to `tensors`."""
    trees = {}
    for key, value in slots.objects.items():
        trees[key], inside = flatten(key, value.state_dict(), problems)
        for name in inside:
            if name in tensors or name in slots.aliases:
                problems.add(f"{name!r} is the key of two values; rename the object {key!r}")
        tensors.update(inside)
    return trees


@contextlib.contextmanager
def loaded(objects: Mapping[str, Stateful], states: Mapping[str, Any]) -> Iterator[None]:
    """Give each object its new state for good, unless an error comes, here or inside the `with` block: then none.

    Raises:
        ObjectRefusedError: An object raised, or the state is another optimizer's.
    """
    for key, state in states.items():
        value = objects[key]
        if isinstance(value, torch.optim.Optimizer) and (reason := optimizers.why_not_for(value, state)) is not None:
            raise ObjectRefusedError(key, reason)
    go_back: list[Callable[[], None]] = []
    try:
        for key, state in states.items():
            go_back.append(_way_back(objects[key]))
            _load(key, objects[key], state)
        yield
    except BaseException:
        for back in reversed(go_back):
            with contextlib.suppress(Exception):  # the first error is what counts, and the others must go back too
                back()
        raise


def _load(key: str, value: Stateful, state: Any) -> None:
    try:
        value.load_state_dict(state)
    except Exception as error:
        raise ObjectRefusedError(key, f"load_state_dict() raised {type(error).__name__}: {error}") from error
    if isinstance(value, torch.optim.Optimizer):
        optimizers.put_back_dtypes(value, state)


def _way_back(value: Stateful) -> Callable[[], None]:
    """Return what gives an object the state back that it has now."""
    if isinstance(value, torch.optim.Optimizer):
        return optimizers.way_back(value)
    state = copy.deepcopy(value.state_dict())
    return lambda: value.load_state_dict(state)
