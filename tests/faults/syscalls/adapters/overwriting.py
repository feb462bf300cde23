"""Negative control: `torch.save(state, "last.pt")` over the file of the save before."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from faults.syscalls.adapters.adapter import Adapter
from faults.syscalls.adapters.naive import LOAD_ERRORS, dump, load
from faults.syscalls.tensors import Tensors


class OverwritingAdapter(Adapter):
    """The shortest way to save, and to lose, a training run."""

    keep = 1
    documented = LOAD_ERRORS
    suffix = ".pt"

    def preload(self) -> None:
        torch.set_num_threads(1)

    def save(self, directory: str, step: int, tensors: Tensors) -> None:
        dump(tensors, f"{directory}/last.pt")

    def restore_latest(self, directory: str) -> tuple[int, Tensors] | None:
        if not os.path.exists(f"{directory}/last.pt"):
            return None
        tensors = load(f"{directory}/last.pt")
        return int(tensors["step"]), tensors

    def steps(self, directory: str) -> list[int]:
        newest = self.restore_latest(directory)
        return [newest[0]] if newest else []

    def restore(self, directory: str, step: int) -> Tensors:
        return load(f"{directory}/last.pt")

    def owned(self, directory: str) -> set[str]:
        return {"last.pt"}


ADAPTERS: dict[str, Callable[[], Adapter]] = {"overwriting": OverwritingAdapter}
