"""The loop's line: numbers at a glance, and never wider than the terminal."""

from __future__ import annotations

import io
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from terminal import Terminal

from torchsaver.inspection.terminal_line import cells_of
from torchsaver.loop.step_line import StepLine, fitting, rate_text, secs_text, step_text


def test_step_is_shown_with_its_total_where_there_is_one() -> None:
    assert step_text(1234, 10_000) == "step 1,234/10,000"
    assert step_text(1234, math.inf) == "step 1,234"


@pytest.mark.parametrize(
    ("steps", "secs", "text"),
    [(123, 10, "12.3 it/s"), (1, 20, "0.05 it/s"), (99_949, 1000, "99.9 it/s"), (12_345_600, 1000, "12,346 it/s")],
)
def test_rate_has_three_digits(steps: int, secs: float, text: str) -> None:
    assert rate_text(100.0, 5, 100.0 + secs, 5 + steps) == text


def test_rate_without_time_or_steps_is_not_shown() -> None:
    assert rate_text(100.0, 5, 100.0, 6) == rate_text(100.0, 5, 101.0, 5) == ""


@pytest.mark.parametrize(
    ("secs", "text"),
    [
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (12.3, "12 s"),
        (119, "119 s"),
        (210, "3.5 min"),
        (7560, "2.1 h"),
    ],
)
def test_duration_is_short(secs: float, text: str) -> None:
    assert secs_text(secs) == text


@settings(max_examples=50)
@given(st.integers(0, 60), st.lists(st.text("ab c", max_size=20), max_size=4))
def test_line_leaves_out_the_last_parts_first_and_always_fits(cells: int, others: list[str]) -> None:
    line = fitting(["step 5/10", *others], cells)
    assert cells_of(line) <= cells
    whole = "  ".join(["step 5/10", *filter(None, others)])
    assert whole.startswith(line)


@pytest.mark.parametrize("columns", [1, 2, 9, 20, 33, 60, 200])
def test_line_never_reaches_the_last_column(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    terminal = Terminal(columns, "ascii")
    line = StepLine(terminal.stream, 100)
    line.note_save("run/\u00e4\x1b[2J" + "x" * 80 + "-77", 0.5)
    line.show(78)
    shown = terminal.text().strip("\r")
    assert len(shown) < max(columns, 2)
    assert "\x1b" not in shown
    assert columns < 200 or shown.endswith("xx-77 (0.0 s ago)  blocked 0.5 s")
    terminal.close()


def test_rate_is_that_of_the_last_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    terminal = Terminal(80)
    line = StepLine(terminal.stream, math.inf)
    for step in range(200):
        line.show(step)
        now[0] += 10 if step < 100 else 1
    assert terminal.text().split("\r")[-2].strip() == "step 199  1 it/s"
    terminal.close()


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_without_a_terminal_there_is_no_line(stream: io.StringIO | None) -> None:
    line = StepLine(stream, 10)
    assert not line.is_there
    line.show(5)
    line.erase()
    assert stream is None or stream.getvalue() == ""


def test_stream_that_is_closed_meanwhile_ends_the_drawing_only() -> None:
    terminal = Terminal(80)
    line = StepLine(terminal.stream, 10)
    line.show(1)
    terminal.close()
    line.erase()
    line.show(2)
