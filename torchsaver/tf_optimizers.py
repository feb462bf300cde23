"""TensorFlow's optimizers into torch's: training goes on where TensorFlow stopped.

ts.init_from_checkpoint(path, names)
restore_optimizer(path, optimizer, names)  # the slot variables of the same values
tf_epsilon(optimizer)                      # and steps with TensorFlow's epsilon
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

from torchsaver.errors import CheckpointKeyError, MismatchError, nearest_by_label, nearest_keys
from torchsaver.reader import CheckpointReader, load_checkpoint
from torchsaver.transfer import map_names, names_of, restore_links
from torchsaver.variables.mapping.name_map import AssignmentMap, Link, Match, match_names
from torchsaver.variables.mapping.name_tables import Target, tensors_of
from torchsaver.variables.restore_plan import RestoreReport
from torchsaver.variables.tensorflow.epsilon import TFEpsilon, step_tensor
from torchsaver.variables.tensorflow.slots import FieldNames, Slot, SlotFinder, optimizer_fields
from torchsaver.variables.tensorflow.state import OptimizerStates, ParameterState, names_in, with_tensors
from torchsaver.variables.tensorflow.steps import steps_of_powers

__all__ = ["TFEpsilon", "restore_optimizer", "tf_epsilon", "variables_to_restore"]


def tf_epsilon(optimizer: torch.optim.Optimizer) -> TFEpsilon:
    """Make a torch optimizer take the steps TensorFlow's takes, whose epsilon stands elsewhere in the formula.

        Adam, AdamW   sqrt(v) + eps before the bias correction: torch's eps is eps / sqrt(1 - beta2**t) at step t
        RMSprop       sqrt(rms + eps), where torch has sqrt(rms) + eps; less mg**2 under the root if centered
        Adagrad       sqrt(sum + eps): Keras from 2.11 on

    These are TensorFlow's formulas, up to rounding. Without it at the usual 1e-7 and 1e-8 nothing is to be seen, while
    RMSprop is often used with 1e-3 or 1. Keras up to 2.10 has torch's place in Adagrad, and in RMSprop without
    momentum: leave those alone. tf.compat.v1's Adagrad has no epsilon: torch's with eps=0.

    Between steps the optimizer has the epsilon and state it would have without, so state_dict() is the same. A closure
    is run before the step, once, as ever.

    Args:
        optimizer: Adam, AdamW, RMSprop or Adagrad.

    Returns:
        A handle whose remove() ends it.

    Raises:
        TypeError: Another optimizer.
        ValueError: It does so already. By its step(): parameters of one group of Adam have taken different numbers of
            steps.
    """
    return TFEpsilon(optimizer)


def variables_to_restore(
    ckpt_dir_or_file: str | os.PathLike[str], assignment_map: AssignmentMap, *, name: str = "ExponentialMovingAverage"
) -> dict[str, Target]:
    """Return the var_list that takes moving averages of variables where there are any: `Saver(...)` restores it.

    As in TF's ExponentialMovingAverage, a value's average is stored under its name, a slash and `name`; also within a
    scope. A value without one, such as a moving mean, is taken itself.

    Args:
        ckpt_dir_or_file: As `init_from_checkpoint`; of TensorFlow 1, whose checkpoints have names.
        assignment_map: As `init_from_checkpoint`; of the variables themselves.
        name: What ExponentialMovingAverage was called.

    Raises:
        CheckpointKeyError: No value has such an average; the nearest keys are named.
        ValueError: A value might have several averages; or as `map_names`.
        MismatchError, TypeError, TorchSaverError, OSError: As `init_from_checkpoint`.
    """
    with load_checkpoint(ckpt_dir_or_file) as reader:
        targets = map_names(reader.save_path, assignment_map)
        finder = SlotFinder(reader.keys(), reader.object_graph())
        averages = {}
        for key in targets:
            found = finder.average(key, name)
            if len(found) > 1:
                raise ValueError(f"{key!r} might have any of these averages: {', '.join(map(repr, found))}")
            averages[key] = found[0] if found else key
        if targets and set(averages.values()) == set(targets):
            wanted = f"{next(iter(targets))}/{name}"
            raise CheckpointKeyError(reader.save_path, wanted, nearest_keys(wanted, reader.keys()))
        return {averages[key]: target for key, target in targets.items()}


def restore_optimizer(
    ckpt_dir_or_file: str | os.PathLike[str],
    optimizer: torch.optim.Optimizer,
    assignment_map: AssignmentMap,
    *,
    step: int | None = None,
    slot_names: Mapping[str, str] | None = None,
    strict: bool = True,
    verify: bool = True,
) -> RestoreReport:
    """Set an optimizer's state from the slot variables of its parameters: of all, or, with an error, of none.

        Adam, AdamW      m, v (and vhat for amsgrad), number of steps
        SGD              momentum of MomentumOptimizer; of Keras' SGD, whose velocity is -lr times it
        RMSprop          rms (and mg if centered), momentum, which is lr times torch's
        Adagrad          accumulator

    Slot variables go the way of their values: a kernel's are transposed with it. What has lr in it is divided by the
    group's lr, which is to be that of TensorFlow's next step; it is exact as long as lr stays. Of two biases with one
    stored sum (LSTM) each gets the whole moment, and each takes the step: leave one out of the optimizer.

    Adam's number of steps comes from Keras' iterations, or from beta1_power and beta2_power, for which betas must be
    TensorFlow's; where both have become 0, from global_step. BERT's adam_m and adam_v have no bias correction, as torch
    has none after a million steps: slot_names={"exp_avg": "adam_m", "exp_avg_sq": "adam_v"} and step=10**6.

    Args:
        ckpt_dir_or_file: As `init_from_checkpoint`: name-based, tf.compat.v1's or Keras' objects.
        optimizer: torch's Adam, AdamW, SGD with momentum, RMSprop or Adagrad; learning rates and the like are its own.
        assignment_map: As `init_from_checkpoint`: which value each parameter, or part of one, is.
        step: How many steps have been taken, if the checkpoint does not say or is not to be asked.
        slot_names: {tensor in torch's state: what TensorFlow's is called instead}, such as {"exp_avg": "Adam_2"}, or
            "optimizer/m" of several optimizers' objects.
        strict: False: parameters without a value, or without all slot variables, keep the state they have.
        verify: As `Saver.restore`.

    Returns:
        What was restored, as "layer.weight exp_avg", and what is missing.

    Raises:
        MismatchError: Parameters that the map has no value for, slot variables that are missing, other shapes or
            dtypes, parts of parameters, an unknown number of steps: all of it.
        TypeError: The optimizer is of no such type; or as `init_from_checkpoint`.
        ValueError: dampening or lr that TensorFlow cannot have had; an unknown name in slot_names; or as
            `init_from_checkpoint`.
        TorchSaverError, OSError: As `init_from_checkpoint`.
    """
    own_names = dict(slot_names or {})
    if unknown := own_names.keys() - optimizer_fields(optimizer).keys():
        raise ValueError(f"slot_names: {sorted(unknown)} are not in the state of {type(optimizer).__name__}")
    if step is not None and (type(step) is not int or step < 0):
        raise ValueError(f"step={step!r}: a whole number of steps, 0 or more, was wanted")
    with load_checkpoint(ckpt_dir_or_file) as reader:
        match = match_names(names_of(reader), assignment_map)
        states = OptimizerStates(optimizer, names_in(match))
        slots = _Slots(reader, own_names, step)
        links = [moved for link in match.links for moved in _moved(link, states, slots)]
        _note_unlinked(states, slots, match)
        if slots.problems or (strict and slots.missing):
            raise slots.error()
        report = restore_links(reader, [link for link, _ in links], verify=verify)
    for _, divided in links:
        for tensor, divisor in divided:
            tensor.div_(divisor)
    for state in states.states:
        if state.is_linked and not state.is_left_out:
            optimizer.state[state.parameter] = _state_dict(optimizer, state)
    return dataclasses.replace(report, missing=tuple(slots.missing))


class _Slots:
    """The slot variables of a checkpoint and what it says of numbers of steps; takes down what is not there."""

    def __init__(self, reader: CheckpointReader, own_names: Mapping[str, str], step: int | None) -> None:
        self.missing: dict[str, str] = {}  # and the name each was looked for under
        self.problems: list[tuple[str, str]] = []
        self._reader = reader
        self._finder = SlotFinder(reader.keys(), reader.object_graph())
        self._own_names = own_names
        self._step = step
        self._steps: dict[Any, int | None] = {}

    def find(self, link: Link, name: str, names: FieldNames, *, is_needed: bool) -> Slot | None:
        """Return the slot variable of a value for the tensor `name` of a state; None, taken down if needed, if none."""
        own_name = self._own_names.get(name)
        found = self._finder.find(link.key, name, names, own_name)
        if len(found) == 1:
            return found[0]
        label = f"{link.label} {name}"
        if is_needed and found:
            some = ", ".join(repr(slot.key) for slot in found)
            self.problems.append((label, f"might be any of {some}; choose by slot_names"))
        elif is_needed:
            self.missing[label] = f"{link.key}/{own_name or names.ending or names.slot}"
        return None

    def error(self) -> MismatchError:
        """Return the error with all that was taken down, and keys that look like what is missing."""
        return MismatchError(
            self._reader.save_path,
            missing=list(self.missing),
            targets=self.problems,
            nearest=nearest_by_label(self.missing, self._reader.keys()),
            sought=self.missing,
        )

    def step(self, optimizer: str | None, group: Mapping[str, Any]) -> int | None:
        """Return how many steps an optimizer of the checkpoint has taken; None, and a problem, if that is unknown."""
        betas = tuple(float(beta) for beta in group.get("betas", ()))
        if (optimizer, betas) not in self._steps:
            step = self._stored_step(optimizer, betas) if self._step is None else self._step
            if step is None and (betas or group.get("lr_decay")):
                self.problems.append(("step", self._why_no_step(optimizer, betas)))
            self._steps[optimizer, betas] = step
        return self._steps[optimizer, betas]

    def _stored_step(self, optimizer: str | None, betas: tuple[float, ...]) -> int | None:
        if (key := self._finder.iterations(optimizer)) is not None:
            return self._count(key)
        global_step = self._count("global_step") if self._reader.has_tensor("global_step") else None
        if not betas:
            return global_step
        pairs = [(self._scalar(one), self._scalar(two)) for one, two in self._finder.powers(optimizer)]
        return steps_of_powers(pairs, (betas[0], betas[1]), global_step)

    def _why_no_step(self, optimizer: str | None, betas: tuple[float, ...]) -> str:
        keys = [key for pair in self._finder.powers(optimizer) for key in pair]
        if not keys:
            return "the checkpoint does not count the optimizer's steps; pass step="
        stored = ", ".join(f"{key} = {self._scalar(key)}" for key in keys)
        return f"{stored} do not say after how many steps betas={betas} make them; correct betas, or pass step="

    def _scalar(self, key: str) -> torch.Tensor:
        value = self._reader.get_tensor(key)
        return value if isinstance(value, torch.Tensor) else torch.tensor(math.nan)  # strings

    def _count(self, key: str) -> int | None:
        value = self._scalar(key)
        is_count = value.numel() == 1 and not value.dtype.is_floating_point
        return int(value.item()) if is_count and value.item() >= 0 else None


_Moved: TypeAlias = "tuple[Link, list[tuple[torch.Tensor, float]]]"


def _moved(link: Link, states: OptimizerStates, slots: _Slots) -> list[_Moved]:
    """Return links from a value's slot variables to new state, and which of its tensors are then divided by what."""
    tensors = tensors_of(link.target)
    owners = [states.of(tensor) for tensor in tensors]
    own = [(tensor, state) for tensor, state in zip(tensors, owners, strict=True) if state is not None]
    for tensor, state in own:
        state.cover(tensor)
    is_trained = any(state.parameter.requires_grad for _, state in own)
    moved = []
    for name, names in {name: names for _, state in own for name, names in state.fields.items()}.items():
        if (slot := slots.find(link, name, names, is_needed=is_trained)) is None:
            for _, state in own:
                state.is_left_out = True
            continue
        parts = {id(tensor): state.part(tensor, name) for tensor, state in own if name in state.tensors}
        others = [parts.get(id(tensor), torch.zeros_like(tensor, requires_grad=False)) for tensor in tensors]
        divided = [(parts[id(tensor)], _lr(state) * slot.per_lr) for tensor, state in own if slot.per_lr]
        moved.append((Link(slot.key, f"{link.label} {name}", with_tensors(link.target, others)), divided))
        for _, state in own:
            if (step := slots.step(slot.optimizer, state.group)) is not None:
                state.steps.add(step)
    return moved


def _lr(state: ParameterState) -> float:
    lr = float(state.group["lr"])
    if lr == 0:
        raise ValueError("lr=0: TensorFlow has its momentum times lr, so set the lr of the next step first")
    return lr


def _note_unlinked(states: OptimizerStates, slots: _Slots, match: Match) -> None:
    """Take down the parameters that there is no value for, or values of a part of them only."""
    looked_for = {one.label: one.name for one in match.missing}
    for state in states.states:
        if len(state.steps) > 1:
            slots.problems.append((state.name, f"its parts have taken {sorted(state.steps)} steps; pass step="))
        if state.is_covered:
            continue
        state.is_left_out = True
        if state.parameter.requires_grad:
            label = f"a part of {state.name}" if state.is_linked else state.name
            slots.missing[label] = looked_for.get(state.name, label)


def _state_dict(optimizer: torch.optim.Optimizer, state: ParameterState) -> dict[str, torch.Tensor]:
    """Return the state as torch has it: SGD does not count steps."""
    if isinstance(optimizer, torch.optim.SGD):
        return dict(state.tensors)
    step = next(iter(state.steps), 0)
    return {"step": step_tensor(state.group, state.parameter, step), **state.tensors}
