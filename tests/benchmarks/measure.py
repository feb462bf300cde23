"""One workload: every row takes its turn in every repetition, in an order that is shuffled each time."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import files, memory
from benchmarks.errors import PeerError
from benchmarks.peers import ENTRIES, Environment
from benchmarks.results import Memory, Reading, Restore, Row, WorkloadResult
from benchmarks.settings import Settings
from benchmarks.worker_process import WorkerProcess
from benchmarks.workloads import Workload

_TOUCHED_PER_BYTE = 2.2  # a second model, its file in the page cache, and some more
_SLOW_TURN_SECS = 60.0
_SLOW_REPETITIONS = 1


class Ground:
    """The machine, made the same for every timed call.

    Args:
        settings: Of the run.
        size: Bytes of the values.
    """

    def __init__(self, settings: Settings, size: int) -> None:
        self._settings = settings
        self._size = size

    def settle(self) -> None:
        """Have nothing left to be written, and free memory that is really there."""
        os.sync()
        if self._settings.touches_memory:
            memory.touch_free_memory(int(_TOUCHED_PER_BYTE * self._size))

    def make_cold(self, path: str) -> None:
        """Have nothing of a checkpoint in memory."""
        files.evict(path, drops_caches=self._settings.drops_caches)
        self.settle()

    def make_warm(self, path: str) -> None:
        """Have all of a checkpoint in memory."""
        files.preload(path)
        self.settle()


class Lane:
    """One row while it is measured.

    Raises:
        PeerError: The peer cannot be made.
    """

    def __init__(self, peer: str, process: WorkerProcess, settings: Settings) -> None:
        self._peer = peer
        self._process = process
        about = process.ask("describe", peer=peer)
        role = ENTRIES[peer].role
        self._path = os.path.join(settings.directory, peer.replace(" ", "-") + about["extension"])
        ways = list(about["ways"].items())[: settings.most_ways if role == "peer" else None]
        self.row: Row = {
            "peer": peer,
            "role": role,
            "version": about["version"],
            "save": {"call": [], "durable": [], "cpu": [], "memory": _no_memory(), "size": 0},
            "restores": [_no_restore(label, is_into_existing) for label, is_into_existing in ways],
        }

    def check(self, ground: Ground) -> None:
        """Take a turn that is not timed: look at memory, and at every value that is restored."""
        with self._checkpoint(ground):
            saved = self._process.ask_and_watch("save", peer=self._peer, path=self._path)
            self.row["save"]["memory"] = _memory(saved)
            self.row["save"]["size"] = saved["size"]
            for restore in self.row["restores"]:
                for is_cold, reading in self._readings(restore, ground):
                    answer = self._restore(self._process.ask_and_watch, restore, is_cold=is_cold, checks=True)
                    reading["memory"] = _memory(answer)
                    if answer["is_correct"] is not None:
                        restore["is_correct"] = answer["is_correct"] and restore["is_correct"] is not False

    def time(self, ground: Ground) -> None:
        """Take a turn that is timed."""
        with self._checkpoint(ground):
            saved = self._process.ask("save", peer=self._peer, path=self._path)
            self.row["save"]["call"].append(saved["seconds"])
            self.row["save"]["durable"].append(saved["durable"])
            self.row["save"]["cpu"].append(saved["cpu"])
            for restore in self.row["restores"]:
                for is_cold, reading in self._readings(restore, ground):
                    answer = self._restore(self._process.ask, restore, is_cold=is_cold)
                    reading["seconds"].append(answer["seconds"])
                    reading["cpu"].append(answer["cpu"])

    def clear(self) -> None:
        """Remove what was saved."""
        files.remove(self._path)

    @contextmanager
    def _checkpoint(self, ground: Ground) -> Iterator[None]:
        """Make room for a checkpoint, and remove it afterwards."""
        self.clear()
        ground.settle()
        try:
            yield
        finally:
            self.clear()

    def _readings(self, restore: Restore, ground: Ground) -> Iterator[tuple[bool, Reading]]:
        """Go through restoring from a cold file and from a warm one, having made it so."""
        ground.make_cold(self._path)
        yield True, restore["cold"]
        ground.make_warm(self._path)
        yield False, restore["warm"]

    def _restore(self, ask: Callable[..., dict[str, Any]], restore: Restore, **arguments: Any) -> dict[str, Any]:
        return ask("restore", peer=self._peer, path=self._path, label=restore["label"], **arguments)


def measure(workload: Workload, peers: Iterable[str], settings: Settings) -> WorkloadResult:
    """Measure these peers on one workload; those that cannot be are said to be skipped, and why."""
    result: WorkloadResult = {
        "name": workload.name,
        "title": workload.title,
        "tensors": 0,
        "bytes": 0,
        "rows": [],
        "skipped": {},
    }
    with open_workers(peers, workload.name, settings, result["skipped"]) as processes:
        lanes = _open_lanes(processes, settings, result["skipped"])
        for process in list(processes.values())[:1]:
            result.update(process.ask("size"))  # type: ignore[typeddict-item]  # "tensors" and "bytes"
        _take_turns(lanes, Ground(settings, result["bytes"]), settings.repetitions, result["skipped"])
    result["rows"] = [lane.row for name, lane in lanes.items() if name not in result["skipped"]]
    return result


@contextmanager
def open_workers(
    peers: Iterable[str], workload: str, settings: Settings, skipped: dict[str, str]
) -> Iterator[dict[str, WorkerProcess]]:
    """Give each peer the worker process of its environment; put those without one into `skipped`, with the reason."""
    processes: dict[Environment, WorkerProcess] = {}
    failures: dict[Environment, str] = {}
    given: dict[str, WorkerProcess] = {}
    try:
        for peer in peers:
            environment = ENTRIES[peer].environment
            if environment not in processes and environment not in failures:
                try:
                    processes[environment] = WorkerProcess(environment, workload, settings)
                except PeerError as error:
                    failures[environment] = str(error)
            if environment in processes:
                given[peer] = processes[environment]
            else:
                skipped[peer] = failures[environment]
        yield given
    finally:
        for process in processes.values():
            process.close()


def _open_lanes(processes: dict[str, WorkerProcess], settings: Settings, skipped: dict[str, str]) -> dict[str, Lane]:
    lanes = {}
    for peer, process in processes.items():
        try:
            lanes[peer] = Lane(peer, process, settings)
        except PeerError as error:
            skipped[peer] = str(error)
    return lanes


def _take_turns(lanes: dict[str, Lane], ground: Ground, repetitions: int, skipped: dict[str, str]) -> None:
    """Let all lanes check once and then be timed; a slow one is timed less often, a failed one no more."""
    turn_secs: dict[str, float] = {}
    for repetition in range(repetitions + 1):
        order = [name for name in lanes if name not in skipped]
        random.Random(repetition).shuffle(order)
        for name in order:
            if repetition > _SLOW_REPETITIONS and turn_secs[name] > _SLOW_TURN_SECS:
                continue
            start = time.monotonic()
            try:
                (lanes[name].time if repetition else lanes[name].check)(ground)
            except PeerError as error:
                skipped[name] = str(error)
            turn_secs[name] = time.monotonic() - start
        print(f"  repetition {repetition} of {repetitions}: {_listed(turn_secs, order)}", file=sys.stderr, flush=True)
    for lane in lanes.values():
        lane.clear()


def _listed(turn_secs: dict[str, float], order: list[str]) -> str:
    return ", ".join(f"{name} {turn_secs[name]:.1f} s" for name in order)


def _memory(answer: dict[str, Any]) -> Memory:
    return {"rss": answer["rss"], "anonymous": answer["anonymous"]}


def _no_memory() -> Memory:
    return {"rss": 0, "anonymous": 0}


def _no_reading() -> Reading:
    return {"seconds": [], "cpu": [], "memory": _no_memory()}


def _no_restore(label: str, is_into_existing: bool) -> Restore:
    return {
        "label": label,
        "is_into_existing": is_into_existing,
        "is_correct": None,
        "cold": _no_reading(),
        "warm": _no_reading(),
    }
