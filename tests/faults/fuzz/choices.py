"""Where a generator's decisions come from: bytes that a fuzzer mutates, or Hypothesis. 0 is always the plainest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


class Choices(Protocol):
    """A source of decisions."""

    def below(self, bound: int) -> int:
        """Return an integer of [0, bound)."""

    def data(self, most: int) -> bytes:
        """Return at most `most` bytes."""


class ByteChoices:
    """Decisions read off a fuzzer's input; when it is used up, every one is the plainest."""

    def __init__(self, source: bytes) -> None:
        self._source = source
        self._position = 0

    def below(self, bound: int) -> int:
        width = 1 if bound <= 256 else 4
        return int.from_bytes(self._take(width), "little") % bound

    def data(self, most: int) -> bytes:
        return self._take(self.below(most + 1))

    def _take(self, nbytes: int) -> bytes:
        taken = self._source[self._position : self._position + nbytes]
        self._position += nbytes
        return taken


class HypothesisChoices:
    """Decisions drawn by Hypothesis, which shrinks them."""

    def __init__(self, draw: Callable[..., Any]) -> None:
        self._draw = draw

    def below(self, bound: int) -> int:
        return int(self._draw(st.integers(0, bound - 1)))

    def data(self, most: int) -> bytes:
        return bytes(self._draw(st.binary(max_size=most)))


def pick(choices: Choices, options: Sequence[T]) -> T:
    """Return one of the options."""
    return options[choices.below(len(options))]
