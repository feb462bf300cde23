"""Fuzz every reader: `python -m faults.fuzz --seconds 600`, the targets one after the other, on one core.

Prints executions per target and in total, and fails when there was a finding; `--totals` prints the counts alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

# As in targets.TARGETS, which would bring the seconds that importing torch takes.
NAMES = ("safetensors", "manifest", "index", "state", "statefile", "directory", "tfbundle", "tfv1", "tfgraph")


def totals(output: Path) -> str:
    """Return the table of executions, over all processes that have ever written into `output`."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for path in sorted((output / "counts").glob("*.json")):
        counts = json.loads(path.read_text(encoding="utf-8"))
        for row in (counts.pop("target"), "total"):
            for name, value in counts.items():
                sums[row][name] += value
    lines = [f"{'target':12} {'executions':>12} {'taken':>12} {'findings':>9} {'seconds':>9}"]
    for row in sorted(sums, key=lambda row: (row == "total", row)):
        executions, taken, found, seconds = (sums[row][k] for k in ("executions", "taken", "findings", "seconds"))
        lines.append(f"{row:12} {executions:12,.0f} {taken:12,.0f} {found:9,.0f} {seconds:9,.0f}")
    return "\n".join(lines)


def _findings(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "findings").glob("*") if path.suffix != ".txt")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--seconds", type=int, default=600, help="for all targets together (default: 600)")
    parser.add_argument("--output", type=Path, default=Path("build/fuzz"), help="counts, corpus, findings")
    parser.add_argument("--totals", action="store_true", help="run nothing, print the counts in OUTPUT")
    options = parser.parse_args()
    failed = False
    if not options.totals:
        names = options.targets or NAMES
        (options.output / "log").mkdir(parents=True, exist_ok=True)
        for name in names:
            seconds = max(1, options.seconds // len(names))
            command = [sys.executable, "-m", "faults.fuzz.engine", name, str(options.output), str(seconds)]
            with open(options.output / "log" / f"{name}.log", "ab") as log:
                status = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
            failed |= status != 0
            print(
                f"{name}: done" if status == 0 else f"{name}: stopped with status {status}, see {log.name}", flush=True
            )
    print(totals(options.output))
    found = _findings(options.output)
    print(*(f"finding: {options.output / 'findings' / name}" for name in found), sep="\n")
    return 1 if failed or found else 0


if __name__ == "__main__":
    sys.exit(main())
