"""torchsaver, as its users call it."""

from __future__ import annotations

import os
from typing import Any

import torch

import torchsaver as ts
from benchmarks.peers.peer import Way, one_way
from benchmarks.peers.torch_values import TorchPeer, TorchValues


class Torchsaver(TorchPeer):
    """One Saver for all saves, as in training: what it has worked out for one it uses for the next."""

    is_durable = True

    def __init__(self, values: TorchValues) -> None:
        super().__init__(values)
        self._var_list = _var_list(values)
        self._saver = self.new_saver()

    def new_saver(self) -> ts.Saver:
        """Return a saver that remembers nothing."""
        return ts.Saver(self._var_list, max_to_keep=1)

    def save(self, path: str) -> None:
        """Save with every default: checksums, state file, rotation, fsyncs."""
        self._saver.save(_prefix(path))

    def ways(self) -> dict[str, Way]:
        """Return restoring with and without the checksums."""
        return {
            "verify=True": one_way(lambda path: self._saver.restore(_prefix(path))),
            "verify=False": one_way(lambda path: self._saver.restore(_prefix(path), verify=False)),
        }


class TorchsaverFirst(Torchsaver):
    """A new Saver each time: nothing is remembered, as in a process that has just started."""

    def save(self, path: str) -> None:
        """Save as a process does the first time."""
        self.new_saver().save(_prefix(path))

    def ways(self) -> dict[str, Way]:
        """Return restoring with the checksums."""
        return {"verify=True": one_way(lambda path: self.new_saver().restore(_prefix(path)))}


def _var_list(values: TorchValues) -> Any:
    """Return what a Saver is given: the tensors by name, or, as it takes tied ones in modules only, a module."""
    if len(values.distinct()) == values.tensors:
        return values.by_name
    module = torch.nn.Module()
    for name, tensor in values.by_name.items():
        *parents, leaf = name.split(".")
        owner = module
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, torch.nn.Module())
            owner = owner.get_submodule(parent)
        owner.register_buffer(leaf, tensor)  # the tensor itself; a Parameter would be another one of the same memory
    return module


def _prefix(path: str) -> str:
    return os.path.join(path, "x")
