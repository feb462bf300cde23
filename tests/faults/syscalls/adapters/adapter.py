"""Class Adapter: one way to save and restore checkpoints, as the harness drives it."""

from __future__ import annotations

import abc
import os
from typing import ClassVar

from faults.syscalls.tensors import Tensors


class Adapter(abc.ABC):
    """One training run: a new process, or `forget`, is a restart. Every path stays inside the directory given.

    Attributes:
        keep: How many checkpoints are to be kept.
        documented: Classes of errors a caller may expect of a damaged or unfinished checkpoint; anything else raised
            then is a violation.
        state_file: Name of the TensorFlow state file, if there is one.
        suffix: What the files of a checkpoint end with.
        sweeps: Whether leftovers of a dead writer have to be gone after the next save.
    """

    keep: int = 2
    documented: ClassVar[tuple[str, ...]] = ("OSError",)
    state_file: ClassVar[str | None] = None
    suffix: ClassVar[str]
    sweeps: ClassVar[bool] = False

    def preload(self) -> None:  # noqa: B027 - nothing to do by default
        """Prepare the process that writers and readers are forked from; called once."""

    def forget(self) -> None:  # noqa: B027 - an adapter may have no memory
        """Behave from here on as a new process would."""

    @abc.abstractmethod
    def save(self, directory: str, step: int, tensors: Tensors) -> None:
        """Save `tensors` as the checkpoint of `step`, and let old ones go."""

    @abc.abstractmethod
    def restore_latest(self, directory: str) -> tuple[int, Tensors] | None:
        """Return step and tensors of the newest checkpoint, None when there is none at all."""

    @abc.abstractmethod
    def steps(self, directory: str) -> list[int]:
        """Return the steps that are offered for restoring, ascending."""

    @abc.abstractmethod
    def restore(self, directory: str, step: int) -> Tensors:
        """Return the tensors of one checkpoint."""

    @abc.abstractmethod
    def owned(self, directory: str) -> set[str]:
        """Return the paths, in `directory`, of files that belong there; any other is a leftover."""


def files_below(directory: str) -> set[str]:
    """Return the paths, relative to `directory`, of all files in it and below."""
    return {
        os.path.relpath(os.path.join(where, name), directory)
        for where, _, names in os.walk(directory)
        for name in names
    }
