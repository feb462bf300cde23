"""How long a save in the background has training wait: `python -m benchmarks.background_saves`.

Beside a plain copy of the same bytes in memory, a blocking save, and PyTorch's own async_save, by turns in one process.
A save's total is the time until its files are durable; what goes on in the background is waited for outside of the time
it blocks.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

import torchsaver as ts
from benchmarks import files, machine

_LAYER = ((768, 768), (768, 3072), (768,), (3072,))  # much like BERT's
_MEMCPY = "copy of the same bytes"

dcp: Any = checkpoint  # what it offers is not declared as such


class Times(NamedTuple):
    """Seconds of a save.

    Attributes:
        blocked: Until the call returned.
        total: From the call until all was done.
    """

    blocked: float
    total: float


Save = Callable[[str], Callable[[], object]]  # saves into a directory, and returns what waits for the rest


def make_tensors(nbytes: int) -> dict[str, torch.Tensor]:
    """Return tensors of `nbytes` at least, by name."""
    generator, tensors, left = torch.Generator().manual_seed(0), {}, nbytes
    for number, shape in zip(itertools.count(), itertools.cycle(_LAYER), strict=False):
        if left <= 0:
            break
        tensor = tensors[f"layer_{number // 4}.{number % 4}"] = torch.randn(shape, generator=generator)
        left -= tensor.nbytes
    return tensors


def ways(tensors: Mapping[str, torch.Tensor]) -> dict[str, Save]:
    """Return what is compared, by name."""
    var_list = dict(tensors)
    source = torch.ones(sum(tensor.nbytes for tensor in tensors.values()), dtype=torch.uint8)
    target = torch.ones_like(source)
    kept, blocking = ts.Saver(var_list, background=True, max_to_keep=1), ts.Saver(var_list, max_to_keep=1)
    # It keeps its memory, as ours does; there is no device whose copies would gain by other options.
    stager = DefaultStager(StagingOptions(False, False, False, False))

    def copied(_: str) -> Callable[[], object]:
        target.copy_(source)
        return lambda: None

    def saved(saver: ts.Saver, directory: str) -> Callable[[], object]:
        saver.save(os.path.join(directory, "x"))
        return saver.wait

    def saved_by_async_save(stager: Any, directory: str) -> Callable[[], object]:
        writer = dcp.FileSystemWriter(directory)
        wait: Callable[[], object] = dcp.async_save(
            var_list, storage_writer=writer, async_stager=stager, no_dist=True
        ).result
        return wait

    return {
        _MEMCPY: copied,
        "torchsaver, in the background": lambda directory: saved(kept, directory),
        "torchsaver, the first one": lambda directory: saved(ts.Saver(var_list, background=True), directory),
        "torchsaver, blocking": lambda directory: saved(blocking, directory),
        "async_save": lambda directory: saved_by_async_save(None, directory),
        "async_save, memory kept": lambda directory: saved_by_async_save(stager, directory),
    }


def measure(nbytes: int, turns: int, directory: str, say: Callable[[str], object]) -> dict[str, list[Times]]:
    """Return {what: times of each turn}; one turn before them is not counted."""
    chosen = ways(make_tensors(nbytes))
    found: dict[str, list[Times]] = {what: [] for what in chosen}
    for turn in range(turns + 1):
        say(f"turn {turn} of {turns}")
        for what in _rotated(list(chosen), turn):
            times = _timed(chosen[what], os.path.join(directory, "checkpoint"))
            if turn:
                found[what].append(times)
    return found


def _rotated(names: list[str], turn: int) -> Iterator[str]:
    return itertools.islice(itertools.cycle(names), turn % len(names), turn % len(names) + len(names))


def _timed(save: Save, directory: str) -> Times:
    """Time a save into an empty directory, with no bytes of an earlier one on their way to the disk."""
    os.mkdir(directory)
    os.sync()
    start = time.perf_counter()
    rest = save(directory)
    blocked = time.perf_counter() - start
    rest()
    total = time.perf_counter() - start
    files.remove(directory)
    return Times(blocked, total)


def table(found: Mapping[str, list[Times]]) -> list[str]:
    """Return a Markdown table: milliseconds, medians with the shortest and longest, and blocked ones in the copy's."""
    copy = statistics.median(times.blocked for times in found[_MEMCPY])
    lines = ["| milliseconds | blocked | x copy | total |", "|---|---|---|---|"]
    for what, all_times in found.items():
        blocked, total = zip(*all_times, strict=True)
        ratio = statistics.median(blocked) / copy
        lines.append(f"| {what} | {_cell(blocked)} | {ratio:.2f} | {'' if what == _MEMCPY else _cell(total)} |")
    return lines


def _cell(secs: tuple[float, ...]) -> str:
    return f"{1e3 * statistics.median(secs):,.1f} ({1e3 * min(secs):,.1f}-{1e3 * max(secs):,.1f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.background_saves")
    parser.add_argument("--megabytes", type=int, default=1000, help="of tensors")
    parser.add_argument("--turns", type=int, default=7, help="how often each is done")
    parser.add_argument("--dir", default="build/bench", help="on the disk to be measured")
    arguments = parser.parse_args()
    os.makedirs(arguments.dir, exist_ok=True)
    warnings.simplefilter("ignore")  # of async_save, that it is one process alone
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="torchsaver-benchmark-", dir=arguments.dir) as directory:
        nbytes = arguments.megabytes * 1_000_000
        found = measure(nbytes, arguments.turns, directory, lambda line: print(line, file=sys.stderr))
        print(f"{machine.describe(directory)}, torch {torch.__version__} with {torch.get_num_threads()} threads;")
        print(f"{arguments.megabytes:,} MB of tensors, medians of {arguments.turns} turns (shortest-longest)\n")
        print("\n".join(table(found)))


if __name__ == "__main__":
    main()
