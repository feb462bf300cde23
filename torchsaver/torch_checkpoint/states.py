"""The states of objects in a file of torch.save, as the trees that a checkpoint of ours has for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from torchsaver.errors import UnsupportedCheckpointError
from torchsaver.torch_checkpoint.content import NOTHING, Content, encode
from torchsaver.torch_checkpoint.names import (
    UnnamedError,
    candidates,
    given_names,
    live_model,
    names_in_file,
    names_with_model,
)
from torchsaver.torch_checkpoint.order import is_flat
from torchsaver.variables.optimizers import flat_state
from torchsaver.variables.optimizers.named_optimizer import NamedOptimizer, named
from torchsaver.variables.optimizers.named_state import NamedState
from torchsaver.variables.var_list import Slots

_MOST_OPTIMIZERS = 10  # each takes up to a second for each model of a hostile file


@dataclass(frozen=True)
class NamedOptimizers:
    """The states of optimizers in a file by the names of their parameters, so far as these can be told.

    Attributes:
        states: {path in the file: the state}.
        reasons: {path: why its parameters have no names}.
    """

    states: dict[str, NamedState] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def name_from_file(content: Content) -> NamedOptimizers:
    """Return the states of all optimizers in a file, named from it alone."""
    found, tensors, models = NamedOptimizers(), dict(content.tensors), candidates(content)
    for number, (path, state) in enumerate(content.optimizers.items()):
        try:
            if number >= _MOST_OPTIMIZERS:
                raise UnnamedError(f"it is one of more than {_MOST_OPTIMIZERS}; only that many are named")  # noqa: TRY301
            found.states[path] = _by_name(path, state, names_in_file(content, state, models), tensors)
        except UnnamedError as error:
            found.reasons[path] = str(error)
    return found


def name_for(content: Content, slots: Slots) -> NamedOptimizers:
    """Return the states that live optimizers are to take, with the names these have for their parameters.

    One that stores names itself, or that is to be taken in its own order, is left as it is.
    """
    found, tensors = NamedOptimizers(), dict(content.tensors)
    for key, value in slots.objects.items():
        state = content.optimizers.get(key)
        if state is None or not isinstance(value, NamedOptimizer) or given_names(state):
            continue
        live = live_model(content, value, slots)
        own = {name: tensors[path] for name, path in live.homes.items()}
        try:
            names = names_with_model(state, live)
            if names is not None:
                found.states[key] = _by_name(key, state, names, {**tensors, **own})
        except UnnamedError as error:
            found.reasons[key] = str(error)
    return found


def _by_name(path: str, state: dict[str, Any], names: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> NamedState:
    """Return an optimizer's state by the names of its parameters, as a Saver has it.

    Raises:
        UnnamedError: Two parameters have one name, or it holds what has no place in a checkpoint.
    """
    try:
        found = _with_flat(named(state, names), names, tensors)
        encode(path, found)
    except ValueError as error:
        raise UnnamedError(str(error)) from error
    return found


def _with_flat(found: NamedState, names: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> NamedState:
    """Return a state with that of LBFGS, which torch keeps with its first parameter, among the others."""
    own = list(found.parameters.values())
    if len(own) != 1 or not is_flat(own[0]) or not all(name in tensors for name in names):
        return found
    return flat_state.joined(found, [flat_state.piece_numel(tensors[name]) for name in names])


class ObjectTrees(Mapping[str, Any]):
    """The JSON trees of a file's objects; it has one for whatever a path leads to, and lists those that are objects.

    Args:
        path: The file, for errors.
        content: What it holds.
        optimizers: What optimizers' states are to be, where not as in the file.
    """

    def __init__(self, path: str, content: Content, optimizers: Mapping[str, NamedState]) -> None:
        self._path = path
        self._content = content
        self._optimizers = optimizers
        self._trees: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._trees:
            value = self._optimizers.get(key, self._content.at(key))
            if value is NOTHING:
                raise KeyError(key)
            try:
                self._trees[key], _ = encode(key, value)
            except ValueError as error:
                raise UnsupportedCheckpointError(self._path, str(error)) from error
        return self._trees[key]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and (key in self._optimizers or self._content.at(key) is not NOTHING)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._content.optimizers, **self._content.objects})

    def __len__(self) -> int:
        return len(self._content.optimizers.keys() | self._content.objects.keys())


def listed_tensors(content: Content, optimizers: Mapping[str, NamedState]) -> list[tuple[str, torch.Tensor]]:
    """Return (key, tensor) of a file's tensors, those of named optimizers under their parameters' names."""
    replaced: set[str] = set()
    added: dict[str, torch.Tensor] = {}
    for path, state in optimizers.items():
        _, before = encode(path, content.optimizers[path])
        _, now = encode(path, state)
        replaced |= before.keys()
        added |= now
    kept = [(path, tensor) for path, tensor in content.tensors if path not in replaced]
    return [*kept, *((key, tensor.detach()) for key, tensor in added.items())]
