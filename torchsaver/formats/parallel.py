"""Work shared by threads, which ends with all of them, whatever happens."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

_LONGEST_WAIT_SECS = 0.1  # a signal that comes right before a thread sleeps for a lock does not wake it


def cores() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(count: int, threads: int, work: Callable[[Iterable[int]], None]) -> None:
    """Share the numbers below `count` among threads, the calling one included.

    Each calls `work` once with an iterable that gives it the next number nobody has, and no more after an error.

    Raises:
        BaseException: The first one that came up in any of them; by then all have ended.
    """
    if min(threads, count) < 2:
        work(range(count))
        return
    errors: list[BaseException] = []
    numbers = itertools.count()  # taking the next is one step, which no other thread can come between

    def run() -> None:
        try:
            work(itertools.takewhile(lambda number: number < count and not errors, numbers))
        except BaseException as error:
            errors.append(error)

    others = [_Helper(run) for _ in range(min(threads, count) - 1)]
    with _joined(others, errors):
        run()


@contextlib.contextmanager
def alongside(steps: Iterator[None]) -> Iterator[None]:
    """Go through `steps` in another thread while the with block runs, and wait for it at the end.

    Raises:
        BaseException: What came up in the block, which then ends the steps after the one at hand, or else in them.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for _ in steps:
                if errors:
                    return
        except BaseException as error:
            errors.append(error)

    with _joined([_Helper(run)], errors):
        yield


class _Helper(threading.Thread):
    """A thread that is waited for by a lock of its own.

    Before Python 3.13, a Thread.join that is interrupted takes the thread for dead, and the next one does not wait.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(target=work)
        self._is_done = False
        self._going_on = threading.Lock()
        self._going_on.acquire()

    def run(self) -> None:
        """Do the work."""
        try:
            super().run()
        finally:
            self._is_done = True  # first: who sees this does not wait for the lock
            self._going_on.release()

    def finish(self) -> None:
        """Wait until the work is done, if it has begun."""
        while self.ident is not None and not self._is_done:
            if self._going_on.acquire(timeout=_LONGEST_WAIT_SECS):
                self._going_on.release()
        if self.ident is not None:
            self.join()


@contextlib.contextmanager
def _joined(threads: Sequence[_Helper], errors: list[BaseException]) -> Iterator[None]:
    """Have threads at work during the with block, and no longer; any error is noted, for them to see, and raised.

    So is an interrupt while they are waited for: it ends their work as any other error does.
    """
    try:
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.finish()
    except BaseException as error:
        errors.append(error)
        for thread in threads:
            thread.finish()  # it may have started, even if an interrupt came before start() returned
        raise
    if errors:
        raise errors[0]
