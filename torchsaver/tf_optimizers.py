"""TensorFlow's optimizers into torch's: training goes on where TensorFlow stopped.

ts.init_from_checkpoint(path, names)
restore_optimizer(path, optimizer, names)  # the slot variables of the same values
tf_epsilon(optimizer)                      # and steps with TensorFlow's epsilon
"""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from torchsaver.errors import CheckpointKeyError, MismatchError, nearest_keys
from torchsaver.formats.tensor_bytes import span
from torchsaver.reader import CheckpointReader, load_checkpoint
from torchsaver.transfer import map_names, names_of, restore_links
from torchsaver.variables.joins import Sum
from torchsaver.variables.layouts import Layout
from torchsaver.variables.name_map import AssignmentMap, Link, Match, ModuleNames, Target, match_names
from torchsaver.variables.restore_plan import RestoreReport
from torchsaver.variables.tf_epsilon import TFEpsilon, step_tensor
from torchsaver.variables.tf_slots import Fields, Slot, SlotFinder, group_fields, optimizer_fields
from torchsaver.variables.tf_steps import steps_of_powers

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

    Adam's number of steps comes from Keras' iterations or beta1_power and beta2_power, for which betas must be
    TensorFlow's; of these underflowed, from a global_step that agrees. BERT's adam_m and adam_v have no bias
    correction: slot_names={"exp_avg": "adam_m", "exp_avg_sq": "adam_v"} and step=10**6.

    Args:
        ckpt_dir_or_file: As `init_from_checkpoint`: name-based, tf.compat.v1's or Keras' objects.
        optimizer: torch's Adam, AdamW, SGD with momentum, RMSprop or Adagrad; learning rates and the like are its own.
        assignment_map: As `init_from_checkpoint`: which value each parameter is. A part of a parameter is known as such.
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
    with load_checkpoint(ckpt_dir_or_file) as reader:
        transfer = _Transfer(reader, optimizer, own_names, step, match_names(names_of(reader), assignment_map))
        transfer.name_parameters(assignment_map)
        links = transfer.plan(strict=strict)
        report = restore_links(reader, [link for link, _ in links], verify=verify)
        for _, rescale in links:
            for tensor, factor in rescale:
                tensor.div_(factor)
        transfer.install()
    return dataclasses.replace(report, missing=tuple(transfer.missing))


@dataclass
class _Home:
    """A parameter of the optimizer, and the state that it is to have."""

    parameter: torch.Tensor
    group: dict[str, Any]
    fields: Fields
    name: str
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    covered: torch.Tensor | None = None
    steps: set[int | None] = field(default_factory=set)
    is_left_out: bool = False

    @property
    def is_covered(self) -> bool:
        return self.covered is None or bool(self.covered.all())


class _Transfer:
    """Works out a restore of an optimizer's state, in new tensors."""

    def __init__(
        self,
        reader: CheckpointReader,
        optimizer: torch.optim.Optimizer,
        own_names: Mapping[str, str],
        step: int | None,
        match: Match,
    ) -> None:
        self.missing: dict[str, tuple[str, ...]] = {}
        self._problems: list[tuple[str, str]] = []
        self._reader, self._optimizer, self._own_names, self._step, self._match = (
            reader,
            optimizer,
            own_names,
            step,
            match,
        )
