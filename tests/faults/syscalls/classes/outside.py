"""Files whose content names paths outside the directory: nothing there is read, changed or removed."""

from __future__ import annotations

import os
import sys

from faults.crash_states import Tree, snapshot
from faults.strace_log import is_inside, parse_file
from faults.syscalls.adapters.adapter import files_below
from faults.syscalls.harness import Harness
from faults.syscalls.mutants import shard_indexes, state_files
from faults.syscalls.orders import CheckItem
from faults.syscalls.tensors import make_tensors
from faults.syscalls.verdict import Tally, Violations
from faults.syscalls.zygote import PROJECT, Trace

_NAMING = Trace(
    "open,openat,creat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat,"
    "truncate,connect,execve",
    string_bytes=4096,
)
# What Python and its libraries read whatever a checkpoint says.
_HARMLESS = (
    *("/proc/", "/sys/", "/usr/", "/lib", "/dev/null", "/dev/urandom"),
    *("/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/ld.so.cache", "/etc/localtime"),
    *(sys.base_prefix, sys.prefix, str(PROJECT)),
)
_OUTSIDE_STEPS = (7, 8)


def statefile(harness: Harness) -> list[Tally]:
    """Let the state file name checkpoints outside, restore, and save until retention would remove them."""
    if harness.zygote.state_file is None:
        return [Tally("state file naming checkpoints outside", note="there is no state file")]
    tally = Tally("state file naming checkpoints outside: not read, not removed")
    outside = f"{harness.work}/outside"
    victims = _make_victims(harness, outside)
    suffix = harness.zygote.suffix
    names = sorted(path.removesuffix(suffix) for path, _ in victims.files if path.endswith(suffix))
    for base in (outside, "../outside", "./../outside", "x/../../outside"):
        for is_escaped in (False, True):
            named = [f"{base}/{name}" for name in names]
            violations = _restore_and_save(harness, _state_text(named, is_escaped=is_escaped))
            if snapshot(outside) != victims:
                violations["LOST"] = f"files outside were changed or removed: {sorted(files_below(outside))} are left"
                victims = _make_victims(harness, outside)
            tally.add(violations, f"{base}{' in octal' if is_escaped else ''}")
    _try_globs(harness, tally, outside, victims)
    return [tally]


def _try_globs(harness: Harness, tally: Tally, outside: str, victims: Tree) -> None:
    for pattern in ("*", "[a-z]*"):
        violations = _restore_and_save(harness, _state_text([f"{outside}/{pattern}"] * 2, is_escaped=False))
        if snapshot(outside) != victims:
            violations["LOST"] = f"files outside were changed or removed: {sorted(files_below(outside))} are left"
            victims = _make_victims(harness, outside)
        tally.add(violations, f"glob {pattern}")


def _make_victims(harness: Harness, outside: str) -> Tree:
    harness.fresh(outside)
    harness.save_cleanly(_OUTSIDE_STEPS, directory=outside)
    return snapshot(outside)


def _state_text(paths: list[str], *, is_escaped: bool) -> str:
    if is_escaped:
        paths = ["".join(f"\\{byte:03o}" for byte in path.encode()) for path in paths]
    return f'model_checkpoint_path: "{paths[-1]}"\n' + "".join(
        f'all_model_checkpoint_paths: "{path}"\n' for path in paths
    )


def _restore_and_save(harness: Harness, state: str) -> Violations:
    assert harness.zygote.state_file is not None
    with open(os.path.join(harness.with_two_saves(), harness.zygote.state_file), "w", encoding="utf-8") as file:
        file.write(state)
    (finding,) = harness.zygote.check([CheckItem(harness.directory, harness.zygote.keep, is_deep=False)])
    harness.zygote.write(harness.directory, [("save", 20), ("save", 21), ("save", 22)])
    return {"SILENT": f"restored step {finding.latest} from outside"} if finding.latest in _OUTSIDE_STEPS else {}


def outside(harness: Harness, most: int = 90) -> list[Tally]:
    """Restore from a directory with hostile files, and see from the system calls that nothing outside was touched."""
    tally = Tally("restoring hostile files touches nothing outside (by system calls)")
    files = dict(snapshot(harness.with_two_saves()).files)
    canary = f"{harness.work}/canary-1"
    for suffix in ("", ".index", ".data-00000-of-00001", harness.zygote.suffix):
        with open(canary + suffix, "w", encoding="ascii") as file:
            file.write("x")
    usual = _touched(harness)
    for path, what, data in harness.pick(_hostile_files(harness, files, canary), most):
        with open(os.path.join(harness.with_two_saves(), path), "wb") as file:
            file.write(data)
        touched = _touched(harness) - usual
        tally.add({"SILENT": f"touched {sorted(touched)[:2]}"} if touched else {}, f"{path}: {what}")
    return [tally]


def _hostile_files(harness: Harness, files: dict[str, bytes], canary: str) -> list[tuple[str, str, bytes]]:
    hostile = []
    if (state := harness.zygote.state_file) is not None:
        hostile += [(state, what, data) for what, data in state_files(files[state], canary)]
    if harness.zygote.suffix == ".safetensors":
        newest = "model.ckpt-2.safetensors.index.json"  # an index counts before a file of the same prefix
        hostile += [(newest, what, data) for what, data in shard_indexes(list(make_tensors(2)), canary)]
    return hostile


def _touched(harness: Harness) -> set[str]:
    harness.zygote.write(harness.directory, [("restore", 0)], trace=_NAMING, timeout=6)
    touched = set()
    for call in parse_file(harness.zygote.log):
        if call.name == "connect":
            if "AF_UNIX" not in call.arguments:  # look-ups in the name service cache are no network access
                touched.add(f"connect {call.arguments[:80]}")
            continue
        path = os.path.normpath(call.paths()[-1]) if call.paths() else harness.directory
        if not is_inside(path, harness.directory) and not path.startswith(_HARMLESS):
            touched.add(f"{call.name} {path}")
    return touched
