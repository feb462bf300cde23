"""What PyTorch brings itself: torch.save, and distributed checkpoints in one process."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from torch.distributed import checkpoint

from benchmarks.peers.peer import Way, one_way
from benchmarks.peers.torch_values import TorchPeer, TorchValues

dcp: Any = checkpoint  # what it offers is not declared as such


class TorchSave(TorchPeer):
    """torch.save of a dict, torch.load with mmap=True, and copies."""

    extension = ".pt"

    def save(self, path: str) -> None:
        """Save all values."""
        torch.save(self.tensors, path)

    def ways(self) -> dict[str, Way]:
        """Return the one way."""
        return {
            "mmap + copy_": one_way(lambda path: self._fill(torch.load(path, weights_only=True, mmap=True))),
        }

    def _fill(self, loaded: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(loaded[name])


class Dcp(TorchPeer):
    """torch.distributed.checkpoint with its FileSystemWriter."""

    def __init__(self, values: TorchValues) -> None:
        super().__init__(values)
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")

    def to_save(self) -> dict[str, torch.Tensor]:
        """Return the tensors to be written."""
        return dict(self.tensors)

    def to_restore(self) -> dict[str, torch.Tensor]:
        """Return the tensors to be filled."""
        return dict(self.tensors)

    def writer(self, path: str) -> Any:
        """Return what writes a checkpoint."""
        return dcp.FileSystemWriter(path)

    def reader(self, path: str) -> Any:
        """Return what reads one."""
        return dcp.FileSystemReader(path)

    def save(self, path: str) -> None:
        """Save all values."""
        dcp.save(self.to_save(), storage_writer=self.writer(path), no_dist=True)

    def ways(self) -> dict[str, Way]:
        """Return the one way."""
        return {"": one_way(self._restore)}

    def _restore(self, path: str) -> None:
        dcp.load(self.to_restore(), storage_reader=self.reader(path), no_dist=True)


class DcpHuggingFace(Dcp):
    """torch.distributed.checkpoint with its HuggingFaceStorageWriter, which writes safetensors."""

    def to_save(self) -> dict[str, torch.Tensor]:
        """Return the tensors as it takes them: tied ones once, and none transposed."""
        return {name: tensor.contiguous() for name, tensor in self.to_restore().items()}

    def to_restore(self) -> dict[str, torch.Tensor]:
        """Return the tensors to be filled, tied ones once."""
        return {name: tensor for name, tensor in self.tensors.items() if self.values.first_name(name) == name}

    def writer(self, path: str) -> Any:
        """Return what writes a checkpoint."""
        return dcp.HuggingFaceStorageWriter(path)

    def reader(self, path: str) -> Any:
        """Return what reads one."""
        return dcp.HuggingFaceStorageReader(path)
