"""A progress bar of one line for a terminal; where there is no terminal, nothing at all."""

from __future__ import annotations

import contextlib
import os
import time
import unicodedata
from types import TracebackType
from typing import TextIO

from torchsaver.inspection.reports import Progress
from torchsaver.inspection.terminal_text import bytes_text, visible

_PAUSE_SECS = 0.1  # between two drawings
_FEWEST_BAR_CELLS = 8


def progress_line(progress: Progress, secs: float, columns: int) -> str:
    """Return the bar's text, at most `columns` cells wide: name, bar, bytes done and in all, and rate after `secs`.

    What there is no room for is left out: first the bar, then the name, then the end of the numbers.
    """
    done, total = progress.done_bytes, progress.total_bytes
    numbers = f"{bytes_text(done)} / {bytes_text(total)}  {bytes_text(done / secs if secs > 0 else 0)}/s"
    room = columns - len(numbers) - 2
    if room < 1:
        return numbers[: max(columns, 0)]
    name = _fitted(visible(progress.name), room)
    bar_cells = min(room - _cells(name) - 4, 40)
    if bar_cells < _FEWEST_BAR_CELLS:
        return f"{name}  {numbers}"
    filled = bar_cells * done // total if total else bar_cells
    return f"{name}  [{'#' * filled}{'-' * (bar_cells - filled)}]  {numbers}"


def _fitted(name: str, cells: int) -> str:
    """Return the name, its middle left out if it takes more than `cells`: the step stands at its end."""
    if _cells(name) <= cells:
        return name
    end = name
    while end and _cells(end) > cells - 3:
        end = end[1:]
    return "..." + end if end else ""


def _cells(text: str) -> int:
    """Return how many cells of a terminal a text takes: two for a wide character, none for a combining one."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


class ProgressBar:
    """Draws `Progress` values on one line of a terminal while its with block runs, and erases it at the end.

    Args:
        stream: Where to; one that is no terminal, or None, gets nothing. An error of writing ends the drawing only.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None and stream.isatty() else None
        self._start = self._drawn_at = time.monotonic()
        self._drawn_cells = 0

    def __call__(self, progress: Progress) -> None:
        """Draw, unless the last drawing was just now."""
        now = time.monotonic()
        if self._stream is None or (self._drawn_cells and now - self._drawn_at < _PAUSE_SECS):
            return
        self._drawn_at = now
        encoding = self._stream.encoding or "ascii"
        shown = visible(progress.name).encode(encoding, "backslashreplace").decode(encoding)
        self._draw(progress_line(progress._replace(name=shown), now - self._start, _columns(self._stream) - 1))

    def _draw(self, line: str) -> None:
        """Write a line over the one before."""
        stream, cells = self._stream, _cells(line)
        if stream is None:
            return
        with contextlib.suppress(OSError):
            stream.write(f"\r{line}{' ' * (self._drawn_cells - cells)}\r")
            stream.flush()
        self._drawn_cells = cells

    def __enter__(self) -> ProgressBar:
        self._start = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn_cells:
            self._draw("")


def _columns(stream: TextIO) -> int:
    """Return the terminal's width now; 80 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    return 80
