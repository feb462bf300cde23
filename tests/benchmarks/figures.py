"""Figures of samples: pure functions of numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Line(NamedTuple):
    """A straight line: what each unit of x adds to y, and y at x = 0."""

    slope: float
    at_zero: float


def median(samples: Sequence[float]) -> float:
    """Return the median, nan of nothing."""
    return statistics.median(samples) if samples else math.nan


def least_squares(x: Sequence[float], y: Sequence[float]) -> Line:
    """Return the line nearest to the points, nan for fewer than two different x."""
    if len(set(x)) < 2:
        return Line(math.nan, math.nan)
    slope, at_zero = statistics.linear_regression(x, y)
    return Line(slope, at_zero)


def growth(sizes: Sequence[float], samples: Sequence[Sequence[float]]) -> Line:
    """Return the line through the medians of the samples taken at each size; sizes without samples are left out."""
    points = [(size, median(taken)) for size, taken in zip(sizes, samples, strict=True) if taken]
    return least_squares([x for x, _ in points], [y for _, y in points])
