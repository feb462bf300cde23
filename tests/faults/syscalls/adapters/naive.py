"""Negative control: `torch.save(state, f"ckpt-{step}.pt")` under the final name; user code removes old ones."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import torch
from faults.syscalls.adapters.adapter import Adapter
from faults.syscalls.tensors import Tensors

# What torch.load raises for a file that is cut short.
LOAD_ERRORS = ("OSError", "RuntimeError", "UnpicklingError", "EOFError", "ValueError", "KeyError")


def dump(tensors: Tensors, path: str) -> None:
    """Write `tensors` with torch.save."""
    torch.save({name: torch.from_numpy(value.copy()) for name, value in tensors.items()}, path)


def load(path: str) -> Tensors:
    """Return what `dump` wrote."""
    return {name: value.numpy() for name, value in torch.load(path, weights_only=True).items()}


class NaiveAdapter(Adapter):
    """The training loop of many a tutorial."""

    documented = LOAD_ERRORS
    suffix = ".pt"

    def preload(self) -> None:
        torch.set_num_threads(1)

    def save(self, directory: str, step: int, tensors: Tensors) -> None:
        dump(tensors, f"{directory}/ckpt-{step}.pt")
        for old in self.steps(directory)[: -self.keep]:
            os.remove(f"{directory}/ckpt-{old}.pt")

    def restore_latest(self, directory: str) -> tuple[int, Tensors] | None:
        steps = self.steps(directory)
        return (steps[-1], self.restore(directory, steps[-1])) if steps else None

    def steps(self, directory: str) -> list[int]:
        return sorted(
            int(match[1]) for match in map(re.compile(r"ckpt-(\d+)\.pt").fullmatch, os.listdir(directory)) if match
        )

    def restore(self, directory: str, step: int) -> Tensors:
        return load(f"{directory}/ckpt-{step}.pt")

    def owned(self, directory: str) -> set[str]:
        return {f"ckpt-{step}.pt" for step in self.steps(directory)}


ADAPTERS: dict[str, Callable[[], Adapter]] = {"naive": NaiveAdapter}
