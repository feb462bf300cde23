"""The state of LBFGS, which is one for all parameters: vectors that hold something for each of them, end to end.

The optimizer keeps it with its first parameter. A NamedState has it among the others, as "lbfgs"; "lbfgs_numels" tells
how long a piece each parameter has, in the order of the group, in which the vectors are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from torchsaver.variables.optimizers.named_state import NamedState

_KEY, _NUMELS = KEYS = "lbfgs", "lbfgs_numels"


def gathered(optimizer: torch.optim.Optimizer, state: NamedState) -> NamedState:
    """Return the state of an optimizer with that of LBFGS among the others; unchanged of any other optimizer."""
    if not isinstance(optimizer, torch.optim.LBFGS) or len(state.parameters) != 1:
        return state
    return joined(state, _numels(optimizer))


def joined(state: NamedState, numels: Sequence[int]) -> NamedState:
    """Return a state of LBFGS as torch keeps it, with its first parameter, moved among the others.

    Args:
        state: It has the state of a single parameter.
        numels: The `piece_numel` of each parameter, in the order of the group.
    """
    (flat,) = state.parameters.values()
    return NamedState({}, {**state.others, _KEY: flat, _NUMELS: list(numels)}, state.param_groups)


def piece_numel(parameter: torch.Tensor) -> int:
    """Return how many elements a parameter has in the vectors: a complex number counts twice."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def fit(
    optimizer: torch.optim.Optimizer, names: Sequence[str], found: Mapping[str, str], stored: NamedState
) -> tuple[dict[str, Any] | None, str | None]:
    """Return LBFGS's state in the order of an optimizer's parameters, None without any; and why it does not fit.

    Args:
        optimizer: Any optimizer; what is said of others is only whether the state is one of LBFGS.
        names: Of its parameters, in its order.
        found: {such a name: the stored name}, so far as they are stored.
        stored: The state.
    """
    if not isinstance(optimizer, torch.optim.LBFGS):
        return None, "has the state of LBFGS in checkpoint" if _NUMELS in stored.others else None
    flat = stored.others.get(_KEY)
    if flat is None and stored.parameters:  # as torch keeps it; it came by position
        flat = next(iter(stored.parameters.values())) if len(stored.parameters) == 1 else {"": None}
    if not flat:
        return None, None
    order = [name for group in stored.param_groups for name in group["params"]]
    if sorted(found.values()) != sorted(order) or len(found) != len(names):
        return None, f"has a state over all of its parameters; in checkpoint these are {order}, and here {list(names)}"
    own_numels = dict(zip((found[name] for name in names), _numels(optimizer), strict=True))
    numels = [own_numels[name] for name in order]
    if stored.others.get(_NUMELS, numels) != numels or not _is_over(flat, sum(numels)):
        return None, f"has a state over {sum(numels)} elements of {len(names)} parameters, and another in checkpoint"
    starts = dict(zip(order, torch.tensor([0, *numels]).cumsum(0).tolist(), strict=False))
    pieces = [(starts[found[name]], own_numels[found[name]]) for name in names]
    if [found[name] for name in names] == order:
        return flat, None
    return {key: _reordered(value, pieces, sum(numels)) for key, value in flat.items()}, None


def _numels(optimizer: torch.optim.LBFGS) -> list[int]:
    (group,) = optimizer.param_groups
    return list(map(piece_numel, group["params"]))


def _is_over(flat: Any, total: int) -> bool:
    """Return whether a value is LBFGS's state over so many elements."""
    vector = flat.get("d", flat.get("prev_flat_grad")) if isinstance(flat, dict) and "n_iter" in flat else flat
    return vector is None or (isinstance(vector, torch.Tensor) and vector.dim() == 1 and vector.numel() == total)


def _reordered(value: Any, pieces: Sequence[tuple[int, int]], total: int) -> Any:
    if isinstance(value, list):
        return [_reordered(item, pieces, total) for item in value]
    if isinstance(value, torch.Tensor) and value.dim() == 1 and value.numel() == total:
        return torch.cat([value[start : start + numel] for start, numel in pieces])
    return value
