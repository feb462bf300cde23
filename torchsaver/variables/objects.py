"""Objects with state_dict() and load_state_dict(): their states gathered for a save, and given back, all or none."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from torchsaver.formats.tensor_bytes import footprint, why_not_storable
from torchsaver.variables.optimizers.named_optimizer import NamedOptimizer
from torchsaver.variables.optimizers.schedulers import fit_schedulers
from torchsaver.variables.problems import Problems
from torchsaver.variables.rng import RNGState
from torchsaver.variables.state_tree import flatten
from torchsaver.variables.swapped import is_any_swapped, where_held
from torchsaver.variables.var_list import Slots, Stateful

_Result = TypeVar("_Result")


class ObjectRefusedError(Exception):
    """Objects refused their states.

    Attributes:
        targets: (key, reason) of each.
    """

    def __init__(self, targets: Sequence[tuple[str, str]]) -> None:
        super().__init__(targets)
        self.targets = tuple(targets)


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
    places = footprint(tensors.values(), storable)
    if places is None or places is not storable:
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
    for key, value in _generators_last(slots.objects).items():
        trees[key], inside = flatten(key, value.state_dict(), problems)
        for name in inside:
            if name in tensors or name in slots.aliases:
                problems.add(f"{name!r} is the key of two values; rename the object {key!r}")
        tensors.update(where_held(inside, or_shared=True))
    return trees


def devices(key: str, value: Stateful) -> dict[str, torch.device]:
    """Return where the tensors of an object's state are now, by the keys they are stored under, if not on the CPU.

    Of an optimizer nothing: it puts its state where its parameters are.
    """
    if isinstance(value, NamedOptimizer):
        return {}
    _, inside = flatten(key, value.state_dict(), Problems())
    return {name: tensor.device for name, tensor in inside.items() if tensor.device.type != "cpu"}


@contextlib.contextmanager
def generators_kept(objects: Mapping[str, Stateful]) -> Iterator[None]:
    """Have the generators of each RNGState as they are now, if an error comes inside the `with` block.

    What objects do there, to load a state or to go back to the old one, may draw numbers.
    """
    go_back = [_way_back(value) for value in objects.values() if isinstance(value, RNGState)]
    try:
        yield
    except BaseException:
        for back in go_back:
            with contextlib.suppress(Exception):
                back()
        raise


def _generators_last(objects: Mapping[str, Stateful]) -> dict[str, Stateful]:
    """Return objects in the order in which they give and take their states: others may draw numbers with it."""
    return dict(sorted(objects.items(), key=lambda pair: isinstance(pair[1], RNGState)))


@contextlib.contextmanager
def loaded(objects: Mapping[str, Stateful], states: Mapping[str, Any]) -> Iterator[None]:
    """Give each object its new state for good, unless an error comes, here or inside the `with` block: then none.

    Raises:
        ObjectRefusedError: An object raised, or states are other optimizers': all of these.
    """
    states = _fitted(objects, states)
    go_back: list[Callable[[], None]] = []
    try:
        for key, value in _generators_last({key: objects[key] for key in states}).items():
            go_back.append(_way_back(value))
            _load(key, value, states[key])
        yield
    except BaseException:
        for back in reversed(go_back):
            with contextlib.suppress(Exception):  # the first error is what counts, and the others must go back too
                back()
        raise


def _fitted(objects: Mapping[str, Stateful], states: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states, those of optimizers in the order of their parameters, of schedulers in that of groups."""
    fitted: dict[str, Any] = fit_schedulers(objects, states)
    targets = []
    for key, state in states.items():
        if isinstance(value := objects[key], NamedOptimizer):
            fitted[key], reasons = value.fit(state)
            targets += [(key, reason) for reason in reasons]
        elif is_any_swapped() and _holds_swapped(key, value):
            targets.append((key, "holds values that are swapped now; restore outside of the `with` block"))
    if targets:
        raise ObjectRefusedError(targets)
    return fitted


def _holds_swapped(key: str, value: Stateful) -> bool:
    """Return whether an object has tensors whose values are held elsewhere now, and would load those of others."""
    _, inside = flatten(key, value.state_dict(), Problems())
    return any(inside[name] is not held for name, held in where_held(inside, or_shared=True).items())


def _load(key: str, value: Stateful, state: Any) -> None:
    try:
        if isinstance(value, NamedOptimizer):
            value.take(state)
        else:
            value.load_state_dict(state)
    except Exception as error:
        reason = f"load_state_dict() raised {type(error).__name__}: {error}"
        raise ObjectRefusedError([(key, reason)]) from error


def _way_back(value: Stateful) -> Callable[[], None]:
    """Return what gives an object the state back that it has now."""
    if isinstance(value, NamedOptimizer):
        return value.way_back()
    state = value.state_dict()
    _, inside = flatten("", state, Problems())
    memo = {id(tensor): tensor.detach().clone() for tensor in inside.values() if not tensor.is_leaf}  # it refuses these
    state, attributes = copy.deepcopy(state, memo), set(getattr(value, "__dict__", ()))

    def back() -> None:
        value.load_state_dict(state)
        if isinstance(value, torch.optim.lr_scheduler.LRScheduler):  # it takes for its own whatever a state has
            for name in vars(value).keys() - attributes:
                delattr(value, name)

    return back
