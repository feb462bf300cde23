"""Optimizers whose state goes by the names of their parameters, where torch goes by their order.

torch.optim.Optimizer.load_state_dict() gives the first parameter the first state, whatever it is of. Here the state is
brought into the order of the optimizer that takes it, with everything that does not fit told before anything changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from torchsaver.formats.tensor_bytes import dtype_text
from torchsaver.variables.optimizers import flat_state
from torchsaver.variables.optimizers.groups import fit_groups, group_numbers
from torchsaver.variables.optimizers.loading import load, put_back_values, way_back
from torchsaver.variables.optimizers.named_state import NamedState
from torchsaver.variables.wrappers import match_parameters, plain_parameter_name

# State of torch.optim's optimizers with its parameter's shape and dtype; other state (row_var, step, eta) has its own.
_LIKE_PARAMETER = {
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg"),
    *("acc_delta", "sum", "prev", "step_size", "ax"),
}
_WHOLE = "whole_state"  # among the others of a NamedState: a state that goes by the order of the parameters


class NamedOptimizer:
    """An optimizer together with the names of its parameters: its state_dict() goes by them.

    A state of another form than torch's can only go by the order of the parameters. It is kept whole, with their names,
    and taken back where the order is the same.

    Attributes:
        optimizer: The optimizer.
        names: One for each of its parameters, in its order, through all groups.
        tied: {such a name: other names of the same parameter, one of which may be the stored one}.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: Sequence[str],
        tied: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self.optimizer = optimizer
        self.names = list(names)
        self.tied = tied

    @property
    def name_groups(self) -> list[list[str]]:
        """The names of each group's parameters."""
        names = iter(self.names)
        return [[next(names) for _ in group["params"]] for group in self.optimizer.param_groups]

    def state_dict(self) -> Any:
        """Return a NamedState; what the optimizer itself gives, if that has another form, and there are no names."""
        state = self.optimizer.state_dict()
        if is_usual(state):
            return flat_state.gathered(self.optimizer, named(state, self.names))
        groups = [{"params": names} for names in self.name_groups]
        return NamedState({}, {_WHOLE: state}, groups) if all(self.names) else state

    def load_state_dict(self, state: Any, /) -> None:
        """Take a state in either form.

        Raises:
            ValueError: It does not fit; nothing has changed.
        """
        fitted, reasons = self.fit(state)
        if reasons:
            raise ValueError("; ".join(reasons))
        self.take(fitted)

    def fit(self, state: Any) -> tuple[Any, list[str]]:
        """Return a state as this optimizer's own load_state_dict() wants it, and all that does not fit.

        A parameter that is not in it gets no state: whether that will do is for the caller to say. What has an unusual
        form is left as it is, for the optimizer to judge.
        """
        stored = self._by_name(state)
        if isinstance(stored, str):
            return state, [stored]
        if stored is None:
            return state, []
        found = self._found(stored)
        if _WHOLE in stored.others:
            return stored.others[_WHOLE], self._why_not_in_order(found, stored)
        flat, reason = flat_state.fit(self.optimizer, self.names, found, stored)
        groups, reasons = fit_groups(self.optimizer, self.names, found, stored)
        reasons = [*([reason] if reason else []), *self._why_not_like_parameters(found, stored), *reasons]
        if flat is not None:
            return {"state": {0: flat}, "param_groups": groups}, reasons
        indexes = {name: index for index, name in enumerate(self.names) if name in found}
        own = {index: stored.parameters.get(found[name]) for name, index in indexes.items()}
        values: dict[Any, Any] = {index: items for index, items in own.items() if items is not None}
        values |= {name: value for name, value in stored.others.items() if name not in flat_state.KEYS}
        return {"state": values, "param_groups": groups}, reasons

    def take(self, fitted: Any) -> None:
        """Load a state that fits, with its exact dtypes, on the devices where the optimizer has such values."""
        load(self.optimizer, fitted)
        if is_usual(fitted) and isinstance(self.optimizer, torch.optim.Optimizer):
            put_back_values(self.optimizer, fitted)

    def compare(self, state: Any) -> tuple[list[str], list[str]]:
        """Return the names of own parameters that a state does not know, and of those that only the state knows."""
        stored = self._by_name(state)
        if not isinstance(stored, NamedState):
            return [], []
        found = self._found(stored)
        known = set(found.values())
        absent = [name for name in dict.fromkeys(self.names) if name not in found]
        return absent, [name for name in _names(stored) if name not in known]

    def group_sources(self, state: Any) -> list[list[int]]:
        """Return for each group the numbers of those groups of a state that its parameters come from.

        Of a state without names, and with another number of groups or parameters, there is nothing to return.
        """
        stored = self._by_name(state)
        if not isinstance(stored, NamedState):
            return []
        found, homes = self._found(stored), group_numbers(stored)
        return [sorted({homes[found[name]] for name in names if name in found}) for names in self.name_groups]

    def way_back(self) -> Callable[[], None]:
        """Return what undoes a `take`: tensors and groups are the very ones of before, none is copied.

        Of what is no optimizer of torch's, but like one, its state is copied.
        """
        return way_back(self.optimizer)

    def _found(self, stored: NamedState) -> dict[str, str]:
        """Return {name of an own parameter: its stored name, which may be another one of a tied parameter}."""
        stored_names = _names(stored)
        found = match_parameters(self.names, stored_names)
        others = {other: name for name in self.names if name not in found for other in self.tied.get(name, ())}
        left = set(stored_names).difference(found.values())
        return {**{others[other]: name for other, name in match_parameters(others, left).items()}, **found}

    def _why_not_in_order(self, found: Mapping[str, str], stored: NamedState) -> list[str]:
        if [found.get(name) for name in self.names] == _names(stored):
            return []
        reason = "has a state of a form of its own, which goes by the order of the parameters"
        return [f"{reason}, and that is another one in checkpoint; build modules and groups in that order"]

    def _by_name(self, state: Any) -> NamedState | str | None:
        """Return a state by names; why it is another optimizer's; None if only the optimizer can judge it."""
        if isinstance(state, NamedState):
            return state
        if not is_usual(state):
            return None
        if all(len(group.get("param_names") or ()) == len(group["params"]) for group in state["param_groups"]):
            stored_names = [name for group in state["param_groups"] for name in group.get("param_names") or ()]
            own_names = self._own_names_of(stored_names)
            own = [own_names.get(name, name) for name in stored_names]
            return named(state, own if len(set(own)) == len(set(stored_names)) else stored_names)
        return _why_not_by_position(self.optimizer, state) or named(state, self.names)

    def _own_names_of(self, param_names: list[str]) -> dict[str, str]:
        """Return {name a parameter has in a stored optimizer's groups: its name here}, of those that are found.

        The optimizer was given the names of a module's parameters; here they may stand under the module's key.
        """
        groups = self.optimizer.param_groups
        given = [name for group in groups for name in group.get("param_names") or ()]
        if len(given) == len(self.names):
            own = dict(zip(given, self.names, strict=True))
            tied = {
                other.removeprefix(name.removesuffix(here)): name
                for here, name in own.items()
                for other in self.tied.get(name, ())
            }
            found = {name: own[here] for name, here in match_parameters(param_names, given).items()}
            return {**{name: tied[name] for name in param_names if name in tied}, **found}
        own_names: dict[str, set[str]] = {}
        for name in self.names:
            for each in (name, *self.tied.get(name, ())):
                parts = plain_parameter_name(each).split(".")
                for start in range(len(parts)):
                    own_names.setdefault(".".join(parts[start:]), set()).add(name)
        own_sets = {name: own_names.get(plain_parameter_name(name), set()) for name in param_names}
        return {name: next(iter(own)) for name, own in own_sets.items() if len(own) == 1}

    def _why_not_like_parameters(self, found: dict[str, str], stored: NamedState) -> list[str]:
        """Return which state that is like its parameter has another shape or dtype."""
        if not type(self.optimizer).__module__.startswith("torch.optim"):
            return []
        reasons = []
        for name, parameter in dict(zip(self.names, _parameters(self.optimizer), strict=True)).items():
            if torch.nn.parameter.is_lazy(parameter):  # it has no shape yet
                continue
            for what, value in stored.parameters.get(found.get(name, ""), {}).items():
                if what not in _LIKE_PARAMETER or not isinstance(value, torch.Tensor) or not value.dim():
                    continue
                stored_form, wanted = (value.shape, value.dtype), (parameter.shape, parameter.dtype)
                if stored_form != wanted:
                    words = [f"{list(shape)} {dtype_text(dtype)}" for shape, dtype in (stored_form, wanted)]
                    reasons.append(f"{what!r} of {name!r} is {words[0]} in checkpoint, and the parameter {words[1]}")
        return reasons


def named(state: dict[str, Any], names: Sequence[str] | None = None) -> NamedState:
    """Return what torch's state_dict() of an optimizer gives, by the names of the parameters.

    Args:
        state: It has "state" and "param_groups".
        names: One for each parameter, in the order of the optimizer, through all groups; by default what it was given
            itself, as by Adam(model.named_parameters()).

    Raises:
        ValueError: It has another form; there are no names, or too few or many; two parameters have one.
    """
    if not is_usual(state):
        raise ValueError("it is no state_dict() of an optimizer: 'state' and 'param_groups' were wanted")
    groups = state["param_groups"]
    indexes = [index for group in groups for index in group["params"]]
    if names is None:
        names = [name for group in groups for name in group.get("param_names") or ()]
    if len(names) != len(indexes):
        raise ValueError(f"{len(indexes)} parameters and {len(names)} names; one for each parameter was wanted")
    by_index = dict(zip(indexes, names, strict=True))
    if len(set(by_index.values())) != len(by_index):
        raise ValueError("two parameters have one name")
    values = state["state"]
    return NamedState(
        parameters={name: values[index] for index, name in by_index.items() if index in values},
        others={name: value for name, value in values.items() if name not in by_index},
        param_groups=[
            {key: value for key, value in group.items() if key != "param_names"}
            | {"params": [by_index[index] for index in group["params"]]}
            for group in groups
        ],
    )


def is_usual(state: Any) -> bool:
    """Return whether a state has the form torch.optim.Optimizer.state_dict() gives it, and can go by names."""
    if not isinstance(state, dict) or state.keys() != {"state", "param_groups"}:
        return False
    values, groups = state["state"], state["param_groups"]
    if not isinstance(values, dict) or not isinstance(groups, list) or not all(map(_is_usual_group, groups)):
        return False
    indexes = {index for group in groups for index in group["params"]}
    own = [items for index, items in values.items() if index in indexes]
    return all(isinstance(items, dict) and all(isinstance(name, str) for name in items) for items in own) and all(
        isinstance(name, str) for name in values.keys() - indexes
    )


def _is_usual_group(group: Any) -> bool:
    if not isinstance(group, dict) or not isinstance(group.get("params"), list):
        return False
    names = group.get("param_names") or []
    return all(isinstance(index, (int, str)) for index in group["params"]) and (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    )


def _names(stored: NamedState) -> list[str]:
    return [name for group in stored.param_groups for name in group["params"]]


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _why_not_by_position(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> str | None:
    """Return why the order of the parameters cannot be that of a stored state, which has no names."""
    groups, stored_groups = optimizer.param_groups, state["param_groups"]
    if len(groups) != len(stored_groups):
        return (
            f"has {len(groups)} parameter groups, and {len(stored_groups)} in checkpoint, which has no names for them"
        )
    for group, stored in zip(groups, stored_groups, strict=True):
        if (here := len(group["params"])) != (there := len(stored["params"])):
            return f"has a group of {here} parameters, and {there} in checkpoint, which has no names for them"
    return None
