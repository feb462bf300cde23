"""The place of epsilon in TensorFlow's formulas, which is not torch's: hooks that make torch's steps TensorFlow's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from torchsaver.variables.tensorflow.slots import group_fields, optimizer_fields


def step_tensor(group: Mapping[str, Any], parameter: torch.Tensor, step: int) -> torch.Tensor:
    """Return state["step"] as torch's optimizers make it: on the CPU, unless they compute with it on the device."""
    is_fused = bool(group.get("fused"))
    is_wide = torch.get_default_dtype() == torch.float64 and not is_fused
    device = parameter.device if is_fused or group.get("capturable") else torch.device("cpu")
    return torch.tensor(float(step), dtype=torch.float64 if is_wide else torch.float32, device=device)


class TFEpsilon:
    """Makes an optimizer take TensorFlow's steps, until `remove`; `tf_epsilon` has the formulas.

    Args:
        optimizer: One of torch's.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer_fields(optimizer)
        if isinstance(optimizer, torch.optim.SGD):
            raise TypeError("SGD has no epsilon")
        if any(isinstance(getattr(hook, "__self__", None), TFEpsilon) for hook in _pre_hooks(optimizer)):
            raise ValueError("this optimizer takes TensorFlow's steps already")
        self._groups: list[tuple[dict[str, Any], Any]] = []
        self._shifted: list[tuple[torch.Tensor, torch.Tensor, float, float, float]] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def remove(self) -> None:
        """Let the optimizer take torch's steps again."""
        self._undo()
        for handle in self._handles:
            handle.remove()

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        self._undo()  # of a step that ended in an error
        args, kwargs = _with_closure_run(args, kwargs)
        is_adam = isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))
        epsilons = [_adam_epsilon(optimizer, group) for group in optimizer.param_groups] if is_adam else []
        for number, group in enumerate(optimizer.param_groups):
            self._groups.append((group, group["eps"]))
            if is_adam:
                group["eps"] = epsilons[number]
            else:
                self._shift(optimizer, group)
        return args, kwargs

    def _shift(self, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
        """Add to the mean square what makes it larger by epsilon after the step."""
        epsilon = float(group["eps"])
        for state in _states(optimizer, group):
            value = state["square_avg"] if "square_avg" in state else state["sum"]
            value = torch.view_as_real(value) if value.is_complex() else value
            before = epsilon / float(group.get("alpha", 1.0))
            self._shifted.append((value, state["step"], float(state["step"]), before, epsilon))
            value.add_(before)
        group["eps"] = 0.0

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        self._undo()

    def _undo(self) -> None:
        """Put epsilons and mean squares back, whether the step was taken or ended before."""
        for group, epsilon in self._groups:
            group["eps"] = epsilon
        for value, step, steps_before, before, after in self._shifted:
            value.sub_(after if float(step) != steps_before else before).clamp_(min=0)  # rounding may go below
        self._groups, self._shifted = [], []


def _pre_hooks(optimizer: torch.optim.Optimizer) -> list[Any]:
    return list(optimizer._optimizer_step_pre_hooks.values())


def _with_closure_run(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments of step() with the closure run: it sets gradients, and which there are has to be known."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        return args, kwargs
    with torch.enable_grad():
        loss = closure()
    if len(args) > 1:
        return (args[0], lambda: loss, *args[2:]), kwargs
    return args, {**kwargs, "closure": lambda: loss}


def _adam_epsilon(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> float:
    """Return the epsilon with which torch's next step is TensorFlow's.

    Raises:
        ValueError: Parameters of the group have taken different numbers of steps.
    """
    trained = [parameter for parameter in group["params"] if parameter.grad is not None]
    steps = [torch.as_tensor(optimizer.state.get(parameter, {}).get("step", 0.0)).reshape(()) for parameter in trained]
    if not steps:
        return float(group["eps"])
    counts = set(torch.stack([step.to(steps[0].device, torch.float64) for step in steps]).tolist())
    if len(counts) > 1:
        found = ", ".join(str(int(count)) for count in sorted(counts))
        raise ValueError(f"parameters of one group have taken {found} steps; make a group of those with as many")
    return float(group["eps"]) / math.sqrt(1 - float(group["betas"][1]) ** (counts.pop() + 1))


def _states(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the states of the parameters that a step will change; where there is none, torch's first."""
    for parameter in group["params"]:
        if parameter.grad is None:
            continue
        state = optimizer.state[parameter]
        if not state:
            start = optimizer.defaults.get("initial_accumulator_value", 0.0)
            state["step"] = step_tensor(group, parameter, 0)
            for name in group_fields(optimizer_fields(optimizer), group):
                state[name] = torch.full_like(parameter, start, requires_grad=False)
        yield state
