"""Power loss after any operation of four saves: one trace, and every state a disk may be left in."""

from __future__ import annotations

import collections

from faults.crash_states import MODELS, Model, distinct, final_tree, snapshot, states
from faults.operations import Fsync, Recording, Rename
from faults.strace_log import parse_file, record
from faults.syscalls.harness import RECORDED, Harness
from faults.syscalls.orders import CheckItem, Finding
from faults.syscalls.verdict import Promise, Tally, Violations, judge
from faults.syscalls.zygote import Trace

_WHOLE_STRINGS = 1 << 25
_ITEMS_A_PROCESS = 200


def powerloss(harness: Harness, most: int = 700) -> list[Tally]:
    """Judge the states that both models allow; `most` of each in a quick run."""
    harness.fresh()
    harness.save_cleanly([1, 2, 3, 4], Trace(RECORDED.calls, string_bytes=_WHOLE_STRINGS))
    recording, not_understood = record(parse_file(harness.zygote.log), harness.directory)
    is_exact = final_tree(recording) == snapshot(harness.directory)
    tallies = [_judge_states(harness, recording, model, most) for model in MODELS]
    for tally in tallies:
        tally.note += "; the recording is exact" if is_exact else f"; the recording is INEXACT: {not_understood[:3]}"
        if not is_exact:
            tally.add({"SILENT": "the recording is not what the directory holds: the states are not to be trusted"})
    return tallies


def _judge_states(harness: Harness, recording: Recording, model: Model, most: int) -> Tally:
    tally = Tally(f"power loss, {model} file system")
    found = distinct(states(recording, model))
    trees = harness.pick(list(found), most, 8000)
    items = []
    for tree in trees:
        item = harness.item(dict(tree.files), is_deep=True, resume_step=100)
        items.append(CheckItem(**{**vars(item), "directories": list(tree.directories)}))
    harness.fresh()
    findings: list[Finding] = []
    for start in range(0, len(items), _ITEMS_A_PROCESS):
        findings += harness.zygote.check(items[start : start + _ITEMS_A_PROCESS])
    for tree, finding in zip(trees, findings, strict=True):
        violations: Violations = {}
        for state in found[tree]:
            promise = Promise(state.acked, state.in_flight)
            last = recording.operations[state.operations - 1] if state.operations else None
            where = f"after operation {state.operations} of {len(recording.operations)} ({type(last).__name__})"
            for kind, example in judge(finding, promise, harness.zygote.keep).items():
                violations.setdefault(kind, f"{where}: {example}")
        tally.add(violations)
    kinds = collections.Counter(type(operation) for operation in recording.operations)
    tally.note = (
        f"{len(recording.operations)} operations, {kinds[Fsync]} fsyncs, {kinds[Rename]} renames, {len(found)} states"
    )
    return tally
