"""The state of an optimizer by the names of its parameters, so that it does not depend on their order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NamedState:
    """What an optimizer keeps, each parameter's own under that parameter's name.

    Attributes:
        parameters: {parameter's name: its state}, as {"model.fc.weight": {"exp_avg": tensor, "step": 3}}, in the order
            of the optimizer.
        others: State that is no single parameter's, by name.
        param_groups: The options of each group; "params" is a list of parameters' names.
    """

    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    param_groups: list[dict[str, Any]] = field(default_factory=list)


def named_state_of(parameters: Any, others: Any, param_groups: Any) -> NamedState:
    """Return the state that values read from a file are.

    Raises:
        ValueError: They have another form than NamedState says.
    """
    if not _are_named(list(parameters.values())) or not _are_named([others]) or not isinstance(param_groups, list):
        raise ValueError("an optimizer's state is not by name")
    for group in param_groups:
        names = group.get("params") if isinstance(group, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("a group of an optimizer does not name its parameters")
    return NamedState(parameters, others, param_groups)


def _are_named(states: list[Any]) -> bool:
    return all(isinstance(state, dict) and all(isinstance(name, str) for name in state) for state in states)
