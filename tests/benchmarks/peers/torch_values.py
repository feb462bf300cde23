"""The values of a workload as torch tensors, and whether they are still what they were."""

from __future__ import annotations

from itertools import islice

import crc32c
import torch

from benchmarks.peers.peer import Way
from benchmarks.workloads import Workload


class TorchValues:
    """Tensors by name, with a checksum of each."""

    def __init__(self, tensors: dict[str, torch.Tensor], digests: dict[str, int], workload: Workload) -> None:
        self.by_name = tensors
        self._digests = digests
        self._workload = workload
        self._first_names = {tensor.data_ptr(): name for name, tensor in reversed(tensors.items())}

    @classmethod
    def make(cls, workload: Workload) -> TorchValues:
        """Return the values of a workload, the same ones each time."""
        generator = torch.Generator().manual_seed(0)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[workload.dtype]
        tensors = {
            name: torch.empty(shape).normal_(0, 0.02, generator=generator).to(dtype)
            for name, shape in workload.shapes.items()
        }
        if workload.has_moments:
            tensors.update(_moments(tensors, generator))
        if workload.has_views:
            tensors = _with_views(tensors)
        return cls(tensors, {name: _digest(tensor) for name, tensor in tensors.items()}, workload)

    @property
    def tensors(self) -> int:
        """How many names there are."""
        return len(self.by_name)

    @property
    def bytes(self) -> int:
        """What they take in memory, shared memory once."""
        return sum(tensor.nbytes for tensor in self.distinct())

    def distinct(self) -> list[torch.Tensor]:
        """Return the tensors, those with two names once."""
        return list({tensor.data_ptr(): tensor for tensor in self.by_name.values()}.values())

    def first_name(self, name: str) -> str:
        """Return the first of the names that this tensor has."""
        return self._first_names[self.by_name[name].data_ptr()]

    def first(self, count: int) -> TorchValues:
        """Return the first of them."""
        return TorchValues(dict(islice(self.by_name.items(), count)), self._digests, self._workload)

    def repair(self) -> None:
        """Make the values anew, in the tensors that are there."""
        made = TorchValues.make(self._workload).by_name
        for name, tensor in self.by_name.items():
            tensor.copy_(made[name])

    def clear(self) -> None:
        """Set everything to zero."""
        for tensor in self.by_name.values():
            tensor.zero_()

    def are_intact(self) -> bool:
        """Return whether every tensor is what it was made as, bit for bit."""
        return all(_digest(tensor) == self._digests[name] for name, tensor in self.by_name.items())


class TorchPeer:
    """What the peers of this environment have in common."""

    extension = ""
    is_durable = False

    def __init__(self, values: TorchValues) -> None:
        self.values = values

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name."""
        return self.values.by_name

    def ways(self) -> dict[str, Way]:
        """Return the ways to restore."""
        raise NotImplementedError

    def clear(self) -> None:
        """Spoil the values."""
        self.values.clear()

    def is_restored(self) -> bool | None:
        """Return whether every value is back."""
        return self.values.are_intact()


def _moments(tensors: dict[str, torch.Tensor], generator: torch.Generator) -> dict[str, torch.Tensor]:
    moments = {}
    for name, tensor in tensors.items():
        moments[f"optimizer.exp_avg.{name}"] = torch.empty_like(tensor).normal_(0, 1e-3, generator=generator)
        moments[f"optimizer.exp_avg_sq.{name}"] = (
            torch.empty_like(tensor).normal_(0, 1e-3, generator=generator).square_()
        )
        moments[f"optimizer.step.{name}"] = torch.tensor(1000.0)
    return moments


def _with_views(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with every other matrix transposed in memory, and the embedding under a second name."""
    strided = {
        name: tensor.t().contiguous().t() if tensor.dim() == 2 and i % 2 else tensor
        for i, (name, tensor) in enumerate(tensors.items())
    }
    return {**strided, "lm_head.weight": strided["model.embed_tokens.weight"]}


def _digest(tensor: torch.Tensor) -> int:
    """Return a checksum of the tensor's bytes as they lie in memory, without copying them."""
    dense = tensor if tensor.is_contiguous() else tensor.t()
    return crc32c.crc32c(dense.view(-1).view(torch.uint8).numpy().data)
