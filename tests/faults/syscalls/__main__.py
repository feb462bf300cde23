"""Command line of the fault harness: `python -m faults.syscalls --help`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence

from faults.syscalls.adapters import NAMES
from faults.syscalls.classes import CLASSES, SWEPT_CLASSES
from faults.syscalls.harness import Harness
from faults.syscalls.verdict import KINDS, Tally
from faults.syscalls.zygote import why_no_strace


def run_class(harness: Harness, name: str) -> list[Tally]:
    """Try the faults of one class; what breaks the harness itself counts as a failed try."""
    try:
        return CLASSES[name](harness)
    except Exception as error:  # one class that breaks must not hide what the others find
        tally = Tally(name, note="the harness broke")
        tally.add({"CRASH": f"{type(error).__name__}: {str(error)[:600]}"})
        return [tally]


def violations(tally: Tally, name: str, *, sweeps: bool) -> dict[str, int]:
    """Return how often each kind was violated that must hold, for class `name` and an adapter that sweeps or not."""
    has_to_sweep = sweeps and name in SWEPT_CLASSES
    return {kind: count for kind, count in tally.violations.items() if kind != "LITTER" or has_to_sweep}


def format_table(rows: Iterable[tuple[str, Tally]]) -> str:
    """Return the results as text: a line a tally, with an example for each kind of violation."""
    lines = [
        "",
        f"{'class':<10} | {'tried':>6} | {'violations':<19} | what was tried, and an example of each violation",
    ]
    for name, tally in rows:
        counts = " ".join(f"{kind} {tally.violations[kind]}" for kind in KINDS if tally.violations[kind]) or "-"
        note = f" [{tally.note}]" if tally.note else ""
        lines.append(f"{name:<10} | {tally.tried:>6} | {counts:<19} | {tally.title}{note}")
        lines += [f"{'':<13}{kind}: {tally.examples[kind][:400]}" for kind in KINDS if kind in tally.examples]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the classes asked for; return 0 when nothing was violated, or, with --expect-violations, when something was."""
    options = _parser().parse_args(arguments)
    if (problem := why_no_strace()) is not None:
        print(problem, file=sys.stderr)
        return 2
    names = options.only.split(",") if options.only else list(CLASSES)
    if unknown := set(names) - set(CLASSES):
        print(f"no such class: {', '.join(sorted(unknown))}; there are {', '.join(CLASSES)}", file=sys.stderr)
        return 2
    start = time.monotonic()
    harness = Harness(options.adapter, is_full=options.mode == "full", seed=options.seed)
    rows = []
    try:
        for name in names:
            begun = time.monotonic()
            tallies = run_class(harness, name)
            print(f"{options.adapter}: {name}, {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
            rows += [(name, tally) for tally in tallies]
        sweeps = harness.zygote.sweeps
    finally:
        harness.close()
    print(format_table(rows))
    bad = sum(sum(violations(tally, name, sweeps=sweeps).values()) for name, tally in rows)
    print(f"{options.adapter}: {bad} violations in {time.monotonic() - start:.0f} s, seed {options.seed}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(
                [{"adapter": options.adapter, "class": name, **vars(tally)} for name, tally in rows], file, indent=1
            )
    return int(bool(bad) != options.expect_violations)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m faults.syscalls", description=__doc__)
    parser.add_argument("--adapter", default="torchsaver", choices=NAMES)
    parser.add_argument("--mode", default="quick", choices=("quick", "full"))
    parser.add_argument("--only", default="", metavar="CLASS,...", help=f"of {', '.join(CLASSES)}")
    parser.add_argument("--seed", type=int, default=1, help="of the samples a quick run takes, and of random times")
    parser.add_argument("--json", default="", metavar="OUT", help="also write the results to this file")
    parser.add_argument("--expect-violations", action="store_true", help="fail if there are none (negative controls)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
