"""When to save: so many steps or seconds after the last save, whichever comes first."""

from __future__ import annotations

import math
import numbers
import time
from typing import Any


class SaveTimer:
    """Tells when a save is due; TF's SecondOrStepTimer, which may be given both.

    Attributes:
        last_step: The step of the last save, None before the first.
        due_step: The step from which on a save is due; infinity when steps do not count.
        due_time: The same in seconds since the epoch.
    """

    def __init__(self, save_steps: int | None, save_secs: float | None) -> None:
        self._every_steps = math.inf if save_steps is None else save_steps
        self._every_secs = math.inf if save_secs is None else save_secs
        self.last_step: int | None = None
        self.due_step = self.due_time = -math.inf

    def is_time(self) -> bool:
        """Return whether so many seconds have gone, or the clock was set back by more, so that nobody knows."""
        now = time.time()
        return now >= self.due_time or now < self.due_time - 2 * self._every_secs

    def is_due(self, step: int) -> bool:
        """Return whether to save at `step`; never again at the step of the last save."""
        return step != self.last_step and (step >= self.due_step or self.is_time())

    def restart(self, step: int, started: float) -> None:
        """Count from `step` and from `started`, when a save was begun there, in seconds since the epoch."""
        self.due_step = step + self._every_steps
        self.due_time = started + self._every_secs


def seconds(value: Any, name: str, *, or_zero: bool = False) -> float | None:
    """Return a positive number of seconds, or 0 where that is allowed, as a float, and None as it is.

    Raises:
        TypeError, ValueError: It is none.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a number of seconds or None, not {type(value).__name__}")
    number = float(value)
    if not (number > 0 or (or_zero and number == 0)):
        raise ValueError(f"{name} is {'0 at least' if or_zero else 'more than 0'}, not {value}")
    return number
