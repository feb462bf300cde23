"""The progress bar: on a terminal it fits, shows and goes away; anywhere else there is nothing."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import pytest
from terminal import Terminal

from torchsaver.inspection import progress
from torchsaver.inspection.progress import ProgressBar, progress_line
from torchsaver.inspection.reports import Progress


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal(80)
    yield terminal
    terminal.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_bar_shows_name_bytes_done_total_and_rate(terminal: Terminal, clock: list[float]) -> None:
    with ProgressBar(terminal.stream) as bar:
        clock[0] += 2
        bar(Progress(500_000_000, 2_000_000_000, "m-1"))
        assert terminal.text() == f"\rm-1  [{'#' * 10}{'-' * 30}]  500 MB / 2 GB  250 MB/s\r"


def test_bar_is_erased_at_the_end_and_after_an_error(terminal: Terminal, clock: list[float]) -> None:
    drawn = []

    def interrupted() -> None:
        with ProgressBar(terminal.stream) as bar:
            bar(Progress(1, 2, "m-1"))
            drawn.append(terminal.text().strip("\r"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.text() == f"\r{' ' * len(drawn[0])}\r"


def test_bar_overwrites_a_longer_line_and_draws_ten_times_a_second_at_most(
    terminal: Terminal, clock: list[float]
) -> None:
    with ProgressBar(terminal.stream) as bar:
        bar(Progress(1, 2, "a-long-name"))
        longer = terminal.text().strip("\r")
        bar(Progress(1, 2, "unseen"))
        assert terminal.text() == ""
        clock[0] += 0.2
        terminal.resize(50)
        bar(Progress(2, 2, "b"))
        second = terminal.text().strip("\r")
    assert len(second) == len(longer)
    assert second.endswith("  ")


@pytest.mark.parametrize("columns", [*range(1, 60), 200])
def test_bar_never_reaches_the_last_column(columns: int, clock: list[float]) -> None:
    terminal = Terminal(columns)
    with ProgressBar(terminal.stream) as bar:
        bar(Progress(123_456_789, 987_654_321, "a-checkpoint-with-a-long-name-100000"))
        assert len(terminal.text().strip("\r")) < columns
    terminal.close()


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_without_a_terminal_nothing_is_written(stream: io.StringIO | None) -> None:
    with ProgressBar(stream) as bar:
        bar(Progress(1, 2, "m"))
    assert stream is None or stream.getvalue() == ""


def test_nothing_read_draws_nothing(terminal: Terminal) -> None:
    with ProgressBar(terminal.stream):
        pass
    assert terminal.text() == ""


def test_control_characters_of_a_name_are_escaped(terminal: Terminal) -> None:
    with ProgressBar(terminal.stream) as bar:
        bar(Progress(1, 2, "\x1b[2J\r\n\x9b"))
    assert "\\x1b[2J\\r\\n\\x9b" in terminal.text().replace("\r", "")


def test_name_the_terminal_cannot_show_takes_the_room_of_its_escape(clock: list[float]) -> None:
    terminal = Terminal(60, "ascii")
    with ProgressBar(terminal.stream) as bar:
        bar(Progress(1, 2, "\u00e4" * 30))
        text = terminal.text().strip("\r")
    assert "\\xe4" in text
    assert len(text) < 60
    terminal.close()


def test_wide_characters_count_two_cells() -> None:
    line = progress_line(Progress(1, 2, "\u6a21" * 40), 1.0, 60)
    assert line.startswith("...\u6a21")
    assert len(line) + line.count("\u6a21") <= 60


def test_long_name_keeps_its_end_where_the_step_is() -> None:
    assert progress_line(Progress(1, 2, "model" * 20 + "-77"), 1.0, 60).split("  ")[0].endswith("-77")


@pytest.mark.parametrize("done", [0, 5])
def test_line_of_no_bytes_and_no_time_is_a_full_bar_and_no_division_by_zero(done: int) -> None:
    assert f"[{'#' * 40}]" in progress_line(Progress(done, done, "m"), 0.0, 100)


def test_terminal_that_goes_away_ends_the_drawing_only(clock: list[float]) -> None:
    master, slave = os.openpty()
    with open(slave, "w", buffering=1) as stream:
        with ProgressBar(stream) as bar:
            os.close(master)
            bar(Progress(1, 2, "m"))
            clock[0] += 1
            bar(Progress(2, 2, "m"))
        with pytest.raises(OSError, match="Input/output error"):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is left in its buffer
