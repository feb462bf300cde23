"""What a writer process does: the actions of a WriterOrder, reporting on a Board."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

from faults.strace_log import mark_ended, mark_started
from faults.syscalls.adapters.adapter import Adapter, files_below
from faults.syscalls.board import Board
from faults.syscalls.orders import Action, Failure, Lie, Raised, WriterOrder
from faults.syscalls.tensors import identify, make_tensors


def run_writer(adapter: Adapter, order: WriterOrder) -> None:
    """Do what `order` says, in this process, which is the writer's own."""
    board = Board(order.board)
    silence()
    os.umask(order.umask)
    adapter.keep = order.keep
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if order.is_paused:
        board.wait_for_tracer()
        signal.sigwait({signal.SIGUSR1})
    if order.lie is not None:
        _tell_lie(order.lie, board)
    end = time.monotonic() + order.seconds if order.seconds is not None else None
    for action in order.actions:
        if end is not None and time.monotonic() > end:
            break
        try:
            _act(adapter, order, action, board)
        except BaseException as error:  # also what Ctrl-C raises: the next action is tried
            board.report(Failure(action, Raised.of(error)))
    board.finish()


def silence() -> None:
    """Let standard input and output lead nowhere."""
    fd = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(fd, standard)
    os.close(fd)


def _act(adapter: Adapter, order: WriterOrder, action: Action, board: Board) -> None:
    kind, step = action
    if kind == "save":
        board.start(step)
        tensors = make_tensors(step, order.scale)
        mark_started(step)
        try:
            adapter.save(order.directory, step, tensors)
            board.ack(step)
        finally:
            mark_ended(step)
    elif kind == "restore":
        mark_started(0)
        newest = adapter.restore_latest(order.directory)
        found = (newest[0], identify(newest[1])) if newest else (None, None)
        board.report(Failure(action, None, *found))
    elif kind == "remove directory":
        shutil.rmtree(order.directory)
    elif kind == "reverse times":
        _reverse_times(order.directory)
    else:
        raise ValueError(f"no such action: {kind}")


def _reverse_times(directory: str) -> None:
    """Give the newest file the oldest time, and let the clock run backwards."""
    paths = [os.path.join(directory, name) for name in files_below(directory)]
    for age, path in enumerate(sorted(paths, key=lambda path: os.stat(path).st_mtime_ns)):
        os.utime(path, (1e9 - 10 * age, 1e9 - 10 * age))
    now = [time.time() - 1e6]

    def backwards() -> float:
        now[0] -= 5.0
        return now[0]

    time.time = backwards


def _tell_lie(lie: Lie, board: Board) -> None:
    calls = [0]

    def lying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            is_it = calls[0] == lie.n
            result = function(*args, **kwargs)
            if is_it:
                board.lie()
                raise OSError(lie.errno, os.strerror(lie.errno), args[0] if args else None)
            return result

        return call

    for name in lie.functions:
        setattr(os, name, lying(getattr(os, name)))
