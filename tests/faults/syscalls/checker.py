"""What a checking process does: look at a directory as a restarted training run would."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from faults.crash_states import Tree, materialise
from faults.syscalls.adapters.adapter import Adapter, files_below
from faults.syscalls.orders import CheckItem, Finding, Raised
from faults.syscalls.tensors import identify, make_tensors
from faults.syscalls.writer import silence


def run_checks(adapter: Adapter, items: Sequence[CheckItem], report: str, memory_gb: float | None) -> None:
    """Look at each of `items`, and add a line of JSON to the file `report` for each."""
    silence()
    if memory_gb is not None:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        limit = used + int(memory_gb * (1 << 30))
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    fd = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for item in items:
        if item.blobs is not None:
            materialise(_tree(item.directories or [], item.blobs), item.directory)
        adapter.forget()
        os.write(fd, (json.dumps(asdict(check(adapter, item))) + "\n").encode())


def check(adapter: Adapter, item: CheckItem) -> Finding:
    """Return what is found in a directory, having saved into it once more if that is asked."""
    adapter.keep = item.keep
    found = _restore_latest(adapter, item.directory)
    if item.is_deep:
        found |= _restore_all(adapter, item.directory)
    if item.resume_step:
        found |= _save_once_more(adapter, item.directory, item.resume_step)
    return Finding(**found)


def _restore_latest(adapter: Adapter, directory: str) -> dict[str, Any]:
    _reset_peak()
    before, start = _peak_mb(), time.monotonic()
    found: dict[str, Any] = {}
    try:
        newest = adapter.restore_latest(directory)
        if newest is not None:
            found |= {"latest": newest[0], "content": identify(newest[1])}
    except BaseException as error:  # whatever it is, it is what is to be judged
        found["raised"] = Raised.of(error)
    return found | {"memory_mb": _peak_mb() - before, "seconds": time.monotonic() - start}


def _restore_all(adapter: Adapter, directory: str) -> dict[str, Any]:
    try:
        steps = adapter.steps(directory)
    except BaseException as error:
        return {"listing_raised": Raised.of(error)}
    good: list[int] = []
    bad: list[int] = []
    for step in steps:
        try:
            is_good = identify(adapter.restore(directory, step)) == step
        except BaseException:
            is_good = False
        (good if is_good else bad).append(step)
    return {"good": good, "bad": bad}


def _save_once_more(adapter: Adapter, directory: str, step: int) -> dict[str, Any]:
    try:
        adapter.save(directory, step, make_tensors(step))
        newest = adapter.restore_latest(directory)
        if newest is None or newest[0] != step or identify(newest[1]) != step:
            return {"resume": f"restores {newest and (newest[0], identify(newest[1]))} instead"}
        if bad := _restore_all(adapter, directory).get("bad"):
            return {"resume": f"lists {bad}, which does not restore"}
        return {"leftovers": sorted(files_below(directory) - adapter.owned(directory))}
    except BaseException as error:
        return {"resume": str(Raised.of(error))}


def _tree(directories: list[str], blobs: dict[str, str]) -> Tree:
    files = []
    for path, blob in blobs.items():
        with open(blob, "rb") as file:
            files.append((path, file.read()))
    return Tree(tuple(directories), tuple(files))


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _peak_mb() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmHWM"))
