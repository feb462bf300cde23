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
    for thread in others:
        thread.start()
    run()
    _join(others, errors)
    if errors:
        raise errors[0]


def _join(threads: Sequence[threading.Thread], errors: list[BaseException]) -> None:
    """Wait for the threads; an interrupt meanwhile is an error, which ends their work, and is raised after it."""
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:
        errors.append(error)
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def alongside(steps: Iterator[None]) -> Iterator[None]:
    """Go through `steps` in another thread while the with block runs, and wait for it at the end.

    Raises:
        BaseException: What came up in the block, which then ends the steps after the one at hand, or else in them.
    """
    errors: list[BaseException] = []
    has_failed = threading.Event()

    def run() -> None:
        try:
            for _ in steps:
                if has_failed.is_set():
                    return
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    except BaseException:
        has_failed.set()
        raise
    finally:
        _join([thread], errors)
    if errors:
        raise errors[0]
