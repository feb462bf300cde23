"""Bits that flip on the disk."""

from __future__ import annotations

from faults.crash_states import snapshot
from faults.syscalls.harness import Harness
from faults.syscalls.orders import Finding
from faults.syscalls.verdict import Tally, Violations, judge_reading

_MEMORY_GB = 4.0
_ITEMS_A_PROCESS = 100


def bitrot(harness: Harness, most: int = 150) -> list[Tally]:
    """Flip one bit, anywhere in the directory: an error, or a good older checkpoint, but never wrong values."""
    tally = Tally("one flipped bit anywhere in the directory")
    files = dict(snapshot(harness.with_two_saves()).files)
    count = 3000 if harness.is_full else most
    total = sum(map(len, files.values()))
    places = []
    for path, data in sorted(files.items()):
        wanted = max(3, count * len(data) // total)
        places += [(path, at) for at in sorted({harness.random.randrange(len(data)) for _ in range(wanted)})]
    items = []
    for path, at in places:
        damaged = bytearray(files[path])
        damaged[at] ^= 1 << harness.random.randrange(8)
        items.append(harness.item({**files, path: bytes(damaged)}))
    harness.fresh()
    findings: list[Finding] = []
    for start in range(0, len(items), _ITEMS_A_PROCESS):
        findings += harness.zygote.check(items[start : start + _ITEMS_A_PROCESS], memory_gb=_MEMORY_GB)
    for (path, at), finding in zip(places, findings, strict=True):
        tally.add(_judge(finding, harness.zygote.documented), f"{path}, byte {at}")
    errors = sum(finding.raised is not None for finding in findings)
    older = sum(finding.latest == 1 for finding in findings)
    tally.note = f"{errors} times an error, {older} times the older one, else harmless"
    return [tally]


def _judge(finding: Finding, documented: list[str]) -> Violations:
    violations = judge_reading(finding, documented)
    if not violations and finding.raised is None:
        if finding.latest is None:
            violations["LOST"] = "no checkpoint reported, although step 1 is good"
        elif finding.content != finding.latest:
            violations["SILENT"] = f"accepted as step {finding.latest} with content {finding.content}"
    return violations
