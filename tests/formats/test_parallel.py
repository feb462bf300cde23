"""Every number is worked on exactly once, and no thread outlives the call, whatever happens in any of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator

import pytest

from torchsaver.formats import parallel
from torchsaver.formats.parallel import alongside, cores, share

SECS = 20  # until a test that hangs fails instead


class Fault(Exception):
    """What goes wrong here."""


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 500])
def test_share_any_count_gives_every_number_exactly_once(count: int, threads: int) -> None:
    taken: list[int] = []
    share(count, threads, taken.extend)
    assert sorted(taken) == list(range(count))


@pytest.mark.parametrize(("count", "threads", "wanted"), [(5, 3, 3), (2, 8, 2), (9, 1, 1), (1, 4, 1), (0, 4, 1)])
def test_share_calls_the_work_once_in_each_thread_and_needs_no_more_than_there_are_numbers(
    count: int, threads: int, wanted: int
) -> None:
    workers: list[int] = []
    meeting = threading.Barrier(wanted)

    def work(numbers: Iterable[int]) -> None:
        meeting.wait(SECS)  # all of them are there at the same time
        workers.append(threading.get_ident())
        list(numbers)

    share(count, threads, work)
    assert len(set(workers)) == len(workers) == wanted
    assert threading.get_ident() in workers


@pytest.mark.parametrize("error", [Fault("first"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_calling", [True, False])
def test_share_error_in_any_thread_is_raised_after_all_have_ended_and_gives_no_more_numbers(
    is_calling: bool, error: BaseException
) -> None:
    caller, taken, ended = threading.get_ident(), [], []
    meeting, has_failed = threading.Barrier(3), threading.Event()
    once = iter([True])

    def work(numbers: Iterable[int]) -> None:
        is_caller = threading.get_ident() == caller
        meeting.wait(SECS)
        if is_caller is is_calling and next(once, False):
            has_failed.set()
            raise error
        has_failed.wait(SECS)
        for number in numbers:
            taken.append(number)
        ended.append(threading.get_ident())

    with pytest.raises(type(error)) as caught:
        share(100_000, 3, work)
    assert caught.value is error
    assert len(ended) == 2
    assert len(taken) < 100_000


def test_share_two_errors_raise_the_first() -> None:
    first, caller = Fault("first"), threading.current_thread()

    def work(numbers: Iterable[int]) -> None:
        if threading.current_thread() is not caller:
            raise first
        for thread in _others():
            thread.join(SECS)
        raise Fault("second")

    with pytest.raises(Fault) as caught:
        share(2, 2, work)
    assert caught.value is first


def _others() -> list[threading.Thread]:
    known = (threading.main_thread(), threading.current_thread())
    return [thread for thread in threading.enumerate() if thread not in known]


def test_share_interrupted_while_it_waits_for_the_others_ends_them_first(monkeypatch: pytest.MonkeyPatch) -> None:
    caller, interrupted, ended = threading.get_ident(), threading.Event(), []
    taken: list[int] = []
    join, once = parallel._Helper.finish, iter([True])

    def interrupt(thread: parallel._Helper) -> None:
        if next(once, False):
            interrupted.set()
            raise KeyboardInterrupt
        join(thread)

    def work(numbers: Iterable[int]) -> None:
        if threading.get_ident() == caller:
            return
        for number in numbers:
            taken.append(number)
            interrupted.wait(SECS)
        ended.append(True)

    monkeypatch.setattr(parallel._Helper, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        share(10_000_000, 3, work)
    assert len(ended) == 2
    assert len(taken) < 10_000_000


def test_share_interrupted_by_a_signal_waits_until_the_others_have_really_ended() -> None:
    caller, interrupted, ended = threading.get_ident(), threading.Event(), []

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def work(numbers: Iterable[int]) -> None:
        if threading.get_ident() != caller:
            interrupted.wait(SECS)
            ended.append(sum(range(3_000_000)))

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            share(2, 2, work)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(ended) == 1


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("has_started", [False, True])
def test_share_with_a_fault_or_an_interrupt_while_a_thread_starts_waits_for_all_that_did(
    *, has_started: bool, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, join, calls = threading.Thread.start, parallel._Helper.finish, iter(range(1, 9))
    started: set[threading.Thread] = set()
    joined: set[threading.Thread] = set()

    def failing(thread: threading.Thread) -> None:
        is_nth = next(calls) == nth
        if has_started or not is_nth:
            start(thread)
            started.add(thread)
        if is_nth:
            raise Fault("can't start new thread")

    def joining(thread: parallel._Helper) -> None:
        join(thread)
        joined.add(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    monkeypatch.setattr(parallel._Helper, "finish", joining)
    with pytest.raises(Fault):
        share(300_000, 3, lambda numbers: None)
    assert joined >= started
    assert len(started) == nth - 1 + has_started


def test_cores_is_what_this_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(os, "sched_getaffinity"):
        assert cores() == len(os.sched_getaffinity(0))
        monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == (os.cpu_count() or 1)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


def test_alongside_goes_through_all_steps_in_another_thread_while_the_block_runs() -> None:
    seen: list[int] = []
    has_met = threading.Event()

    def steps() -> Iterator[None]:
        for _ in range(100):
            seen.append(threading.get_ident())
            has_met.set()
            yield

    with alongside(steps()):
        assert has_met.wait(SECS)
    assert len(seen) == 100
    assert set(seen) - {threading.get_ident()}


@pytest.mark.parametrize("error", [Fault("block"), KeyboardInterrupt()])
def test_alongside_error_in_the_block_is_raised_after_the_step_at_hand(error: BaseException) -> None:
    steps_done: list[int] = []
    in_step, is_raised = threading.Event(), threading.Event()

    def steps() -> Iterator[None]:
        for number in range(200_000):
            in_step.set()
            is_raised.wait(SECS)
            steps_done.append(number)
            yield

    def block() -> None:
        in_step.wait(SECS)
        is_raised.set()
        raise error

    with pytest.raises(type(error)) as caught, alongside(steps()):
        block()
    assert caught.value is error
    assert 1 <= len(steps_done) < 200_000


@pytest.mark.parametrize("error", [Fault("steps"), KeyboardInterrupt()])
def test_alongside_error_in_the_steps_is_raised_after_the_block(error: BaseException) -> None:
    block_done = []

    def steps() -> Iterator[None]:
        yield
        raise error

    def block() -> None:
        for thread in _others():
            thread.join(SECS)
        block_done.append(True)

    with pytest.raises(type(error)) as caught, alongside(steps()):
        block()
    assert caught.value is error
    assert block_done == [True]


def test_alongside_error_in_both_raises_that_of_the_block() -> None:
    in_step, go_on = threading.Event(), threading.Event()

    def steps() -> Iterator[None]:
        in_step.set()
        go_on.wait(SECS)
        raise Fault("steps")
        yield

    def block() -> None:
        in_step.wait(SECS)
        go_on.set()
        raise Fault("block")

    with pytest.raises(Fault, match="block"), alongside(steps()):
        block()


def test_alongside_interrupted_while_it_waits_for_the_steps_ends_them_first(monkeypatch: pytest.MonkeyPatch) -> None:
    join, once, interrupted = parallel._Helper.finish, iter([True]), threading.Event()
    steps_done: list[int] = []

    def interrupt(thread: parallel._Helper) -> None:
        if next(once, False):
            interrupted.set()
            raise KeyboardInterrupt
        join(thread)

    def steps() -> Iterator[None]:
        for number in range(200_000):
            interrupted.wait(SECS)
            steps_done.append(number)
            yield

    monkeypatch.setattr(parallel._Helper, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt), alongside(steps()):
        pass
    assert len(steps_done) < 200_000
