"""Several processes: killed at random and restarted, reading while one writes, two writing at once."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from faults.syscalls.harness import Harness
from faults.syscalls.verdict import Promise, Tally, judge_ending

_SAVES_AT_ONCE = 30
_MOST_SAVES = 100_000


def killloop(harness: Harness, quick_secs: float = 12.0) -> list[Tally]:
    """Kill a writer at a random time, look, restart it; over and over in one directory."""
    tally = Tally("kill -9 at random times, restart, go on, in one directory")
    harness.fresh()
    step, acked, perhaps = 0, list[int](), list[int]()
    end = time.monotonic() + (120.0 if harness.is_full else quick_secs)
    while time.monotonic() < end:
        actions = [("save", step + i) for i in range(1, 200)]
        board, pid = harness.zygote.start(harness.directory, actions, scale=8)
        time.sleep(harness.random.uniform(0.002, 0.12))  # the fault's moment, not a wait
        _kill(pid)
        harness.zygote.wait(pid, 5)
        new, started = board.acked, board.started
        in_flight = None if started in new else started
        acked = (acked + new)[-harness.zygote.keep :]
        violations = harness.look(Promise(acked, in_flight, perhaps), resume_step=0)
        if in_flight is not None:
            perhaps = [*perhaps, in_flight][-400:]
        tally.add(violations, f"kill {tally.tried + 1} in save({in_flight})")
        step = max([step, *new, in_flight or 0])
        if violations:  # the operator empties the directory, and goes on
            harness.fresh()
            acked, perhaps = [], []
    return [tally]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def readers(harness: Harness, quick_secs: float = 6.0) -> list[Tally]:
    """Restore the latest in one process as fast as it goes, while another saves and removes as fast as it goes."""
    tally = Tally("restoring the latest over and over while a writer saves and removes")
    harness.fresh()
    secs = 40.0 if harness.is_full else quick_secs
    saves = [("save", step) for step in range(1, _MOST_SAVES)]
    board, pid = harness.zygote.start(harness.directory, saves, seconds=secs + 1)
    ending, said = harness.zygote.probe(
        "read while written", harness.directory, timeout=secs + 20, board=board.path, seconds=secs
    )
    harness.zygote.wait(pid)
    if said:
        tally.tried = said["tried"]
        tally.failed = sum(said["violations"].values())
        tally.violations.update(said["violations"])
        tally.examples |= said["examples"]
    else:
        tally.add(judge_ending(ending.hung_secs, ending.signal) or {"CRASH": f"the reader ended: {ending}"})
    tally.note = f"{board.acks} saves meanwhile"
    return [tally]


def writers2(harness: Harness) -> list[Tally]:
    """Save odd steps in one process, even ones in another: either one's last may be the latest, and no save fails."""
    tally = Tally("two processes saving into one directory")
    for _ in range(30 if harness.is_full else 4):
        harness.fresh()
        started = [
            harness.zygote.start(harness.directory, [("save", 2 * i + odd) for i in range(1, _SAVES_AT_ONCE)])
            for odd in (0, 1)
        ]
        endings = [harness.zygote.wait(pid, 30) for _, pid in started]
        boards = [board for board, _ in started]
        last = [board.acked[-1] for board in boards if board.acked]
        perhaps = [step for board in boards for step in board.acked]
        violations = harness.look(Promise([min(last)] if last else [], None, perhaps), keep=1)
        for ending in endings:
            violations |= judge_ending(ending.hung_secs, ending.signal)
        raised = [report for board in boards for report in board.reports if report.raised is not None]
        if raised:
            violations["RESUME"] = f"{len(raised)} of {2 * _SAVES_AT_ONCE - 2} saves raised, e.g. {raised[0].raised}"
        tally.add(violations)
    return [tally]
