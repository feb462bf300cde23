"""Values as text for a terminal: what comes from a file must not steer it, and numbers are to be read at a glance."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any


def visible(text: str) -> str:
    """Return text from a file with control characters escaped: it must not steer the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def json_text(value: Any) -> str:
    """Return indented JSON; what is not printable is escaped as JSON has it."""
    lines = json.dumps(value, indent=2, ensure_ascii=False).split("\n")
    return "\n".join(line if line.isprintable() else _escaped(line) for line in lines)


def _escaped(line: str) -> str:
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def time_text(secs: float) -> str:
    """Return seconds since the epoch as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(secs))


def bytes_text(nbytes: float) -> str:
    """Return a size with up to three digits and a decimal unit: "1.23 GB", "999 bytes"."""
    if nbytes < 999.5:
        return f"{nbytes:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        nbytes /= 1000
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
    return f"{nbytes / 1000:,.0f} TB"


def table_lines(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Return a line for each row, columns in line, two blanks between them; `right`: which are set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return lines
