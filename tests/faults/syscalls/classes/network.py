"""NFS: the server did what it was asked, the answer was lost, and the second try reports an error."""

from __future__ import annotations

import errno

from faults.syscalls.harness import Harness
from faults.syscalls.orders import Lie
from faults.syscalls.verdict import Tally

_LIES: list[tuple[list[str], list[int]]] = [
    (["rename", "replace", "link"], [errno.ENOENT, errno.EIO]),
    (["unlink", "remove", "rmdir"], [errno.ENOENT]),
    (["mkdir"], [errno.EEXIST]),
]
_MOST_CALLS = {False: 12, True: 200}  # by whether the run is full


def nfs(harness: Harness) -> list[Tally]:
    """Let each rename, link, unlink and mkdir of a save be done, and reported as failed."""
    tally = Tally("rename, link, unlink, mkdir done but reported as failed (NFS)")
    for functions, errors in _LIES:
        for number in range(1, _MOST_CALLS[harness.is_full]):
            reached = [_try(harness, tally, Lie(functions, number, error)) for error in errors]
            if not any(reached):
                break
    return [tally]


def _try(harness: Harness, tally: Tally, lie: Lie) -> bool:
    """Count one try, and return whether there was such a call."""
    directory, before, steps = harness.start(is_first=False)
    outcome = harness.zygote.write(directory, [("save", step) for step in steps], lie=lie)
    if outcome.board.has_lied:
        violations = harness.look(outcome.promise(*before)) | outcome.violations()
        name = f"{'/'.join(lie.functions)}#{lie.n} done, but {errno.errorcode[lie.errno]}"
        tally.add(violations, f"{name}; raised {outcome.raised}")
    return outcome.board.has_lied
