"""Which parameters the positions in an optimizer's state stand for, told by the shapes of what it keeps for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

Shape: TypeAlias = "tuple[int, ...]"
_MOST_STEPS = 100_000  # then it is taken for several ways: a third of a second or so
_OWN_SHAPES = {"step"}  # of state that is nothing like its parameter
_FLAT = {"old_dirs", "func_evals"}  # LBFGS: the first parameter has the state of them all


class Entry(NamedTuple):
    """A tensor of a model that may be a parameter."""

    path: str
    shape: Shape


def parameter_shapes(state: Mapping[str, Any]) -> list[list[Shape | None]]:
    """Return the shape of each parameter in an optimizer's state_dict(), by group; None where its state does not tell.

    Moments are like their parameter; those of Adafactor are its rows and columns, and broadcast to it.
    """
    values = state["state"]
    return [[_shape(values.get(index)) for index in group["params"]] for group in state["param_groups"]]


def _shape(own: Mapping[str, Any] | None) -> Shape | None:
    if not own or is_flat(own):
        return None
    values = [value for key, value in own.items() if key not in _OWN_SHAPES and isinstance(value, torch.Tensor)]
    return _broadcast([tuple(value.shape) for value in values if value.dim()])


def _broadcast(shapes: Sequence[Shape]) -> Shape | None:
    """Return the shape that all of these broadcast to, None if they do not, or have different ranks."""
    if len(set(map(len, shapes))) != 1:
        return None
    sizes = [set(sizes) - {1} or {1} for sizes in zip(*shapes, strict=True)]
    return tuple(size for each in sizes for size in each) if all(len(each) == 1 for each in sizes) else None


def does_fit(shapes: Sequence[Shape | None], entries: Sequence[Entry]) -> bool:
    """Return whether parameters can be these, one by one."""
    pairs = zip(shapes, entries, strict=True)
    return all(shape is None or shape == entry.shape for shape, entry in pairs)


class _Way(NamedTuple):
    """A way to give some entries places in groups: how many there are like it, and its last step."""

    likes: int
    before: _Way | None = None
    group: int = 0
    path: str = ""


def only_way(groups: Sequence[Sequence[Shape | None]], entries: Sequence[Entry]) -> list[list[str]] | None:
    """Return the path of each parameter, by group, if there is a single way; None if there is none, or several.

    The parameters of a group are in the order of the entries, and entries may be left over.
    """
    wanted, sizes, steps = sum(map(len, groups)), tuple(map(len, groups)), 0
    ways = {(0,) * len(groups): _Way(1)}
    for number, entry in enumerate(entries):
        after: dict[tuple[int, ...], _Way] = {}
        for places, way in ways.items():
            if wanted - sum(places) < len(entries) - number:
                _add(after, places, way)
            for group, place in enumerate(places):
                if place < sizes[group] and groups[group][place] in (None, entry.shape):
                    taken = (*places[:group], place + 1, *places[group + 1 :])
                    _add(after, taken, _Way(way.likes, way, group, entry.path))
        steps += len(after) * len(groups)
        if steps > _MOST_STEPS:
            return None
        ways = after
    found = ways.get(sizes)
    return None if found is None or found.likes > 1 else _paths(found, len(groups))


def _add(ways: dict[tuple[int, ...], _Way], places: tuple[int, ...], way: _Way) -> None:
    other = ways.get(places)
    ways[places] = way if other is None else way._replace(likes=2)


def _paths(way: _Way, count: int) -> list[list[str]]:
    groups: list[list[str]] = [[] for _ in range(count)]
    while way.before is not None:
        groups[way.group].append(way.path)
        way = way.before
    return [paths[::-1] for paths in groups]


def is_flat(own: Mapping[str, Any]) -> bool:
    """Return whether the state of one parameter is that of LBFGS, which is one for all of them."""
    return not _FLAT.isdisjoint(own)
