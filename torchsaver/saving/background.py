"""A save that goes on in another thread while training does; its error is never lost.

A program that ends waits for it; one that ends without having been told of its error ends with a non-zero status.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable

_EXIT_STATUS = 1
_LONGEST_WAIT_SECS = 0.1  # a signal that comes right before a thread sleeps for a lock does not wake it

_unfinished: set[Background] = set()  # at work, not waited for yet, or with an error nobody has been told of
_failed_at_exit: list[BaseException] = []
_given_up: list[BaseException] = []  # what has ended the waiting


class _Work:
    """Something done once, by one thread, while others may wait for it.

    No Thread.join: before Python 3.13 one that is interrupted takes the thread for dead. No Event either: a signal
    handler that waits, inside of a wait for the same event, may wait for ever.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self._function: Callable[[], object] | None = function
        self._claim = threading.Lock()  # once acquired, never released: who has it does the work, or none does
        self._going_on = threading.Lock()
        self._going_on.acquire()
        self.is_done = False
        self.error: BaseException | None = None
        self.thread: int | None = None  # the identity of who does it

    def claim(self) -> Callable[[], object] | None:
        """Return what is to be done, the first time only."""
        return self._function if self._claim.acquire(blocking=False) else None

    def run(self) -> None:
        """Do it, unless another has claimed it; an error is kept."""
        if (function := self.claim()) is None:
            return
        self.thread = threading.get_ident()
        try:
            function()
        except BaseException as error:
            self.error = error
        finally:
            # It holds copies of a model, which this thread is to free before anybody knows that it is done: the
            # interpreter may end then, and a thread that is stopped in the midst of torch ends in an abort.
            self._function = function = None
            self.is_done = True  # first: who sees this does not wait for the lock
            self._going_on.release()

    def wait(self) -> None:
        """Wait until it is done."""
        while not self.is_done:
            if self._going_on.acquire(timeout=_LONGEST_WAIT_SECS):
                self._going_on.release()


class Background:
    """Runs one piece of work at a time in another thread.

    Its error is raised once, by the next `wait`. In a forked child nothing is at work: the thread is the parent's.
    """

    def __init__(self) -> None:
        self._work: _Work | None = None

    @property
    def is_busy(self) -> bool:
        """Whether work is going on."""
        work = self._work
        return work is not None and not work.is_done

    @property
    def is_this_thread(self) -> bool:
        """Whether the caller is called by the work itself."""
        work = self._work
        return work is not None and not work.is_done and work.thread == threading.get_ident()

    def start(self, function: Callable[[], object]) -> None:
        """Have `function` called. What was going on must have been waited for.

        Where no thread can be had, as in the last moments of a process, it is called here, and raises here.
        """
        assert self._work is None, "wait() comes first"
        work = self._work = _Work(function)
        _unfinished.add(self)
        # A name of its own in what a debugger shows; no daemon: the interpreter must not die under it.
        thread = threading.Thread(target=work.run, name="torchsaver", daemon=False)
        try:
            thread.start()
        except RuntimeError:
            self.forget()
        except BaseException:
            if work.claim() is not None:  # else the thread had begun before this interrupt came
                self.forget()
            raise
        else:
            return
        function()

    def join(self) -> None:
        """Wait until nothing is going on, what signal handlers begin meanwhile too; an error is kept for `wait`."""
        while (work := self._work) is not None and not self.is_this_thread:  # a callback may ask its own saver
            work.wait()
            if work.error is not None:
                return
            if self._work is work:
                self.forget()

    def wait(self) -> None:
        """Wait until nothing is going on.

        Raises:
            BaseException: What the work has raised; a second time nothing.
        """
        self.join()
        if not self.is_this_thread and (work := self._work) is not None and work.error is not None:
            self.forget()
            raise work.error

    def forget(self) -> None:
        """Have nothing at work, and no error."""
        self._work = None
        _unfinished.discard(self)

    def __reduce__(self) -> tuple[type[Background], tuple[()]]:
        return Background, ()  # a copied or pickled saver does not share the other's work


def _finish_all() -> None:
    """Wait for all work before the interpreter ends, and show what nobody has been told of."""
    for background in list(_unfinished):
        try:
            background.join()
        except BaseException as error:  # an interrupt: who sends one now does not want to wait
            _given_up.append(error)
            raise
        try:
            background.wait()
        except BaseException as error:
            _failed_at_exit.append(error)
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.write("torchsaver: a save in the background has failed:\n")
                traceback.print_exception(type(error), error, error.__traceback__)
    if _failed_at_exit and multiprocessing.parent_process() is not None:
        raise SystemExit(_EXIT_STATUS)  # a forked one ends without atexit


def _exit_with_failure() -> None:
    """End the process with a non-zero status if a save has failed: nothing else can change it by now."""
    try:
        if not _given_up:
            _finish_all()  # what other handlers of atexit have begun
    finally:
        if _failed_at_exit or _given_up:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(_EXIT_STATUS)


def _forget_parent() -> None:
    for background in list(_unfinished):
        background.forget()
    _failed_at_exit.clear()
    _given_up.clear()


# Handlers of atexit run from the last registered to the first, so that nearly all others have run when ours ends the
# process. Waiting comes before them, and before the interpreter forbids new threads, which a save may need.
atexit.register(_exit_with_failure)
getattr(threading, "_register_atexit", atexit.register)(_finish_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
