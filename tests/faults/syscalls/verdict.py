"""What must hold after a fault, and the tally of what did not."""

from __future__ import annotations

import collections
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from faults.syscalls.orders import Finding

Violations = dict[str, str]  # kind: example

KINDS = {
    "SILENT": "wrong data was returned as if it were right, or a file outside was read",
    "LOST": "a save that had returned is gone, or a file outside was changed, or an error passed for 'no checkpoint'",
    "AVAIL": "restoring the latest raises although a good checkpoint is there",
    "RETAIN": "a checkpoint within max_to_keep is gone",
    "LISTBAD": "a listed checkpoint does not restore",
    "RESUME": "the next save fails, or the process cannot go on",
    "SWALLOW": "an error was not reported",
    "CRASH": "the process died of a signal",
    "HANG": "it took too long, or too much memory",
    "UNDOC": "an error of an undocumented class came out",
    "MODE": "a file's mode is not what the umask makes of 0666",
    "LITTER": "leftovers are still there after the next save",
}
MAX_MEMORY_MB = 200
MAX_SECS = 5.0


@dataclass(frozen=True)
class Promise:
    """What saves had been made when the fault struck.

    Attributes:
        acked: Steps of saves that had returned, in order.
        in_flight: Step of the save that was cut short.
        perhaps: Steps of saves that raised: each may be there, and if it is, it counts.
    """

    acked: Sequence[int]
    in_flight: int | None = None
    perhaps: Collection[int] = ()


def judge(finding: Finding, promise: Promise, keep: int) -> Violations:
    """Return what a finding violates of a promise."""
    if (stopped := judge_ending(finding.hung_secs, finding.died_of)) or finding.died_of is not None:
        return stopped or {"CRASH": "the reader ended by itself"}
    violations = _judge_latest(finding, max(promise.acked, default=None))
    if finding.listing_raised is not None:
        violations["LISTBAD"] = f"listing: {finding.listing_raised}"
    elif finding.bad:
        violations["LISTBAD"] = f"lists {finding.bad}, which does not restore"
    violations |= _judge_kept(finding, promise, keep, is_found=not {"LOST", "AVAIL"} & set(violations))
    if finding.resume != "ok":
        violations["RESUME"] = f"the next save: {finding.resume}"
    if finding.leftovers:
        violations["LITTER"] = f"left after the next save: {finding.leftovers[:2]}"
    return violations


def _judge_latest(finding: Finding, newest: int | None) -> Violations:
    if finding.raised is not None:
        return {"AVAIL": f"restoring the latest: {finding.raised}"}
    if finding.latest is None:
        return {"LOST": f"no checkpoint found; save({newest}) had returned"} if newest is not None else {}
    if finding.content != finding.latest:
        return {"SILENT": f"returned step {finding.latest} with content {finding.content}"}
    if newest is not None and finding.latest < newest:
        return {"LOST": f"latest is {finding.latest}; save({newest}) had returned"}
    return {}


def _judge_kept(finding: Finding, promise: Promise, keep: int, *, is_found: bool) -> Violations:
    if finding.good is None or not is_found:
        return {}
    good = set(finding.good)
    there = sorted(
        {*promise.acked, *({promise.in_flight, *promise.perhaps} & good)} - {None}, key=lambda step: step or 0
    )
    missing = [step for step in there[-keep:] if step not in good]
    return {"RETAIN": f"step {missing} within max_to_keep is gone; there is {sorted(good)}"} if missing else {}


def judge_ending(hung_secs: float | None, signal: int | None) -> Violations:
    """Return what the end of a process violates: it hung, or died of a signal."""
    if hung_secs is not None:
        return {"HANG": f"no end after {hung_secs:g} s"}
    return {"CRASH": f"died of signal {signal}"} if signal else {}


def judge_reading(finding: Finding, documented: Collection[str]) -> Violations:
    """Return what reading a damaged file violates: it may raise, but only what is documented, and within bounds."""
    if finding.hung_secs is not None or finding.died_of is not None:
        return judge(finding, Promise(()), 1)
    violations = {}
    if finding.raised is not None and not set(finding.raised.bases) & set(documented):
        violations["UNDOC"] = str(finding.raised)
    if finding.memory_mb > MAX_MEMORY_MB:
        violations["HANG"] = f"{finding.memory_mb} MB of memory"
    if finding.seconds > MAX_SECS:
        violations["HANG"] = f"took {finding.seconds:.1f} s"
    return violations


@dataclass
class Tally:
    """How often a fault of one class was tried, and what came of it.

    Attributes:
        title: What was tried, in a sentence.
        tried: How often.
        failed: How often something was violated, leftovers not counted.
        violations: How often each kind of violation came up.
        examples: The first of each kind.
        note: What else there is to say.
    """

    title: str
    tried: int = 0
    failed: int = 0
    violations: collections.Counter[str] = field(default_factory=collections.Counter)
    examples: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def add(self, violations: Violations, context: str = "") -> None:
        """Count one try."""
        self.tried += 1
        self.failed += any(kind != "LITTER" for kind in violations)
        for kind, example in violations.items():
            self.violations[kind] += 1
            self.examples.setdefault(kind, f"{context}: {example}" if context else example)
