"""How time grows with bytes and with the number of tensors: parts of a workload, saved and restored at four sizes."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import files
from benchmarks.errors import PeerError
from benchmarks.measure import Ground, open_workers
from benchmarks.peers import ENTRIES
from benchmarks.results import GrowthResult, GrowthRow
from benchmarks.settings import Settings
from benchmarks.worker_process import WorkerProcess
from benchmarks.workloads import Workload

_PARTS = (0.25, 0.5, 0.75, 1.0)
_GB = 1e9


@dataclass(frozen=True)
class _Point:
    """A peer at one size, the `at`-th of its row."""

    row: GrowthRow
    process: WorkerProcess
    tensors: int
    bytes: int
    at: int

    def take(self, settings: Settings, *, is_kept: bool) -> None:
        """Save once and restore once from a warm file, and keep the times unless it is the first time at all."""
        peer, about = self.row["peer"], self.process.ask("describe", peer=self.row["peer"])
        path = os.path.join(settings.directory, f"growth{about['extension']}")
        ground = Ground(settings, self.bytes)
        common: dict[str, Any] = {"peer": peer, "path": path, "tensors": self.tensors}
        try:
            ground.settle()
            saved = self.process.ask("save", **common)
            ground.make_warm(path)
            restored = self.process.ask("restore", **common, label=next(iter(about["ways"])), is_cold=False)
        finally:
            files.remove(path)
        if is_kept:
            self.row["save"][self.at].append(saved["durable"])
            self.row["restore"][self.at].append(restored["seconds"])


def measure_growth(workload: Workload, unit: str, peers: Sequence[str], settings: Settings) -> GrowthResult:
    """Measure these peers at four sizes of one workload, with "GB" or "tensor" as the unit of size."""
    title = f"growth with {'bytes' if unit == 'GB' else 'the number of tensors'}: parts of {workload.title}"
    result: GrowthResult = {"unit": unit, "title": title, "sizes": [], "rows": [], "skipped": {}}
    counts = [max(1, round(part * len(workload.shapes))) for part in _PARTS]
    with open_workers(peers, workload.name, settings, result["skipped"]) as processes:
        if not processes:
            return result
        process = next(iter(processes.values()))
        sizes = [process.ask("size", tensors=count)["bytes"] for count in counts]
        result["sizes"] = [size / _GB for size in sizes] if unit == "GB" else [float(count) for count in counts]
        rows = {peer: _no_row(peer) for peer in processes}
        points = [
            _Point(rows[peer], process, count, size, at)
            for peer, process in processes.items()
            for at, (count, size) in enumerate(zip(counts, sizes, strict=True))
        ]
        for repetition in range(settings.repetitions + 1):
            random.Random(repetition).shuffle(points)
            for point in points:
                _take_unless_skipped(point, settings, result["skipped"], is_kept=repetition > 0)
            print(f"  growth, repetition {repetition} of {settings.repetitions}", file=sys.stderr, flush=True)
    result["rows"] = [row for peer, row in rows.items() if peer not in result["skipped"]]
    return result


def _take_unless_skipped(point: _Point, settings: Settings, skipped: dict[str, str], *, is_kept: bool) -> None:
    peer = point.row["peer"]
    if peer in skipped:
        return
    try:
        point.take(settings, is_kept=is_kept)
    except PeerError as error:
        skipped[peer] = str(error)


def _no_row(peer: str) -> GrowthRow:
    return {"peer": peer, "role": ENTRIES[peer].role, "save": [[] for _ in _PARTS], "restore": [[] for _ in _PARTS]}
