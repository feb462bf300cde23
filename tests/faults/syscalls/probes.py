"""Probes: questions that are answered inside a process that uses the library, and written down as lines of JSON."""

from __future__ import annotations

import collections
import json
import os
import time
from collections.abc import Callable

import numpy as np
from faults.syscalls.adapters.adapter import Adapter, files_below
from faults.syscalls.board import Board
from faults.syscalls.orders import JsonObject, Raised
from faults.syscalls.tensors import Tensors, identify, make_tensors
from faults.syscalls.writer import silence

HOSTILE_NAMES: tuple[tuple[str, ...], ...] = (
    *(
        (name,)
        for name in ("a/b/c", "../evil", "../../evil2", "/abs/evil", "a/../b", ".", "..", "", " ", "a b", "a\nb")
    ),
    *(
        (name,)
        for name in ("a\x00b", "a\\b", "con", "CON", "nul", "x" * 255, "x" * 5000, "\u00e9", "e\u0301", "\u540d\u524d")
    ),
    *((name,) for name in ("\U0001f600", "\u202ertl", "a:0", "__metadata__", "a.b", "-rf", "%s%n", '"q"', "'", "{}")),
    *((name,) for name in ("[0]", "a,b", "\ud800", "step/", "/", "//", "a/", "checkpoint", "\x7f", "\ufeffbom")),
    ("\u00e9", "e\u0301"),
    ("a", "a/b"),
    ("A", "a"),
)


def run_probe(adapter: Adapter, order: JsonObject) -> None:
    """Run the probe `order["probe"]`; what it yields is written into the file `order["report"]`."""
    silence()
    adapter.keep = order["keep"]
    with open(order["report"], "a", encoding="ascii") as file:
        file.write(json.dumps(_PROBES[order["probe"]](adapter, order)) + "\n")


def read_while_written(adapter: Adapter, order: JsonObject) -> JsonObject:
    """Restore the latest over and over, while a writer saves: it must be whole, and never older than what was acked."""
    board = Board(order["board"])
    end = time.monotonic() + order["seconds"]
    violations: collections.Counter[str] = collections.Counter()
    examples: dict[str, str] = {}
    reads, newest_read = 0, -1
    while time.monotonic() < end:
        acked = board.newest_ack
        reads += 1
        problem, step = _read_once(adapter, order["directory"], acked, newest_read)
        newest_read = max(newest_read, step)
        if problem is not None:
            violations[problem[0]] += 1
            examples.setdefault(*problem)
    return {"tried": reads, "violations": violations, "examples": examples}


def _read_once(adapter: Adapter, directory: str, acked: int | None, newest: int) -> tuple[tuple[str, str] | None, int]:
    adapter.forget()
    try:
        found = adapter.restore_latest(directory)
    except Exception as error:
        return ("AVAIL", str(Raised.of(error))), -1
    if found is None:
        return (("LOST", f"no checkpoint, though save({acked}) had returned") if acked is not None else None), -1
    step, content = found[0], identify(found[1])
    if content != step:
        return ("SILENT", f"step {step} has content {content}"), step
    if acked is not None and step < acked:
        return ("LOST", f"latest is {step}, though save({acked}) had returned"), step
    return (("LOST", f"latest went back from {newest} to {step}") if step < newest else None), step


def save_names(adapter: Adapter, order: JsonObject) -> JsonObject:
    """Save tensors with hostile names: they come back as they were, or are refused, and never become paths."""
    root = order["directory"]
    names = HOSTILE_NAMES[order["index"]]
    directory = os.path.join(root, "run")
    os.makedirs(directory)
    tensors: Tensors = {"w": np.arange(6, dtype=np.float32), "step": np.asarray(1, np.int64)}
    tensors |= {name: np.arange(5, dtype=np.float32) + 1 + i for i, name in enumerate(names)}
    violations: dict[str, str] = {}
    saved = True
    try:
        adapter.save(directory, 1, tensors)
    except Exception as error:
        saved = False
        violations |= _after_refusal(adapter, directory, type(error).__name__)
    if saved:
        violations |= _after_saving(adapter, directory, tensors)
    if outside := {path for path in files_below(root) if not path.startswith("run/")}:
        violations["LOST"] = f"wrote outside the directory: {sorted(outside)[:2]}"
    return {"violations": violations, "saved": saved}


def _after_refusal(adapter: Adapter, directory: str, kind: str) -> dict[str, str]:
    try:
        if adapter.restore_latest(directory) is not None:
            return {"LISTBAD": f"save raised {kind}, and left a checkpoint"}
    except Exception as error:
        return {"AVAIL": f"save raised {kind}; then restoring raised {Raised.of(error)}"}
    return {}


def _after_saving(adapter: Adapter, directory: str, tensors: Tensors) -> dict[str, str]:
    try:
        found = adapter.restore_latest(directory)
    except Exception as error:
        return {"AVAIL": f"saved without an error, restoring raised {Raised.of(error)}"}
    if found is None or set(found[1]) != set(tensors):
        return {"SILENT": f"saved without an error, restored names {found and sorted(map(ascii, found[1]))[:4]}"}
    if not all(np.array_equal(found[1][name], tensors[name]) for name in tensors):
        return {"SILENT": "saved without an error, values differ"}
    return {}


def save_what_was_restored(adapter: Adapter, order: JsonObject) -> JsonObject:
    """Save restored tensors over their own file, then let the file be removed: in memory they stay as they are."""
    directory = order["directory"]
    violations: dict[str, str] = {}
    found = adapter.restore_latest(directory)
    assert found is not None
    step, tensors = found
    note = ""
    try:
        adapter.save(directory, step, tensors)
        again = adapter.restore_latest(directory)
        if again is None or again[0] != step or identify(again[1]) != step:
            violations["SILENT"] = f"saved over its own file, step {step} is {again and identify(again[1])}"
    except Exception as error:
        note = f"saving the same step again raised {Raised.of(error)}"
    for later in range(step + 1, step + 5):
        if identify(tensors) != step:
            violations["SILENT"] = f"restored tensors changed before save({later}): {identify(tensors)}"
        adapter.save(directory, later, make_tensors(later))
    if identify(tensors) != step:
        violations["SILENT"] = f"restored tensors changed when their file was removed: {identify(tensors)}"
    return {"violations": violations, "note": note}


_PROBES: dict[str, Callable[[Adapter, JsonObject], JsonObject]] = {
    "read while written": read_while_written,
    "save names": save_names,
    "save what was restored": save_what_was_restored,
}
