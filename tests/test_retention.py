"""Retention is TF's algorithm, written down a second time here, and never dooms what has just been saved."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchsaver.retention import SECS_PER_HOUR, Record, Window, choose, doom_again, open_window, record_save

NAMES = ["m", "m-1", "m-2", "m-3", "m-4"]
HOURS = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, math.inf])
# Steps of a quarter of an hour: marks are met exactly, and the clock may go backwards.
STEPS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(-4, 12)), max_size=30)


class TFSaver:
    """The list and queue of TF's Saver, word for word: a name is its text. (Its mark is never infinite, as ours is
    when the rule is off: there, too, what it was only told of, whose time is infinite, is never deleted.)"""

    def __init__(self, now: float, max_to_keep: int, hours: float, last: list[tuple[str, float]]) -> None:
        self.max_to_keep, self.hours = max_to_keep, hours
        self.next_time = now + hours * 3600
        self.last, self.doomed = list(last), list[tuple[str, float]]()
        self.deleted: list[str] = []
        self.kept: list[str] = []

    def save(self, name: str, now: float) -> None:
        self.last = [entry for entry in self.last if entry[0] != name]
        self.last.append((name, now))
        if len(self.last) > self.max_to_keep:
            self.doomed.append(self.last.pop(0))
        if self.doomed:
            oldest, saved = self.doomed.pop(0)
            if saved > self.next_time or saved == math.inf:
                self.next_time += self.hours * 3600
                self.kept.append(oldest)
            else:
                self.deleted.append(oldest)


def _record(name: str, time: float = 0.0, identity: str | None = None) -> Record:
    return Record(name, time, name if identity is None else identity)


@given(
    steps=STEPS,
    hours=HOURS,
    max_to_keep=st.integers(1, 4),
    recovered=st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from([0.0, 9000.0, math.inf])), unique_by=lambda e: e[0]
    ),
)
def test_retention_of_any_saves_is_what_tf_does(
    steps: list[tuple[str, int]], hours: float, max_to_keep: int, recovered: list[tuple[str, float]]
) -> None:
    now = 1000.0
    tf = TFSaver(now, max_to_keep, hours, recovered)
    window = replace(open_window(now, hours), last=tuple(_record(name, time) for name, time in recovered))
    deleted, kept = [], []
    for name, quarters in steps:
        now += quarters * SECS_PER_HOUR / 4
        tf.save(name, now)
        window, decisions = choose(record_save(window, _record(name, now), max_to_keep), hours)
        deleted += [decision.record.prefix for decision in decisions if not decision.keep]
        kept += [decision.record.prefix for decision in decisions if decision.keep]
        assert [(record.prefix, record.time) for record in window.last] == tf.last
    assert (deleted, kept, window.next_kept_time) == (tf.deleted, tf.kept, tf.next_time)


@given(
    saves=st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(["", "./", "/abs/"])), max_size=30),
    initial=st.lists(st.sampled_from("abcdefgh"), unique=True),
    max_to_keep=st.integers(1, 4),
    failing=st.sets(st.sampled_from("abcdefgh")),
)
def test_retention_under_any_spelling_keeps_the_window_and_never_dooms_what_is_listed(
    saves: list[tuple[str, str]], initial: list[str], max_to_keep: int, failing: set[str]
) -> None:
    window = Window(last=tuple(_record(name) for name in initial))
    for name, spelling in saves:
        record = _record(spelling + name, identity=name)
        before = window
        window = record_save(window, record, max_to_keep)
        assert before.doomed == () or {r.identity for r in before.doomed} <= failing
        assert len(window.last) <= max(max_to_keep, len(initial))
        assert window.last[-1] == record
        window, decisions = choose(window, math.inf)
        lost = {decision.record.identity for decision in decisions}
        assert name not in lost
        assert lost.isdisjoint(r.identity for r in window.last)
        assert len({r.identity for r in window.last}) == len(window.last)
        window = doom_again(window, [d.record for d in decisions if d.record.identity in failing])


def test_record_save_of_a_list_with_two_spellings_of_one_checkpoint_does_not_doom_it_while_listed() -> None:
    recovered = Window(last=(_record("m-1"), _record("./m-1", identity="m-1")))  # recover_last_checkpoints keeps both
    window = record_save(recovered, _record("m-2"), max_to_keep=2)
    assert {r.identity for r in window.doomed}.isdisjoint(r.identity for r in window.last)


def test_record_save_and_choose_leave_the_window_they_were_given_as_it_was() -> None:
    window = Window((_record("a"), _record("b")), (_record("c"),), 5.0)
    same = Window((_record("a"), _record("b")), (_record("c"),), 5.0)
    record_save(window, _record("d"), 1)
    choose(window, 1.0)
    doom_again(window, [_record("e")])
    assert window == same


@pytest.mark.parametrize(
    ("times", "kept", "mark"),
    [
        ([100.0], [], 100.0),  # exactly on the mark: strict
        ([100.5], [100.5], 3700.0),
        ([99.0, 101.0, 102.0], [101.0], 3700.0),  # one for each period
        ([9000.0, 9001.0, 9002.0, 9003.0], [9000.0, 9001.0, 9002.0], 10900.0),  # a pause: one for each period missed
        ([4000.0, 3700.0, 3701.0], [4000.0, 3701.0], 7300.0),
        ([math.inf], [math.inf], 3700.0),
        ([], [], 100.0),
    ],
)
def test_choose_keeps_by_the_strict_grid_of_hours(times: list[float], kept: list[float], mark: float) -> None:
    window = Window(doomed=tuple(_record(f"m-{i}", time) for i, time in enumerate(times)), next_kept_time=100.0)
    after, decisions = choose(window, 1.0)
    assert [decision.record for decision in decisions] == list(window.doomed)
    assert [decision.record.time for decision in decisions if decision.keep] == kept
    assert (after.doomed, after.next_kept_time) == ((), mark)
    assert all(("1 hours" in d.reason) if d.keep else ("max_to_keep" in d.reason) for d in decisions)


def test_doom_again_puts_a_failed_removal_first_and_a_new_save_of_it_takes_it_out() -> None:
    window = doom_again(Window(doomed=(_record("b"),)), [_record("a")])
    assert [r.prefix for r in window.doomed] == ["a", "b"]
    saved = record_save(window, _record("./a", identity="a"), 5)
    assert [r.prefix for r in saved.doomed] == ["b"]


@pytest.mark.parametrize(("hours", "mark"), [(0.0, 50.0), (0.5, 1850.0), (math.inf, math.inf)])
def test_open_window_sets_the_first_mark_the_hours_ahead(hours: float, mark: float) -> None:
    assert open_window(50.0, hours) == Window(next_kept_time=mark)
