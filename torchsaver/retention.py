"""Which checkpoints stay: pure decisions, TF's algorithm; what they mean for the disk is done elsewhere.

A window holds the checkpoints in order of saving. When it is over-full the oldest leaves it, and is then deleted,
unless it was saved after the next mark of a grid of N hours: then it stays for ever, and the mark moves on by N hours.
Source: Saver._RecordLastCheckpoint and _MaybeDeleteOldCheckpoints in TensorFlow's training/saver.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

SECS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Record:
    """One checkpoint: its prefix as the user gave it, when it was saved, and what makes two spellings the same."""

    prefix: str
    time: float  # seconds since the epoch
    identity: str


@dataclass(frozen=True)
class Window:
    """What a saver remembers: `last`, oldest first; `doomed`, which have left it; the next mark of the hours grid."""

    last: tuple[Record, ...] = ()
    doomed: tuple[Record, ...] = ()
    next_kept_time: float = math.inf  # seconds since the epoch


@dataclass(frozen=True)
class Decision:
    """What becomes of a checkpoint that has left the window, and why."""

    record: Record
    keep: bool
    reason: str


def open_window(now: float, every_n_hours: float) -> Window:
    """Return an empty window whose first mark is `every_n_hours` after `now`, in seconds since the epoch."""
    return Window(next_kept_time=now + every_n_hours * SECS_PER_HOUR)


def record_save(window: Window, record: Record, max_to_keep: int) -> Window:
    """Return the window after a save: `record` is its newest, and at most one, the oldest, is doomed for it.

    As in TF, a longer list (after a recovery) never shrinks: one in, one out. Unlike TF, a checkpoint is known by what
    it is and not by its spelling, so the one just saved is never doomed under another of its names.
    """
    last = (*(r for r in window.last if r.identity != record.identity), record)
    doomed = tuple(r for r in window.doomed if r.identity != record.identity)
    if len(last) > max_to_keep:
        oldest, *rest = last
        last = tuple(rest)
        if all(r.identity != oldest.identity for r in last):  # a recovered list may hold it under two spellings
            doomed = (*doomed, oldest)
    return replace(window, last=last, doomed=doomed)


def choose(window: Window, every_n_hours: float) -> tuple[Window, list[Decision]]:
    """Return the window with nothing doomed any more, and what becomes of each that was."""
    decisions = []
    mark = window.next_kept_time
    for record in window.doomed:
        if record.time > mark:
            decisions.append(Decision(record, keep=True, reason=f"saved after the mark of {every_n_hours:g} hours"))
            mark += every_n_hours * SECS_PER_HOUR
        else:
            decisions.append(Decision(record, keep=False, reason="older than the last max_to_keep checkpoints"))
    return replace(window, doomed=(), next_kept_time=mark), decisions


def doom_again(window: Window, records: Iterable[Record]) -> Window:
    """Return the window with `records`, whose removal failed, doomed once more."""
    return replace(window, doomed=(*records, *window.doomed))
