"""What the modes run: of whom, on what, how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers import ENTRIES
from benchmarks.workloads import Scale

EVERYBODY = tuple(ENTRIES)
IN_TORCH = tuple(name for name, entry in ENTRIES.items() if entry.environment == "torch" and name != "torchsaver first")
SINGLE_FILES = ("limit", "torchsaver", "torch.save", "safetensors")
GROWING = ("torchsaver", "safetensors", "DCP")


@dataclass(frozen=True)
class Mode:
    """What one mode runs.

    Attributes:
        scale: How large the workloads are.
        peers: Of each workload, and of the parts that are none ("toy", "imports", "growth"), in order.
        repetitions: Timed ones, of workloads.
        growth_repetitions: Timed ones, of each size.
        most_ways: Ways of restoring of each peer.
        toy_processes: Timed ones, of each peer.
        toy_repeats: Repeated calls in each.
    """

    scale: Scale
    peers: Mapping[str, Sequence[str]]
    repetitions: int
    growth_repetitions: int
    most_ways: int
    toy_processes: int
    toy_repeats: int


MODES = {
    "full": Mode(
        scale="full",
        peers={
            "fp32": tuple(name for name in EVERYBODY if name != "torchsaver first"),
            "bf16": SINGLE_FILES,
            "adam": SINGLE_FILES,
            "strided": IN_TORCH,
            "small": EVERYBODY,
            "toy": EVERYBODY,
            "imports": ("torchsaver",),
            "growth": GROWING,
        },
        repetitions=3,
        growth_repetitions=2,
        most_ways=2,
        toy_processes=7,
        toy_repeats=50,
    ),
    "quick": Mode(  # what takes long is left out: two minutes are soon over
        scale="quick",
        peers={
            "fp32": ("limit", "torchsaver", "torch.save", "safetensors", "DCP", "DCP HuggingFace"),
            "strided": ("limit", "torchsaver", "safetensors"),
            "small": ("limit", "torchsaver", "torchsaver first", "torch.save", "safetensors"),
            "toy": ("torchsaver", "safetensors"),
            "imports": ("torchsaver",),
        },
        repetitions=3,
        growth_repetitions=2,
        most_ways=1,
        toy_processes=3,
        toy_repeats=20,
    ),
    "smoke": Mode(
        scale="smoke",
        peers={
            "fp32": IN_TORCH,
            "bf16": SINGLE_FILES,
            "adam": SINGLE_FILES,
            "strided": IN_TORCH,
            "small": EVERYBODY,
            "toy": EVERYBODY,
            "imports": ("torchsaver",),
            "growth": GROWING,
        },
        repetitions=1,
        growth_repetitions=1,
        most_ways=3,
        toy_processes=1,
        toy_repeats=3,
    ),
}
PARTS = tuple(MODES["full"].peers)
