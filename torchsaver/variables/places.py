"""Where tensors are: an attribute of a module, looked up anew each time, so that no saver has stale tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from torchsaver.variables.collection import current_collection, name_of
from torchsaver.variables.mapping.layouts import Layout
from torchsaver.variables.wrappers import clean_names


class Place(NamedTuple):
    """An attribute of a module, `path` being dotted: the tensor that is there now, not the one that was."""

    owner: torch.nn.Module
    path: str

    def tensor(self) -> torch.Tensor | None:
        """Return the tensor that is there now, None when there is none any more."""
        module_path, _, name = self.path.rpartition(".")
        try:
            value = getattr(self.owner.get_submodule(module_path), name)
        except AttributeError:
            return None
        return value if isinstance(value, torch.Tensor) else None


class PlacedLayout(NamedTuple):
    """A Layout of tensors that are looked up anew: those whose place in a module is known."""

    layout: Layout
    places: tuple[Place | None, ...]

    def now(self) -> Layout | None:
        """Return the Layout of the tensors that are there now, None when one of them is not there any more.

        Raises:
            ValueError: They cannot be joined as those before.
        """
        pairs = zip(self.layout.tensors, self.places, strict=True)
        found = [tensor if place is None else place.tensor() for tensor, place in pairs]
        tensors = tuple(tensor for tensor in found if tensor is not None)
        return replace(self.layout, tensors=tensors) if len(tensors) == len(found) else None


class PlacedOptimizer(NamedTuple):
    """An optimizer, and the modules in which names of its parameters are looked up anew, by their prefixes."""

    optimizer: torch.optim.Optimizer
    modules: tuple[tuple[str, torch.nn.Module], ...]

    def names_now(self) -> dict[int, str]:
        """Return the names of all tensors that are in the modules now, by id."""
        return {id_: name for id_, (name, _) in _find(self.modules).items()}


class Places:
    """Finds the module and path of a tensor: in `names_from`, then in the modules the current collection tracks."""

    def __init__(self, names_from: torch.nn.Module | None) -> None:
        if names_from is not None and not isinstance(names_from, torch.nn.Module):
            raise TypeError(f"names_from is a torch.nn.Module, not {type(names_from).__name__}")
        tracked = [
            (name, value) for name, value in current_collection().members() if isinstance(value, torch.nn.Module)
        ]
        self._named = [] if names_from is None else [("", names_from)]
        self._tracked = tracked
        self._found = _find([*self._named, *tracked])

    def of(self, tensor: torch.Tensor) -> Place | None:
        """Return the place of a tensor, None where it is not found."""
        _, place = self._found.get(id(tensor), ("", None))
        return place

    def of_layout(self, layout: Layout) -> PlacedLayout | None:
        """Return the places of a Layout's tensors, None where none of them is found."""
        places = tuple(map(self.of, layout.tensors))
        return PlacedLayout(layout, places) if any(places) else None

    def of_optimizer(self, optimizer: torch.optim.Optimizer) -> PlacedOptimizer:
        """Return an optimizer with `names_from`, and those tracked modules that have a parameter of it."""
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        tracked = [(name, module) for name, module in self._tracked if own & {id(each) for each in module.parameters()}]
        return PlacedOptimizer(optimizer, (*self._named, *tracked))

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """Return the name of a tensor: its path where it is found, or what `Variable` gave it."""
        name, _ = self._found.get(id(tensor), (None, None))
        return name if name is not None else name_of(tensor)


def _find(modules: Iterable[tuple[str, torch.nn.Module]]) -> dict[int, tuple[str, Place]]:
    """Return the name and place of each tensor in modules, by id; the first one of those that are tied."""
    found: dict[int, tuple[str, Place]] = {}
    for prefix, module in modules:
        named = list(named_tensors(module))
        clean = clean_names(module, (path for path, _ in named))
        for path, tensor in named:
            found.setdefault(id(tensor), (join_key(prefix, clean[path]), Place(module, path)))
    return found


def named_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (path, tensor) for the parameters and buffers of a module, tied ones under each path."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def join_key(prefix: str, name: str) -> str:
    """Return `prefix.name`, or the one of them that is not empty."""
    return f"{prefix}.{name}" if prefix and name else prefix or name
