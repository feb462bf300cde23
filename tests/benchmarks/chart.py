"""A run as a picture: how far from the limit each peer is, for a large model and for many small tensors."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.comparison import ACTIONS, Action, Timing, best_of_each, limit, ratio, timings
from benchmarks.results import Results, WorkloadResult

_WORKLOADS = ("fp32", "small")
_LEFT_OUT = ("torchsaver first",)
_OURS, _PEER, _TEXT, _NOTE = "#0b5cad", "#9aa3ad", "#22272e", "#5b6470"
_LIMITS: dict[Action, str] = {
    "save": "raw write + fsync, 2 threads",
    "cold": "raw read, 2 threads",
    "warm": "copy in memory",
}
_DPI = 100
_WIDTH, _MARGIN, _LABELS, _VALUES = 1200, 20, 164, 50  # pixels: the chart, its edge, room left and right of bars
_TITLE, _HEAD, _LINE, _GAP, _FOOT = 62, 76, 25, 26, 30


class ChartError(Exception):
    """There is no chart; the message says why."""


class Canvas:
    """A figure of matplotlib, in pixels from its upper left corner."""

    def __init__(self, figure: Any, height: int) -> None:
        self._figure = figure
        self._height = height

    def write(self, text: str, x: int, y: int, *, size: float = 10, color: str = _TEXT, **style: Any) -> None:
        """Write a line of text below and to the right of a point."""
        self._figure.text(x / _WIDTH, 1 - y / self._height, text, size=size, color=color, va="top", **style)

    def axes(self, x: int, y: int, width: int, height: int) -> Any:
        """Return axes in a rectangle."""
        bottom = 1 - (y + height) / self._height
        return self._figure.add_axes((x / _WIDTH, bottom, width / _WIDTH, height / self._height))


class Bar(NamedTuple):
    """One line of a panel."""

    name: str
    times_limit: float
    is_ours: bool


class Panel(NamedTuple):
    """One action of one workload, the line nearest to the limit first."""

    title: str
    limit: str
    bars: list[Bar]


def draw_chart(results: Results, path: str) -> None:
    """Draw the chart of a run into a PNG file.

    Raises:
        ChartError: matplotlib is not installed, or the run has no workload with the limit and something beside it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ChartError("matplotlib is not installed; `make bench` does that, or pip install '.[bench]'") from error
    drawn = [workload for workload in results["workloads"] if workload["name"] in _WORKLOADS and panels(workload)]
    if not drawn:
        raise ChartError("it is of the workloads fp32 and small, with the limit and somebody beside it")
    height = _TITLE + _FOOT + sum(_HEAD + _LINE * _lines(panels(workload)) + _GAP for workload in drawn)
    figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    canvas = Canvas(figure, height)
    canvas.write("Time in multiples of the machine's limit", _MARGIN, 14, size=15, weight="bold")
    canvas.write("shorter is better; bars begin at 1, the limit; logarithmic", _WIDTH - _MARGIN, 18, ha="right")
    top = _TITLE
    for workload in drawn:
        top = _draw_workload(canvas, workload, top) + _GAP
    note = "unverified: restore(verify=False). torchsaver otherwise checks a CRC-32C of every value before it restores any."
    canvas.write(note, _MARGIN, height - _FOOT, size=8.5, color=_NOTE)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, dpi=_DPI)


def panels(workload: WorkloadResult) -> list[Panel]:
    """Return what is drawn of a workload; nothing where the limit was not measured, or nobody else was."""
    drawn = []
    for action, words in ACTIONS.items():
        among = timings(workload, action)
        base = limit(among)
        bars = [
            Bar(_label(timing), ratio(timing.median, base), timing.role == "ours")
            for timing in best_of_each(among)
            if timing.role != "limit" and timing.peer not in _LEFT_OUT and math.isfinite(base)
        ]
        if bars:
            drawn.append(Panel(words, _LIMITS[action], bars))
    return drawn


def _label(timing: Timing) -> str:
    if timing.role == "ours":
        return f"{timing.peer}, unverified" if timing.way == "verify=False" else timing.peer
    return timing.peer if timing.is_comparable else f"{timing.peer} ({timing.way})"


def _draw_workload(canvas: Canvas, workload: WorkloadResult, top: int) -> int:
    """Draw the panels of a workload side by side, from `top` down, on one scale; return where they end."""
    shown = panels(workload)
    most = max(bar.times_limit for panel in shown for bar in panel.bars)
    title = f"{workload['title'][0].upper()}{workload['title'][1:]}, {_size(workload['bytes'])}"
    canvas.write(title, _MARGIN, top, size=12, weight="bold")
    width = (_WIDTH - 2 * _MARGIN) // len(ACTIONS)
    for at, panel in enumerate(shown):
        left = _MARGIN + at * width
        canvas.write(panel.title, left, top + 30, size=10.5, weight="bold")
        canvas.write(f"limit: {panel.limit}", left, top + 49, size=8.5, color=_NOTE)
        height = _LINE * len(panel.bars)
        _draw_bars(canvas.axes(left + _LABELS, top + _HEAD, width - _LABELS - _VALUES, height), panel.bars, most)
    return top + _HEAD + _LINE * _lines(shown)


def _draw_bars(axes: Any, bars: Sequence[Bar], most: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(1, max(most, 1.5))
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_axis_off()
    axes.plot([1, 1], [-0.5, len(bars) - 0.5], color=_TEXT, linewidth=1.2, clip_on=False)
    for at, bar in enumerate(bars):
        end = max(1.0, bar.times_limit)  # the limit is measured too, and may be beaten by a little
        axes.plot([1, end], [at, at], color=_OURS if bar.is_ours else _PEER, linewidth=6, solid_capstyle="butt")
        style = {"color": _OURS if bar.is_ours else _TEXT, "weight": "bold" if bar.is_ours else "normal"}
        common = {"textcoords": "offset points", "va": "center", "size": 9.5, "annotation_clip": False, **style}
        axes.annotate(bar.name, (1, at), (-6, 0), ha="right", **common)
        axes.annotate(f"{bar.times_limit:.{2 if bar.times_limit < 10 else 0}f}", (end, at), (5, 0), **common)


def _lines(shown: Sequence[Panel]) -> int:
    return max(len(panel.bars) for panel in shown)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
