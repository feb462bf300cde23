"""Command line of the benchmark: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from benchmarks import files, machine
from benchmarks.chart import ChartError, draw_chart
from benchmarks.errors import PeerError
from benchmarks.growth import measure_growth
from benchmarks.measure import measure
from benchmarks.modes import MODES, PARTS, Mode
from benchmarks.paths import OUTPUT
from benchmarks.peers import ENTRIES
from benchmarks.processes import measure_imports, measure_toy
from benchmarks.report import format_report
from benchmarks.results import Results
from benchmarks.settings import Settings
from benchmarks.workloads import find_workload

_GROWTH = {"GB": "fp32", "tensor": "small"}  # which workload shows the growth with what


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables, write results and chart; return 1 when values came back wrong, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    if platform.system() != "Linux":
        print("this benchmark reads /proc and writes with O_DIRECT: it needs Linux", file=sys.stderr)
        return 2
    if options.redraw:
        with open(options.redraw, encoding="utf-8") as file:
            results: Results = json.load(file)
    else:
        results = _run(options)
    print(format_report(results))
    try:
        draw_chart(results, options.chart)
    except ChartError as error:
        print(f"no chart: {error}", file=sys.stderr)
    return int(_has_wrong_values(results))


def _run(options: argparse.Namespace) -> Results:
    mode = MODES[options.mode]
    repetitions = options.reps or mode.repetitions
    os.makedirs(options.dir, exist_ok=True)
    drops_caches = files.can_drop_caches() and options.mode != "smoke"
    settings = Settings(
        scale=mode.scale,
        repetitions=repetitions,
        most_ways=mode.most_ways,
        directory=os.path.abspath(options.dir),
        drops_caches=drops_caches,
        touches_memory=not options.as_found,
    )
    results: Results = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "mode": options.mode,
        "repetitions": repetitions,
        "machine": machine.describe(options.dir),
        "versions": {},
        "cold_means": "sync and drop_caches" if drops_caches else "fadvise of the files",
        "load_before": os.getloadavg()[0],
        "seconds": 0.0,
        "workloads": [],
        "growth": [],
        "toy": None,
        "imports": None,
    }
    start = time.monotonic()
    for part in options.workloads or mode.peers:
        peers = [peer for peer in mode.peers.get(part, ENTRIES) if not options.peers or peer in options.peers]
        if peers:
            print(f"{part}, at {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
            _run_part(part, peers, mode, settings, results)
            results["seconds"] = time.monotonic() - start
            results["versions"] = _versions(results)
            _write_json(results, options.json)  # a run that is cut off leaves what it had
    return results


def _run_part(part: str, peers: Sequence[str], mode: Mode, settings: Settings, results: Results) -> None:
    """Run one part and put what it came to into the results."""
    if part == "toy":
        results["toy"] = measure_toy(peers, mode.toy_processes, mode.toy_repeats, settings)
    elif part == "imports":
        try:
            results["imports"] = measure_imports(mode.toy_processes, settings)
        except PeerError as error:
            print(f"  imports: {error}", file=sys.stderr)
    elif part == "growth":
        few = replace(settings, repetitions=min(settings.repetitions, mode.growth_repetitions))
        for unit, workload in _GROWTH.items():
            results["growth"].append(measure_growth(find_workload(workload, mode.scale), unit, peers, few))
    else:
        results["workloads"].append(measure(find_workload(part, mode.scale), peers, settings))


def _versions(results: Results) -> dict[str, str]:
    """Return the versions of the packages measured, as the interpreters that were used have them."""
    versions = {
        ENTRIES[row["peer"]].package: row["version"] for workload in results["workloads"] for row in workload["rows"]
    }
    for package in ("torch", "torchsaver", "safetensors"):
        if package not in versions:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                continue
    return versions


def _has_wrong_values(results: Results) -> bool:
    rows = (row for workload in results["workloads"] for row in workload["rows"])
    return any(restore["is_correct"] is False for row in rows for restore in row["restores"])


def _write_json(results: Results, path: str) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
        file.write("\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--mode", choices=MODES, default="quick", help="smoke only shows that everything runs")
    parser.add_argument("--workloads", type=_names(PARTS), metavar="NAMES", help=f"with commas, of {', '.join(PARTS)}")
    parser.add_argument("--peers", type=_names(ENTRIES), metavar="NAMES", help=f"with commas, of {', '.join(ENTRIES)}")
    parser.add_argument("--reps", type=int, metavar="N", help="timed repetitions of each row")
    parser.add_argument("--dir", default=str(OUTPUT / "files"), help="for checkpoints, on the disk to be measured")
    parser.add_argument("--json", default=str(OUTPUT / "results.json"), metavar="PATH", help="results are written here")
    parser.add_argument("--chart", default=str(OUTPUT / "chart.png"), metavar="PATH", help="the chart is drawn here")
    parser.add_argument("--redraw", metavar="RESULTS.JSON", help="measure nothing: tables and chart of an earlier run")
    parser.add_argument("--as-found", action="store_true", help="do not touch free memory before each timed call")
    return parser


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a reader of names with commas."""

    def read(text: str) -> list[str]:
        if unknown := set(names := text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return names

    return read


if __name__ == "__main__":
    sys.exit(main())
