"""What a Saver's arguments may be: checked, and brought into one form."""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from torchsaver.formats.json_text import is_unicode
from torchsaver.retention.window import Policy, Rules, TFRules
from torchsaver.storage import paths

DEFAULT_MAX_TO_KEEP = 5  # TF's
DEFAULT_EVERY_N_HOURS = 10000.0  # TF's


def step_number(global_step: Any) -> int | None:
    """Return a step as an int.

    Raises:
        TypeError: Not an integer, nor a 0-d tensor.
        ValueError: A tensor that is nan or infinite, or an integer beyond 64 bits.
    """
    if global_step is None:
        return None
    if isinstance(global_step, torch.Tensor):
        not_real = global_step.dtype == torch.bool or global_step.is_complex()
        if global_step.dim() != 0 or not_real or global_step.is_meta:
            kind = f"{global_step.dtype} {list(global_step.shape)} on {global_step.device}"
            raise TypeError(f"global_step is a 0-d number, not a tensor {kind}")
        try:
            return int(global_step.item())
        except OverflowError as error:
            raise ValueError(f"global_step is {global_step.item()}") from error
    if isinstance(global_step, bool):
        raise TypeError("global_step is an integer, not a bool")
    try:
        step = operator.index(global_step)
    except TypeError as error:
        raise TypeError(f"global_step is an integer or a 0-d tensor, not {type(global_step).__name__}") from error
    if abs(step) >= 1 << 63:
        raise ValueError("global_step is beyond 64 bits")
    return step


def whole_number(value: Any, name: str, *, least: int) -> int | None:
    """Return an integer of Python or numpy as an int, and None as it is.

    Raises:
        TypeError, ValueError: Not an integer (a bool is none), or below `least`.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} is an integer or None, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} is {least} at least, not {value}")
    return int(value)


def hours(value: Any) -> float:
    """Return keep_checkpoint_every_n_hours as a float; None, which switches it off, as infinity.

    Raises:
        TypeError, ValueError: Not a number, or negative, or nan.
    """
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"keep_checkpoint_every_n_hours is a number or None, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError("keep_checkpoint_every_n_hours is beyond a float; None switches it off") from error
    if not number >= 0:
        raise ValueError(f"keep_checkpoint_every_n_hours is 0 at least, not {value}")
    return number


def numbers_by_name(metrics: Any) -> dict[str, float]:
    """Return metrics as a dict of floats; none for None.

    Raises:
        TypeError, ValueError: Not a dict from str to real numbers or 0-d tensors.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics is a dict from name to number, not {type(metrics).__name__}")
    return {_metric_name(name): _real_number(name, value) for name, value in metrics.items()}


def _metric_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name of a metric is a str, not {type(name).__name__}")
    if not is_unicode(name):
        raise ValueError(f"the name of the metric {name!r} holds a lone surrogate, which UTF-8 cannot hold")
    return name


def _real_number(name: str, value: Any) -> float:
    if isinstance(value, torch.Tensor) and value.dim() == 0 and not value.is_complex() and not value.is_meta:
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, np.floating, np.integer)):
        raise TypeError(f"the metric {name!r} is a number or a 0-d tensor, not {type(value).__name__}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"the metric {name!r} is beyond a float") from error


def rules(max_to_keep: Any, every_n_hours: Any, keep: Any) -> Rules:
    """Return which checkpoints stay: TF's two arguments, or the policies of `keep`.

    Raises:
        TypeError, ValueError: One of them is none of what it should be; or both are given.
    """
    tf_rules = TFRules(whole_number(max_to_keep, "max_to_keep", least=0) or 0, hours(every_n_hours))
    if keep is None:
        return tf_rules
    if tf_rules != TFRules(DEFAULT_MAX_TO_KEEP, DEFAULT_EVERY_N_HOURS):
        raise ValueError("keep says all of what stays; write max_to_keep as Latest(n), and hours as EveryNHours(n)")
    from torchsaver.retention.policies import policy_rules  # noqa: PLC0415, most savers do without

    policies = policy_rules(keep)
    for alias in (alias for policy in policies.policies if (alias := getattr(policy, "alias", None))):
        if (reason := paths.why_not_a_prefix(alias)) is not None or alias == paths.STATE_FILE:
            raise ValueError(f"alias {alias!r} is no name for a checkpoint: {reason or 'the state file has it'}")
    return policies


def require_plain_name(latest_filename: Any) -> None:
    """Check that a state file's name is a file name without a directory, or None.

    Raises:
        TypeError, ValueError: It is not.
    """
    if latest_filename is None:
        return
    if not isinstance(latest_filename, str):
        raise TypeError(f"latest_filename is a str, not {type(latest_filename).__name__}")
    plain = os.path.basename(latest_filename) == latest_filename and latest_filename not in ("", ".", "..")
    if not plain or "\0" in latest_filename or not is_unicode(latest_filename):
        raise ValueError(f"latest_filename {latest_filename!r} is no file name without a directory")
    if latest_filename.endswith((paths.FILE_ENDING, paths.INDEX_ENDING)) or paths.is_temporary(latest_filename):
        raise ValueError(f"latest_filename {latest_filename!r} would collide with a checkpoint's files; choose another")


def new_prefix(save_path: Any, global_step: Any, latest_filename: Any, pad_step_number: bool) -> tuple[str, int | None]:
    """Return the prefix and step of a save, after checking that its files and the state file get on.

    Raises:
        TypeError, ValueError: They do not, or an argument is none of what it should be.
    """
    require_plain_name(latest_filename)
    step = step_number(global_step)
    prefix = paths.step_prefix(paths.path_text(save_path), step, pad_step_number)
    name = os.path.basename(prefix)
    if not is_unicode(prefix):
        raise ValueError(f"save_path {prefix!r} is not UTF-8, so the state file could not name it")
    if not name:
        raise ValueError(f"save_path {prefix!r} has no file name; add one: {os.path.join(prefix, 'model.ckpt')!r}")
    if (reason := paths.why_not_a_prefix(name)) is not None:
        raise ValueError(f"save_path {prefix!r} is no name for a checkpoint: {reason}")
    state_name = paths.STATE_FILE if latest_filename is None else latest_filename
    if state_name == name:
        raise ValueError(f"checkpoint {prefix!r} and the state file {state_name!r} collide; rename one or give a step")
    return prefix, step


@dataclass(frozen=True)
class Settings:
    """A saver's keyword arguments, as they were given, checked."""

    reshape: bool
    max_to_keep: int | None
    keep_checkpoint_every_n_hours: float | None
    keep: Sequence[Policy] | None
    allow_empty: bool
    pad_step_number: bool
    save_relative_paths: bool
    names_from: torch.nn.Module | None
    max_shard_bytes: int | None
    background: bool
    when_busy: str
    on_saved: Callable[[Any], object] | None

    def __post_init__(self) -> None:
        whole_number(self.max_shard_bytes, "max_shard_bytes", least=1)
        if self.when_busy not in ("wait", "skip"):
            raise ValueError(f"when_busy is 'wait' or 'skip', not {self.when_busy!r}")
        if self.on_saved is not None and not callable(self.on_saved):
            raise TypeError(f"on_saved is a function, not {type(self.on_saved).__name__}")
        if self.keep is not None and not isinstance(self.keep, Sequence) and isinstance(self.keep, Iterable):
            object.__setattr__(self, "keep", tuple(self.keep))  # a generator would be used up
        self.rules()

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> Settings:
        """Return the settings that are among a constructor's arguments."""
        return cls(**{each.name: arguments[each.name] for each in fields(cls)})

    def rules(self) -> Rules:
        """Return which checkpoints stay."""
        return rules(self.max_to_keep, self.keep_checkpoint_every_n_hours, self.keep)

    def as_dict(self) -> dict[str, Any]:
        """Return them by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}
