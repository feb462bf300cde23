"""The line a training loop draws on a terminal: step, rate, last checkpoint, time blocked by saving."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from typing import TextIO

from torchsaver.inspection.terminal_line import TerminalLine, cells_of, fitted

_RATE_DRAWINGS = 50  # the rate is that since so many drawings ago: five seconds at least


class StepLine:
    """Draws how far a loop is on one line of a terminal, until it is erased.

    Args:
        stream: As `TerminalLine`.
        total: The number of steps; infinity: there is no end.
    """

    def __init__(self, stream: TextIO | None, total: float) -> None:
        self._line = TerminalLine(stream)
        self._total = total
        self._drawn: deque[tuple[float, int]] = deque(maxlen=_RATE_DRAWINGS)
        self._saved = ""
        self._saved_at = 0.0
        self._blocked_secs = 0.0

    @property
    def is_there(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._line.is_there

    def note_save(self, prefix: str | None, blocked_secs: float) -> None:
        """Take note of a save, or of waiting for one, that has held the loop up for so many seconds."""
        self._blocked_secs += blocked_secs
        if prefix is not None:
            self._saved, self._saved_at = os.path.basename(prefix), time.monotonic()

    def show(self, step: int) -> None:
        """Draw, unless the last drawing was just now."""
        now = time.monotonic()
        if not self._line.is_due(now):
            return
        self._drawn.append((now, step))
        parts = [step_text(step, self._total), rate_text(*self._drawn[0], *self._drawn[-1])]
        if self._saved:
            name = fitted(self._line.showable(self._saved), 40)
            parts.append(f"saved {name} ({secs_text(now - self._saved_at)} ago)")
        if self._blocked_secs:
            parts.append(f"blocked {secs_text(self._blocked_secs)}")
        self._line.draw(fitting(parts, self._line.columns), now)

    def erase(self) -> None:
        """Leave an empty line."""
        self._line.erase()


def fitting(parts: list[str], cells: int) -> str:
    """Return as many of the parts, two blanks between them, as there is room for; the first one is cut if need be."""
    kept = [part for part in parts if part]
    while len(kept) > 1 and cells_of("  ".join(kept)) > cells:
        kept.pop()
    return "  ".join(kept) if len(kept) > 1 else kept[0][: max(cells, 0)]


def step_text(step: int, total: float) -> str:
    """Return "step 1,234/10,000", or "step 1,234" where there is no end."""
    return f"step {step:,}" if math.isinf(total) else f"step {step:,}/{total:,}"


def rate_text(since: float, first_step: int, now: float, step: int) -> str:
    """Return the rate between two moments as "12.3 it/s"; nothing before any time has passed."""
    if now <= since or step <= first_step:
        return ""
    rate = (step - first_step) / (now - since)
    return f"{rate:,.0f} it/s" if rate >= 99.95 else f"{rate:.3g} it/s"


def secs_text(secs: float) -> str:
    """Return a duration at a glance: "0.4 s", "12 s", "3.5 min", "2.1 h"."""
    if secs < 9.95:
        return f"{max(secs, 0.0):.1f} s"
    if secs < 119.5:
        return f"{secs:.0f} s"
    return f"{secs / 60:.1f} min" if secs < 7200 else f"{secs / 3600:.1f} h"
