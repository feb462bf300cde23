"""Errors while reading."""

from __future__ import annotations

from faults.syscalls.harness import Harness
from faults.syscalls.verdict import Tally, Violations
from faults.syscalls.zygote import Outcome, Trace, with_inject

_READING = Trace(
    "openat,open,read,pread64,readv,preadv,mmap,fstat,newfstatat,statx,getdents64,lseek,access,faccessat2,close"
)
_FAILING = frozenset(_READING.calls.split(",")) - {"close"}
_ERRORS = {
    **dict.fromkeys(("openat", "open", "newfstatat", "statx"), ("EIO", "ESTALE", "ENOENT")),
    "mmap": ("ENOMEM",),
}


def readinject(harness: Harness, most: int = 60) -> list[Tally]:
    """Let each call of a restore fail: an error comes out, or the latest; never "no checkpoint", never an older one."""
    tally = Tally("error returned by each system call of a restore")
    harness.with_two_saves()
    harness.zygote.write(harness.directory, [("restore", 0)], trace=_READING)
    points = harness.points_in_log(_FAILING)
    jobs = [(call, number, error) for call, number, _ in points for error in _ERRORS.get(call, ("EIO", "ESTALE"))]
    served = 0
    for call, number, error in harness.pick(jobs, most):
        harness.with_two_saves()
        trace = with_inject(_READING, f"{call}:error={error}:when={number}")
        outcome = harness.zygote.write(harness.directory, [("restore", 0)], trace=trace, timeout=10)
        struck = harness.struck()
        if struck is not None:
            violations = outcome.violations() or _judge(outcome, harness.zygote.documented)
            served += outcome.board.reports[-1:] != [] and outcome.board.reports[-1].latest == 2
            tally.add(violations, f"{error} from {call}#{number} of {struck[1]}")
    tally.note = f"{served} times the latest came all the same"
    return [tally]


def _judge(outcome: Outcome, documented: list[str]) -> Violations:
    if not outcome.board.reports:
        return {"CRASH": f"the reader ended without a word: {outcome.ending}"}
    report = outcome.board.reports[-1]
    if report.raised is not None:
        return {} if set(report.raised.bases) & set(documented) else {"UNDOC": str(report.raised)}
    if report.latest is None:
        return {"LOST": "an error passed for 'no checkpoint'"}
    if report.content != report.latest:
        return {"SILENT": f"returned step {report.latest} with content {report.content}"}
    return {"LOST": f"an error on step 2 gave step {report.latest} instead"} if report.latest < 2 else {}
