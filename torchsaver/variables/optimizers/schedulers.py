"""What learning rate schedulers keep for each group of their optimizer, brought into the order of the groups here.

An optimizer's groups get their options by the names of their parameters; a scheduler has lists, by number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchsaver.variables.optimizers.named_optimizer import NamedOptimizer
from torchsaver.variables.var_list import Stateful

_BY_GROUP = {
    *("base_lrs", "_last_lr", "min_lrs", "max_lrs", "base_momentums", "max_momentums", "lr_lambdas"),
}
_INNER = "_schedulers"  # of SequentialLR and ChainedScheduler


def fit_schedulers(objects: Mapping[str, Stateful], states: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states, those of schedulers in the order of the groups of their optimizers.

    Args:
        objects: All of them.
        states: As stored, of some.
    """
    fitted = dict(states)
    for key, state in states.items():
        value = objects[key]
        if isinstance(value, torch.optim.lr_scheduler.LRScheduler) and isinstance(state, dict):
            sources = _group_sources(value.optimizer, objects, states)
            if any(own != [number] for number, own in enumerate(sources)):
                fitted[key] = _regrouped(state, sources, value.state_dict())
    return fitted


def _group_sources(optimizer: Any, objects: Mapping[str, Stateful], states: Mapping[str, Any]) -> list[list[int]]:
    """Return which stored groups the groups of an optimizer come from; nothing of one that is not restored too."""
    for key, state in states.items():
        value = objects[key]
        if isinstance(value, NamedOptimizer) and value.optimizer.param_groups is optimizer.param_groups:
            return value.group_sources(state)
    return []


def _regrouped(state: dict[str, Any], sources: Sequence[Sequence[int]], own: Any) -> dict[str, Any]:
    """Return the state of a scheduler with its lists by group in another order; a new group keeps what it has now."""
    own = own if isinstance(own, dict) else {}
    return {key: _value(key, value, sources, own.get(key)) for key, value in state.items()}


def _value(key: str, value: Any, sources: Sequence[Sequence[int]], own: Any) -> Any:
    if not isinstance(value, list):
        return value
    mine = own if isinstance(own, list) else []
    if key == _INNER:
        mine = [*mine, *[None] * len(value)][: len(value)]
        return [
            _regrouped(each, sources, now) if isinstance(each, dict) else each
            for each, now in zip(value, mine, strict=True)
        ]
    if key not in _BY_GROUP or len(mine) != len(sources):
        return value
    pairs = zip(sources, mine, strict=True)
    return [value[stored[0]] if stored and stored[0] < len(value) else now for stored, now in pairs]
