"""Times of one workload beside the limit's, the best peer's and those of safetensors: from results to numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.figures import median
from benchmarks.results import Memory, Role, WorkloadResult

Action = Literal["save", "cold", "warm"]
ACTIONS: dict[Action, str] = {"save": "durable save", "cold": "cold restore", "warm": "warm restore"}


@dataclass(frozen=True)
class Timing:
    """What one row took for one action.

    Attributes:
        peer: Whose row it is.
        way: How it restores, "" of saves and where there is one way only.
        role: Whether it is the limit, ours or a peer.
        seconds: The samples.
        cpu: CPU seconds of each.
        memory: Peak above the values.
        is_comparable: It did the same as all others: new values are none restored into those that were there.
        is_wrong: It restored other values than were saved.
    """

    peer: str
    way: str
    role: Role
    seconds: list[float]
    cpu: list[float]
    memory: Memory
    is_comparable: bool
    is_wrong: bool

    @property
    def name(self) -> str:
        """Peer and way."""
        return f"{self.peer} {self.way}".strip()

    @property
    def median(self) -> float:
        """Median of the samples."""
        return median(self.seconds)


def timings(workload: WorkloadResult, action: Action) -> list[Timing]:
    """Return the times for an action, the fastest first; saves are durable ones."""
    found = _saves(workload) if action == "save" else _restores(workload, action)
    return sorted((timing for timing in found if timing.seconds), key=lambda timing: timing.median)


def limit(among: Iterable[Timing]) -> float:
    """Return the median of the limit, nan if it was not measured."""
    return next((timing.median for timing in among if timing.role == "limit"), math.nan)


def best_peer(among: Iterable[Timing], peer: str | None = None) -> Timing | None:
    """Return the fastest row of a peer, or of this one, that did the same as ours; None if there is none."""
    candidates = [timing for timing in among if timing.role == "peer" and timing.is_comparable]
    return min(
        (timing for timing in candidates if peer in (None, timing.peer)),
        key=lambda timing: timing.median,
        default=None,
    )


def best_of_each(among: Iterable[Timing]) -> list[Timing]:
    """Return the fastest row of every peer, and all of ours and of the limit, in the order given."""
    among = list(among)
    best: dict[str, Timing] = {}
    for timing in among:
        if timing.role == "peer" and (timing.peer not in best or timing.median < best[timing.peer].median):
            best[timing.peer] = timing
    return [timing for timing in among if timing.role != "peer" or timing is best[timing.peer]]


def ratio(seconds: float, reference: Timing | float | None) -> float:
    """Return how many times the reference it is, nan without one."""
    base = reference.median if isinstance(reference, Timing) else reference
    return seconds / base if base else math.nan


def _saves(workload: WorkloadResult) -> Iterable[Timing]:
    for row in workload["rows"]:
        save = row["save"]
        yield Timing(row["peer"], "", row["role"], save["durable"], save["cpu"], save["memory"], True, False)


def _restores(workload: WorkloadResult, action: Literal["cold", "warm"]) -> Iterable[Timing]:
    for row in workload["rows"]:
        for restore in row["restores"]:
            reading = restore[action]
            yield Timing(
                row["peer"],
                restore["label"],
                row["role"],
                reading["seconds"],
                reading["cpu"],
                reading["memory"],
                is_comparable=restore["is_into_existing"],
                is_wrong=restore["is_correct"] is False,
            )
