"""Tensors with hostile names, and tensors that were just restored."""

from __future__ import annotations

from faults.syscalls.harness import Harness
from faults.syscalls.probes import HOSTILE_NAMES
from faults.syscalls.verdict import Tally, judge_ending


def keys(harness: Harness) -> list[Tally]:
    """Save tensors with hostile names: they come back as they were, or are refused, and never become paths."""
    tally = Tally("hostile names of tensors come back as they were, or are refused")
    accepted = 0
    for index, names in enumerate(HOSTILE_NAMES):
        ending, said = harness.zygote.probe("save names", harness.fresh(), timeout=15, index=index)
        dead = judge_ending(ending.hung_secs, ending.signal)
        violations = said.get("violations", dead or {"CRASH": f"the process ended: {ending}"})
        tally.add(violations, " and ".join(ascii(name)[:40] for name in names))
        accepted += said.get("saved", False)
    tally.note = f"{accepted} of {tally.tried} accepted"
    return [tally]


def selfsave(harness: Harness) -> list[Tally]:
    """Save what was restored over its own file, and let the file be removed, while the tensors are in use."""
    tally = Tally("restored tensors saved over their own file, and outliving it")
    ending, said = harness.zygote.probe("save what was restored", harness.with_two_saves())
    dead = judge_ending(ending.hung_secs, ending.signal)
    tally.add(said.get("violations", dead or {"CRASH": f"the process ended: {ending}"}))
    tally.note = said.get("note", "")
    return [tally]
