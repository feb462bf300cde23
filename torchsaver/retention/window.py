"""What a saver remembers, and TF's rules of what leaves it.

A window holds the checkpoints in order of saving. By TF's rules, when it is over-full the oldest leaves it and is
deleted, unless it was saved after the next mark of a grid of N hours: then it stays for ever, and the mark moves on by
N hours. Source: Saver._RecordLastCheckpoint and _MaybeDeleteOldCheckpoints in TensorFlow's training/saver.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple, Protocol, runtime_checkable

from torchsaver.formats.manifest import Manifest

SECS_PER_HOUR = 3600.0


class Record(NamedTuple):
    """One checkpoint: its prefix as the user gave it, when it was saved, and what makes two spellings the same.

    Attributes:
        prefix: As given.
        time: Seconds since the epoch.
        identity: Equal for two spellings of one prefix.
        step: Its global step, or None.
        metrics: What it was saved with.
        is_resumed: Whether this run has gone on from it.
    """

    prefix: str
    time: float
    identity: str
    step: int | None = None
    metrics: Mapping[str, float] = {}
    is_resumed: bool = False

    @property
    def name(self) -> str:
        """Its prefix without the directory."""
        return PurePath(self.identity).name


def record_of(prefix: str, identity: str, manifest: Manifest) -> Record:
    """Return the record of a checkpoint by what it says of itself; without a time it is from before all others."""
    saved = -math.inf if manifest.time is None else manifest.time
    return Record(prefix, saved, identity, manifest.global_step, manifest.metrics)


class Window(NamedTuple):
    """What a saver remembers: `last`, oldest first; `doomed`, which have left it; the next mark of the hours grid."""

    last: tuple[Record, ...] = ()
    doomed: tuple[Record, ...] = ()
    next_kept_time: float = math.inf  # seconds since the epoch


class Decision(NamedTuple):
    """What becomes of a checkpoint, and why."""

    record: Record
    keep: bool
    reason: str

    @property
    def save_path(self) -> str:
        """The checkpoint's prefix."""
        return self.record.prefix

    def __str__(self) -> str:
        return f"{self.record.prefix} {'stays' if self.keep else 'goes'}: {self.reason}"


class Rules(Protocol):
    """Which checkpoints stay: a base with what most rules have alike."""

    @property
    def remembers(self) -> bool:
        """Whether checkpoints are remembered, and some of them removed, at all; by default they are."""
        return True

    @property
    def needs_records(self) -> bool:
        """Whether what checkpoints say of themselves matters, so that it is looked up; by default it does."""
        return True

    def open_window(self, now: float) -> Window:
        """Return an empty window, at `now`, seconds since the epoch."""

    def record_save(self, window: Window, record: Record) -> Window:
        """Return the window after a save: `record` is its newest, and what is to go for it is doomed."""

    def choose(self, window: Window) -> tuple[Window, list[Decision]]:
        """Return the window with nothing doomed any more, and what becomes of each that was."""

    def recover(self, window: Window, records: Iterable[Record]) -> Window:
        """Return the window of a saver that goes on after a restart with `records`, oldest first."""

    def plan(self, window: Window) -> list[Decision]:
        """Return what stays and goes of all that is remembered, oldest first, as things are."""

    def aliases(self, window: Window) -> dict[str, Record]:  # noqa: ARG002
        """Return {another name: the checkpoint it is to lead to}; by default nothing, as TF has no such names."""
        return {}


@runtime_checkable
class Policy(Protocol):
    """Says which checkpoints it keeps: a base for policies of your own; anything with both methods is one, too."""

    def kept(self, records: Sequence[Record]) -> dict[str, str]:
        """Return {identity: reason} of those of `records`, oldest first, that it keeps.

        The others may be removed: what it has kept once it must keep when they are not there.
        """
        raise NotImplementedError

    def aliases(self, records: Sequence[Record]) -> dict[str, Record]:  # noqa: ARG002
        """Return {another name, without a directory: the checkpoint that is to have it too}; by default nothing."""
        return {}


@dataclass(frozen=True)
class TFRules(Rules):
    """TF's two arguments.

    Attributes:
        max_to_keep: Size of the window; 0 remembers and removes nothing.
        every_n_hours: One checkpoint for each such period is kept for ever; infinity: none.
    """

    max_to_keep: int
    every_n_hours: float

    @property
    def remembers(self) -> bool:
        """Whether there is a window."""
        return self.max_to_keep > 0

    @property
    def needs_records(self) -> bool:
        """Whether steps and metrics matter: they do not."""
        return False

    def open_window(self, now: float) -> Window:
        """Return an empty window whose first mark is `every_n_hours` after `now`, in seconds since the epoch."""
        return Window(next_kept_time=now + self.every_n_hours * SECS_PER_HOUR)

    def record_save(self, window: Window, record: Record) -> Window:
        """Return the window after a save: `record` is its newest, and at most one, the oldest, is doomed for it.

        As in TF, a longer list (after a recovery) never shrinks: one in, one out. Unlike TF, a checkpoint is known by
        what it is and not by its spelling, so the one just saved is never doomed under another of its names.
        """
        window = with_newest(window, record)
        if len(window.last) <= self.max_to_keep:
            return window
        oldest, *rest = window.last
        if any(r.identity == oldest.identity for r in rest):  # a recovered list may hold it under two spellings
            return window._replace(last=tuple(rest))
        return window._replace(last=tuple(rest), doomed=(*window.doomed, oldest))

    def choose(self, window: Window) -> tuple[Window, list[Decision]]:
        """Return the window with nothing doomed any more, and what becomes of each that was."""
        decisions = []
        mark = window.next_kept_time
        for record in window.doomed:
            if record.time > mark or record.time == math.inf:
                reason = f"saved after the mark of {self.every_n_hours:g} hours"
                decisions.append(Decision(record, keep=True, reason=reason))
                mark += self.every_n_hours * SECS_PER_HOUR
            else:
                reason = "older than the last max_to_keep checkpoints"
                decisions.append(Decision(record, keep=False, reason=reason))
        return window._replace(doomed=(), next_kept_time=mark), decisions

    def recover(self, window: Window, records: Iterable[Record]) -> Window:
        """Return the window of a saver that goes on after a restart: of `records` the last `max_to_keep`."""
        if not self.remembers:
            return window
        every = tuple(records)
        start = max(0, len(every) - self.max_to_keep)
        return window._replace(last=every[start:], doomed=every[:start])

    def plan(self, window: Window) -> list[Decision]:
        """Return what stays and goes of all that is remembered, oldest first."""
        reason = f"one of the last {max(self.max_to_keep, len(window.last))}"
        return [*self.choose(window)[1], *(Decision(record, keep=True, reason=reason) for record in window.last)]


def with_newest(window: Window, record: Record) -> Window:
    """Return the window with `record` as its newest, and nowhere else."""
    last = (*(r for r in window.last if r.identity != record.identity), record)
    return window._replace(last=last, doomed=tuple(r for r in window.doomed if r.identity != record.identity))


def doom_again(window: Window, records: Iterable[Record]) -> Window:
    """Return the window with `records`, whose removal failed, doomed once more."""
    return window._replace(doomed=(*records, *window.doomed))


def forget_doomed(window: Window, record: Record) -> Window:
    """Return the window without `record`, which has been seen to, among the doomed."""
    return window._replace(doomed=tuple(other for other in window.doomed if other is not record))


def adopt(window: Window, records: Iterable[Record]) -> Window:
    """Return the window with older `records` before what it holds."""
    known = {record.identity for record in (*window.last, *window.doomed)}
    older = tuple(record for record in records if record.identity not in known)
    return window._replace(last=(*older, *window.last))
