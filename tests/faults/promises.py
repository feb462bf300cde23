"""What a directory of checkpoints must hold after a fault, and what is found there.

A checkpoint is told by one number, its value: all it holds is worked out from that, so that a torn one shows.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import TypeVar

import pytest
import torch

import torchsaver as ts
from torchsaver import saver as saver_module
from torchsaver.saving import writer as saving_module
from torchsaver.storage import locks, paths

FORMS: dict[str, int | None] = {"single": None, "sharded": 12}  # max_shard_bytes: a tensor of three floats a shard
NEXT_STEP = 900  # of what is saved, without a fault, to see that saving goes on; its value too


_T = TypeVar("_T")
_HANGS_SECS = 20.0  # what is looked at here takes milliseconds, and others may have the processor


def tensors(value: float) -> dict[str, torch.Tensor]:
    """Return the variables of a checkpoint of this value."""
    return {key: torch.full((3,), value + index) for index, key in enumerate("ab")}


def assign(variables: Mapping[str, torch.Tensor], value: float) -> None:
    """Give variables the value, in place."""
    for key, tensor in tensors(value).items():
        variables[key].copy_(tensor)


def value_of(variables: Mapping[str, torch.Tensor]) -> float:
    """Return the value of variables; an AssertionError when they are no save's."""
    value = variables["a"][0].item()
    assert variables.keys() == {"a", "b"}
    assert all(torch.equal(variables[key], tensor) for key, tensor in tensors(value).items()), f"torn: {variables}"
    return value


def make_repeatable(patch: pytest.MonkeyPatch) -> None:
    """Let a save be the same bytes under the same names each time; nothing waits for a lock that is never let go."""
    numbers = itertools.count()
    patch.setattr(paths, "_random_hex", lambda: f"{next(numbers):016x}")
    clock = SimpleNamespace(time=lambda: 1000.0, perf_counter=lambda: 0.0)
    patch.setattr(saver_module, "time", clock)
    patch.setattr(saving_module, "time", clock)
    patch.setattr(locks, "_PATIENCE_SECS", 0.0)


def owner(file: str) -> str | None:
    """Return the name of the checkpoint, one with a step, that a file belongs to by its own name; None: to none."""
    found = re.fullmatch(r"(m-[0-9]+)(-s[0-9a-f]{16})?(-[0-9]{5}-of-[0-9]{5})?\.safetensors(\.index\.json)?", file)
    return found[1] if found else None


@dataclass(frozen=True)
class Found:
    """What a directory holds.

    Attributes:
        latest: Name of the latest checkpoint by the state file; None: there is none.
        newest: Name of the newest valid one.
        resumed: Value that `Saver.resume` restores.
        listed: Names in the state file, oldest first.
        values: The value of each checkpoint that is listed or of which a file is there; None: it is not there, or it
            cannot be restored.
        litter: Files that belong to none of those.
        errors: What has failed on the way.
    """

    latest: str | None = None
    newest: str | None = None
    resumed: float | None = None
    listed: tuple[str, ...] = ()
    values: Mapping[str, float | None] = field(default_factory=dict)
    litter: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


def look(directory: str) -> Found:
    """Return what a directory holds."""
    errors: list[str] = []
    variables = tensors(-1.0)
    latest = _attempt(errors, "latest_checkpoint", lambda: ts.latest_checkpoint(directory))
    newest = _attempt(errors, "newest_valid_checkpoint", lambda: ts.newest_valid_checkpoint(directory))
    report = _attempt(errors, "resume", lambda: ts.Saver(variables).resume(directory))
    resumed = None if report is None else _attempt(errors, "resumed value", lambda: value_of(variables))
    state = _attempt(errors, "get_checkpoint_state", lambda: ts.get_checkpoint_state(directory))
    listed = [] if state is None else [os.path.basename(path) for path in state.all_model_checkpoint_paths]
    files = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    owners = {file: owner(file) for file in files}
    values, used = {}, {paths.STATE_FILE}
    for name in dict.fromkeys([*listed, *(name for name in owners.values() if name is not None)]):
        values[name] = _restored(os.path.join(directory, name), used)
    return Found(
        None if latest is None else os.path.basename(latest),
        None if newest is None else os.path.basename(newest),
        resumed,
        tuple(listed),
        values,
        tuple(file for file in files if file not in used),
        tuple(errors),
    )


def _attempt(errors: list[str], what: str, function: Callable[[], _T]) -> _T | None:
    def stop(*_args: object) -> None:
        raise TimeoutError(f"{what} hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _HANGS_SECS)
    try:
        return function()
    except Exception as error:
        errors.append(f"{what}: {error!r}")
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _restored(prefix: str, used: set[str]) -> float | None:
    """Return the value of a checkpoint, and add the names of its files to `used`; None when it cannot be restored."""
    try:
        with ts.load_checkpoint(prefix) as reader:
            reader.verify()
            value = value_of({key: reader.get_tensor(key) for key in reader.keys()})
            used |= {os.path.basename(file.path) for file in reader.files}
            used |= {os.path.basename(paths.find_checkpoint(prefix) or "")}
    except (ts.TorchSaverError, AssertionError):
        return None
    return value


@dataclass(frozen=True)
class Promise:
    """What a fault must leave.

    Attributes:
        before: Value of each listed checkpoint before it, oldest first.
        after: The same after it.
        is_acked: What was to be done has returned normally: only `after` will do.
        loose: Values of checkpoints outside the list; None: it may be gone.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    is_acked: bool
    loose: Mapping[str, Collection[float | None]] = field(default_factory=dict)

    def broken_by(self, found: Found) -> list[str]:
        """Return how what was found breaks the promise."""
        windows = [self.after] if self.is_acked else [self.before, self.after]
        newest = [next(reversed(list(window)), None) for window in windows]
        broken = list(found.errors)
        if found.latest not in newest or found.newest not in newest:
            broken.append(f"the latest is {found.latest}, the newest valid {found.newest}, and not of {newest}")
        there = {name for name, value in found.values.items() if value is not None}
        matching = [set(window) for window, name in zip(windows, newest, strict=True) if name == found.newest]
        if matching and not any(window <= there for window in matching):
            broken.append(f"of {matching} only {there} is there")
        if found.resumed not in self._values(found.newest):
            broken.append(f"{found.newest} resumes with {found.resumed}, not of {self._values(found.newest)}")
        for name, value in found.values.items():
            if (name in found.listed or value is not None) and value not in self._values(name):
                broken.append(f"{name} restores as {value}, not of {self._values(name)}")
        return broken

    def _values(self, name: str | None) -> Collection[float | None]:
        """Return the values that a checkpoint of this name may have."""
        if name is None:
            return [None]
        if name in self.loose:
            return self.loose[name]
        windows = [self.after] if self.is_acked and name in self.after else [self.before, self.after]
        return [window[name] for window in windows if name in window]


def saving_on(
    directory: str, max_to_keep: int, max_shard_bytes: int | None = None, loose: Collection[str] = ()
) -> list[str]:
    """Save as a new process that goes on would, until nothing old is listed, and return what is wrong after each save.

    Args:
        directory: The directory.
        max_to_keep: How many checkpoints it keeps.
        max_shard_bytes: As the saver's.
        loose: As `after_a_save`.
    """
    variables = tensors(-1.0)
    saver = ts.Saver(variables, max_to_keep=max_to_keep, max_shard_bytes=max_shard_bytes)
    errors: list[str] = []
    report = _attempt(errors, "resume before the next save", lambda: saver.resume(directory))
    kept = [] if report is None else [os.path.basename(report.save_path)]
    for step in range(NEXT_STEP, NEXT_STEP + max_to_keep):
        assign(variables, float(step))
        _attempt(errors, "the next save", partial(saver.save, os.path.join(directory, "m"), step))
        kept = [*kept, f"m-{step}"][-max_to_keep:]
        wrong = errors or _unlisted(directory, loose)
        if wrong:
            return [f"after saving m-{step}: {text}" for text in wrong]
    return after_a_save(directory, kept, loose)


def _unlisted(directory: str, loose: Collection[str]) -> list[str]:
    """Return the files of a directory that are no listed checkpoint's, not even one's of another form it has had."""
    state = ts.get_checkpoint_state(directory)
    listed = {os.path.basename(path) for path in state.all_model_checkpoint_paths} if state is not None else set()
    files = [file for file in os.listdir(directory) if file != paths.STATE_FILE]
    return [f"{file} is left" for file in files if owner(file) not in {*listed, *loose}]


def after_a_save(directory: str, listed: Sequence[str], loose: Collection[str] = ()) -> list[str]:
    """Return what is wrong where a save has just gone well: all that is there is listed, whole, and nothing else is.

    Args:
        directory: The directory.
        listed: Names of the checkpoints it must list, oldest first.
        loose: Names that may be there, or not, outside the list; only a save under the same name clears up after them.
    """
    found = look(directory)
    newest = listed[-1]
    wrong = list(found.errors)
    if not found.latest == found.newest == newest:
        wrong.append(f"after saving {newest} the latest is {found.latest}, the newest valid {found.newest}")
    if list(found.listed) != list(listed):
        wrong.append(f"after saving {newest} {found.listed} are listed, and not {listed}")
    values = {name: value for name, value in found.values.items() if name not in loose}
    litter = [file for file in found.litter if owner(file) not in loose]
    if None in values.values() or values.keys() != set(found.listed) - set(loose) or litter:
        wrong.append(f"after saving {newest} there are {dict(found.values)} and {litter}")
    state_file = os.path.join(directory, paths.STATE_FILE)
    os.rename(state_file, state_file + ".away")
    by_record = ts.newest_valid_checkpoint(directory)
    os.rename(state_file + ".away", state_file)
    if by_record is None or os.path.basename(by_record) != newest:
        wrong.append(f"after saving {newest} the newest by the checkpoints' own records is {by_record}")
    return wrong
