"""What every peer can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol


class Way(NamedTuple):
    """One way to restore from a path.

    Attributes:
        cold: What is called when nothing of the file is in memory.
        warm: What is called when all of it is.
        is_into_existing: The values that were there get the restored ones; otherwise there are new ones.
    """

    cold: Callable[[str], object]
    warm: Callable[[str], object]
    is_into_existing: bool = True


def one_way(restore: Callable[[str], object], *, is_into_existing: bool = True) -> Way:
    """Return a way that does the same whether the file is in memory or not."""
    return Way(restore, restore, is_into_existing)


class Values(Protocol):
    """The values of a workload."""

    @property
    def tensors(self) -> int:
        """How many names there are."""

    @property
    def bytes(self) -> int:
        """What they take in memory, shared memory once."""

    def first(self, count: int) -> Values:
        """Return the first of them."""

    def repair(self) -> None:
        """Bring the values back that a peer has spoiled and not restored, for the peers that share them."""


class Peer(Protocol):
    """A library that saves and restores values; made with the `Values` of its environment.

    Attributes:
        extension: What its paths end with.
        is_durable: When `save` returns, all it wrote is on the disk.
    """

    extension: str
    is_durable: bool

    def save(self, path: str) -> None:
        """Save all values."""

    def ways(self) -> dict[str, Way]:
        """Return the ways to restore them, the best known one first."""

    def clear(self) -> None:
        """Spoil the values, so that restoring them shows."""

    def is_restored(self) -> bool | None:
        """Return whether the last restore brought every value back, None if there is nothing to check."""
