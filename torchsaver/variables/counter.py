"""Counter: a number that a Saver saves and restores, such as the step of training."""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex


class Counter:
    """An integer as an object for a Saver; `step += 1` keeps the object, so that the saver's is the one that counts.

    It goes where an integer does: `saver.save(path, global_step=step)`, `range(step, total)`, `int(step)`. Two counters
    are equal only if they are one; compare their values.

    Examples:
        >>> step = Counter()
        >>> step += 1
        >>> step.increment()
        2
        >>> step
        Counter(2)

    Args:
        value: Where it starts.

    Raises:
        TypeError: `value` is no integer.
    """

    def __init__(self, value: SupportsIndex = 0) -> None:
        self._value = _integer(value, "a counter's value")

    @property
    def value(self) -> int:
        """The number; setting it to anything but an integer is a TypeError."""
        return self._value

    @value.setter
    def value(self, value: SupportsIndex) -> None:
        self._value = _integer(value, "a counter's value")

    def increment(self, by: SupportsIndex = 1) -> int:
        """Add to the number and return the sum.

        Raises:
            TypeError: `by` is no integer.
        """
        self._value += _integer(by, "by")
        return self._value

    def __iadd__(self, by: SupportsIndex) -> Counter:
        self.increment(by)
        return self

    def __int__(self) -> int:
        return self._value

    def __index__(self) -> int:
        return self._value

    def __repr__(self) -> str:
        return f"Counter({self._value})"

    def state_dict(self) -> dict[str, int]:
        """Return {"value": the number}."""
        return {"value": self._value}

    def load_state_dict(self, state: Any) -> None:
        """Set the number to that of a state.

        Raises:
            ValueError: The state is not {"value": an integer}; the number is as before.
        """
        if not isinstance(state, dict) or state.keys() != {"value"} or type(state["value"]) is not int:
            raise ValueError(f'a counter\'s state is {{"value": an integer}}, not {state!r}')
        self._value = state["value"]


def _integer(value: SupportsIndex, name: str) -> int:
    """Return an integer of Python or numpy as an int; a bool is none."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} is an integer, not {type(value).__name__}")
    return operator.index(value)
