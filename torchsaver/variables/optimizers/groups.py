"""Options of an optimizer's groups (lr, betas, ...), taken from those of the stored groups of the same parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch

from torchsaver.variables.optimizers.named_state import NamedState

_NO_OPTIONS = ("params", "param_names")
_ABSENT = object()


def fit_groups(
    optimizer: torch.optim.Optimizer, names: Sequence[str], found: Mapping[str, str], stored: NamedState
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the groups for an optimizer's load_state_dict(), and why they cannot be made of the stored ones.

    As in torch, stored options win. Groups may be split and merged as long as each option has one value: a group takes
    the options of the stored groups that its parameters come from, and keeps its own if they come from none.

    Args:
        optimizer: Its groups are read.
        names: Of its parameters, in its order, through all groups.
        found: {such a name: the stored name}, so far as they are stored.
        stored: The state.
    """
    homes = group_numbers(stored)
    groups, reasons, start = [], [], 0
    sources: list[list[int]] = []
    for number, group in enumerate(optimizer.param_groups):
        own_names = names[start : start + len(group["params"])]
        sources.append(sorted({homes[found[name]] for name in own_names if name in found}))
        if (reason := _why_not_one(number, own_names, found, sources[-1], stored)) is not None:
            reasons.append(reason)
        options = _options(stored.param_groups[sources[-1][0]] if sources[-1] else group)
        groups.append({**options, "params": list(range(start, start + len(own_names)))})
        start += len(own_names)
    return groups, [*reasons, *_why_not_split(optimizer, sources)]


def group_numbers(stored: NamedState) -> dict[str, int]:
    """Return {name of a parameter: the number of its group}."""
    return {name: number for number, group in enumerate(stored.param_groups) for name in group["params"]}


def _why_not_one(
    number: int, names: Sequence[str], found: Mapping[str, str], sources: list[int], stored: NamedState
) -> str | None:
    """Return why the stored groups that a group's parameters come from do not give it one value for each option."""
    options = [_options(stored.param_groups[source]) for source in sources]
    differing = sorted({key for other in options[1:] for key in _differing(options[0], other)})
    if not differing:
        return None
    parts = []
    for source, values in zip(sources, options, strict=True):
        theirs = [name for name in names if found.get(name) in stored.param_groups[source]["params"]]
        settings = ", ".join(f"{key} {values.get(key)!r}" for key in differing)
        parts.append(f"{settings} for {_some(theirs)}")
    return (
        f"has in group {number} parameters of the checkpoint's groups {' and '.join(map(str, sources))}, which differ: "
        f"{'; '.join(parts)}; put them into groups of their own"
    )


def _why_not_split(optimizer: torch.optim.Optimizer, sources: list[list[int]]) -> list[str]:
    """Return which groups have other options than another that comes from the same stored group."""
    reasons = []
    for one, two in combinations(range(len(sources)), 2):
        if not (shared := set(sources[one]) & set(sources[two])):
            continue
        options = [_options(optimizer.param_groups[number]) for number in (one, two)]
        if differing := _differing(*options):
            settings = ", ".join(f"{key} ({options[0].get(key)!r} and {options[1].get(key)!r})" for key in differing)
            reasons.append(
                f"has groups {one} and {two} with parameters of the checkpoint's group {min(shared)}, which has one "
                f"value for both, and they differ in {settings}; make them equal, and set them after the restore"
            )
    return reasons


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in _NO_OPTIONS}


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    return [key for key in {**one, **two} if not _is_same(one.get(key, _ABSENT), two.get(key, _ABSENT))]


def _is_same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(two, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor) and torch.equal(one.cpu(), two.cpu())
    try:
        return one is two or bool(one == two)
    except (RuntimeError, TypeError, ValueError):  # arrays, lists of tensors: there is no one answer
        return False


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")
