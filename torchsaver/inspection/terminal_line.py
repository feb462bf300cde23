"""One line of a terminal that is drawn over and over, and erased; where there is no terminal, nothing at all."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from typing import TextIO

from torchsaver.inspection.terminal_text import visible

_PAUSE_SECS = 0.1  # between two drawings


class TerminalLine:
    """A line of a terminal: drawn ten times a second at most, each time over the one before.

    Args:
        stream: Where to; one that is no terminal, or None, gets nothing. An error of writing ends the drawing only.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None and stream.isatty() else None
        self._drawn_at = 0.0
        self._drawn_cells = 0

    @property
    def is_there(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._stream is not None

    @property
    def columns(self) -> int:
        """How many cells a text may take now, the last column left free; 79 where the terminal does not say."""
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None and (columns := os.get_terminal_size(self._stream.fileno()).columns):
                return columns - 1
        return 79

    def is_due(self, now: float) -> bool:
        """Return whether to draw at `now`, seconds of a monotonic clock: not when the last drawing was just before."""
        return self._stream is not None and not (self._drawn_cells and now - self._drawn_at < _PAUSE_SECS)

    def showable(self, text: str) -> str:
        """Return text as this terminal can show it, what would steer it escaped."""
        encoding = (self._stream and self._stream.encoding) or "ascii"
        return visible(text).encode(encoding, "backslashreplace").decode(encoding)

    def draw(self, text: str, now: float) -> None:
        """Write a text over the one before, at `now`."""
        stream, cells = self._stream, cells_of(text)
        if stream is None:
            return
        with contextlib.suppress(OSError, ValueError):  # it has gone away, or has been closed
            stream.write(f"\r{text}{' ' * (self._drawn_cells - cells)}\r")
            stream.flush()
        self._drawn_at, self._drawn_cells = now, cells

    def erase(self) -> None:
        """Leave an empty line, where anything was drawn."""
        if self._drawn_cells:
            self.draw("", self._drawn_at)


def fitted(text: str, cells: int) -> str:
    """Return a name, its beginning left out if it takes more than `cells`: the step stands at its end."""
    if cells_of(text) <= cells:
        return text
    end = text
    while end and cells_of(end) > cells - 3:
        end = end[1:]
    return "..." + end if end else ""


def cells_of(text: str) -> int:
    """Return how many cells of a terminal a text takes: two for a wide character, none for a combining one."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
