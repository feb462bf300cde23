"""New state for the parameters of an optimizer, and which part of it a variable of an assignment map stands for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from torchsaver.formats.tensor_bytes import span_bytes
from torchsaver.variables.mapping.joins import Sum
from torchsaver.variables.mapping.layouts import Layout
from torchsaver.variables.mapping.name_map import Match
from torchsaver.variables.mapping.name_tables import Target, tensors_of
from torchsaver.variables.tensorflow.slots import Fields, group_fields, optimizer_fields


@dataclass(eq=False)
class ParameterState:
    """What an optimizer is to have for one parameter.

    Attributes:
        parameter: As in its group.
        group: Its group.
        name: What to call it.
        fields: What TensorFlow has for each tensor of its state.
        tensors: These tensors, new ones.
        steps: How many steps it has taken, as each of its values has it.
        is_left_out: Whether something is missing, so that it keeps the state it has.
    """

    parameter: torch.Tensor
    group: dict[str, Any]
    name: str
    fields: Fields
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    steps: set[int] = field(default_factory=set)
    is_left_out: bool = False
    _is_whole: bool = False
    _covered: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self.tensors = {name: torch.zeros_like(self.parameter, requires_grad=False) for name in self.fields}

    def part(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Return what `tensor`, the parameter or a part of it, is of the state's tensor `name`."""
        return self._view(self.tensors[name], tensor)

    def cover(self, tensor: torch.Tensor) -> None:
        """Note that there are values for `tensor`, the parameter or a part of it."""
        if tensor is self.parameter:
            self._is_whole = True
            return
        if self._covered is None:
            self._covered = torch.zeros_like(self.parameter, dtype=torch.bool, requires_grad=False)
        self._view(self._covered, tensor).fill_(True)

    @property
    def is_linked(self) -> bool:
        """Whether there are values for any part of it."""
        return self._is_whole or self._covered is not None

    @property
    def is_covered(self) -> bool:
        """Whether there are values for every element."""
        return self._is_whole or (self._covered is not None and bool(self._covered.all()))

    def has(self, tensor: torch.Tensor) -> bool:
        """Return whether `tensor` is the parameter or a part of its memory that the state's tensors have as well."""
        own = self.parameter
        if tensor is own:
            return True
        if own.is_meta or tensor.dtype != own.dtype or self._like_own(own) is None:
            return False
        start = (tensor.storage_offset() - own.storage_offset()) * own.element_size()
        return start >= 0 and start + span_bytes(tensor) <= span_bytes(own)

    def _like_own(self, own: torch.Tensor) -> torch.Tensor | None:
        """Return a tensor of the state, or None: a parameter with gaps in its memory has one that is laid out else."""
        like = next(iter(self.tensors.values()), None)
        return like if like is not None and like.stride() == own.stride() else None

    def _view(self, like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        if tensor is self.parameter:
            return like
        start = tensor.storage_offset() - self.parameter.storage_offset()
        return like.as_strided(tensor.shape, tensor.stride(), like.storage_offset() + start)


class OptimizerStates:
    """New states for all parameters of an optimizer that keep any.

    Args:
        optimizer: One of torch's.
        names: {id of a parameter: what to call it}.

    Raises:
        TypeError, ValueError: Nothing of its type or settings is known in TensorFlow.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> None:
        self.states: list[ParameterState] = []
        known = optimizer_fields(optimizer)
        count = 0
        for group in optimizer.param_groups:
            fields = group_fields(known, group)
            own_names = group.get("param_names") or [""] * len(group["params"])
            for parameter, own_name in zip(group["params"], own_names, strict=True):
                name = names.get(id(parameter)) or own_name or f"parameter {count} of shape {list(parameter.shape)}"
                count += 1
                if fields:
                    self.states.append(ParameterState(parameter, group, name, fields))
        self._by_memory: dict[tuple[torch.device, int], list[ParameterState]] = defaultdict(list)
        self._by_id = {id(state.parameter): state for state in self.states}
        for state in self.states:
            self._by_memory[_memory(state.parameter)].append(state)

    def of(self, tensor: torch.Tensor) -> ParameterState | None:
        """Return the state of the parameter that a tensor is, or is a part of; None if it is none of the optimizer."""
        if (own := self._by_id.get(id(tensor))) is not None:
            return own
        return next((state for state in self._by_memory.get(_memory(tensor), ()) if state.has(tensor)), None)


def _memory(tensor: torch.Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def with_tensors(target: Target, tensors: Sequence[torch.Tensor]) -> Target:
    """Return the same variable of other tensors: of moments, which do not add up to a sum."""
    if not isinstance(target, Layout):
        return tensors[0]
    return replace(target, tensors=tuple(tensors), join=Twice() if isinstance(target.join, Sum) else target.join)


def names_in(match: Match) -> dict[int, str]:
    """Return what the variables of a worked out assignment map are called, by the id of each of their tensors."""
    names: dict[int, str] = {}
    for label, target in [(link.label, link.target) for link in match.links] + [
        (one.label, one.target) for one in match.missing if one.target is not None
    ]:
        tensors, parts = tensors_of(target), label.split(" + ")
        for number, tensor in enumerate(tensors):
            names[id(tensor)] = parts[number] if len(parts) == len(tensors) else label
    return names


class Twice:
    """Two tensors that both are the value: moments of two biases of which TensorFlow has the sum."""

    def why_not(self, tensors: Sequence[torch.Tensor]) -> str | None:
        """Return why not, unless shapes are the same."""
        shapes = [list(tensor.shape) for tensor in tensors]
        return None if all(shape == shapes[0] for shape in shapes) else f"shapes {shapes} differ"

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the first."""
        return tensors[0]

    def split(self, value: torch.Tensor, shapes: Iterable[Sequence[int]]) -> tuple[torch.Tensor, ...]:
        """Return the value for each."""
        return tuple(value for _ in shapes)
