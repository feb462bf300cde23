"""Which checkpoints stay: pure decisions, TF's algorithm; what they mean for the disk is done elsewhere.

A window holds the checkpoints in order of saving. When it is over-full the oldest leaves it, and is then deleted,
unless it was saved after the next mark of a grid of N hours: then it stays for ever, and the mark moves on by N hours.
Source: Saver._RecordLastCheckpoint and _MaybeDeleteOldCheckpoints in TensorFlow's training/saver.py.

What a process that died has left is told from what stays by the checkpoints' own records, never by names or times.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from torchsaver.formats.commit import Commit

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
        if record.time > mark or record.time == math.inf:
            decisions.append(Decision(record, keep=True, reason=f"saved after the mark of {every_n_hours:g} hours"))
            mark += every_n_hours * SECS_PER_HOUR
        else:
            decisions.append(Decision(record, keep=False, reason="older than the last max_to_keep checkpoints"))
    return replace(window, doomed=(), next_kept_time=mark), decisions


def doom_again(window: Window, records: Iterable[Record]) -> Window:
    """Return the window with `records`, whose removal failed, doomed once more."""
    return replace(window, doomed=(*records, *window.doomed))


def forget_doomed(window: Window, record: Record) -> Window:
    """Return the window without `record`, which has been seen to, among the doomed."""
    return replace(window, doomed=tuple(other for other in window.doomed if other is not record))


def recover(window: Window, records: Iterable[Record], max_to_keep: int) -> Window:
    """Return the window of a saver that goes on after a restart: of `records`, oldest first, the last `max_to_keep`."""
    every = tuple(records)
    start = max(0, len(every) - max_to_keep)
    return replace(window, last=every[start:], doomed=every[:start])


def adopt(window: Window, records: Iterable[Record]) -> Window:
    """Return the window with older `records` before what it holds."""
    known = {record.identity for record in (*window.last, *window.doomed)}
    older = tuple(record for record in records if record.identity not in known)
    return replace(window, last=(*older, *window.last))


def unlisted_yet(commits: Mapping[str, Commit]) -> list[str]:
    """Return the names, in order of commit, of what was saved where no state file has ever been.

    It is what the first save of a directory leaves when it dies before it has written the state file. Where any record
    knows of a state file there has been one: then it was removed, which is not for us to undo.

    Args:
        commits: The records of what was saved for this state file in this directory.
    """
    if any(commit.replaces is not None for commit in commits.values()):
        return []
    return sorted(commits, key=lambda name: (commits[name].sequence, name))


def never_listed(
    commits: Mapping[str, Commit], listed: Collection[str], state_crc32c: int | None, newest: int
) -> set[str]:
    """Return names whose saves ended before the state file listed them: it is still the one they were to replace.

    Args:
        commits: The records of what was saved for this state file in this directory.
        listed: Names the state file lists, or is about to.
        state_crc32c: CRC-32C of the state file's bytes; None: there is none. (Had there been one, nothing is proved.)
        newest: The sequence of the newest checkpoint it lists; 0 without one.
    """
    return {
        name
        for name, commit in commits.items()
        if name not in listed and commit.is_new and (commit.replaces, commit.after) == (state_crc32c, newest)
    }


def expired(commits: Mapping[str, Commit], listed: Collection[str]) -> set[str]:
    """Return names that are still there, and were to be removed after a save that is listed; as `never_listed`."""
    found = set()
    for name in listed:
        if name in commits:
            gone = {other for other in commits[name].expired if other in commits and other not in listed}
            found |= {other for other in gone if commits[other].sequence < commits[name].sequence}
    return found
