"""The names of the parameters in an optimizer's state that has none, from the model in the same file.

torch numbers the parameters of an optimizer, mostly in the order in which their modules were made. A file has that
order in the state of its model; the live model may have another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from torchsaver.torch_checkpoint.content import Content, tie
from torchsaver.torch_checkpoint.order import Entry, Shape, does_fit, only_way, parameter_shapes
from torchsaver.variables.optimizers.named_optimizer import NamedOptimizer
from torchsaver.variables.var_list import Slots
from torchsaver.variables.wrappers import match_parameters

_BUFFERS = {"running_mean", "running_var", "num_batches_tracked"}  # of torch's own modules: never parameters
_USUAL_KEYS = {"model", "state_dict", "model_state_dict", "module", "net", "network"}  # and not "ema"
_REMEDY = "make the optimizer with names, Adam(model.named_parameters()), before it is saved"

_Found = TypeVar("_Found")


class UnnamedError(Exception):
    """What the numbers of an optimizer's parameters stand for cannot be told; the message says why."""


def given_names(state: Mapping[str, Any]) -> list[str]:
    """Return the names an optimizer was given itself, for all of its parameters in their order; none if it was not."""
    groups = state["param_groups"]
    names = [name for group in groups for name in group.get("param_names") or ()]
    return names if len(names) == sum(len(group["params"]) for group in groups) else []


def candidates(content: Content, buffers: Iterable[str] = ()) -> dict[str, list[Entry]]:
    """Return {path of a model's state: those of its tensors that may be parameters, in order, tied ones once}."""
    tensors, left_out = dict(content.tensors), set(buffers)
    homes: dict[str, list[Entry]] = {}
    for home, paths in content.state_dicts.items():
        first = dict.fromkeys(_first_names(paths, tensors).values())
        possible = [path for path in first if path not in left_out and _may_be_parameter(path, tensors[path])]
        homes[home] = [Entry(path, tuple(tensors[path].shape)) for path in possible]
    return homes


def _first_names(paths: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return {path of a tensor of one model: the first one of those that it is tied with, or itself}."""
    tied = tie([(path, tensors[path]) for path in paths])
    first = {other: one.first for one in tied if not one.problem for other in (one.first, *one.others)}
    return {paths[other]: paths[number] for other, number in sorted(first.items())}


def _may_be_parameter(path: str, tensor: torch.Tensor) -> bool:
    is_number = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    return is_number and path.rpartition(".")[2] not in _BUFFERS


def names_in_file(content: Content, state: Mapping[str, Any], models: Mapping[str, list[Entry]]) -> list[str]:
    """Return the path of each parameter of an optimizer in its file, in its order, from the file alone.

    Args:
        content: Of the file.
        state: The optimizer's.
        models: The `candidates` of the file.

    Raises:
        UnnamedError: No model in the file has just these parameters, or which are these cannot be told.
    """
    if given := given_names(state):
        return _full_names(content, given)
    shapes = parameter_shapes(state)
    ways = {home: way for home, entries in models.items() if (way := only_way(shapes, entries)) is not None}
    if (way := _single(ways)) is not None:
        return [path for group in way for path in group]
    count = sum(map(len, shapes))
    if ways:
        raise UnnamedError(f"its {count} parameters have no names, and may be those of {_some(ways)}; {_REMEDY}")
    raise UnnamedError(
        f"its {count} parameters have no names, and there is no single way in which they are those of a model in it "
        f"({_some(models) or 'it holds none'}); {_REMEDY}"
    )


def _single(by_home: Mapping[str, _Found]) -> _Found | None:
    """Return what was found in a single model, or in a single one of a usual key; None of several, or of none."""
    usual = [found for home, found in by_home.items() if home.rpartition(".")[2] in _USUAL_KEYS]
    found = list(by_home.values()) if len(by_home) == 1 else usual
    return found[0] if len(found) == 1 else None


def _full_names(content: Content, given: list[str]) -> list[str]:
    """Return the paths of parameters that have names; the names themselves where not just one model has them."""
    found = {}
    for home, paths in content.state_dicts.items():
        own = {path[len(home) + 1 :] if home else path: path for path in paths}
        matched = match_parameters(given, own)
        if len(matched) == len(given):
            found[home] = [own[matched[name]] for name in given]
    return _single(found) or given


@dataclass(frozen=True)
class LiveModel:
    """What is known of an optimizer's parameters from the live model, beside what the file says.

    Attributes:
        groups: The names of the optimizer's parameters, by group.
        homes: {such a name: the path of that tensor in the file}, so far as it is there.
        ranks: {such a name: where it stands among the tensors of the live model}, so far as known.
        entries: What may be parameters in the file, of those models that they are found in, in order.
    """

    groups: list[list[str]]
    homes: dict[str, str]
    ranks: dict[str, int]
    entries: list[Entry] = field(default_factory=list)


def live_model(content: Content, optimizer: NamedOptimizer, slots: Slots) -> LiveModel:
    """Return what the live model tells of the parameters of an optimizer in a file."""
    ranks = {key: rank for rank, key in enumerate(slots.tensors)}
    keys = match_parameters(optimizer.names, slots.tensors)
    paths = {path: home for home, paths in content.state_dicts.items() for path in paths}
    buffers = [key for key, tensor in slots.tensors.items() if not isinstance(tensor, torch.nn.Parameter)]
    possible = candidates(content, match_parameters(buffers, paths).values())
    homes = _homes(content, optimizer.names, slots, {entry.path for own in possible.values() for entry in own})
    mine = {paths[path] for path in homes.values()}
    entries = [entry for home, entries in possible.items() if home in mine for entry in entries]
    return LiveModel(optimizer.name_groups, homes, {name: ranks[key] for name, key in keys.items()}, entries)


def _homes(content: Content, names: Sequence[str], slots: Slots, possible: set[str]) -> dict[str, str]:
    """Return {name of a live parameter: the path of that tensor in the file}, the first one if it is tied there."""
    others: dict[str, list[str]] = {name: [name] for name in names}
    for alias, key in slots.aliases.items():
        if key in others:
            others[key].append(alias)
    paths = [path for own in content.state_dicts.values() for path in own]
    found = match_parameters([each for own in others.values() for each in own], paths)
    if not found:  # the model is not in the Saver, or under no key
        found = {
            name: path for name, path in zip(names, _full_names(content, list(names)), strict=True) if name != path
        }
    tensors = dict(content.tensors)
    first: dict[str, str] = {}
    for own_paths in content.state_dicts.values():
        first |= _first_names(own_paths, tensors)
    stored = {name: [first.get(found[each], "") for each in own if each in found] for name, own in others.items()}
    return {name: path for name, tied in stored.items() if (path := next(iter(tied), "")) in possible}


def names_with_model(state: Mapping[str, Any], live: LiveModel) -> list[str] | None:
    """Return the live name, or else the path, of each parameter in an optimizer's state, in its order.

    Returns:
        None where nothing is known, or where the order of the live optimizer is the only one that it can be.

    Raises:
        UnnamedError: What they are cannot be told.
    """
    if not live.homes:
        return None
    shapes, by_path = parameter_shapes(state), {entry.path: entry for entry in live.entries}
    is_in_model_order = all(_has_order_of_model(names, live) for names in live.groups)
    ways = [_as_built(shapes, live, by_path, is_in_model_order=is_in_model_order)]
    if is_in_model_order:  # else the order of the file's model says nothing of that in its optimizer
        ways.append(only_way(shapes, live.entries))
    own = {path: name for name, path in live.homes.items()}
    for way in ways:
        if way is not None:
            return [own.get(path, path) for group in way for path in group]
    places = {path: place for place, path in enumerate(by_path)}
    if _is_in_order([name for group in live.groups for name in group], live, places):
        return None  # then the order of the live optimizer is that of the file, and it will say what does not fit
    found = sum(map(len, shapes))
    raise UnnamedError(
        f"has the state of {found} parameters without names, in the order of another model, and which of its "
        f"{len(live.entries)} parameters these are cannot be told; build the modules in the order of the checkpoint, "
        f"or {_REMEDY}"
    )


def _as_built(
    shapes: list[list[Shape | None]], live: LiveModel, by_path: Mapping[str, Entry], *, is_in_model_order: bool
) -> list[list[str]] | None:
    """Return the paths by group as the program that made the live optimizer would have put them; None if it did not."""
    places = {path: place for place, path in enumerate(by_path)}
    if list(map(len, shapes)) != list(map(len, live.groups)) or len(live.homes) < sum(map(len, live.groups)):
        return None
    groups = []
    for names, own in zip(live.groups, shapes, strict=True):
        paths = [live.homes[name] for name in names]
        if not _is_in_order(names, live, places):
            if not is_in_model_order:
                return None
            paths.sort(key=places.__getitem__)
        if not does_fit(own, [by_path[path] for path in paths]):
            return None
        groups.append(paths)
    return groups


def _is_in_order(names: Iterable[str], live: LiveModel, places: Mapping[str, int]) -> bool:
    """Return whether the live model has these in the order of the file's, whatever the optimizer's order is."""
    ranked = sorted((name for name in names if name in live.homes), key=lambda name: live.ranks.get(name, 0))
    order = [places[live.homes[name]] for name in ranked]
    return order == sorted(order)


def _has_order_of_model(names: Sequence[str], live: LiveModel) -> bool:
    ranks = [live.ranks[name] for name in names if name in live.ranks]
    return ranks == sorted(ranks)


def _some(homes: Iterable[str], most: int = 5) -> str:
    names = [repr(home) for home in homes]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
