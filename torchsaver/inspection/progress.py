"""A progress bar of one line for a terminal; where there is no terminal, nothing at all."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TextIO

from torchsaver.inspection.reports import Progress
from torchsaver.inspection.terminal_line import TerminalLine, cells_of, fitted
from torchsaver.inspection.terminal_text import bytes_text, visible

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
    name = fitted(visible(progress.name), room)
    bar_cells = min(room - cells_of(name) - 4, 40)
    if bar_cells < _FEWEST_BAR_CELLS:
        return f"{name}  {numbers}"
    filled = bar_cells * done // total if total else bar_cells
    return f"{name}  [{'#' * filled}{'-' * (bar_cells - filled)}]  {numbers}"


class ProgressBar:
    """Draws `Progress` values on one line of a terminal while its with block runs, and erases it at the end.

    Args:
        stream: As `TerminalLine`.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._line = TerminalLine(stream)
        self._start = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Draw, unless the last drawing was just now."""
        now = time.monotonic()
        if self._line.is_due(now):
            shown = progress._replace(name=self._line.showable(progress.name))
            self._line.draw(progress_line(shown, now - self._start, self._line.columns), now)

    def __enter__(self) -> ProgressBar:
        self._start = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.erase()
