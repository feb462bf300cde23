"""Work shared by threads, which ends with all of them, whatever happens."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence


def cores() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(count: int, threads: int, work: Callable[[Iterable[int]], None]) -> None:
    """Share the numbers below `count` among threads, the calling one included.

    Each calls `work` once with an iterable that gives it the next number nobody has, and no more after an error.

    Raises:
        BaseException: The first one that came up in any of them; by then all have ended.
    """
    errors: list[BaseException] = []
    numbers = itertools.count()  # taking the next is one step, which no other thread can come between

    def run() -> None:
        try:
            work(itertools.takewhile(lambda number: number < count and not errors, numbers))
        except BaseException as error:
            errors.append(error)

    others = [threading.Thread(target=run) for _ in range(min(threads, count) - 1)]
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

    with _joined([threading.Thread(target=run)], errors):
        yield


@contextlib.contextmanager
def _joined(threads: Sequence[threading.Thread], errors: list[BaseException]) -> Iterator[None]:
    """Have threads at work during the with block, and no longer; any error is noted, for them to see, and raised.

    So is an interrupt while they are waited for: it ends their work as any other error does.
    """
    try:
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join()
    except BaseException as error:
        errors.append(error)
        for thread in threads:
            if thread.ident is not None:  # it has started, even if an interrupt came before start() returned
                thread.join()
        raise
    if errors:
        raise errors[0]
