"""What the parameters of an optimizer are called, so that its state can go by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from torchsaver.variables.collection import name_of
from torchsaver.variables.places import PlacedOptimizer
from torchsaver.variables.wrappers import without_parametrization, without_private

_REMEDY = (
    "give the model in the same Saver, or names_from=model, or make the optimizer with names: "
    "Adam(model.named_parameters())"
)


def name_parameters(placed: PlacedOptimizer, keys: Mapping[int, str]) -> tuple[list[str], list[str]]:
    """Return a name for each parameter of an optimizer, in its order, and what is wrong with them.

    It is its key in the same Saver; else what the optimizer was given, as in Adam(model.named_parameters());
    else its name in `names_from` or a tracked module, or that of a `Variable`. Parametrizations leave no trace in it.

    Args:
        placed: The optimizer.
        keys: The keys of tensors in the same Saver, by id.
    """
    elsewhere: dict[int, str] | None = None
    names, nameless = [], []
    for number, group in enumerate(placed.optimizer.param_groups):
        given = group.get("param_names") or ()
        for index, parameter in enumerate(group["params"]):
            name = keys.get(id(parameter))
            if name is None and len(given) == len(group["params"]):
                name = without_private(given[index])
            if name is None:
                elsewhere = placed.names_now() if elsewhere is None else elsewhere
                name = elsewhere.get(id(parameter), name_of(parameter))
            if name is None:
                nameless.append(f"group {number}, parameter {index}, {_shape_text(parameter)}")
            names.append(name or "")
    if nameless:
        return names, [f"has parameters without a name ({_some(nameless)}); {_REMEDY}"]
    return _distinct(names, [parameter for group in placed.optimizer.param_groups for parameter in group["params"]])


def _distinct(names: list[str], parameters: list[torch.Tensor]) -> tuple[list[str], list[str]]:
    """Return the names without parametrizations, or, where two would be one, as they are; and those that are one."""
    plain = [without_parametrization(name) for name in names]
    if len(set(plain)) == len(set(names)):
        names = plain
    times = Counter(dict(zip(map(id, parameters), names, strict=True)).values())
    twice = [name for name, count in times.items() if count > 1]
    return names, [f"has several parameters of the name {name!r}; give each its own" for name in twice]


def _shape_text(parameter: torch.Tensor) -> str:
    return "lazy" if torch.nn.parameter.is_lazy(parameter) else f"shape {list(parameter.shape)}"


def _some(lines: list[str], most: int = 5) -> str:
    return "; ".join(lines[:most]) + (f"; and {len(lines) - most} more" if len(lines) > most else "")
