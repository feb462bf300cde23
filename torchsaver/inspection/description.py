"""A checkpoint with everything but the values, from its headers alone and without torch: what `inspect` shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchsaver.open_checkpoint import OpenCheckpoint, TensorDescription


@dataclass(frozen=True)
class CheckpointDescription:
    """A checkpoint without its values: what `torchsaver inspect` shows.

    Attributes:
        save_path: Its prefix or file.
        files: The files it is in.
        global_step, time, metadata: As saved; None in a third party's file. Time in seconds since the epoch.
        metrics: As saved, by name.
        tensors: Sorted by key.
        aliases: Other names of tied tensors.
        objects: Keys of the objects it holds the state of.
    """

    save_path: str
    files: tuple[str, ...]
    global_step: int | None
    time: float | None
    metadata: Any
    metrics: Mapping[str, float]
    tensors: tuple[TensorDescription, ...]
    aliases: dict[str, str]
    objects: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def elements(self) -> int:
        """Number of values in all tensors; a scalar counts as one."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def describe_checkpoint(checkpoint: OpenCheckpoint, key: str | None = None) -> CheckpointDescription:
    """Return a description of an open checkpoint from its headers alone; with a `key`, of that tensor only.

    Raises:
        CheckpointKeyError: `key` is not in the checkpoint.
    """
    tensors = [checkpoint.describe(one) for one in (checkpoint.keys() if key is None else [key])]
    kept = {tensor.key for tensor in tensors}
    return CheckpointDescription(
        save_path=checkpoint.save_path,
        files=tuple(checkpoint.paths),
        global_step=checkpoint.global_step,
        time=checkpoint.manifest.time,
        metadata=checkpoint.metadata,
        metrics=checkpoint.metrics,
        tensors=tuple(tensors),
        aliases={alias: stored for alias, stored in checkpoint.aliases.items() if key is None or stored in kept},
        objects=tuple(sorted(checkpoint.object_trees)),
    )
