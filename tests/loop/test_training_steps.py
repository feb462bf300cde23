"""training_steps: resumes, counts, saves when due and at the end, stops on a signal, and never saves half a step."""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from terminal import Terminal

import torchsaver as ts
from torchsaver.loop.training_steps import TrainingSteps, training_steps


class Run:
    """A run whose one value counts the steps, with a clock of its own."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = directory / "model.ckpt"
        self.now = 1_000_000.0
        monkeypatch.setattr(time, "time", lambda: self.now)
        self.start()

    def start(self, **settings: Any) -> None:
        """Begin as a new process."""
        self.x = torch.zeros(1)
        self.saver = ts.Saver({"x": self.x}, **settings)

    def steps(self, total: int | None, **settings: Any) -> TrainingSteps:
        return training_steps(self.saver, self.path, total=total, **settings)

    def train(self, total: int | None, secs: float = 0.0, **settings: Any) -> list[int]:
        """Train to the end, and return the steps."""
        done = []
        for step in self.steps(total, **settings):
            assert self.x.item() == step
            self.x += 1
            self.now += secs
            done.append(step)
        return done

    def saved(self) -> dict[int, float]:
        """Return the value in each checkpoint, by its step."""
        files = self.path.parent.glob("*.safetensors")
        return {int(f.stem.split("-")[1]): ts.load_variable(f, "x").item() for f in files}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path / "run", monkeypatch)


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


# ---- which steps, and which are saved


def test_steps_are_numbered_from_zero_and_a_checkpoint_counts_what_is_done(run: Run) -> None:
    assert run.train(5, save_steps=2) == [0, 1, 2, 3, 4]
    assert run.saved() == {2: 2.0, 4: 4.0, 5: 5.0}


def test_without_a_timer_only_the_end_is_saved(run: Run) -> None:
    run.train(5)
    assert run.saved() == {5: 5.0}


def test_end_on_a_mark_is_saved_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = []
    save = run.saver.save
    monkeypatch.setattr(run.saver, "save", lambda *args, **kw: saves.append(args[1]) or save(*args, **kw))
    run.train(4, save_steps=2)
    assert saves == [2, 4]


def test_seconds_count_from_the_start_and_from_each_save(run: Run) -> None:
    run.train(
        8,
        secs=1,
        save_secs=3,
    )
    assert sorted(run.saved()) == [3, 6, 8]


def test_steps_and_seconds_save_when_either_is_due_and_both_count_anew(run: Run) -> None:
    for step in run.steps(12, save_steps=4, save_secs=10):
        run.now += 7 if step in {4, 5} else 0
    assert sorted(run.saved()) == [4, 6, 10, 12]


def test_resumed_run_does_the_remaining_steps_and_reports_what_it_restored(run: Run) -> None:
    run.train(3)
    run.start()
    steps = run.steps(5)
    assert steps.report is not None
    assert (steps.report.global_step, run.x.item()) == (3, 3.0)
    assert list(steps) == [3, 4]


def test_fresh_run_reports_nothing(run: Run) -> None:
    assert run.steps(5).report is None


def test_timer_of_a_resumed_run_counts_from_the_resumed_step(run: Run) -> None:
    run.train(3)
    run.start(max_to_keep=10)
    run.train(9, save_steps=4)
    assert sorted(run.saved()) == [3, 7, 9]


def test_clock_that_is_set_back_puts_no_save_off_for_long(run: Run) -> None:
    run.start(max_to_keep=10)
    for step in run.steps(9, save_secs=100):
        run.now += 60 if step != 3 else -86_400
    assert sorted(run.saved()) == [2, 4, 6, 8, 9]


def test_working_directory_that_the_body_changes_does_not_lead_the_checkpoints_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    saver = ts.Saver({"x": torch.zeros(1)}, max_to_keep=2)
    for step in training_steps(saver, "run/m", total=4, save_steps=1):
        if step == 2:
            os.chdir(tmp_path / "other")
    assert sorted(path.stem for path in (tmp_path / "run").glob("*.safetensors")) == ["m-3", "m-4"]
    assert list((tmp_path / "other").iterdir()) == []
    assert ts.latest_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "m-4")


def test_window_goes_on_over_a_restart(run: Run) -> None:
    for total in (2, 4, 6):
        run.start(max_to_keep=2)
        run.train(total, save_steps=1)
    assert sorted(run.saved()) == [5, 6]


@pytest.mark.parametrize("total", [0, 3])
def test_total_that_is_reached_yields_nothing_and_saves_nothing(run: Run, total: int) -> None:
    if total:
        run.train(total)
    run.start()
    before = list(run.path.parent.glob("*"))
    assert run.train(total) == []
    assert list(run.path.parent.glob("*")) == before


def test_step_beyond_the_total_yields_nothing_with_a_warning(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.train(5)
    run.start()
    assert run.train(3) == []
    assert "is at step 5, beyond the total of 3" in caplog.text
    assert sorted(run.saved()) == [5]


def test_checkpoint_without_a_step_is_refused_with_the_remedy(run: Run) -> None:
    run.saver.save(run.path)
    with pytest.raises(ValueError, match=r"model\.ckpt was saved with global_step=None.*save it again with a step"):
        run.steps(5)


def test_endless_run_ends_by_stop(run: Run) -> None:
    steps = run.steps(None, save_steps=100)
    done = []
    for step in steps:
        run.x += 1
        done.append(step)
        if step == 6:
            steps.stop()
    assert done == list(range(7))
    assert run.saved() == {7: 7.0}
    assert (steps.preempted, steps.stopped_by) == (False, None)


def test_another_state_file_is_resumed_and_written(run: Run) -> None:
    run.train(2, latest_filename="other")
    run.start()
    assert run.train(3, latest_filename="other") == [2]
    assert not (run.path.parent / "checkpoint").exists()
    run.start()
    assert run.train(1) == [0]


def test_path_without_a_directory_is_of_the_working_one(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run.path = Path("m")
    run.train(2)
    run.start()
    assert run.train(3) == [2]
    assert sorted(os.listdir()) == ["checkpoint", "m-2.safetensors", "m-3.safetensors"]


# ---- leaving


def test_break_saves_nothing_and_a_second_loop_does_the_step_again(run: Run) -> None:
    steps = run.steps(4, save_steps=1)
    for step in steps:
        if step == 2:
            break
        run.x += 1
    assert sorted(run.saved()) == [1, 2]
    assert list(steps) == [2, 3]


def test_error_in_the_body_saves_nothing_and_puts_handlers_back_when_it_is_dropped(run: Run) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def train() -> None:
        for step in run.steps(4, save_steps=1):
            if step == 2:
                raise KeyError

    with pytest.raises(KeyError):
        train()
    gc.collect()
    assert sorted(run.saved()) == [1, 2]
    assert signal.getsignal(signal.SIGTERM) is before


def test_error_of_a_save_reaches_the_loop_and_ends_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run.saver, "save", fail)
    steps = run.steps(4, save_steps=2)
    with pytest.raises(OSError, match="No space left"):
        list(steps)
    assert list(steps) == []


def test_closed_steps_yield_nothing_and_save_nothing(run: Run) -> None:
    steps = run.steps(4, save_steps=1)
    assert next(steps) == 0
    steps.close()
    steps.close()
    assert list(steps) == []
    unused = run.steps(4)
    unused.close()
    assert list(unused) == []
    assert run.saved() == {}


def test_saver_in_the_background_is_waited_for_at_the_end_only(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    wait = run.saver.wait
    monkeypatch.setattr(run.saver, "wait", lambda: (waits.append(len(run.saved())), wait()))
    for _ in run.steps(4, save_steps=3):
        assert waits == []
    assert waits == [1, 2]


def test_checkpoints_of_a_background_saver_are_there_when_the_loop_is_over(run: Run) -> None:
    run.start(background=True)
    run.train(5, save_steps=2)
    assert run.saved() == {2: 2.0, 4: 4.0, 5: 5.0}
    run.start(background=True)
    assert run.train(6) == [5]


@pytest.mark.parametrize("how", ["end", "signal"])
def test_busy_saver_may_skip_saves_that_are_due_but_not_the_last(run: Run, how: str) -> None:
    release = threading.Event()
    run.start(background=True, when_busy="skip", on_saved=lambda saved: release.wait() if saved.global_step == 2 else 0)
    for step in run.steps(7, save_steps=2):
        if step == 6:
            release.set()
            if how == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
    assert sorted(run.saved()) == [2, 7]


def test_signal_during_a_save_that_is_skipped_makes_it_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save = run.saver.save

    def skip_once(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(run.saver, "save", save)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run.saver, "save", skip_once)
    assert run.train(9, save_steps=3) == [0, 1, 2]
    assert run.saved() == {3: 3.0}


def test_error_of_a_save_in_the_background_does_not_keep_the_last_one_from_being_made(run: Run) -> None:
    def fail(saved: ts.SavedCheckpoint) -> None:
        if saved.global_step == 2:
            raise RuntimeError("told too late")

    run.start(background=True, on_saved=fail)
    with pytest.raises(RuntimeError, match="told too late"):
        list(run.steps(3, save_steps=2))
    assert sorted(run.saved()) == [2, 3]


def test_error_of_waiting_reaches_the_loop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(run.saver, "wait", fail)
    steps = run.steps(1)
    with pytest.raises(OSError, match="Input/output"):
        list(steps)
    assert list(steps) == []


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_in_the_body_lets_it_end_saves_and_stops(run: Run, number: signal.Signals) -> None:
    steps = run.steps(10, save_steps=4)
    for step in steps:
        if step == 5:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        run.x += 1
    assert run.saved() == {4: 4.0, 6: 6.0}
    assert (steps.preempted, steps.stopped_by) == (True, number)
    assert isinstance(steps.stopped_by, signal.Signals)


@pytest.mark.parametrize("when", ["before", "after"])
def test_signal_during_a_save_stops_without_a_second_one(run: Run, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    saves = []
    save = run.saver.save

    def save_and_signal(*args: Any, **settings: Any) -> Any:
        saves.append(args[1])
        if when == "before":
            os.kill(os.getpid(), signal.SIGTERM)
        prefix = save(*args, **settings)
        if when == "after":
            os.kill(os.getpid(), signal.SIGTERM)
        return prefix

    monkeypatch.setattr(run.saver, "save", save_and_signal)
    assert run.train(10, save_steps=2) == [0, 1]
    assert saves == [2]


def test_signal_before_the_first_step_stops_and_saves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    set_handler = signal.signal

    def set_and_send(number: int, handler: Any) -> Any:
        previous = set_handler(number, handler)
        if number == signal.SIGUSR1 and callable(handler):
            os.kill(os.getpid(), signal.SIGUSR1)
        return previous

    monkeypatch.setattr(signal, "signal", set_and_send)
    assert run.train(10) == []
    assert run.saved() == {}


def test_preempted_run_is_finished_by_the_next_process(run: Run) -> None:
    done = []
    for step in (steps := run.steps(10)):
        done.append(step)
        run.x += 1
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
    assert steps.preempted
    run.start()
    assert done + run.train(10) == list(range(10))


def test_former_handler_is_called_after_the_flag_is_set_and_put_back(run: Run) -> None:
    seen = []
    steps = run.steps(10)
    former = signal.signal(signal.SIGTERM, lambda number, frame: seen.append((number, steps.preempted)))
    mine = signal.getsignal(signal.SIGTERM)
    try:
        for _ in steps:
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [(signal.SIGTERM, True)]
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, former)


def test_other_signals_can_be_watched_and_python_s_interrupt_is_not_raised(run: Run) -> None:
    steps = run.steps(10, signals=[signal.SIGINT])
    for _ in steps:
        os.kill(os.getpid(), signal.SIGINT)
    assert steps.stopped_by is signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_signals_set_no_handlers(run: Run) -> None:
    before = signal.getsignal(signal.SIGTERM)
    for _ in run.steps(2, signals=()):
        assert signal.getsignal(signal.SIGTERM) is before


def test_handlers_are_there_from_the_first_step_on_only(run: Run) -> None:
    before = signal.getsignal(signal.SIGTERM)
    steps = run.steps(2)
    assert signal.getsignal(signal.SIGTERM) is before
    next(steps)
    assert signal.getsignal(signal.SIGTERM) is not before
    steps.close()


def test_outside_of_the_main_thread_no_handler_is_set(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "torchsaver")
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.extend(signal.getsignal(signal.SIGTERM) for _ in run.steps(2)))
    thread.start()
    thread.join()
    assert seen == [before, before]
    assert "not the main thread" in caplog.text


# ---- metrics


def test_metrics_go_into_the_checkpoint_of_their_step_and_are_forgotten(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    save = run.saver.save

    def note(*args: Any, **settings: Any) -> Any:
        given.append((args[1], settings.get("metrics")))
        return save(*args, **settings)

    monkeypatch.setattr(run.saver, "save", note)
    steps = run.steps(6, save_steps=2)
    for step in steps:
        assert steps.metrics == {}
        if step in (1, 2, 5):
            steps.metrics["loss"] = step / 10
    assert given == [(2, {"loss": 0.1}), (4, None), (6, {"loss": 0.5})]
    assert steps.metrics == {}
    run.start()
    report = run.steps(6).report
    assert report is not None
    assert report.metrics == {"loss": 0.5}


# ---- arguments


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("total", 1.5, TypeError),
        ("total", True, TypeError),
        ("total", -1, ValueError),
        ("save_steps", 0, ValueError),
        ("save_steps", 2.0, TypeError),
        ("save_secs", 0, ValueError),
        ("save_secs", float("nan"), ValueError),
        ("save_secs", "60", TypeError),
        ("latest_filename", "a/b", ValueError),
        ("latest_filename", 3, TypeError),
        ("signals", "SIGTERM", TypeError),
        ("signals", ["SIGTERM"], TypeError),
        ("signals", 15, TypeError),
        ("signals", [True], TypeError),
        ("signals", [signal.SIGKILL], ValueError),
        ("signals", [12345], ValueError),
        ("progress", True, TypeError),
        ("progress", "stderr", TypeError),
    ],
)
def test_wrong_argument_is_refused_at_the_call(run: Run, argument: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        run.steps(**{"total": 3, argument: value})


def test_wrong_saver_or_path_is_refused_at_the_call(run: Run) -> None:
    with pytest.raises(TypeError, match="saver is a Saver, not str"):
        training_steps("run/m", run.saver, total=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not UTF-8"):
        training_steps(run.saver, b"\xff", total=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="save_path"):
        training_steps(run.saver, 3, total=3)  # type: ignore[arg-type]


# ---- the line on a terminal


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal(100)
    yield terminal
    terminal.close()


def test_line_shows_step_rate_checkpoint_and_blocked_time_and_goes_away(
    run: Run, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    shown = []
    for _ in run.steps(1234, save_steps=10, progress=terminal.stream):
        clock[0] += 0.2
        shown.append(terminal.text())
        if len(shown) == 15:
            break
    gc.collect()
    assert shown[0] == "\rstep 0/1,234\r"
    assert shown[1].strip("\r ") == "step 1/1,234  5 it/s"
    assert shown[14].strip("\r ").startswith("step 14/1,234  5 it/s  saved model.ckpt-10 (0.8 s ago)  blocked 0.")
    erased = terminal.text()
    assert set(erased) == {"\r", " "}
    assert len(erased) >= len(shown[14]) - 1


def test_line_is_drawn_ten_times_a_second_at_most(
    run: Run, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [50.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    drawings = 0
    for _ in run.steps(100, progress=terminal.stream):
        clock[0] += 0.03
        drawings += terminal.text() != ""
    assert 100 * 0.03 * 10 * 0.7 < drawings <= 100 * 0.03 * 10 + 1


def test_standard_error_gets_the_line_unless_it_is_switched_off(
    run: Run, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    run.train(3, progress=False)
    assert terminal.text() == ""
    run.start()
    run.train(4)
    assert "step 3/4" in terminal.text()


def test_without_a_terminal_nothing_is_written(run: Run) -> None:
    stream = io.StringIO()
    run.train(20, save_steps=5, progress=stream)
    assert stream.getvalue() == ""


# ---- whole processes


def _status_of(child: Callable[[], object]) -> int:
    """Run a function in a forked child, and return the exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_forked_child_does_on_a_signal_what_it_would_have_done_without_the_loop(run: Run) -> None:
    for _ in (steps := run.steps(1)):
        assert _status_of(lambda: os.kill(os.getpid(), signal.SIGTERM)) == -signal.SIGTERM
    assert not steps.preempted


def test_loop_closed_in_another_thread_leaves_a_process_that_sigterm_ends(run: Run) -> None:
    def close_and_kill() -> None:
        steps = run.steps(3)
        next(steps)
        thread = threading.Thread(target=steps.close)
        thread.start()
        thread.join()
        os.kill(os.getpid(), signal.SIGTERM)

    assert _status_of(close_and_kill) == -signal.SIGTERM


def test_process_that_leaves_a_named_loop_ends_in_silence(tmp_path: Path) -> None:
    program = """if True:
        import torch, torchsaver as ts
        from torchsaver.loop.training_steps import training_steps
        steps = training_steps(ts.Saver({"x": torch.zeros(1)}), "run/m", total=10)
        for step in steps:
            break
    """
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ---- any run, interrupted anyhow, does each step once in its final history


@settings(max_examples=40, deadline=None)
@given(
    total=st.integers(0, 12),
    save_steps=st.none() | st.integers(1, 5),
    leaves=st.lists(st.tuples(st.sampled_from(["kill", "stop", "signal"]), st.integers(0, 5)), max_size=4),
)
def test_any_interruption_goes_on_from_the_last_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, total: int, save_steps: int | None, leaves: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("run") / "m"
    at = 0  # what a model says the newest checkpoint is
    for how, after in [*leaves, ("never", 0)]:
        x = torch.zeros(1)
        start = at
        steps = training_steps(ts.Saver({"x": x}), path, total=total, save_steps=save_steps)
        assert x.item() == start
        for number, step in enumerate(steps):
            assert step == start + number
            x += 1
            if number == after and how == "kill":
                break
            at = step + 1 if save_steps and (number + 1) % save_steps == 0 else at
            if number == after and how == "stop":
                steps.stop()
            if number == after and how == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
        else:
            at = max(start, int(x.item()))
        steps.close()
    assert at == total
    assert x.item() == total
