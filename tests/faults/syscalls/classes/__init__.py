"""The classes of faults: each a function from a Harness to tallies of what was tried and what came of it."""

from __future__ import annotations

from collections.abc import Callable

from faults.syscalls.classes import (
    damage,
    full_disk,
    interrupted,
    network,
    outside,
    own_tensors,
    places,
    power,
    processes,
    reading,
    real_ext4,
    special,
)
from faults.syscalls.harness import Harness
from faults.syscalls.verdict import Tally

CLASSES: dict[str, Callable[[Harness], list[Tally]]] = {
    "kill": interrupted.kill,
    "inject": interrupted.inject,
    "first": interrupted.first,
    "sigint": interrupted.sigint,
    "powerloss": power.powerloss,
    "ext4": real_ext4.ext4,
    "killloop": processes.killloop,
    "readers": processes.readers,
    "writers2": processes.writers2,
    "enospc": full_disk.enospc,
    "bitrot": damage.bitrot,
    "special": special.special,
    "statefile": outside.statefile,
    "outside": outside.outside,
    "keys": own_tensors.keys,
    "selfsave": own_tensors.selfsave,
    "symlink": places.symlink,
    "perms": places.perms,
    "clock": places.clock,
    "rmtree": places.rmtree,
    "readinject": reading.readinject,
    "nfs": network.nfs,
}
# Where leftovers that the next save does not sweep are a violation too, for an adapter that claims to sweep.
SWEPT_CLASSES = frozenset({"kill", "inject", "first", "sigint", "powerloss"})
