"""A save that is stopped, fails, or is interrupted, at each of its system calls in turn."""

from __future__ import annotations

import signal

from faults.syscalls.harness import STRUCK, Harness
from faults.syscalls.verdict import Tally

# Errors a call can meet; a "+" makes every later one fail the same way, as a full disk does.
_ERRORS = {
    "openat": ("EIO", "EACCES"),
    "mkdir": ("ENOSPC",),
    "mkdirat": ("ENOSPC",),
    **dict.fromkeys(
        ("write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "fallocate"), ("ENOSPC+", "EIO")
    ),
}
_RARE_ERRORS = ("EDQUOT", "EROFS", "ESTALE", "ENOSPC", "EACCES")  # in a full run


def kill(harness: Harness, most: int = 60, *, is_first: bool = False) -> list[Tally]:
    """Kill the writer before each call; `most` calls in a quick run."""
    tally = Tally(f"kill -9 before each system call of {_what(is_first=is_first)}")
    for call, number, path in harness.pick(harness.fault_points(is_first=is_first), most):
        outcome, promise = harness.strike(f"{call}:signal=KILL:when={number}", is_first=is_first)
        if outcome.ending.signal == signal.SIGKILL:
            tally.add(harness.look(promise), f"kill at {call}#{number} of {path}")
    return [tally]


def inject(harness: Harness, most: int = 90, *, is_first: bool = False) -> list[Tally]:
    """Let each call return an error; `most` pairs of call and error in a quick run."""
    tally = Tally(f"error returned by each system call of {_what(is_first=is_first)}")
    jobs = [
        (call, number, error)
        for call, number, _ in harness.fault_points(is_first=is_first)
        for error in _ERRORS.get(call, ("EIO",)) + (_RARE_ERRORS if harness.is_full else ())
    ]
    for call, number, error in harness.pick(jobs, most):
        when = f"{number}+" if error.endswith("+") else str(number)
        fault = f"{call}:error={error.rstrip('+')}:when={when}"
        outcome, promise = harness.strike(fault, is_first=is_first)
        struck = harness.struck()
        if struck is None:
            continue
        violations = harness.look(promise) | outcome.violations()
        if struck[0] in {"fsync", "fdatasync"} and not outcome.raised and outcome.ending.signal is None:
            violations["SWALLOW"] = "fsync failed, and save() returned normally"
        tally.add(violations, f"{error} from {call}#{number} of {struck[1]}")
    return [tally]


def first(harness: Harness, most: int = 40) -> list[Tally]:
    """As `kill` and `inject`, where nothing has been saved before: leftovers of it are no checkpoint, and no error."""
    return [*kill(harness, most, is_first=True), *inject(harness, most, is_first=True)]


def sigint(harness: Harness, most: int = 30) -> list[Tally]:
    """Press Ctrl-C at each call, and go on saving; `most` calls in a quick run."""
    tally = Tally("Ctrl-C at each system call of a save, and going on")
    for call, number, path in harness.pick(harness.fault_points(), most):
        outcome, promise = harness.strike(f"{call}:signal=INT:when={number}")
        violations = harness.look(promise) | outcome.violations()
        if outcome.ending.status is not None and STRUCK[-1] not in {*outcome.acked, *outcome.raised}:
            violations["RESUME"] = "the process ended without saving again"
        tally.add(violations, f"Ctrl-C at {call}#{number} of {path}")
    return [tally]


def _what(*, is_first: bool) -> str:
    return "the first saves in a directory" if is_first else "a save"
