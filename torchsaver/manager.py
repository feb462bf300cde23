"""CheckpointManager: TF2's way of numbering checkpoints and letting old ones go, by Saver's means."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from torchsaver import arguments
from torchsaver.retention.window import SECS_PER_HOUR, Decision, Record, Rules, Window, with_newest
from torchsaver.rotation import Plan, Rotation
from torchsaver.saver import Saver
from torchsaver.saving.writer import Writer
from torchsaver.storage import paths
from torchsaver.storage.catalog import read_listing
from torchsaver.storage.state_file import CheckpointState, get_checkpoint_state
from torchsaver.variables.counter import Counter

logger = logging.getLogger("torchsaver")

_COUNTER_KEY = "save_counter"
_CLOCK_SLACK_SECS = 1.0  # TF's: managers made in quick succession are not taken for a clock that was set back


@dataclass(frozen=True)
class ManagerRules(Rules):
    """TF2's rules: all that is too much goes at once, but for one every so many hours after the last one so kept.

    Attributes:
        max_to_keep: How many stay in the list; None: all.
        every_n_hours: Hours from one that is kept for ever to the next; infinity: none.
        last_preserved: When the last one that was kept for ever was saved, in seconds since the epoch.
    """

    max_to_keep: int | None
    every_n_hours: float
    last_preserved: float

    def open_window(self, now: float) -> Window:  # noqa: ARG002, it goes on from an earlier one
        """Return an empty window; the hours count from the last one that was kept."""
        return Window(next_kept_time=self.last_preserved)

    def record_save(self, window: Window, record: Record) -> Window:
        """Return the window after a save: `record` is its newest, and all that is too much is doomed."""
        window = with_newest(window, record)
        excess = 0 if self.max_to_keep is None else max(0, len(window.last) - self.max_to_keep)
        return window._replace(last=window.last[excess:], doomed=(*window.doomed, *window.last[:excess]))

    def choose(self, window: Window) -> tuple[Window, list[Decision]]:
        """Return the window with nothing doomed any more, and what becomes of each that was."""
        decisions, kept_time = [], window.next_kept_time
        for record in window.doomed:
            keep = record.time - self.every_n_hours * SECS_PER_HOUR >= kept_time
            kept_time = record.time if keep else kept_time
            hours = f"{self.every_n_hours:g} hours after the last one that was kept"
            reason = hours if keep else "older than the last max_to_keep checkpoints"
            decisions.append(Decision(record, keep=keep, reason=reason))
        return window._replace(doomed=(), next_kept_time=kept_time), decisions

    def recover(self, window: Window, records: Iterable[Record]) -> Window:
        """Return the window of a manager that goes on with `records`, all of them until the next save."""
        return window._replace(last=tuple(records), doomed=())

    def plan(self, window: Window) -> list[Decision]:
        """Return what stays and goes of all that is remembered, oldest first."""
        reason = "the list holds all" if self.max_to_keep is None else f"one of the last {len(window.last)}"
        return [*self.choose(window)[1], *(Decision(record, keep=True, reason=reason) for record in window.last)]


class _TimedRotation(Rotation):
    """A Rotation whose state file says when each checkpoint was saved, and when the last one that was kept for ever."""

    def _state(self, plan: Plan, identities: list[str]) -> CheckpointState:
        state = super()._state(plan, identities)
        known = {record.identity: record.time for record in plan.listed}
        times = [known[path] if path in known else self._told(path, -math.inf).time for path in identities]
        state.all_model_checkpoint_timestamps = [max(saved, 0.0) for saved in times]  # 0 of an unknown time: it stays
        state.last_preserved_timestamp = self._rules.choose(plan.window)[0].next_kept_time
        return state


class _ManagedSaver(Saver):
    """A Saver with a manager's rules."""

    def __init__(self, var_list: Mapping[str, Any], rules: ManagerRules) -> None:
        super().__init__(var_list)
        self._rotation = _TimedRotation(rules, relative_paths=True)
        self._writer = Writer(self._rotation, self._settings)
        self._rotation.start(rules.last_preserved)

    def go_on(self, records: Iterable[Record], directory: str) -> None:
        """Take over what an earlier manager has listed in a directory."""
        self._rotation.recover(records, read_listing(directory))


class CheckpointManager:
    """Saves numbered checkpoints into one directory and lets old ones go; a port of TF2's tf.train.CheckpointManager.

        manager = ts.CheckpointManager({"model": model, "optimizer": optimizer}, "run", max_to_keep=3)
        manager.restore_or_initialize()
        for epoch in range(10):
            train_one_epoch()
            manager.save()  # run/ckpt-1, run/ckpt-2, ...

    The numbers come from a counter that is saved and restored with the values, as "save_counter". As in TF, the state
    file holds the times of the checkpoints, from which another manager of the directory goes on; one that was deleted
    behind its back stays in the list; what is not in the list, or was written by a plain Saver, is never removed; and a
    new manager that restores nothing begins with number 1 again. It differs from `Saver`: when there are too many all
    of them go at once; the hours count from the last checkpoint that was kept; `max_to_keep=None` lists all names.

    Unlike TF, a save that fails changes neither the counter nor the list, and saving is as safe as `Saver.save`: the
    checkpoint is durable before the state file names it, and only then are old ones removed.

    Args:
        var_list: A dict as for `Saver`, or a Module. It may hold a `Counter` as "save_counter"; else one is made.
        directory: Where to save; it is made at the first save.
        max_to_keep: How many recent checkpoints stay, 1 at least; None: all.
        keep_checkpoint_every_n_hours: What leaves the list stays for ever if it was saved so many hours, or more, after
            the last one that stayed. None or 0: none does.
        checkpoint_name: Name of the checkpoints, before the number.
        step_counter: What tells the step of training: a `Counter` or a 0-d tensor.
        checkpoint_interval: Steps from one save to the next: `save` does nothing earlier.
        init_fn: Called by `restore_or_initialize` when there is no checkpoint.
        last_checkpoint_step: The step of the last save of before.

    Raises:
        ValueError: `max_to_keep` is not positive; `checkpoint_interval` without `step_counter`.
        TypeError: An argument has the wrong type.
        VarListError: As Saver.
        CorruptCheckpointError: The state file names no newest checkpoint; as get_checkpoint_state.
        OSError: The state file is there and cannot be read.
    """

    def __init__(
        self,
        var_list: Mapping[str, Any] | torch.nn.Module,
        directory: str | os.PathLike[str],
        max_to_keep: int | None,
        *,
        keep_checkpoint_every_n_hours: float | None = None,
        checkpoint_name: str = "ckpt",
        step_counter: Counter | torch.Tensor | None = None,
        checkpoint_interval: int | None = None,
        init_fn: Callable[[], object] | None = None,
        last_checkpoint_step: int | None = None,
    ) -> None:
        self._limit = arguments.whole_number(max_to_keep, "max_to_keep", least=1)
        self._every_n_hours = arguments.hours(keep_checkpoint_every_n_hours) or math.inf
        self._directory = paths.path_text(directory, "directory")
        self._save_path = os.path.join(self._directory, checkpoint_name)
        self._step_counter = step_counter
        self._interval = arguments.whole_number(checkpoint_interval, "checkpoint_interval", least=1)
        if self._interval is not None and step_counter is None:
            raise ValueError("checkpoint_interval counts steps; pass step_counter too")
        if init_fn is not None and not callable(init_fn):
            raise TypeError(f"init_fn is a function or None, not {type(init_fn).__name__}")
        if step_counter is not None and not isinstance(step_counter, (Counter, torch.Tensor)):
            raise TypeError(f"step_counter is a Counter or a 0-d tensor, which goes on, not {step_counter!r}")
        self._init_fn = init_fn
        self._last_step = arguments.step_number(last_checkpoint_step)
        values, self._counter = _with_counter(var_list)
        state = get_checkpoint_state(self._directory)
        self._latest = None if state is None else state.model_checkpoint_path
        self._saver = self._go_on(values, state, time.time())

    def _go_on(self, values: Mapping[str, Any], state: CheckpointState | None, now: float) -> Saver:
        """Return a saver that manages what an earlier manager has left to it."""
        preserved = now - _CLOCK_SLACK_SECS if state is None else state.last_preserved_timestamp
        if now < preserved:
            late = preserved - now
            logger.warning("the clock is %g s behind the last checkpoint that was kept; older ones stay", late)
            preserved = now
        saver = _ManagedSaver(values, ManagerRules(self._limit, self._every_n_hours, preserved))
        if state is not None:
            times = zip(state.all_model_checkpoint_paths, state.all_model_checkpoint_timestamps, strict=False)
            managed = [(prefix, min(saved, now)) for prefix, saved in times if min(saved, now) > preserved]
            records = [Record(prefix, saved, paths.identity(prefix)) for prefix, saved in managed]
            saver.go_on(records, self._directory)
        return saver

    @property
    def directory(self) -> str:
        """Where it saves."""
        return self._directory

    @property
    def checkpoint_interval(self) -> int | None:
        """Steps from one save to the next, or None."""
        return self._interval

    @property
    def latest_checkpoint(self) -> str | None:
        """Prefix of the newest checkpoint, saved by this manager or before it; None without any."""
        return self._latest

    @property
    def checkpoints(self) -> list[str]:
        """Prefixes that are managed, oldest first; without those that stay for ever because of the hours."""
        return self._saver.last_checkpoints

    def save(self, checkpoint_number: int | torch.Tensor | None = None, *, check_interval: bool = True) -> str | None:
        """Save a checkpoint, unless its step has been saved already, or it is too early for one.

        Args:
            checkpoint_number: Its number, in place of the counter's, which goes up by 1 all the same.
            check_interval: False saves although less than `checkpoint_interval` steps have gone since the last one.

        Returns:
            The prefix; None when nothing was saved.

        Raises:
            TypeError, ValueError, VarListError, OSError: As `Saver.save`.
        """
        step = None if self._interval is None else self._step()
        if step is not None and self._is_saved_or_early(step, check_interval):
            return None
        number = arguments.step_number(checkpoint_number)
        self._counter.increment()
        try:
            self._latest = self._saver.save(self._save_path, int(self._counter) if number is None else number)
        except BaseException:
            self._counter.increment(-1)
            raise
        self._last_step = step
        return self._latest

    def restore_or_initialize(self) -> str | None:
        """Restore the newest checkpoint; without any, call `init_fn`.

        As in TF, no older one is taken in its place. `Saver.resume` does that, and verifies first.

        Returns:
            The prefix of what was restored, or None.

        Raises:
            CheckpointNotFoundError, MismatchError, CorruptCheckpointError, OSError: As `Saver.restore`.
        """
        if self._latest is not None:
            self._saver.restore(self._latest)
            self._last_step = None if self._interval is None else self._step()
            return self._latest
        if self._init_fn is not None:
            self._init_fn()
        return None

    def _is_saved_or_early(self, step: int, check_interval: bool) -> bool:
        if self._last_step is None or self._interval is None:
            return False
        return step == self._last_step or (check_interval and step < self._last_step + self._interval)

    def _step(self) -> int:
        return cast("int", arguments.step_number(self._step_counter))


def _with_counter(var_list: Any) -> tuple[dict[str, Any], Counter]:
    """Return what to save as a dict, and the counter in it."""
    if isinstance(var_list, torch.nn.Module):
        var_list = {"": var_list}
    if not isinstance(var_list, Mapping):
        raise TypeError(f'var_list is a dict or a Module, not {type(var_list).__name__}; write {{"name": value, ...}}')
    counter = var_list.get(_COUNTER_KEY, Counter())
    if not isinstance(counter, Counter):
        raise TypeError(f"{_COUNTER_KEY!r} is a Counter, not {type(counter).__name__}; choose another key")
    return {**var_list, _COUNTER_KEY: counter}, counter
