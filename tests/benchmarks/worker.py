"""The process that holds the values of a workload and makes the timed calls.

`python -m benchmarks.worker ENVIRONMENT WORKLOAD SCALE REPLY_FD`: an order is a line of JSON on standard input, its
answer one on REPLY_FD. What libraries print goes elsewhere.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, cast

from benchmarks import files, memory
from benchmarks.peers import ENTRIES, Environment, make_peer, make_values
from benchmarks.peers.peer import Peer
from benchmarks.workloads import Scale, find_workload

Answer = dict[str, Any]
_ERROR_CHARACTERS = 300


class Worker:
    """Values, and the peers that save and restore them, each made when it is first asked for."""

    def __init__(self, environment: Environment, workload: str, scale: Scale) -> None:
        self._values = make_values(environment, find_workload(workload, scale))
        self._peers: dict[tuple[str, int | None], Peer] = {}

    def size(self, tensors: int | None = None) -> Answer:
        """Return how much there is to save, of all values or the first `tensors`."""
        values = self._values if tensors is None else self._values.first(tensors)
        return {"tensors": values.tensors, "bytes": values.bytes}

    def describe(self, peer: str) -> Answer:
        """Return what the driver has to know of a peer."""
        described = self._peer(peer, None)
        ways = {label: way.is_into_existing for label, way in described.ways().items()}
        version = importlib.import_module(ENTRIES[peer].package).__version__
        return {
            "extension": described.extension,
            "ways": ways,
            "version": version,
        }

    def save(self, peer: str, path: str, tensors: int | None = None) -> Answer:
        """Save, and make it durable: `call` seconds, and `durable` seconds with what the peer left undone."""
        saver = self._peer(peer, tensors)
        answer = _timed(saver.save, path)
        start = time.perf_counter()
        if not saver.is_durable:
            files.fsync_all(path)
        return {**answer, "durable": answer["seconds"] + time.perf_counter() - start, "size": files.size_of(path)}

    def restore(
        self, peer: str, path: str, label: str, *, is_cold: bool, checks: bool = False, tensors: int | None = None
    ) -> Answer:
        """Restore; with `checks`, spoil the values before and compare them afterwards."""
        restorer = self._peer(peer, tensors)
        way = restorer.ways()[label]
        restore = way.cold if is_cold else way.warm
        if not checks:
            return _timed(restore, path)
        is_correct: bool | None = False
        restorer.clear()
        try:
            answer = _timed(restore, path)
            is_correct = restorer.is_restored()
        finally:
            if is_correct is False:
                self._values.repair()
        return {**answer, "is_correct": is_correct}

    def _peer(self, name: str, tensors: int | None) -> Peer:
        if (name, tensors) not in self._peers:
            values = self._values if tensors is None else self._values.first(tensors)
            self._peers[name, tensors] = make_peer(name, values)
            gc.collect()
            gc.freeze()  # so that collecting before each call does not go through whole libraries again
        return self._peers[name, tensors]


def _timed(call: Callable[[str], object], path: str) -> Answer:
    """Make the call, with no garbage collection in it, and return its time, its CPU time and its peak of memory."""
    gc.collect()
    _give_back_free_memory()
    memory.reset_peak()
    resident = memory.resident_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF)
    gc.disable()
    start = time.perf_counter()
    try:
        call(path)
        seconds = time.perf_counter() - start
    finally:
        gc.enable()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu": cpu, "rss": max(0, memory.peak_resident_bytes() - resident)}


def _give_back_free_memory() -> None:
    """Let the allocator keep nothing of what the last peer has freed."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def main() -> None:
    """Answer orders until there are no more."""
    environment, workload, scale, reply_fd = sys.argv[1:]
    with os.fdopen(int(reply_fd), "w", buffering=1) as replies:
        worker = Worker(cast(Environment, environment), workload, cast(Scale, scale))
        print(json.dumps({"ready": True}), file=replies)
        for line in sys.stdin:
            order = json.loads(line)
            try:
                answer = getattr(worker, order.pop("order"))(**order)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a peer that fails is a row less; errors of DCP are no Exceptions
                traceback.print_exc()
                text = " ".join(str(error).split())
                answer = {"error": f"{type(error).__name__}: {text}"[:_ERROR_CHARACTERS]}
            print(json.dumps(answer), file=replies)


if __name__ == "__main__":
    main()
