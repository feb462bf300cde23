"""The directory itself: planted links, file modes, clocks, and its disappearance."""

from __future__ import annotations

import os
import stat

from faults.strace_log import parse_file
from faults.syscalls.adapters.adapter import files_below
from faults.syscalls.harness import BEFORE, RECORDED, Harness
from faults.syscalls.orders import Action
from faults.syscalls.verdict import Promise, Tally, Violations

_MAKING = frozenset({"creat", "rename", "renameat", "renameat2"})


def symlink(harness: Harness) -> list[Tally]:
    """Plant a link at each name a save uses that can be foreseen: nothing is written through it."""
    tally = Tally("planted links at names a save uses lead no write outside")
    harness.with_two_saves()
    harness.save_cleanly([3], RECORDED)
    victim = f"{harness.work}/victim"
    for name in _names_made(harness)[:12]:
        path = os.path.join(harness.with_two_saves(), name)
        with open(victim, "wb") as file:
            file.write(b"precious")
        if os.path.lexists(path):
            os.unlink(path)
        os.symlink(victim, path)
        harness.zygote.write(harness.directory, [("save", 3)])
        with open(victim, "rb") as file:
            is_whole = file.read() == b"precious"
        tally.add({} if is_whole else {"LOST": f"a file outside was overwritten through {name}"})
    return [tally]


def _names_made(harness: Harness) -> list[str]:
    names: dict[str, None] = {}
    for call in parse_file(harness.zygote.log):
        if call.name in _MAKING or (call.name in {"open", "openat"} and "O_CREAT" in call.arguments):
            made = [path for path in harness.inside(call) if os.path.dirname(path) == harness.directory]
            names |= dict.fromkeys(map(os.path.basename, made))
    return list(names)


def perms(harness: Harness) -> list[Tally]:
    """Save under different umasks: modes are what they make of 0666."""
    tally = Tally("file modes follow the umask")
    for umask in (0o022, 0o002, 0o077):
        harness.fresh()
        harness.zygote.write(harness.directory, [("save", 1), ("save", 2)], umask=umask)
        violations: Violations = {}
        for name in files_below(harness.directory):
            mode = stat.S_IMODE(os.stat(os.path.join(harness.directory, name)).st_mode)
            if mode != 0o666 & ~umask:
                violations["MODE"] = f"{name} has mode {mode:04o} under umask {umask:03o}"
        tally.add(violations)
    return [tally]


def clock(harness: Harness) -> list[Tally]:
    """Reverse the times of files and let the clock run backwards: the newest is still the newest."""
    tally = Tally("clock running backwards, file times reversed")
    back: Action = ("reverse times", 0)
    sequences: list[list[Action]] = [
        [back, ("save", 3), ("save", 4), ("save", 5)],
        [("save", 3), back, ("save", 4), back, ("save", 5)],
    ]
    for actions in sequences:
        harness.with_two_saves()
        outcome = harness.zygote.write(harness.directory, actions)
        violations = harness.look(outcome.promise(*BEFORE)) | outcome.violations()
        if len(outcome.acked) < 3:
            violations["RESUME"] = f"saves raised: {outcome.board.reports[:1]}"
        tally.add(violations)
    return [tally]


def rmtree(harness: Harness) -> list[Tally]:
    """Remove the directory between two saves of one process."""
    tally = Tally("directory removed between two saves of a process")
    harness.with_two_saves()
    actions: list[Action] = [("save", 3), ("remove directory", 0), ("save", 4), ("save", 5)]
    outcome = harness.zygote.write(harness.directory, actions)
    os.makedirs(harness.directory, exist_ok=True)
    acked = [step for step in outcome.acked if step > 3]
    tally.add(harness.look(Promise(acked, outcome.in_flight, outcome.raised)) | outcome.violations())
    tally.note = f"then saved {acked}, raised {outcome.raised}"
    return [tally]
