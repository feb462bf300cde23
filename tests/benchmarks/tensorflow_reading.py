"""Reading TensorFlow's checkpoints beside TensorFlow itself, in one run: `python -m benchmarks.tensorflow_reading`.

A bundle of a gigabyte, every tensor of it with its checksum verified; and an index of 6,000 keys. Both sides run in
fresh processes by turns, on files that are in the page cache; each has read everything once before it is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

import torch

import torchsaver as ts
from benchmarks import machine
from benchmarks.settings import find_interpreter

_SHAPES = [(30522, 768), *[(768, 768)] * 150, *[(768, 3072)] * 65, *[(768,)] * 428]  # much like BERT's
_KEYS = 6000
CALLS = 5  # of each kind in a process
_WORKER = """
import json, sys, time
{start}
def opened(prefix):
    reader = load(prefix)
    return reader, list(reader.get_variable_to_shape_map())
def read_all(prefix):
    reader, keys = opened(prefix)
    for key in keys:
        reader.get_tensor(key)
def timed(call, *arguments):
    call(*arguments)
    times = []
    for _ in range({calls}):
        start = time.perf_counter()
        call(*arguments)
        times.append(time.perf_counter() - start)
    return times
large, many = sys.argv[1:]
print(json.dumps({{
    "open 6,000 keys": timed(load, many),
    "list 6,000 keys and shapes": timed(opened, many),
    "read 6,000 small tensors": timed(read_all, many),
    "read 1 GB": timed(read_all, large),
}}))
"""
_SIDES = {
    "torchsaver": "import torchsaver\nload = torchsaver.load_checkpoint",
    "TensorFlow": "import tensorflow\nload = tensorflow.train.load_checkpoint",
}


def make_checkpoints(directory: str, scale: float) -> list[str]:
    """Write the two checkpoints and return their prefixes; `scale` is the share of the large one that is made."""
    generator = torch.Generator().manual_seed(0)
    shapes = _SHAPES[: max(1, int(len(_SHAPES) * scale))]
    large = {f"layer_{n}/kernel": torch.randn(shape, generator=generator) for n, shape in enumerate(shapes)}
    many = {f"model/layer_{n // 10}/sub_{n % 10}/kernel": torch.ones(3) for n in range(_KEYS)}
    return [ts.save_tf_checkpoint(f"{directory}/large", large), ts.save_tf_checkpoint(f"{directory}/many", many)]


def measure(prefixes: Sequence[str], turns: int, say: Callable[[str], object]) -> dict[str, dict[str, list[float]]]:
    """Return {what: {side: seconds of every call}}."""
    found: dict[str, dict[str, list[float]]] = {}
    for turn in range(turns):
        for side in list(_SIDES)[:: 1 if turn % 2 else -1]:
            say(f"turn {turn + 1} of {turns}: {side}")
            for what, times in run(side, prefixes).items():
                found.setdefault(what, {}).setdefault(side, []).extend(times)
    return found


def run(side: str, prefixes: Sequence[str]) -> dict[str, list[float]]:
    """Return {what: seconds of each call} of one side, in a fresh process."""
    python = sys.executable if side == "torchsaver" else find_interpreter("tensorflow")
    code = _WORKER.format(start=_SIDES[side], calls=CALLS)
    done = subprocess.run([python, "-c", code, *prefixes], capture_output=True, text=True, check=True, timeout=600)
    times: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return times


def table(found: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return a Markdown table: milliseconds, medians with the fastest and slowest call, and ours in theirs."""
    lines = ["| milliseconds | torchsaver | TensorFlow | ratio |", "|---|---|---|---|"]
    for what, by_side in found.items():
        medians = {side: statistics.median(times) for side, times in by_side.items()}
        cells = [f"{1e3 * medians[s]:,.1f} ({1e3 * min(t):,.1f}-{1e3 * max(t):,.1f})" for s, t in by_side.items()]
        ratio = medians["torchsaver"] / medians["TensorFlow"]
        ordered = dict(zip(by_side, cells, strict=True))
        lines.append(f"| {what} | {ordered['torchsaver']} | {ordered['TensorFlow']} | {ratio:.2f} |")
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.tensorflow_reading")
    parser.add_argument("--turns", type=int, default=3, help="processes of each side")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the gigabyte")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torchsaver-benchmark-") as directory:
        prefixes = make_checkpoints(directory, arguments.scale)
        found = measure(prefixes, arguments.turns, lambda line: print(line, file=sys.stderr))
        print(f"{machine.describe(directory)}; medians of {CALLS * arguments.turns} calls (fastest-slowest)\n")
        print("\n".join(table(found)))


if __name__ == "__main__":
    main()
