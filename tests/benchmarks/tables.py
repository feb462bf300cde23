"""Markdown tables and the numbers in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

_MB = 1e6
_NOTHING = "-"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def number(value: float) -> str:
    """Return a number with three digits that matter, as far as four decimals have them."""
    if not math.isfinite(value):
        return _NOTHING
    rounded = abs(float(f"{value:.3g}"))  # before its size is looked at: 9.999 is 10.0
    decimals = min(4, max(0, 2 - math.floor(math.log10(rounded)))) if rounded else 0
    return f"{value:,.{decimals}f}"


def seconds(value: float) -> str:
    """Return seconds."""
    return number(value)


def milliseconds(value: float) -> str:
    """Return seconds as milliseconds."""
    return number(value * 1e3)


def times(value: float) -> str:
    """Return a ratio."""
    return number(value) if value >= 10 else _finite(value, ".2f")


def megabytes(value: float) -> str:
    """Return bytes as whole megabytes."""
    return _finite(value / _MB, ",.0f")


def spread(samples: Sequence[float], scale: float = 1.0) -> str:
    """Return the least and the greatest sample."""
    return f"{number(min(samples) * scale)}-{number(max(samples) * scale)}" if samples else _NOTHING


def _finite(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else _NOTHING
