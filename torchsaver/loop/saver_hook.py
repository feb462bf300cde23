"""TensorFlow's CheckpointSaverHook without a session: the loop calls it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

import torch

from torchsaver import arguments
from torchsaver.loop.save_timer import SaveTimer, seconds
from torchsaver.saver import Saver
from torchsaver.storage import paths
from torchsaver.variables.collection import current_collection


class CheckpointSaverListener:
    """What is told of each save of a `CheckpointSaverHook`: override what you need; nothing happens here.

    With a saver in the background a save has been made when its values are copied; `on_saved` tells when it is durable.
    """

    def begin(self) -> None:
        """Take note that the loop is about to begin."""

    def before_save(self, global_step: int) -> None:
        """Take note that a save at this step is about to be made."""

    def after_save(self, global_step: int) -> bool | None:
        """Take note that a save at this step has been made, not skipped; return True to ask the loop to stop."""

    def end(self, global_step: int) -> None:
        """Take note that the loop has ended, after its last save."""


class CheckpointSaverHook:
    """Saves every so many steps or seconds, at the start and at the end; TF's rules, for a loop that calls it.

        hook = ts.CheckpointSaverHook("run", save_steps=1000, saver=saver)
        hook.begin()
        hook.after_create_session(step)  # after restoring, or as it is
        while step < total:
            step = train_one_step()
            if hook.after_run(step):
                break
        hook.end(step)

    As in TF, it saves once right after the start (after a resume the resumed step is written again), then when the
    step or the time is due, and at the end unless that step has just been saved. Unlike TF, there is no session and no
    scaffold, and steps are told to it. `training_steps` does all of this and more in one line.

    Args:
        checkpoint_dir: The directory to save in.
        save_secs: Seconds from one save to the next. Exactly one of `save_secs` and `save_steps` is given.
        save_steps: Steps from one save to the next.
        saver: What saves; by default `Saver()` of the collection that is current at `begin`.
        checkpoint_basename: Name of the checkpoints, before the step.
        listeners: Told of each save, in this order.

    Raises:
        ValueError: Both or none of `save_secs` and `save_steps`, or not a positive number.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        checkpoint_dir: str | os.PathLike[str],
        *,
        save_secs: float | None = None,
        save_steps: int | None = None,
        saver: Saver | None = None,
        checkpoint_basename: str = "model.ckpt",
        listeners: Iterable[CheckpointSaverListener] | None = None,
    ) -> None:
        if (save_secs is None) == (save_steps is None):
            raise ValueError("give save_secs or save_steps, exactly one of them")
        steps = arguments.whole_number(save_steps, "save_steps", least=1)
        self._timer = SaveTimer(steps, seconds(save_secs, "save_secs"))
        self._save_path = os.path.join(paths.path_text(checkpoint_dir, "checkpoint_dir"), checkpoint_basename)
        if saver is not None and not isinstance(saver, Saver):
            raise TypeError(f"saver is a Saver or None, not {type(saver).__name__}")
        self._saver = saver
        self._listeners = _as_listeners(listeners)

    def begin(self) -> None:
        """Find the saver, and tell the listeners.

        Raises:
            RuntimeError: There is no saver, and nothing in the current collection to make one of.
        """
        self._find_saver()
        for listener in self._listeners:
            listener.begin()

    def after_create_session(self, global_step: int | torch.Tensor) -> None:
        """Save the step the loop starts at; to be called once, before the first step.

        Raises:
            RuntimeError: As `begin`.
            TypeError, ValueError, OSError: As `Saver.save`.
        """
        self._save(_number(global_step))

    def after_run(self, global_step: int | torch.Tensor) -> bool:
        """Save if it is due; to be called after each step, with how many have been done.

        Returns:
            Whether a listener asks the loop to stop.

        Raises:
            RuntimeError, TypeError, ValueError, OSError: As `after_create_session`.
        """
        step = _number(global_step)
        return self._timer.is_due(step) and self._save(step)

    def end(self, global_step: int | torch.Tensor) -> None:
        """Save unless this step has just been saved, wait until it is on the disk, and tell the listeners.

        Raises:
            RuntimeError, TypeError, ValueError, OSError: As `after_create_session`.
        """
        step = _number(global_step)
        try:
            self._find_saver().wait()  # a saver that is busy may skip a save, but not this one
        except Exception:  # nor must it be lost because an earlier one was
            self._save_rest(step)
            raise
        self._save_rest(step)
        for listener in self._listeners:
            listener.end(step)

    def _save_rest(self, step: int) -> None:
        if step != self._timer.last_step:
            self._save(step)
        self._find_saver().wait()

    def _save(self, step: int) -> bool:
        """Save, and return whether a listener asks to stop; a save that fails does not count as one."""
        saver, started = self._find_saver(), time.time()
        for listener in self._listeners:
            listener.before_save(step)
        prefix = saver.save(self._save_path, step)
        self._timer.restart(step, started)
        if prefix is None:
            return False
        self._timer.last_step = step
        answers = [listener.after_save(step) for listener in self._listeners]  # each is told
        return any(answers)

    def _find_saver(self) -> Saver:
        if self._saver is None:
            if not any(True for _ in current_collection().members()):
                raise RuntimeError("there is no saver and nothing in the current collection; pass saver=Saver(...)")
            self._saver = Saver()
        return self._saver


def _as_listeners(listeners: Any) -> list[CheckpointSaverListener]:
    if not isinstance(listeners, Iterable | None):
        raise TypeError(f"listeners is a list of listeners, not {type(listeners).__name__}; write [listener]")
    found = list(listeners or ())
    for listener in found:
        if isinstance(listener, type):
            raise TypeError(
                f"a listener is an object, not the class {listener.__name__}; write {listener.__name__}(...)"
            )
    return found


def _number(global_step: Any) -> int:
    step = arguments.step_number(global_step)
    if step is None:
        raise TypeError("global_step is an integer or a 0-d tensor, not None")
    return step
