"""Signals that ask a training loop to stop: a handler sets a flag, and the loop looks at it between two steps."""

from __future__ import annotations

import logging
import os
import signal
import threading
import weakref
from collections.abc import Iterable
from types import FrameType
from typing import Any

logger = logging.getLogger("torchsaver")

DEFAULT_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGUSR1")
    if hasattr(signal, name)  # Windows has no SIGUSR1
)
_NOT_CAUGHT = tuple(getattr(signal, name) for name in ("SIGKILL", "SIGSTOP") if hasattr(signal, name))
_watching: weakref.WeakSet[Preemption] = weakref.WeakSet()  # whose handlers are in place


class Preemption:
    """Takes note of signals while it watches, and puts the former handlers back afterwards.

    The handlers do nothing but set `asked`. Handlers of Python that were there before are called after that; the
    system's and Python's defaults are not. Handlers belong to the process and its main thread: elsewhere none is set.

    Attributes:
        asked: Whether the loop is to stop, because of a signal or for another reason.
        signal: The first signal that came, or None.
    """

    def __init__(self, signals: Iterable[int]) -> None:
        self.asked = False
        self.signal: int | None = None
        self._signals = tuple(signals)
        self._previous: dict[int, Any] = {}
        self._is_watching = False

    def watch(self) -> None:
        """Set the handlers."""
        if threading.current_thread() is not threading.main_thread():
            logger.debug("signals are not watched: this is not the main thread")
            return
        _watching.add(self)
        self._is_watching = True
        for number in self._signals:
            previous = signal.getsignal(number)
            if previous is None:  # set by other means than Python's, and could not be put back
                logger.warning("signal %s has a handler that is not Python's; it is left alone", number)
                continue
            self._previous[number] = previous
            signal.signal(number, self._note)

    def put_back(self) -> None:
        """Put the former handlers back where ours are still in place; a second time does nothing."""
        _watching.discard(self)
        self._is_watching = False
        if threading.current_thread() is threading.main_thread():  # else nothing can be put back: see _note
            for number, previous in self._previous.items():
                if signal.getsignal(number) == self._note:
                    signal.signal(number, previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous[number]
        if self._is_watching:
            self.signal = self.signal or _known(number)
            self.asked = True
            if callable(previous) and previous is not signal.default_int_handler:
                previous(number, frame)
        elif callable(previous):  # nobody looks at the flag any more
            previous(number, frame)
        elif previous is signal.SIG_DFL and signal.getsignal(number) == self._note:  # and it could not be put back
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def signals_to_watch(signals: Any) -> tuple[int, ...]:
    """Return the signals of an argument, each once.

    Raises:
        TypeError, ValueError: It is no collection of signals that can be caught.
    """
    if isinstance(signals, (str, bytes)) or not isinstance(signals, Iterable):
        raise TypeError(f"signals is a tuple of signals, not {type(signals).__name__}")
    found = []
    for number in signals:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"a signal is a signal.Signals or an int, not {type(number).__name__}")
        if number not in signal.valid_signals() or number in _NOT_CAUGHT:
            raise ValueError(f"signal {number} cannot be caught")
        found.append(_known(number))
    return tuple(dict.fromkeys(found))


def _known(number: int) -> int:
    """Return the signal with its name; a real-time signal has none."""
    return signal.Signals(number) if number in set(signal.Signals) else number


def _leave_to_parent() -> None:
    """In a forked child: the loop is the parent's, and a signal is to do here what it would have done without it."""
    for preemption in list(_watching):
        preemption.put_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
