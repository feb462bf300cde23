"""safetensors by itself: files without checksums, and not synced."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.peers.peer import Way, one_way
from benchmarks.peers.torch_values import TorchPeer


class Safetensors(TorchPeer):
    """save_file, and three ways to get its values into tensors that are there."""

    extension = ".safetensors"

    def save(self, path: str) -> None:
        """Save all values; it takes neither tied nor transposed tensors, so that they are left out and copied."""
        save_file({name: tensor.contiguous() for name, tensor in self._stored()}, path)

    def ways(self) -> dict[str, Way]:
        """Return the ways that this version has."""
        ways = {"load_file + copy_": one_way(lambda path: self._fill(load_file(path)))}
        if "backend" in inspect.signature(load_file).parameters:
            ways["load_file pread + copy_"] = one_way(lambda path: self._fill(load_file(path, backend="pread")))
        ways["safe_open + copy_"] = one_way(self._restore_one_by_one)
        return ways

    def _stored(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, tensor) for name, tensor in self.tensors.items() if self.values.first_name(name) == name)

    def _fill(self, loaded: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._stored():
                tensor.copy_(loaded[name])

    def _restore_one_by_one(self, path: str) -> None:
        with safe_open(path, "pt") as file, torch.no_grad():
            for name, tensor in self._stored():
                tensor.copy_(file.get_tensor(name))
